"""How long a command takes before it says something, beside llama-completion on the same file.

    python -m benchmarks.startup [--model GGUF] [--runs 10]

Whole processes, from their start: importing the package, ``llama4 --help``, and the first byte of
an answer, from ``llama4 run`` and from llama.cpp's own llama-completion with the same prompt. The
runs take turns; the median of each is printed, with its least and its greatest. The model is the
one in the box.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peer import ROOT, peer_environment, peer_tool
from llama4_edge import convert

QUESTION = "How many experts does Scout have?"
# What the model's chat template makes of the question.
PROMPT = (
    f"<|begin_of_text|><|header_start|>user<|header_end|>\n\n{QUESTION}<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n"
)
LLAMA4 = str(Path(sys.executable).with_name("llama4"))


def main() -> None:
    """Measure and print, a line for each command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "demo/out/llama-4-tiny-int4.gguf"))
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    if not Path(arguments.model).exists():
        Path(arguments.model).parent.mkdir(exist_ok=True)
        convert(ROOT / "demo/Llama-4-Tiny", arguments.model)
    peer = str(peer_tool("llama-completion"))
    commands: dict[str, tuple[list[str], Mapping[str, str]]] = {
        "python -c pass": ([sys.executable, "-c", "pass"], os.environ),
        "import llama4_edge": ([sys.executable, "-c", "import llama4_edge"], os.environ),
        "llama4 --help": ([LLAMA4, "--help"], os.environ),
        "llama4 run, first byte": (
            [LLAMA4, "run", arguments.model, QUESTION, "--temp", "0"], os.environ,
        ),
        "llama-completion, first byte": (
            [peer, "-m", arguments.model, "-p", PROMPT, "-no-cnv", "--temp", "0", "-n", "20",
             "--no-display-prompt"], peer_environment(),
        ),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.runs + 1):
        for name, (command, environment) in commands.items():
            seconds[name].append(until_first_byte(command, environment))
    for name, samples in seconds.items():
        counted = samples[1:]  # the first fills the page cache
        print(
            f"{name:30} {statistics.median(counted):.3f} s "
            f"({min(counted):.3f} to {max(counted):.3f})"
        )


def until_first_byte(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Seconds from the start of a command to its first byte on stdout, or to its end."""
    begun = time.perf_counter()
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - begun
        process.stdout.read()
    if process.returncode:
        sys.exit(f"{command[0]} failed with exit status {process.returncode}")
    return seconds


if __name__ == "__main__":
    main()
