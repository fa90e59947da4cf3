"""What each pair of KV cache types costs, on demo/Llama-4-Tiny.

    python -m benchmarks.kv_types [--tokens 4000]

Reads one long conversation, of questions and answers that the model was taught, with keys and
values in every pair of types, and compares the predictions of its tokens with those of a cache in
f16: the mean KL divergence, and how often the likeliest token is the same. Each with llama.cpp's
rotation of quantized keys and values, and without (LLAMA_ATTN_ROT_DISABLE=1). Prints tables in
Markdown. A model with one KV head and one full layer of four says which pair costs more, and not
what Scout would lose. `benchmarks.needles` asks for what lies far back.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from benchmarks.peer import OUT
from demo.training import MODEL
from demo.training.encoding import encode
from demo.training.lessons.conversation import Conversation
from demo.training.lessons.mixture import examination
from llama4_edge import convert
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.settings import EngineSettings, KVType, KVTypes

TYPES: tuple[KVType, ...] = get_args(KVType)
_ROTATION = "LLAMA_ATTN_ROT_DISABLE"


def main() -> None:
    """Convert, and compare pair by pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    file = arguments.directory / "llama-4-tiny-bf16.gguf"
    convert(MODEL, file, recipe="bf16", force=True)
    compare_all(file, conversation(arguments.tokens))


def compare_all(file: Path, tokens: Sequence[int]) -> None:
    """Print what each pair costs, with rotation and without."""
    reference = predictions(file, tokens, "f16")
    for rotated in (True, False):
        with rotation(rotated):
            cells = {
                pair: compare(predictions(file, tokens, pair), reference)
                for pair in product(TYPES, TYPES)
            }
        title = "with rotation" if rotated else "without rotation"
        table(f"mean KL x 1e6 over {len(tokens):,} tokens, {title}", cells, 0, 1e6, "{:.3g}")
        table(f"same likeliest token, %, {title}", cells, 1, 100, "{:.2f}")


@contextmanager
def rotation(on: bool) -> Iterator[None]:
    """A block in which llama.cpp rotates quantized keys and values, or does not."""
    os.environ[_ROTATION] = "0" if on else "1"
    try:
        yield
    finally:
        del os.environ[_ROTATION]


def conversation(count: int) -> list[int]:
    """The first `count` tokens of one conversation of all questions of the examination."""
    questions = examination()
    random.Random(1).shuffle(questions)
    turns = tuple(turn for question in questions for turn in question.turns)
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokens = encode(tokenizer, Conversation("knowledge", turns)).ids[:count]
    assert len(tokens) == count, f"the examination has only {len(tokens)} tokens"
    return list(tokens)


def predictions(file: Path, tokens: Sequence[int], kv_type: KVTypes) -> npt.NDArray[np.float32]:
    """The log-probabilities after each token, [tokens, vocabulary]."""
    settings = EngineSettings(
        n_ctx=len(tokens), n_outputs=512, n_threads=1, kv_type=kv_type, flash_attention="on"
    )
    with Engine(file, settings) as engine:
        logits = engine.logits(tokens)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def compare(
    ours: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]
) -> tuple[float, float]:
    """The mean KL divergence, and the share of tokens with the same likeliest token."""
    divergence = (np.exp(reference) * (reference - ours)).sum(-1, dtype=np.float64)
    return float(divergence.mean()), float((ours.argmax(-1) == reference.argmax(-1)).mean())


def table(
    title: str, cells: dict[tuple[KVType, KVType], tuple[float, float]], part: int, scale: float,
    form: str,
) -> None:  # fmt: skip
    """A row for each type of keys, a column for each type of values."""
    print(f"\n{title}:\n\n| K, down; V, across |", " | ".join(TYPES), "|")
    print("|---|" + "---|" * len(TYPES))
    for type_k in TYPES:
        row = (form.format(cells[type_k, type_v][part] * scale) for type_v in TYPES)
        print(f"| {type_k} |", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
