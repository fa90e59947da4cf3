"""Encoders compared with ggml's on one thread: numbers a second, and equality of bytes.

    python -m benchmarks.encoders [--seconds 1]

The input is rows of normally distributed numbers at the width of Scout: f32 for ggml's encoders,
bf16 for ours, as in a checkpoint. ggml's encoders are those of the installed llama-cpp-python. The
two are measured alternately.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from llama4_edge.quant.encode import (
    NATIVE,
    bf16_to_f32,
    encode_bf16,
    encode_rows,
    f32_to_bf16,
    instruction_sets,
)

ROUNDS = 5


def rate(numbers: int, encode: Callable[[], object], seconds: float) -> float:
    """Numbers a second, over `seconds`."""
    start, total = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        encode()
        total += numbers
    return total / elapsed


def main() -> None:
    """Print a line for each type: medians of a few rounds, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each turn of each encoder")
    seconds = parser.parse_args().seconds / ROUNDS
    numbers = np.random.default_rng(0).standard_normal((256, 5120), dtype=np.float32) * 0.02
    halves = f32_to_bf16(numbers)
    bf16_to_f32(halves, numbers)
    columns = np.ascontiguousarray(halves.T).T
    print(f"{instruction_sets()[0]}, million numbers a second")
    for kind in sorted(NATIVE, key=lambda kind: -kind.bits_per_weight):
        theirs = np.empty(kind.nbytes(numbers.shape), np.uint8)
        ours, transposed = np.empty_like(theirs), np.empty_like(theirs)
        encoders: tuple[Callable[[], object], ...] = (
            partial(encode_rows, numbers, kind, theirs),
            partial(encode_bf16, halves, kind, ours),
            partial(encode_bf16, columns, kind, transposed),
        )
        turns = [
            [rate(halves.size, encode, seconds) / 1e6 for encode in encoders] for _ in range(ROUNDS)
        ]
        ggml, rows, by_columns = (statistics.median(values) for values in zip(*turns, strict=True))
        same = bool((theirs == ours).all() and (theirs == transposed).all())
        print(
            f"{kind.name}: ggml {ggml:.1f}, ours {rows:.0f} ({by_columns:.0f} while transposing), "
            f"{rows / ggml:.1f}x; {'the same bytes' if same else 'DIFFERENT BYTES'}"
        )


if __name__ == "__main__":
    main()
