"""Peak memory of converting Maverick's geometry, whose largest tensor is 20 GiB.

    python -m benchmarks.memory [--threads 2] [--recipe q4_0] [--directory DIR]

Writes four layers of Maverick's geometry, two of them with 128 experts, as sparse files: the
weights are holes that read as zeros, 70 GB in size, almost nothing on disk. Converts them in a
process whose peak resident memory the kernel reports. The output is a real file of full size.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.conversion import SLICE, measure
from benchmarks.peer import OUT
from demo.checkpoint import write_checkpoint

MAVERICK = replace(
    SLICE, experts=128, moe_step=2, qk_norm=False, rope=None, max_positions=1_048_576,
    vocabulary=1024,
)  # fmt: skip


def main() -> None:
    """Write the sparse checkpoint, convert it, print the peak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recipe", default="q4_0")
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    source = arguments.directory / "maverick-holes"
    write_checkpoint(source, MAVERICK, holes=True)
    target = arguments.directory / "maverick.gguf"
    command = [
        str(Path(sys.executable).with_name("llama4")), "convert", str(source), "-o", str(target),
        "--recipe", arguments.recipe, "--threads", str(arguments.threads), "--force",
    ]  # fmt: skip
    step = measure(command)
    print(
        f"{arguments.recipe}, {arguments.threads} threads: {step.seconds:.0f} s, "
        f"peak {step.peak_bytes / 1e9:.2f} GB RSS, {target.stat().st_size / 1e9:.1f} GB written"
    )
    target.unlink()


if __name__ == "__main__":
    main()
