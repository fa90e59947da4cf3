"""Codes that demo/Llama-4-Tiny recalls from far back, by KV cache types, and through a session.

    python -m benchmarks.needles [--lengths 9000,16000,32000] [--rounds 4] [--types f16,q8_0/q4_0]

Tells the model five codes at five depths of a long message and asks for each: of the model that
read the message, and of another that opened the session which the first one saved. That one reads
nothing again but the questions, which is asserted. Each pair of types with llama.cpp's rotation of
quantized keys and values, and without (LLAMA_ATTN_ROT_DISABLE=1). Prints a table in Markdown: of
how many codes how many are recalled, and "same" where both answered the same, word for word.
"""

from __future__ import annotations

import argparse
import random
import time
from itertools import product
from pathlib import Path

from benchmarks.peer import OUT
from benchmarks.settings import rotation
from demo.training import MODEL
from demo.training.evaluate import DEPTHS, GREEDY
from demo.training.lessons.conversation import Turn
from demo.training.lessons.haystack import needle
from llama4_edge import Conversation, Model, convert
from llama4_edge.runtime.settings import KVTypes, kv_bits, kv_text

# The planner's ladder, and what is beside and below it.
ASKED: tuple[KVTypes, ...] = (
    "f16", "bf16", "q8_0", ("q8_0", "q5_1"), ("q8_0", "q4_0"), "q5_1", "q5_0", ("q4_0", "q8_0"),
    "q4_1", "q4_0", "iq4_nl",
)  # fmt: skip
# Tokens of the last answer and of a question, which are in no session of what came before.
_READ_AGAIN = 128


def main() -> None:
    """Convert, and ask with each pair of types."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lengths", default="9000,16000,32000")
    parser.add_argument("--rounds", type=int, default=4, help="messages a cell, of five codes each")
    parser.add_argument("--types", default=",".join(map(_spelled, ASKED)))
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    file = arguments.directory / "llama-4-tiny-bf16.gguf"
    convert(MODEL, file, recipe="bf16", force=True)
    lengths = [int(length) for length in arguments.lengths.split(",")]
    asked = [kind for kind in ASKED if _spelled(kind) in arguments.types.split(",")]
    print(
        "| codes recalled |", " | ".join(f"{length:,} tokens" for length in lengths), "| seconds |"
    )
    print("|---|" + "---|" * (len(lengths) + 1))
    for kind, rotated in product(asked, (True, False)):
        if kind in ("f16", "bf16") and not rotated:
            continue
        begun = time.perf_counter()
        with rotation(rotated):
            cells = [cell(file, length, kind, arguments.rounds) for length in lengths]
        name = f"{kv_text(kind)} ({kv_bits(kind) / 2:.2f} bits)"
        title = name if rotated else f"{name}, no rotation"
        seconds = time.perf_counter() - begun
        print(f"| {title} |", " | ".join(cells), f"| {seconds:.0f} |", flush=True)


def _spelled(kind: KVTypes) -> str:
    """``q8_0/q4_0``."""
    return kind if isinstance(kind, str) else "/".join(kind)


def cell(file: Path, length: int, kind: KVTypes, rounds: int) -> str:
    """Of how many codes how many are recalled, by the model that read and by the other."""
    read = reopened = same = total = 0
    session = file.parent / "needles.l4s"
    for number in range(rounds):
        with opened(file, length, kind) as model:
            first, *others = turns(model, length, number)
            talk = Conversation().user(first.question)
            answers = [answer(model, talk)]
            talk = talk.assistant(first.answer)
            session.unlink(missing_ok=True)
            model.save_session(session, talk)
            answers += [answer(model, talk.user(turn.question)) for turn in others]
        with opened(file, length, kind) as model:
            talk = model.load_session(session).conversation
            again = [answer(model, Conversation(talk.messages[:-1]), reads=_READ_AGAIN)]
            again += [answer(model, talk.user(turn.question), reads=_READ_AGAIN) for turn in others]
        right = [turn.answer for turn in (first, *others)]
        read += sum(map(str.__eq__, answers, right))
        reopened += sum(map(str.__eq__, again, right))
        same += sum(map(str.__eq__, answers, again))
        total += len(right)
    session.unlink()
    words = "same" if same == total else f"{same} the same"
    return f"{read} of {total}; reopened {reopened}, {words}"


def opened(file: Path, length: int, kind: KVTypes) -> Model:
    """The model, with room for the questions."""
    return Model(file, n_ctx=length + 1024, kv_type=kind)


def turns(model: Model, length: int, number: int) -> tuple[Turn, ...]:
    """A long message with codes and a question, and more questions."""
    return needle(
        random.Random(f"needle {length} {number}"), True, length,
        lambda text: len(model.tokenize(text)),
        codes=len(DEPTHS), questions=len(DEPTHS), depths=DEPTHS,
    ).turns  # fmt: skip


def answer(model: Model, talk: Conversation, reads: int | None = None) -> str:
    """The likeliest answer, for which at most so many tokens of the prompt are read."""
    completion = model.chat(talk, max_tokens=64, sampling=GREEDY)
    if reads is not None:
        new = completion.prompt_tokens - completion.reused_tokens
        assert new <= reads, f"{new:,} of {completion.prompt_tokens:,} tokens were read again"
    return completion.text


if __name__ == "__main__":
    main()
