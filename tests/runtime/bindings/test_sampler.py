"""Tokens are those that llama.cpp's own chain chooses from the same logits with the same seed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge.runtime.bindings import candidates as candidates_module
from llama4_edge.runtime.bindings.candidates import CANDIDATE, Floats, Mask, largest
from llama4_edge.runtime.bindings.sampler import DrySamplers, Sampler
from llama4_edge.runtime.logprobs import TokenLogprobs
from llama4_edge.runtime.sampling import Sampling

N_VOCAB = 202_048
DRAWS = 60

CHAINS: dict[str, dict[str, Any]] = {
    "default": {},
    "hot": {"temperature": 1.5, "top_k": 500, "top_p": 1.0},
    "top-k of one": {"top_k": 1},
    "min-p": {"min_p": 0.05},
    "typical": {"typical_p": 0.5},
    "sigma": {"top_n_sigma": 1.0},
    "xtc": {"xtc_probability": 0.5},
    "xtc without temperature": {"xtc_probability": 0.5, "temperature": 0.0},
    "typical without temperature": {"typical_p": 0.3, "temperature": 0.0},
    "dynamic temperature": {"dynatemp_range": 0.5, "dynatemp_exponent": 0.7},
    "repeat": {"repeat_penalty": 1.3},
    "negative frequency": {"frequency_penalty": -0.5, "presence_penalty": 0.2, "top_k": 10},
    "greedy with penalties": {"temperature": 0.0, "repeat_penalty": 1.5, "presence_penalty": 2.0},
    "long memory": {"repeat_penalty": 1.1, "repeat_last_n": 1000},
    "bias": {"logit_bias": ((7, 5.0), (8, -float("inf")), (100_000, 30.0))},
    "dry": {"dry_multiplier": 0.8, "dry_allowed_length": 1},
    "all min-p": {"top_k": 0, "top_p": 1.0, "min_p": 0.1},
    "all": {"top_k": 0, "top_p": 1.0},
    "all sigma": {"top_k": 0, "top_p": 1.0, "top_n_sigma": 2.0},
    "mirostat": {"mirostat": 2},
    "low mirostat": {"mirostat": 2, "mirostat_tau": 1.0, "mirostat_eta": 0.5, "temperature": 1.3},
    "everything": {
        "repeat_penalty": 1.1, "frequency_penalty": 0.1, "dry_multiplier": 0.5, "top_n_sigma": 3.0,
        "top_k": 60, "top_p": 0.95, "min_p": 0.01, "xtc_probability": 0.3, "dynatemp_range": 0.3,
        "temperature": 0.9,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def vocab(tiny_path: Path) -> Iterator[Any]:
    """llama.cpp's vocabulary of a tiny model, which DRY's breakers are looked up in."""
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(tiny_path).encode(), params)
    yield llama_cpp.llama_model_get_vocab(model)
    llama_cpp.llama_model_free(model)


def language(seed: int, *, common: int = 3000) -> Floats:
    """Logits as a language model's are: a few tokens stand out of all others."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(N_VOCAB) * 2 - 12).astype(np.float32)
    likely = rng.integers(0, common, 30)
    logits[likely] += rng.random(30, dtype=np.float32) * 10 + 8
    return logits


def words_of(is_allowed: npt.NDArray[np.bool_]) -> Mask:
    """The mask that allows these tokens."""
    bits = np.zeros((is_allowed.size + 31) // 32 * 32, np.bool_)
    bits[: is_allowed.size] = is_allowed
    return np.packbits(bits, bitorder="little").view(np.uint32)


class Chain:
    """llama.cpp's chain over all tokens, as its command line makes it."""

    def __init__(self, vocab: Any, sampling: Sampling) -> None:
        llama, biases = llama_cpp, sampling.logit_bias
        texts = [text.encode() for text in sampling.dry_sequence_breakers]
        first = [
            llama.llama_sampler_init_logit_bias(
                N_VOCAB, len(biases), (llama.llama_logit_bias * len(biases))(*biases)
            ),
            llama.llama_sampler_init_penalties(
                N_VOCAB, sampling.repeat_last_n, sampling.repeat_penalty,
                sampling.frequency_penalty, sampling.presence_penalty,
            ),
            llama.llama_sampler_init_dry(
                vocab, sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length,
                sampling.dry_penalty_last_n, (ctypes.c_char_p * len(texts))(*texts), len(texts),
            ),
        ]  # fmt: skip
        seed = sampling.seed
        then = [
            llama.llama_sampler_init_top_n_sigma(sampling.top_n_sigma),
            llama.llama_sampler_init_top_k(sampling.top_k),
            llama.llama_sampler_init_typical(sampling.typical_p, 0),
            llama.llama_sampler_init_top_p(sampling.top_p, 0),
            llama.llama_sampler_init_min_p(sampling.min_p, 0),
            llama.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 0, seed),
            llama.llama_sampler_init_temp_ext(
                sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
            ),
            llama.llama_sampler_init_dist(seed),
        ]
        if sampling.mirostat:
            then = [
                llama.llama_sampler_init_temp(sampling.temperature),
                llama.llama_sampler_init_mirostat_v2(
                    seed, sampling.mirostat_tau, sampling.mirostat_eta
                ),
            ]
        self.native = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in (*first, *then):
            llama.llama_sampler_chain_add(self.native, sampler)

    def accept(self, token: int) -> None:
        llama_cpp.llama_sampler_accept(self.native, token)

    def choose(self, logits: Floats, seen: npt.NDArray[np.bool_] | None = None) -> int:
        data = np.zeros(N_VOCAB, CANDIDATE)
        data["id"], data["logit"] = np.arange(N_VOCAB), logits
        if seen is not None:
            data = data[seen]
        pointer = ctypes.cast(data.ctypes.data, llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(
            data=pointer, size=len(data), selected=-1, sorted=False
        )
        llama_cpp.llama_sampler_apply(self.native, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        self.accept(token)
        return token


@pytest.fixture
def make(vocab: Any) -> Iterator[Callable[..., tuple[Sampler, Chain]]]:
    """``make(tokens=[], **settings)``: our sampler and llama.cpp's chain after these tokens."""
    made: list[tuple[Sampler, Chain]] = []
    dry = DrySamplers(llama_cpp, vocab)

    def pair(tokens: list[int] | None = None, **values: Any) -> tuple[Sampler, Chain]:
        sampling = Sampling(**{"seed": 42, **values})
        chain = Chain(vocab, sampling)
        for token in tokens or []:
            chain.accept(token)
        made.append((Sampler(llama_cpp, dry, N_VOCAB, sampling, tokens or []), chain))
        return made[-1]

    yield pair
    for sampler, chain in made:
        sampler.close()
        llama_cpp.llama_sampler_free(chain.native)
    dry.close()


# ---- the claims


@pytest.mark.parametrize("name", CHAINS)
def test_each_token_is_the_one_that_llama_cpp_chooses(
    name: str, make: Callable[..., tuple[Sampler, Chain]]
) -> None:
    # Tokens come again, so that penalties have something to count.
    sampler, chain = make([1, 2, 3, 1, 2, 3, 1, 2], **CHAINS[name])
    ours, theirs = [], []
    for seed in range(DRAWS):
        logits = language(seed % 40, common=60)
        ours.append(sampler.choose(logits))
        theirs.append(chain.choose(logits))
    assert ours == theirs


def test_without_top_k_the_nucleus_is_that_of_llama_cpp(
    make: Callable[..., tuple[Sampler, Chain]],
) -> None:
    # llama.cpp's sum of 202,048 float32 decides for one token more or less where it is close.
    sampler, chain = make(top_k=0, top_p=0.9, temperature=1.0)
    same = [sampler.choose(language(seed)) == chain.choose(language(seed)) for seed in range(100)]
    assert sum(same) >= 99


def test_draws_have_the_distribution_of_the_softmax(
    make: Callable[..., tuple[Sampler, Chain]],
) -> None:
    sampler, _ = make(top_k=20, top_p=1.0, temperature=0.8)
    logits = language(3)
    likely = np.argsort(logits)[::-1][:20]
    weights = np.exp((logits[likely] - logits[likely[0]]) / np.float32(0.8))
    expected = weights / weights.sum() * 5000
    drawn = np.bincount(
        [int(np.flatnonzero(likely == sampler.choose(logits))[0]) for _ in range(5000)],
        minlength=20,
    )
    often = expected >= 5
    squares = (drawn[often] - expected[often]) ** 2 / expected[often]
    # Chi-squared: with 19 degrees of freedom 43.8 is exceeded once in a thousand seeds.
    assert squares.sum() < 43.8


def test_logits_are_the_same_afterwards(make: Callable[..., tuple[Sampler, Chain]]) -> None:
    sampler, _ = make([5, 6], repeat_penalty=1.5, logit_bias={7: 5.0}, dry_multiplier=1.0)
    logits = language(0)
    before = logits.copy()
    assert sampler.choose(logits) is not None
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("name", ["default", "greedy with penalties", "all", "mirostat", "sigma"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_logits_give_no_token(
    name: str, value: float, make: Callable[..., tuple[Sampler, Chain]]
) -> None:
    sampler, _ = make(**CHAINS[name])
    logits = language(0)
    logits[150_001] = value
    assert sampler.choose(logits) is None
    logits[:] = -np.inf
    assert sampler.choose(logits) is None


@pytest.mark.parametrize("native", [True, False], ids=["native", "NumPy"])
@pytest.mark.parametrize("name", CHAINS)
def test_with_a_mask_each_token_is_the_one_that_llama_cpp_chooses_of_those_allowed(
    name: str,
    native: bool,
    make: Callable[..., tuple[Sampler, Chain]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after its grammar sampler, which sets all others to minus infinity."""
    if not native:
        monkeypatch.setattr(candidates_module, "_native", lambda: None)
    sampler, chain = make([1, 2, 3, 1, 2, 3, 1, 2], **CHAINS[name])
    ours, theirs = [], []
    for seed in range(30 if native else 6):
        logits = language(seed % 40, common=60)
        # A few, half and nearly all; of those that stand out, every other one.
        is_allowed = np.random.default_rng(seed).random(N_VOCAB) < (3e-4, 0.5, 0.99)[seed % 3]
        is_allowed[:60:2] = False
        before = logits.copy()
        token = sampler.choose(logits, words_of(is_allowed))
        assert np.array_equal(logits, before)
        assert token is not None
        assert is_allowed[token]
        ours.append(token)
        masked = np.where(is_allowed, logits, -np.float32(np.inf))
        # llama.cpp's typical sampling computes NaN where it sees minus infinity.
        gone = ~is_allowed if CHAINS[name].get("typical_p") else np.zeros(N_VOCAB, bool)
        theirs.append(chain.choose(masked, ~gone))
    assert ours == theirs


@pytest.mark.parametrize("name", CHAINS)
def test_a_mask_that_allows_one_token_leaves_that_one(
    name: str, make: Callable[..., tuple[Sampler, Chain]]
) -> None:
    sampler, _ = make([1, 2, 3, 1, 2, 3, 1, 2], **CHAINS[name])
    for token in (0, 31, 32, 77_777, N_VOCAB - 1):
        assert sampler.choose(language(0), words_of(np.arange(N_VOCAB) == token)) == token


@pytest.mark.parametrize("name", CHAINS)
def test_a_mask_that_allows_nothing_and_nan_outside_of_it_give_no_token(
    name: str, make: Callable[..., tuple[Sampler, Chain]]
) -> None:
    sampler, _ = make(**CHAINS[name])
    logits = language(0)
    mask = np.zeros((N_VOCAB + 31) // 32, np.uint32)
    assert sampler.choose(logits, mask) is None
    mask[:] = 2**32 - 1
    mask[150_001 // 32] = 0
    logits[150_001] = np.nan
    assert sampler.choose(logits, mask) is None


@pytest.mark.parametrize("native", [True, False], ids=["native", "NumPy"])
@pytest.mark.parametrize("count", [1, 40, 1000])
@pytest.mark.parametrize("size", [31, 5001, 130_000])
def test_the_largest_of_those_allowed_are_those_of_a_sort(
    count: int, size: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(candidates_module, "_native", lambda: None)
    rng = np.random.default_rng(count)
    count = min(count, size)
    for share in (0.0, 1e-3, 0.03, 0.5, 0.999, 1.0):
        is_allowed = rng.random(size) < share
        mask = words_of(is_allowed)
        mask[-1] |= np.uint32(2**32 - 2 ** (size % 32 or 31))  # what is beyond has no effect
        is_allowed[size - 1] |= size % 32 == 0
        for logits in (
            rng.standard_normal(size).astype(np.float32),
            np.where(is_allowed, -1.0, 1.0).astype(np.float32),
            np.zeros(size, np.float32),
        ):
            out: npt.NDArray[np.void] = np.zeros(count, CANDIDATE)
            allowed = np.flatnonzero(is_allowed)
            order = allowed[np.lexsort((allowed, -logits[allowed]))][:count]
            assert largest(logits, count, out, mask) == order.size
            assert np.array_equal(out["id"][: order.size], order)
            assert np.array_equal(out["logit"][: order.size], logits[order])


@pytest.mark.parametrize("native", [True, False], ids=["native", "NumPy"])
def test_log_probabilities_are_those_of_the_softmax(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(candidates_module, "_native", lambda: None)
    for logits in (
        language(5),
        np.zeros(N_VOCAB, np.float32),
        np.linspace(-300, 40, N_VOCAB, dtype=np.float32),
        np.where(np.arange(N_VOCAB) % 3, -np.inf, language(1)).astype(np.float32),
    ):
        wide = logits.astype(np.float64)
        expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
        order = np.lexsort((np.arange(N_VOCAB), -logits))[:20]
        got = TokenLogprobs.of(logits, 9, 20)
        assert got is not None
        assert got.token == 9
        assert got.logprob == pytest.approx(expected[9], abs=1e-6)
        assert [token for token, _ in got.top] == order.tolist()
        assert [logprob for _, logprob in got.top] == pytest.approx(expected[order], abs=1e-6)
        assert TokenLogprobs.of(logits, 9, 0) == TokenLogprobs(9, got.logprob, ())
    assert TokenLogprobs.of(np.full(N_VOCAB, np.nan, np.float32), 9, 2) is None


@pytest.mark.parametrize("native", [True, False], ids=["native", "NumPy"])
@pytest.mark.parametrize("count", [1, 2, 40, 128, 1000, 5000])
@pytest.mark.parametrize("size", [5000, 5001, 130_000])
def test_the_largest_are_those_of_a_sort(
    count: int, size: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(candidates_module, "_native", lambda: None)
    rng = np.random.default_rng(count)
    for logits in (
        rng.standard_normal(size).astype(np.float32),
        rng.integers(0, 9, size).astype(np.float32),  # with ties
        np.zeros(size, np.float32),
        np.where(rng.random(size) < 0.5, -np.inf, 1.0).astype(np.float32),
    ):
        out: npt.NDArray[np.void] = np.zeros(count, CANDIDATE)
        assert largest(logits, count, out)
        order = np.lexsort((np.arange(size), -logits))[:count]
        assert np.array_equal(out["id"], order)
        assert np.array_equal(out["logit"], logits[order])


def test_the_native_code_is_built_here() -> None:
    assert candidates_module._native() is not None


def test_a_dry_sampler_is_made_once_for_each_settings_and_copied_without_what_it_saw(
    vocab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    init = llama_cpp.llama_sampler_init_dry

    def counted(*arguments: Any) -> Any:
        made.append(arguments[1:4])
        return init(*arguments)

    monkeypatch.setattr(llama_cpp, "llama_sampler_init_dry", counted)
    dry = DrySamplers(llama_cpp, vocab)
    answers, logits = [], -np.arange(N_VOCAB, dtype=np.float32)
    for multiplier in (0.8, 0.8, 0.01, 0.8):
        sampling = Sampling(seed=1, temperature=0.0, dry_multiplier=multiplier)
        sampler = Sampler(llama_cpp, dry, N_VOCAB, sampling, [1, 2, 3, 1, 2, 3, 1, 2])
        answers.append([sampler.choose(logits) for _ in range(20)])
        sampler.close()
    assert made == [(0.8, 1.75, 2), (0.01, 1.75, 2)]
    assert answers[0] == answers[1] == answers[3] != answers[2]
    dry.close()
