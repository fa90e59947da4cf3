"""Encoders compared with ggml's on one thread: numbers a second, and equality of bytes.

    python -m benchmarks.encoders [--seconds 1] [--types q4_k,q6_k]

The input is rows of normally distributed numbers at the width of Scout: f32 for ggml's encoders,
bf16 for ours, as in a checkpoint; with importance, channels count as differently as in an
importance matrix. ggml's encoders are those of the installed llama-cpp-python. All are measured
alternately, on each instruction set that the processor has, and each one's best turn counts: others
on the machine only slow it down. Types that only ggml encodes have its rate alone. Copying the same
bf16 is the limit of what an encoder can do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from llama4_edge.quant.encode import (
    NATIVE,
    Floats,
    _encode,
    _encode_by_ggml,
    bf16_to_f32,
    f32_to_bf16,
    instruction_sets,
)
from llama4_edge.quant.types import TensorType, type_named

ROUNDS = 5


def rate(numbers: int, encode: Callable[[], object], seconds: float) -> float:
    """Numbers a second of the thread's own time, which others do not count in, over `seconds`."""
    start, total = time.thread_time(), 0
    while (elapsed := time.thread_time() - start) < seconds:
        encode()
        total += numbers
    return total / elapsed


def compare(kind: TensorType, numbers: Floats, importance: Floats | None, seconds: float) -> None:
    """Print the rates of one type, the best of a few rounds, and their ratios to ggml's."""
    halves = f32_to_bf16(numbers)
    columns = np.ascontiguousarray(halves.T).T
    theirs = np.empty(kind.nbytes(numbers.shape), np.uint8)
    encoders: dict[str, Callable[[], object]] = {
        "ggml": partial(_encode_by_ggml, numbers, kind, theirs, importance)
    }
    outputs = []
    for name in instruction_sets() if kind in NATIVE else ():
        for suffix, rows in (("", halves), (" transposing", columns)):
            outputs.append(np.empty_like(theirs))
            encoders[name + suffix] = partial(_encode, name, rows, kind, outputs[-1], importance)
    turns = [
        [rate(halves.size, encode, seconds) / 1e6 for encode in encoders.values()]
        for _ in range(ROUNDS)
    ]
    ggml, *ours = (max(values) for values in zip(*turns, strict=True))
    rates = ", ".join(
        f"{name} {value:.0f} ({value / ggml:.1f}x)"
        for name, value in zip(list(encoders)[1:], ours, strict=True)
    )
    same = all((theirs == out).all() for out in outputs)
    verdict = f"; {rates}; {'the same bytes' if same else 'DIFFERENT BYTES'}" if ours else ""
    print(
        f"{kind.name}{'' if importance is None else ' with importance'}: ggml {ggml:.1f}{verdict}",
        flush=True,
    )


def main() -> None:
    """Print a line for each type, without and with importance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each turn of each encoder")
    parser.add_argument("--types", help="some of them, with commas in between")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((256, 5120), dtype=np.float32) * 0.02
    bf16_to_f32(f32_to_bf16(numbers), numbers)
    importance = np.exp(rng.normal(0, 2, numbers.shape[1])).astype(np.float32)
    kinds = [type_named(name) for name in arguments.types.split(",")] if arguments.types else NATIVE
    halves = f32_to_bf16(numbers)
    copy = partial(np.copyto, np.empty_like(halves), halves)
    copying = max(rate(halves.size, copy, arguments.seconds / ROUNDS) for _ in range(ROUNDS)) / 1e6
    print(f"million numbers a second; copying bf16: {copying:.0f} ({copying * 2 / 1e3:.1f} GB/s)")
    for kind in sorted(kinds, key=lambda kind: (-kind.bits_per_weight, kind.name)):
        for given in (importance,) if kind.needs_importance else (None, importance):
            compare(kind, numbers, given, arguments.seconds / ROUNDS)


if __name__ == "__main__":
    main()
