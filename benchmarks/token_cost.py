"""What a token costs beside llama_decode: all of ours, our sampling, and llama.cpp's sampling.

    python -m benchmarks.token_cost MODEL [--sequences 1,8] [--generate 400] [--threads N]

In one run, in turn, with the same tokens and the library's default sampling:

- llama_decode alone: a loop of our bindings that decodes batches of a token for each sequence;
- ours: the scheduler with all that it does, as it answers requests;
- ours, one by one: the same where the native code that takes several tokens was not built;
- sampling, ours and llama.cpp's, on the logits of such a batch.

Microseconds a batch (a token of each sequence), of the best round: on a machine with other work the
others say more of that. What ours takes beyond llama_decode is given as a part of it, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import llama_cpp
import numpy as np

from benchmarks.parallel import finish
from benchmarks.sampling import peer
from llama4_edge import EngineSettings, Sampling
from llama4_edge.runtime.bindings import steps
from llama4_edge.runtime.bindings.sampler import DrySamplers, Sampler
from llama4_edge.runtime.engine import Engine
from llama4_edge.system.cores import decoding_threads

_SAMPLING = Sampling(seed=1)
_PROMPT = 128


def main() -> None:
    """Measure for each number of sequences."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", default="1,8")
    parser.add_argument("--generate", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=decoding_threads())
    arguments = parser.parse_args()
    for count in map(int, arguments.sequences.split(",")):
        settings = EngineSettings(
            n_ctx=_PROMPT + arguments.generate, n_threads=arguments.threads, n_parallel=count,
            cache_ram=0,
        )  # fmt: skip
        with Engine(arguments.model, settings) as engine:
            show(engine, arguments)


def show(engine: Engine, arguments: argparse.Namespace) -> None:
    """A line for each thing that is measured."""
    count = engine.settings.n_parallel
    texts: list[list[int]] = []
    programs: dict[str, Callable[[], float]] = {
        "ours": lambda: answered(engine, arguments.generate, texts),
        "ours, one by one": lambda: one_by_one(engine, arguments.generate),
        "llama_decode alone": lambda: decoded(engine, texts),
        "sampling, ours": lambda: sampled(engine, ours(engine, count), arguments.generate),
        "sampling, llama.cpp's": lambda: sampled(engine, theirs(engine, count), arguments.generate),
    }
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(arguments.rounds):
        for name, program in programs.items():
            best[name] = min(best[name], program())
    alone = best["llama_decode alone"]
    print(f"{count} sequences, {arguments.threads} threads, microseconds a batch:")
    for name, seconds in best.items():
        beyond = (
            f", {(seconds / alone - 1):+.1%} of llama_decode" if name.startswith("ours") else ""
        )
        print(f"  {name:<22} {seconds * 1e6:9.1f}{beyond}", flush=True)


def prompts(engine: Engine) -> list[list[int]]:
    """One for each sequence, that begins as no other does."""
    return [
        [(place * 37 + number * 101 + 1) % engine.n_vocab for place in range(_PROMPT)]
        for number in range(engine.settings.n_parallel)
    ]


def answered(engine: Engine, n_answer: int, texts: list[list[int]]) -> float:
    """Seconds a batch of requests that are answered at the same time; ``texts`` become theirs."""
    times: list[float] = []

    def accept(_token: int, _is_end: bool) -> bool:
        times.append(time.perf_counter())
        return True

    requests = [
        engine.request(prompt, _SAMPLING, n_answer, accept, paced=False, ignores_ends=True)
        for prompt in prompts(engine)
    ]
    for request in requests:
        engine.scheduler.submit(request)
    finish(engine, requests)
    texts[:] = [request.text for request in requests]
    # All have their first token from the same batch, or nearly.
    return (times[-1] - times[len(requests) - 1]) / (n_answer - 1)


def one_by_one(engine: Engine, n_answer: int) -> float:
    """The same without native code that takes several tokens."""
    with patch.object(steps, "_native", lambda: None):
        return answered(engine, n_answer, [])


def decoded(engine: Engine, texts: Sequence[Sequence[int]]) -> float:
    """Seconds a batch of llama_decode, for the same tokens after the same prompts."""
    handles = engine._handles
    llama, memory, context, batch = handles.llama, handles.memory, handles.context, handles.batch

    def decode() -> None:
        assert not llama.llama_decode(context, batch.native)
        llama.llama_synchronize(context)

    def work() -> float:
        llama.llama_memory_clear(memory, False)
        for number, text in enumerate(texts):
            batch.clear()
            batch.add(text[:_PROMPT], number, 0, 1)
            decode()
        spent = 0.0
        for place in range(_PROMPT, len(texts[0]) - 1):
            batch.clear()
            for number, text in enumerate(texts):
                batch.add(text[place : place + 1], number, place, 1)
            begun = time.perf_counter()
            decode()
            spent += time.perf_counter() - begun
        llama.llama_memory_clear(memory, False)
        return spent / (len(texts[0]) - 1 - _PROMPT)

    engine.clear()
    return handles.thread.call(work)


def ours(engine: Engine, count: int) -> list[Callable[[], object]]:
    """Our samplers on logits of the model, one for each sequence."""
    logits = np.array(engine.logits([1, 2, 3])[-1])
    dry = DrySamplers(llama_cpp, None)  # the chain has no DRY
    samplers = [Sampler(llama_cpp, dry, engine.n_vocab, _SAMPLING, []) for _ in range(count)]
    return [lambda sampler=sampler: sampler.choose(logits) for sampler in samplers]  # type: ignore[misc]


def theirs(engine: Engine, count: int) -> list[Callable[[], object]]:
    """llama.cpp's chain, in the same way."""
    logits = np.array(engine.logits([1, 2, 3])[-1])
    chains = [peer(_SAMPLING, engine.n_vocab) for _ in range(count)]
    return [lambda chain=chain: chain(logits) for chain in chains]  # type: ignore[misc]


def sampled(engine: Engine, samplers: Sequence[Callable[[], object]], count: int) -> float:
    """Seconds in which all choose a token."""

    def work() -> float:
        begun = time.perf_counter()
        for _ in range(count):
            for choose in samplers:
                choose()
        return (time.perf_counter() - begun) / count

    return engine._handles.thread.call(work)


if __name__ == "__main__":
    main()
