"""Tokens a second of several sequences at a time, beside one after the other and llama.cpp's tool.

    python -m benchmarks.parallel MODEL [--sequences 1,2,4,8] [--prompt 128] [--generate 128]

Each sequence has a prompt of its own and is gone on with greedily, whatever tokens come. "Together"
is one engine with as many sequences; "one after the other" asks the same of an engine with one, in
turn. llama-batched-bench, with the libraries of llama-cpp-python and the same counts, is run in
every round too; --alone leaves it out. Rates are generated tokens a second, and prompt and
generated tokens a second of the whole job; the best round of each, which is more reliable on a
machine with other work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.peer import OUT, peer_environment, peer_tool
from llama4_edge import EngineSettings, Sampling
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.scheduler import Request

_GREEDY = Sampling(temperature=0.0)


class Rates(NamedTuple):
    """Tokens a second: generated, and of the whole job."""

    decode: float
    whole: float


def main() -> None:
    """Compare for each number of sequences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", default="1,2,4,8")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    for count in map(int, arguments.sequences.split(",")):
        measured: dict[str, list[Rates]] = {}
        for _ in range(arguments.rounds):
            for name, n_parallel in (("together", count), ("one after the other", 1)):
                rates = ours(arguments, count, n_parallel)
                measured.setdefault(name, []).append(rates)
            if not arguments.alone:
                measured.setdefault("llama-batched-bench", []).append(peer(arguments, count))
        for name, every in measured.items():
            best = Rates(*(max(values) for values in zip(*every, strict=True)))
            print(
                f"{count} sequences, {name}: {best.decode:.1f} generated tokens/s, "
                f"{best.whole:.1f} in all",
                flush=True,
            )


def ours(arguments: argparse.Namespace, count: int, n_parallel: int) -> Rates:
    """The rates of ``count`` prompts in an engine of ``n_parallel`` sequences."""
    settings = EngineSettings(
        n_ctx=arguments.prompt + arguments.generate,
        n_threads=arguments.threads,
        n_parallel=n_parallel,
    )
    with Engine(arguments.model, settings) as engine:
        # The first batch makes buffers.
        finish(engine, [ask(engine, [1] * 8, 2)])
        prompts = [
            [(place * 37 + number * 101) % engine.n_vocab for place in range(arguments.prompt)]
            for number in range(count)
        ]
        begun = time.perf_counter()
        requests = [ask(engine, prompt, arguments.generate) for prompt in prompts]
        finish(engine, requests)
        seconds = time.perf_counter() - begun
        # Together, all decode in the same batches; one after the other, each in its own.
        each = [request.decode_seconds for request in requests]
        decoding = max(each) if n_parallel > 1 else sum(each)
    whole = count * (arguments.prompt + arguments.generate) / seconds
    return Rates(count * (arguments.generate - 1) / decoding, whole)


def ask(engine: Engine, prompt: Sequence[int], count: int) -> Request:
    """A request that no token ends."""
    request = engine.request(prompt, _GREEDY, count, lambda _token, _is_end: True, paced=False)
    engine.scheduler.submit(request)
    return request


def finish(engine: Engine, requests: Sequence[Request]) -> None:
    """Wait for all of them."""
    for request in requests:
        engine.scheduler.wait(request, lambda request=request: request.ended)  # type: ignore[misc]


def peer(arguments: argparse.Namespace, count: int) -> Rates:
    """The rates of llama-batched-bench."""
    total = count * (arguments.prompt + arguments.generate)
    options: list[object] = ["-npp", arguments.prompt, "-ntg", arguments.generate, "-npl", count]
    options += ["-c", total, "--output-format", "jsonl"]
    if arguments.threads:
        options += ["-t", arguments.threads]
    tool = peer_tool("llama-batched-bench", arguments.directory)
    command = [tool, "-m", arguments.model, *options]
    done = subprocess.run(
        list(map(str, command)), env=peer_environment(), capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        sys.exit(f"{tool} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    record = json.loads(lines[-1])
    return Rates(record["speed_tg"], record["speed"])


if __name__ == "__main__":
    main()
