"""What each pair of KV cache types costs, on demo/Llama-4-Tiny.

    python -m benchmarks.kv_types [--chunks 1]

Compares, by `llama4_edge.compare`, every pair of types of keys and values with a cache in f16, on
long conversations of questions and answers that the model was taught: the mean KL divergence, and
how often the likeliest token is the same. Each with llama.cpp's rotation of quantized keys and
values, and without (LLAMA_ATTN_ROT_DISABLE=1). Prints tables in Markdown. A model with one KV head
and one full layer of four says which pair costs more, and not what Scout would lose.
`benchmarks.settings` has more of the pairs that are used, `benchmarks.needles` asks for what lies
far back.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import get_args

from benchmarks.peer import OUT
from benchmarks.settings import compare_on, long_conversations, rotation
from demo.training import MODEL
from llama4_edge import Candidate, convert
from llama4_edge.runtime.settings import KVType

TYPES: tuple[KVType, ...] = get_args(KVType)


def main() -> None:
    """Convert, and compare pair by pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=1, help="of 4,096 tokens, and one more")
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    file = arguments.directory / "llama-4-tiny-bf16.gguf"
    convert(MODEL, file, recipe="bf16", force=True)
    talks = long_conversations(arguments.chunks + 1)
    pairs = list(product(TYPES, TYPES))
    for rotated in (True, False):
        with rotation(rotated):
            found = compare_on(file, [Candidate(file, pair) for pair in pairs], talks)
        statistics = [one.statistics for one in found.candidates if one.statistics is not None]
        cells = dict(zip(pairs, statistics, strict=True))
        title = f"{found.n_tokens:,} tokens, {'with' if rotated else 'without'} rotation"
        table(f"mean KL, 10⁻⁶, over {title}", {
            pair: f"{one.kl_mean.value * 1e6:,.3g}" for pair, one in cells.items()
        })  # fmt: skip
        table(f"same likeliest token, %, {title}", {
            pair: f"{one.same_top.value:.2%}" for pair, one in cells.items()
        })  # fmt: skip


def table(title: str, cells: dict[tuple[KVType, KVType], str]) -> None:
    """A row for each type of keys, a column for each type of values."""
    print(f"\n{title}:\n\n| K, down; V, across |", " | ".join(TYPES), "|")
    print("|---|" + "---|" * len(TYPES))
    for type_k in TYPES:
        row = (cells[type_k, type_v] for type_v in TYPES)
        print(f"| {type_k} |", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
