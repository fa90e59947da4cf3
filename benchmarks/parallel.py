"""Tokens a second of several sequences at a time, beside llama-batched-bench and llama-bench.

    python -m benchmarks.parallel MODEL [--sequences 1,2,4,8] [--prompt 128] [--generate 128]
    python -m benchmarks.parallel --synthetic scout [--layers 4] [--recipe q4_0] [--worker]

Ours is one engine with so many sequences, asked by as many requests at the same time: scheduler,
sampling and all. llama-batched-bench decodes as many and samples nothing; llama-bench is beside one
sequence, with the prompt as its depth. All have the libraries of llama-cpp-python, the same
threads, and the same tokens (those of C's rand(), as in llama-batched-bench): whatever ours
samples is replaced by the next of these, so that the same experts are visited. They take turns in
each round, each first in every second one. --in-turn adds what the same requests take one after
the other in an engine of one sequence; --alone leaves the peers out.

Rates are generated tokens a second once all prompts are read, prompt tokens a second, and both of
the whole job: of the best round, which is more reliable on a machine with other work, and the
median of the ratios of each round.

With --synthetic the model is a slice of that model, all widths and random weights. With --worker a
worker on the loopback interface has the experts, for ours and for the peers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.peer import OUT, llama_bench, peer_environment, peer_tool
from llama4_edge import EngineSettings, Placement, Sampling
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.measure.synthetic import synthetic_file
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.request import Request
from llama4_edge.runtime.workers.worker import local_workers
from llama4_edge.system.cores import decoding_threads

_GREEDY = Sampling(temperature=0.0)
_EXPERTS = r"\.ffn_(up|down|gate)_exps"
_WARM_UP = 16  # tokens of llama-batched-bench's first batch
_TRIES = 20  # its result is a line of its log, which its end may come before


class Rates(NamedTuple):
    """Tokens a second: generated, of the prompts, and of the whole job; 0.0 is not measured."""

    decode: float
    prompt: float = 0.0
    whole: float = 0.0


def main() -> None:
    """Compare for each number of sequences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--synthetic", metavar="MODEL", help="scout, maverick, …")
    parser.add_argument("--layers", type=int, default=4, help="of the synthetic model")
    parser.add_argument("--recipe", default="q4_0", help="of the synthetic model")
    parser.add_argument("--worker", action="store_true", help="experts on a worker")
    parser.add_argument("--sequences", default="1,2,4,8")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=decoding_threads())
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--in-turn", action="store_true")
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    if (arguments.model is None) == (arguments.synthetic is None):
        parser.error("name a model, or --synthetic")
    with model_file(arguments) as path, workers(arguments) as endpoints:
        print(f"{path.name}, {path.stat().st_size / 1e9:.2f} GB, {arguments.threads} threads, "
              f"prompts of {arguments.prompt} and {arguments.generate} tokens each, best of "
              f"{arguments.rounds}")  # fmt: skip
        for count in map(int, arguments.sequences.split(",")):
            compare(path, endpoints, count, arguments)


@contextmanager
def model_file(arguments: argparse.Namespace) -> Iterator[Path]:
    """The file that was named, or a synthetic one."""
    if arguments.model is not None:
        yield arguments.model
        return
    design = blueprint(
        arguments.synthetic, recipe=arguments.recipe, layers=arguments.layers, synthetic=True
    )
    with synthetic_file(design, arguments.directory, keep=True) as path:
        yield path


@contextmanager
def workers(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The endpoint of a worker, if there is to be one."""
    if not arguments.worker:
        yield ()
        return
    with local_workers(1, n_threads=arguments.threads) as endpoints:
        yield endpoints


def compare(
    path: Path, endpoints: tuple[str, ...], count: int, arguments: argparse.Namespace
) -> None:
    """Measure all in turn, and print a line for each."""
    programs: dict[str, Callable[[], Rates]] = {
        "ours": lambda: ours(path, endpoints, count, count, arguments)
    }
    if not arguments.alone:
        programs["llama-batched-bench"] = lambda: batched(path, endpoints, count, arguments)
        if count == 1:
            programs["llama-bench"] = lambda: single(path, endpoints, arguments)
    if arguments.in_turn and count > 1:
        programs["ours, in turn"] = lambda: ours(path, endpoints, count, 1, arguments)
    measured: dict[str, list[Rates]] = {name: [] for name in programs}
    for number in range(arguments.rounds):
        for name in list(programs)[:: -1 if number % 2 else 1]:
            measured[name].append(programs[name]())
    for name, every in measured.items():
        best = Rates(*map(max, zip(*every, strict=True)))
        text = f"{count} sequences, {name}: {best.decode:.1f} generated tokens/s"
        if best.whole:
            text += f", prompt {best.prompt:.1f}, in all {best.whole:.1f}"
        if name != "ours":
            text += "; ours / that: " + ratios(measured["ours"], every)
        print(text, flush=True)


def ratios(ours: Sequence[Rates], others: Sequence[Rates]) -> str:
    """Of generated tokens, prompt and all, of the best rounds and as a median of the rounds."""
    texts = []
    for word, field in (("generated", 0), ("prompt", 1), ("in all", 2)):
        pairs = [(one[field], other[field]) for one, other in zip(ours, others, strict=True)]
        if not all(other for _, other in pairs):
            continue
        best = max(one for one, _ in pairs) / max(other for _, other in pairs)
        middle = median(one / other for one, other in pairs)
        texts.append(f"{word} {best:.3f} (median {middle:.3f})")
    return ", ".join(texts)


class _Tokens:
    """C's rand() from its first seed on, as llama-batched-bench takes it."""

    def __init__(self, n_vocab: int) -> None:
        library = ctypes.CDLL(None)
        library.srand(1)
        self._rand, self._n_vocab = library.rand, n_vocab

    def take(self, count: int) -> list[int]:
        """The next tokens."""
        return [self._rand() % self._n_vocab for _ in range(count)]


def ours(
    path: Path,
    endpoints: tuple[str, ...],
    count: int,
    n_parallel: int,
    arguments: argparse.Namespace,
) -> Rates:
    """The rates of ``count`` requests in an engine of ``n_parallel`` sequences."""
    n_prompt, n_answer = arguments.prompt, arguments.generate
    placement = Placement()
    if endpoints:
        placement = Placement(n_gpu_layers=0, overrides=((_EXPERTS, "RPC0"),))
    settings = EngineSettings(
        n_ctx=n_prompt + n_answer, n_threads=arguments.threads, n_parallel=n_parallel,
        placement=placement, workers=endpoints,
    )  # fmt: skip
    with Engine(path, settings) as engine:
        tokens = _Tokens(engine.n_vocab)
        # The first batch makes buffers.
        finish(engine, [ask(engine, tokens.take(_WARM_UP), [0, 0], [])])
        prompts = [tokens.take(n_prompt) for _ in range(count)]
        steps = [tokens.take(count) for _ in range(n_answer)]
        times: list[list[float]] = [[] for _ in range(count)]
        answers = [[step[number] for step in steps] for number in range(count)]
        begun = time.perf_counter()
        finish(engine, [ask(engine, *one) for one in zip(prompts, answers, times, strict=True)])
    if n_parallel < count:  # one after the other
        whole = times[-1][-1] - begun
        decoding = sum(every[-1] - every[0] for every in times)
    else:
        whole = max(every[-1] for every in times) - begun
        decoding = whole - (max(every[0] for every in times) - begun)
    n_decoded = count * (n_answer - 1)
    n_read = count * n_prompt
    return Rates(n_decoded / decoding, n_read / (whole - decoding), (n_read + n_decoded) / whole)


def ask(
    engine: Engine, prompt: Sequence[int], answer: Sequence[int], times: list[float]
) -> Request:
    """A request that goes on with these tokens, and notes when each was chosen."""

    def accept(_token: int, _is_end: bool) -> bool:
        request.text[-1] = answer[len(times)]
        times.append(time.perf_counter())
        return True

    request = engine.request(prompt, _GREEDY, len(answer), accept, paced=False, ignores_ends=True)
    engine.scheduler.submit(request)
    return request


def finish(engine: Engine, requests: Sequence[Request]) -> None:
    """Wait for all of them."""
    for request in requests:
        engine.scheduler.wait(request, lambda request=request: request.ended)  # type: ignore[misc]
        if request.error is not None:
            raise request.error


def batched(
    path: Path, endpoints: tuple[str, ...], count: int, arguments: argparse.Namespace
) -> Rates:
    """The rates of llama-batched-bench."""
    total = count * (arguments.prompt + arguments.generate)
    options: list[object] = ["-npp", arguments.prompt, "-ntg", arguments.generate, "-npl", count]
    options += ["-c", total, "--output-format", "jsonl"]
    options += ["-t", arguments.threads, "-tb", arguments.threads, *placed(endpoints)]
    tool = peer_tool("llama-batched-bench", arguments.directory)
    command = [tool, "-m", path, *options]
    for _ in range(_TRIES):
        done = subprocess.run(
            list(map(str, command)), env=peer_environment(), capture_output=True, text=True
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if lines or done.returncode:
            break
    if done.returncode or not lines:
        sys.exit(f"{tool} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    record = json.loads(lines[-1])
    return Rates(record["speed_tg"], record["speed_pp"], record["speed"])


def single(path: Path, endpoints: tuple[str, ...], arguments: argparse.Namespace) -> Rates:
    """The rate of llama-bench, after as many tokens as a prompt has."""
    options = ["-p", "0", "-n", arguments.generate, "-d", arguments.prompt, "-r", "1"]
    options += ["-t", arguments.threads, *placed(endpoints)]
    (record,) = llama_bench(path, *map(str, options), directory=arguments.directory)
    return Rates(record["avg_ts"])


def placed(endpoints: tuple[str, ...]) -> list[str]:
    """The options of llama.cpp's tools that put experts on a worker, and all else on the CPU."""
    if not endpoints:
        return ["-ngl", "0"]
    (endpoint,) = endpoints
    return ["--rpc", endpoint, "-ngl", "0", "-ot", f"{_EXPERTS}=RPC0[{endpoint}]"]


if __name__ == "__main__":
    main()
