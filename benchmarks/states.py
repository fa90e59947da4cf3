"""What it costs to keep what was read, beside reading it again.

    python -m benchmarks.states MODEL [--tokens 64,512,4096,8192,16000] [--times 5] [--threads N]

For each number of random tokens: the seconds in which they are read, the size of the state that a
sequence leaves in main memory, and the best of several times in which that is saved and restored;
then how often restoring is faster than reading, and how many tokens are read while a state of so
many is saved and restored. Then two conversations take turns in one sequence, with states
and without: the seconds until the first token of an answer, and the tokens that were read for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.sampling import Sampling
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.system.cores import decoding_threads

_T = TypeVar("_T")

_PLAIN = 1000  # ids below this are no control tokens
_NEW = 32  # tokens of a question
_TURNS = 6


def main() -> None:
    """Measure sizes, rates and turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", default="64,512,4096,8192,16000")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--threads", type=int, default=decoding_threads())
    arguments = parser.parse_args()
    counts = [int(word) for word in arguments.tokens.split(",")]
    settings = EngineSettings(
        n_ctx=max(counts) + 1024, n_outputs=1, n_threads=arguments.threads, cache_ram=8 << 30
    )
    with Engine(arguments.model, settings) as engine:
        print("tokens | read s (tokens/s) | state MB | save ms (GB/s) | restore ms (GB/s) | "
              "restored faster | tokens read meanwhile")  # fmt: skip
        for count in counts:
            print(_costs(engine, count, arguments.times), flush=True)
    for budget in (8 << 30, 0):
        with Engine(arguments.model, _with_budget(settings, budget)) as engine:
            seconds, n_read = _turns(engine, max(counts) // 2)
            print(f"two conversations of {max(counts) // 2} tokens, cache_ram {budget >> 20} MiB: "
                  f"{seconds:.3f} s to the first token, {n_read:.0f} tokens read")  # fmt: skip


def _with_budget(settings: EngineSettings, budget: int) -> EngineSettings:
    return EngineSettings(
        n_ctx=settings.n_ctx, n_outputs=1, n_threads=settings.n_threads, cache_ram=budget
    )


def _costs(engine: Engine, count: int, times: int) -> str:
    tokens = _random_tokens(engine, count, seed=count)
    engine.clear()
    reading, _ = _timed(lambda: engine.prefill(tokens))
    saving, states = zip(
        *(_timed(lambda: engine.state_of(tokens)) for _ in range(times)), strict=True
    )
    state = states[0]
    assert state is not None
    del states
    restoring = min(_timed(lambda: engine.keep_state(state))[0] for _ in range(times))
    size, both = state.nbytes, min(saving) + restoring
    return (
        f"{count} | {reading:.3f} ({count / reading:.0f}) | {size / 1e6:.1f} | "
        f"{min(saving) * 1e3:.1f} ({size / min(saving) / 1e9:.2f}) | "
        f"{restoring * 1e3:.1f} ({size / restoring / 1e9:.2f}) | "
        f"{reading / restoring:.0f} times | {both * count / reading:.0f}"
    )


def _turns(engine: Engine, count: int) -> tuple[float, float]:
    """The median seconds to the first token, and tokens read, from the second turn of each on."""
    talks = [_random_tokens(engine, count, seed=seed) for seed in (1, 2)]
    seconds, n_read = [], []
    for turn in range(_TURNS):
        for talk in talks:
            talk += _random_tokens(engine, _NEW, seed=turn)
            request = engine.request(talk, Sampling(temperature=0.0), 1, lambda *_: True)

            def answer() -> None:
                engine.scheduler.submit(request)  # noqa: B023
                engine.scheduler.wait(request, lambda: request.ended)  # noqa: B023

            taken, _ = _timed(answer)
            if turn:
                seconds.append(taken)
                n_read.append(len(talk) - request.reused_tokens)
    return median(seconds), median(n_read)


def _random_tokens(engine: Engine, count: int, seed: int) -> list[int]:
    most = min(_PLAIN, engine.n_vocab)
    return [int(token) for token in np.random.default_rng(seed).integers(0, most, count)]


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


if __name__ == "__main__":
    main()
