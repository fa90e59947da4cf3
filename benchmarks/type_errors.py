"""What each type loses of rows as wide as Scout's, weighted by what the columns matter.

    python -m benchmarks.type_errors [--rows 64]

Encodes rows of 8192 random numbers, without an importance matrix and with one, decodes them as ggml
does, and prints the weighted error relative to the weighted numbers, sqrt(sum(w (x - q)^2) / sum(w
x^2)). Numbers are normal or, with more that are large, of Student's t with 5 degrees of freedom;
the columns' weights are squares of activations, log-normal, a sixth of them below an eighth of the
median and a sixth above eight times that. It is no model's error: it orders types of one size.
"""

from __future__ import annotations

import argparse
from math import log, sqrt

import numpy as np
from rich.console import Console
from rich.table import Table

from llama4_edge.quant.encode import Floats, decode_blocks, encode_rows
from llama4_edge.quant.types import TYPES, TensorType

WIDTH = 8192


def main() -> None:
    """Print a row for each type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (arguments.rows, WIDTH)
    sources = {
        "normal": rng.standard_normal(shape),
        "Student's t": rng.standard_t(5, shape) / sqrt(5 / 3),
    }
    rows = {name: (0.02 * numbers).astype(np.float32) for name, numbers in sources.items()}
    weights = np.exp(log(8) * rng.standard_normal(WIDTH)).astype(np.float32)
    table = Table("type", "bits")
    for name in rows:
        table.add_column(f"{name}, %", justify="right")
        table.add_column("with importance", justify="right")
    for kind in sorted(TYPES.values(), key=lambda kind: -kind.bits_per_weight):
        if kind.quantized:
            cells = [
                f"{100 * error(numbers, kind, weights, importance):.3f}"
                for numbers in rows.values()
                for importance in (None, weights)
            ]
            table.add_row(kind.name, f"{kind.bits_per_weight:.4g}", *cells)
    Console().print(table)


def error(numbers: Floats, kind: TensorType, weights: Floats, importance: Floats | None) -> float:
    """The weighted relative error of `numbers` in a type."""
    encoded = np.empty(kind.nbytes(numbers.shape), np.uint8)
    encode_rows(numbers, kind, encoded, importance)
    decoded = np.empty_like(numbers)
    decode_blocks(encoded, kind, decoded)
    lost = (weights * np.square(numbers - decoded, dtype=np.float64)).sum()
    return sqrt(lost / (weights * np.square(numbers, dtype=np.float64)).sum())


if __name__ == "__main__":
    main()
