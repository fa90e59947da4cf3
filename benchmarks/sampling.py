"""What choosing a token costs beside llama.cpp's own samplers, on the same logits.

    python -m benchmarks.sampling [--vocabulary 202048] [--runs 300]

Logits as a language model's are: thirty tokens stand out of all others. Both choose from the same
ones with the same seed, in turn; llama.cpp's time includes the copy that ``llama_sampler_sample``
makes of them, ours the check for NaN, which it does not make. Prints the median of each in
milliseconds, and whether all tokens were the same. Then what of ours has no peer there: the same
chains where a mask allows every other token, and log probabilities.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import llama_cpp
import numpy as np

from llama4_edge.runtime.bindings.candidates import CANDIDATE, Floats
from llama4_edge.runtime.bindings.sampler import DrySamplers, Sampler
from llama4_edge.runtime.logprobs import TokenLogprobs
from llama4_edge.runtime.sampling import Sampling

CHAINS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "default": {},
    "penalties": {"repeat_penalty": 1.1, "frequency_penalty": 0.1},
    "greedy, penalties": {"temperature": 0.0, "repeat_penalty": 1.1},
    "min-p, all tokens": {"top_k": 0, "top_p": 1.0, "min_p": 0.05},
    "top-p, all tokens": {"top_k": 0},
    "top-n-sigma": {"top_n_sigma": 1.0},
    "typical": {"typical_p": 0.5},
    "XTC": {"xtc_probability": 0.5},
    "dynamic temperature": {"dynatemp_range": 0.5},
    "Mirostat 2": {"mirostat": 2},
}


def main() -> None:
    """Measure and print, a line for each chain."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=202_048)
    parser.add_argument("--runs", type=int, default=300)
    arguments = parser.parse_args()
    print(f"{'chain':<22} {'ours, ms':>9} {'llama.cpp, ms':>14}  same tokens")
    for name, settings in CHAINS.items():
        sampling = Sampling(seed=1, **settings)
        dry = DrySamplers(llama_cpp, None)  # no chain here has DRY
        ours = Sampler(llama_cpp, dry, arguments.vocabulary, sampling, [])
        theirs = peer(sampling, arguments.vocabulary)
        times: tuple[list[float], list[float]] = ([], [])
        same = 0
        for run in range(arguments.runs):
            logits = language(run % 20, arguments.vocabulary)
            first = timed(partial(ours.choose, logits), times[0])
            second = timed(partial(theirs, logits), times[1])
            same += first == second
        ours.close()
        medians = [statistics.median(seconds) * 1000 for seconds in times]
        print(f"{name:<22} {medians[0]:9.3f} {medians[1]:14.3f}  {same} of {arguments.runs}")
    print()
    mask = np.full((arguments.vocabulary + 31) // 32, 0x55555555, np.uint32)
    for name, settings in CHAINS.items():
        ours = Sampler(
            llama_cpp, DrySamplers(llama_cpp, None), arguments.vocabulary,
            Sampling(seed=1, **settings), [],
        )  # fmt: skip
        show(f"{name}, masked", partial(ours.choose, mask=mask), arguments)
        ours.close()
    for count in (0, 5, 20):
        show(
            f"log probabilities, {count}",
            partial(TokenLogprobs.of, token=7, n_top=count),
            arguments,
        )


def show(name: str, work: Callable[[Floats], object], arguments: argparse.Namespace) -> None:
    """A line with the median of what it takes."""
    times: list[float] = []
    for run in range(arguments.runs):
        logits = language(run % 20, arguments.vocabulary)
        begun = time.perf_counter()
        work(logits)
        times.append(time.perf_counter() - begun)
    print(f"{name:<32} {statistics.median(times) * 1000:9.3f}")


def timed(choose: Callable[[], int | None], times: list[float]) -> int | None:
    """The token, its seconds added to `times`."""
    begun = time.perf_counter()
    token = choose()
    times.append(time.perf_counter() - begun)
    return token


def language(seed: int, vocabulary: int) -> Floats:
    """Logits, float32 of [vocabulary]."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(vocabulary) * 2 - 12).astype(np.float32)
    likely = rng.integers(0, vocabulary, 30)
    logits[likely] += rng.random(30, dtype=np.float32) * 10 + 8
    return logits


def peer(sampling: Sampling, vocabulary: int) -> Callable[[Floats], int]:
    """llama.cpp's chain in the order of its command line, over all tokens."""
    llama = llama_cpp
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    samplers = [
        llama.llama_sampler_init_penalties(
            vocabulary, sampling.repeat_last_n, sampling.repeat_penalty,
            sampling.frequency_penalty, sampling.presence_penalty,
        ),
        llama.llama_sampler_init_top_n_sigma(sampling.top_n_sigma),
        llama.llama_sampler_init_top_k(sampling.top_k),
        llama.llama_sampler_init_typical(sampling.typical_p, 0),
        llama.llama_sampler_init_top_p(sampling.top_p, 0),
        llama.llama_sampler_init_min_p(sampling.min_p, 0),
        llama.llama_sampler_init_xtc(
            sampling.xtc_probability, sampling.xtc_threshold, 0, sampling.seed
        ),
        llama.llama_sampler_init_temp_ext(
            sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
        ),
        llama.llama_sampler_init_dist(sampling.seed),
    ]  # fmt: skip
    if sampling.mirostat:
        samplers = [
            llama.llama_sampler_init_temp(sampling.temperature),
            llama.llama_sampler_init_mirostat_v2(
                sampling.seed, sampling.mirostat_tau, sampling.mirostat_eta
            ),
        ]
    elif not sampling.has_penalties and sampling.temperature == 0:
        samplers = [llama.llama_sampler_init_greedy()]
    for sampler in samplers:
        llama.llama_sampler_chain_add(chain, sampler)
    data = np.zeros(vocabulary, CANDIDATE)

    def choose(logits: Floats) -> int:
        data["id"], data["logit"] = np.arange(vocabulary), logits
        pointer = ctypes.cast(data.ctypes.data, llama.llama_token_data_p)
        array = llama.llama_token_data_array(
            data=pointer, size=vocabulary, selected=-1, sorted=False
        )
        llama.llama_sampler_apply(chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama.llama_sampler_accept(chain, token)
        return token

    return choose


if __name__ == "__main__":
    main()
