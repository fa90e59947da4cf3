"""Turn a checkpoint into a GGUF, and say what the file holds.

    python examples/convert_and_inspect.py demo/Llama-4-Tiny tiny-int4.gguf

With `meta-llama/Llama-4-Scout-17B-16E-Instruct` instead of the directory it is the same.
"""

from __future__ import annotations

import sys

import llama4_edge


def main(source: str, output: str) -> None:
    """Convert with the recipe int4, then read the file back and look for damage."""
    report = llama4_edge.convert(source, output, recipe="int4", force=True)
    print(f"{report.bits_per_weight:.2f} bits a weight")

    inspection = llama4_edge.inspect(output, check=True)
    for role in inspection.summary.roles:
        print(f"{role.role}: {role.tensors} tensors, {role.bytes:,} bytes")
    print("damaged" if inspection.damaged else "sound")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
