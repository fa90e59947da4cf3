"""`llama4 calibrate` beside llama-imatrix: time and processor time on the same text, and the sums.

    python -m benchmarks.calibration [MODEL] [--text FILE] [--chunks 32] [--rounds 3] [--threads 2]

Both run alternately, as processes of their own, with the perplexity and without. MODEL is the demo
model in bf16 unless another is given, and the text the documentation. The last lines have the
shortest times of each: of a run over two chunks, of one over all, and the difference, in which no
program and no model is loaded; and the largest relative difference of any sum.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from benchmarks.peer import ROOT, peer_environment, peer_tool
from demo.training import MODEL
from llama4_edge import convert
from llama4_edge.quant.importance_file import read_importance


class Cost(NamedTuple):
    """Seconds of a run, on the clock and of the processor."""

    wall: float
    cpu: float


def main() -> None:
    """Compare with and without the perplexity."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    with inputs(arguments.model, arguments.text) as (model, text, directory):
        for flags in ((), ("--no-ppl",)):
            compare(model, text, directory, arguments, flags)


@contextmanager
def inputs(model: Path | None, text: Path | None) -> Iterator[tuple[Path, Path, Path]]:
    """The model, the text, and a directory that is gone afterwards."""
    with TemporaryDirectory(prefix="calibration-") as name:
        directory = Path(name)
        if model is None:
            model = directory / "demo-bf16.gguf"
            convert(MODEL, model, recipe="bf16", vision=False)
        if text is None:
            text = directory / "text.txt"
            pages = sorted((ROOT / "docs").rglob("*.md"))
            text.write_text("".join(path.read_text() for path in pages))
        yield model, text, directory


def compare(
    model: Path,
    text: Path,
    directory: Path,
    arguments: argparse.Namespace,
    flags: tuple[str, ...],
) -> None:
    """Run both tools alternately; each is first in every second round."""
    outputs = [directory / "ours.gguf", directory / "theirs.gguf"]
    tools = [
        [sys.executable, "-m", "llama4_edge", "calibrate"],
        [str(peer_tool("llama-imatrix")), "-m"],
    ]
    costs: dict[int, list[list[Cost]]] = {2: [[], []], arguments.chunks: [[], []]}
    for number in range(arguments.rounds):
        for chunks, each in costs.items():
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                outputs[index].unlink(missing_ok=True)
                command = [
                    *tools[index], str(model), "-f", str(text), "-o", str(outputs[index]),
                    "--chunks", str(chunks), "-t", str(arguments.threads), *flags,
                ]  # fmt: skip
                each[index].append(timed(command))
    title = " ".join(["perplexity" if not flags else flags[0], f"{arguments.chunks} chunks"])
    few, many = (list(map(shortest, costs[chunks])) for chunks in costs)
    left = [Cost(b.wall - a.wall, b.cpu - a.cpu) for a, b in zip(few, many, strict=True)]
    for name, (ours, theirs) in (("2 chunks", few), (title, many), ("the difference", left)):
        print(
            f"{name}: ours {ours.wall:.2f} s ({ours.cpu:.2f} s of the processor), "
            f"llama-imatrix {theirs.wall:.2f} s ({theirs.cpu:.2f} s), "
            f"ratio {theirs.wall / ours.wall:.2f} ({theirs.cpu / ours.cpu:.2f})",
            flush=True,
        )
    print(f"largest relative difference of a sum: {largest_difference(*outputs):.1e}", flush=True)


def shortest(runs: list[Cost]) -> Cost:
    """The shortest times of several runs."""
    return Cost(min(one.wall for one in runs), min(one.cpu for one in runs))


def timed(command: list[str]) -> Cost:
    """What a command takes."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=peer_environment(), check=True, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begun
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu)


def largest_difference(ours: Path, theirs: Path) -> float:
    """Of what was measured, relative."""
    one, other = read_importance(ours), read_importance(theirs)
    assert one.tensors.keys() == other.tensors.keys()
    most = 0.0
    for name, expected in other.tensors.items():
        found = one.tensors[name].measured()
        assert (found.counts == expected.counts).all(), name
        seen = expected.sums > 0
        most = max(most, float(np.abs(found.sums[seen] / expected.sums[seen] - 1).max()))
    return most


if __name__ == "__main__":
    main()
