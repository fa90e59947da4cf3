"""From logits to a token, by llama.cpp's samplers in the order of its command line.

Promises the token that llama.cpp's own chain would choose, at a fraction of its time: its samplers
see the tokens that can still be chosen and those that penalties change, not all 202,048. Used in
the thread that calls llama.cpp alone.

The order is that of ``common_sampler_init`` in llama.cpp's common/sampling.cpp: logit bias,
penalties, DRY, top-n-sigma, top-k, typical, top-p, min-p, XTC, temperature, then the draw. Mirostat
takes the place of all between DRY and the draw.
"""

from __future__ import annotations

import ctypes
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..sampling import Sampling
from .candidates import CANDIDATE, Candidates, Floats, Mask, largest, masked
from .steps import Choice

_MIN_KEEP = 1

_MOST_DRY = 8  # settings of DRY that are kept


class DrySamplers:
    """llama.cpp's DRY samplers for one vocabulary. Close it.

    Making one looks through the vocabulary for each text that breaks a repetition, which takes
    70 ms where there are 202,048 tokens: one is made for each settings, and copied.

    Args:
        bindings: the module ``llama_cpp``.
        vocab: llama.cpp's vocabulary of the model.
    """

    def __init__(self, bindings: Any, vocab: Any) -> None:
        self._llama, self._vocab = bindings, vocab
        self._made: dict[tuple[object, ...], Any] = {}

    def copy(self, sampling: Sampling) -> Any:
        """A sampler with these settings, which has seen no token; the caller's."""
        texts = [text.encode() for text in sampling.dry_sequence_breakers]
        settings = (
            sampling.dry_multiplier,
            sampling.dry_base,
            sampling.dry_allowed_length,
            sampling.dry_penalty_last_n,
        )
        key = (*settings, *texts)
        made = self._made.pop(key, None)
        if made is None:
            made = self._llama.llama_sampler_init_dry(
                self._vocab, *settings, (ctypes.c_char_p * len(texts))(*texts), len(texts)
            )
        self._made[key] = made
        if len(self._made) > _MOST_DRY:
            self._llama.llama_sampler_free(self._made.pop(next(iter(self._made))))
        return self._llama.llama_sampler_clone(made)

    def close(self) -> None:
        """Free those that are kept; closing twice is harmless."""
        while self._made:
            self._llama.llama_sampler_free(self._made.popitem()[1])


class Sampler:
    """Chooses the tokens of one answer. Close it.

    Args:
        bindings: the module ``llama_cpp``.
        dry: the DRY samplers of the model's vocabulary.
        n_vocab: how many tokens the model has.
        sampling: with a seed.
        tokens: what was read before the answer; penalties count them too.
    """

    def __init__(
        self,
        bindings: Any,
        dry: DrySamplers,
        n_vocab: int,
        sampling: Sampling,
        tokens: Sequence[int],
    ) -> None:
        self._llama, self._sampling, self._n_vocab = bindings, sampling, n_vocab
        self.closed = False
        self._chains: list[Any] = []
        self._adjusting = self._chain(_adjusting(bindings, dry, n_vocab, sampling))
        # Only these can choose another token than the likeliest where the temperature is 0.
        others = sampling.typical_p < 1 or sampling.xtc_probability or sampling.dynatemp_range
        self._is_greedy = sampling.temperature == 0 and not others
        n_kept = 1 if self._is_greedy else sampling.top_k
        self._all = not 0 < n_kept < n_vocab
        first = sampling.typical_p == 1 and sampling.top_n_sigma == 0  # to remove tokens
        self._cuts_nucleus = self._all and first and sampling.top_p < 1
        self._cuts_unlikely = self._all and first and sampling.top_p == 1 and sampling.min_p > 0
        if self._cuts_nucleus:
            sampling = replace(sampling, top_p=1.0)
        self._needs_all = self._all or sampling.top_n_sigma > 0 or sampling.mirostat > 0
        self._choosing = None if sampling.mirostat else self._chain(_choosing(bindings, sampling))
        self._mirostat = _Mirostat(sampling) if sampling.mirostat else None
        self._buffer = np.zeros(n_vocab if self._all else n_kept, CANDIDATE)
        self._biased = dict.fromkeys(token for token, _ in sampling.logit_bias)
        self._recent: deque[int] = deque(maxlen=_window(sampling))
        self._counts: Counter[int] = Counter()
        window = self._recent.maxlen or 0
        for token in tokens[max(len(tokens) - window, 0) :]:
            self._accept(token)

    def close(self) -> None:
        """Free llama.cpp's samplers; closing twice is harmless."""
        self.closed = True
        while self._chains:
            self._llama.llama_sampler_free(self._chains.pop())

    @cached_property
    def choice(self) -> Choice | None:
        """How `Steps` choose as this does; None where it takes more than the largest logits."""
        sampling = self._sampling
        if self._adjusting is not None or sampling.mirostat:
            return None
        if self._is_greedy:
            return Choice(None, 1, True)
        if self._all or sampling.top_n_sigma > 0 or self._choosing is None:
            return None
        return Choice(ctypes.cast(self._choosing, ctypes.c_void_p), sampling.top_k, True)

    def choose(self, logits: Floats, mask: Mask | None = None) -> int | None:
        """The next token; None where logits are NaN, or the largest that is allowed is infinite.

        Args:
            logits: [n_vocab], contiguous and writable; the same afterwards.
            mask: the tokens that may be chosen. The samplers see no other, as after llama.cpp's
                grammars, which come before all others.
        """
        affected = self._affected()
        if affected is None:
            token = self._chosen(logits, mask)
        else:
            before = logits[affected]
            logits[affected] = self._adjusted(affected, before)
            try:
                token = self._chosen(logits, mask)
            finally:
                logits[affected] = before
        if token is not None:
            self._accept(token)
        return token

    def _chosen(self, logits: Floats, mask: Mask | None) -> int | None:
        if mask is not None and self._needs_all:
            if np.isnan(logits.max()):  # if one is
                return None
            logits = masked(logits, mask)
        if self._mirostat is not None:
            return self._mirostat.choose(logits)
        if self._is_greedy and mask is None:
            token = int(logits.argmax())  # of a NaN, if there is one
            return token if np.isfinite(logits[token]) else None
        candidates, ordered = self._possible(logits, mask)
        if candidates is None:
            return None
        if self._is_greedy:
            return int(candidates["id"][0])
        if self._sampling.top_n_sigma > 0:
            candidates = self._within_sigma(logits, candidates)
        array = self._array(candidates, ordered=ordered)
        self._llama.llama_sampler_apply(self._choosing, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _possible(self, logits: Floats, mask: Mask | None) -> tuple[Candidates | None, bool]:
        """What top-k leaves, and whether it is sorted; None where logits are NaN.

        Without top-k, what top-p or min-p will leave, where these are the first to remove tokens.
        """
        buffer = self._buffer
        if not self._all:
            count = largest(logits, len(buffer), buffer, mask)
            return (buffer[:count] if count else None), True
        most = logits.max()
        if not np.isfinite(most):
            return None, False
        if self._cuts_nucleus:
            return _nucleus(logits, most, self._sampling.top_p, buffer), True
        if self._cuts_unlikely:
            least = most + np.log(np.float32(self._sampling.min_p))
            return _candidates(np.flatnonzero(logits >= least), logits, buffer), False
        ids = np.arange(self._n_vocab) if mask is None else np.flatnonzero(logits > -np.inf)
        return _candidates(ids, logits, buffer), False

    def _within_sigma(self, logits: Floats, candidates: Candidates) -> Candidates:
        """The candidates with logits far below the largest at minus infinity, as llama.cpp has it.

        llama.cpp's typical sampling computes NaN of those, so it does not see them.
        """
        finite = logits
        if not np.isfinite(total := float(logits.sum())):
            finite = logits[logits != -np.inf]
            total = float(finite.sum())
        mean, square = total / finite.size, float(np.einsum("i,i", finite, finite)) / finite.size
        limit = finite.max() - self._sampling.top_n_sigma * max(square - mean**2, 0.0) ** 0.5
        if self._sampling.typical_p < 1:
            near: Candidates = candidates[candidates["logit"] >= limit]
            return near
        candidates["logit"][candidates["logit"] < limit] = -np.inf
        return candidates

    # --- penalties

    def _affected(self) -> npt.NDArray[np.int64] | None:
        """The tokens whose logits a bias or a penalty may change, None where it is none."""
        if self._adjusting is None:
            return None
        tokens = {**self._biased, **self._counts}
        return np.fromiter(tokens, np.int64, len(tokens)) if tokens else None

    def _adjusted(self, tokens: npt.NDArray[np.int64], logits: Floats) -> Floats:
        """What llama.cpp's penalties make of these tokens' logits."""
        candidates = np.zeros(len(tokens), CANDIDATE)
        candidates["id"], candidates["logit"] = tokens, logits
        array = self._array(candidates, ordered=False)
        self._llama.llama_sampler_apply(self._adjusting, ctypes.byref(array))
        adjusted: Floats = candidates["logit"]
        return adjusted

    def _accept(self, token: int) -> None:
        """Count a token for the penalties."""
        recent = self._recent
        if not recent.maxlen:
            return
        if len(recent) == recent.maxlen:
            self._counts[recent[0]] -= 1
            if not self._counts[recent[0]]:
                del self._counts[recent[0]]
        recent.append(token)
        self._counts[token] += 1
        self._llama.llama_sampler_accept(self._adjusting, token)

    # --- llama.cpp's structures

    def _array(self, candidates: Candidates, *, ordered: bool) -> Any:
        pointer = ctypes.cast(candidates.ctypes.data, self._llama.llama_token_data_p)
        return self._llama.llama_token_data_array(
            data=pointer, size=len(candidates), selected=-1, sorted=ordered
        )

    def _chain(self, samplers: list[Any]) -> Any:
        """A chain of these samplers, None for none."""
        if not samplers:
            return None
        chain = self._llama.llama_sampler_chain_init(
            self._llama.llama_sampler_chain_default_params()
        )
        self._chains.append(chain)
        for sampler in samplers:
            self._llama.llama_sampler_chain_add(chain, sampler)
        return chain


def _candidates(ids: npt.NDArray[np.intp], logits: Floats, buffer: Candidates) -> Candidates:
    """The candidates of these ids, written to the buffer."""
    candidates = buffer[: ids.size]
    candidates["id"], candidates["logit"] = ids, logits[ids]
    return candidates


def _nucleus(logits: Floats, most: np.float32, top_p: float, buffer: Candidates) -> Candidates:
    """The likeliest tokens that together have the probability ``top_p``, sorted.

    llama.cpp adds 202,048 probabilities in float32 one after the other, so that near a limit one
    token more or less is kept.
    """
    total = np.exp(logits - most).sum()
    count = 256
    while True:
        count = min(count, logits.size)
        largest(logits, count, buffer)
        probabilities = np.exp(buffer["logit"][:count] - most) / total
        kept = int(np.searchsorted(np.cumsum(probabilities), top_p)) + 1
        if kept <= count or count == logits.size:
            return buffer[: min(kept, count)]
        count *= 8


def _window(sampling: Sampling) -> int:
    """How many of the last tokens penalties look at."""
    return max(
        sampling.repeat_last_n if sampling.has_penalties else 0,
        sampling.dry_penalty_last_n if sampling.dry_multiplier else 0,
    )


def _adjusting(bindings: Any, dry: DrySamplers, n_vocab: int, sampling: Sampling) -> list[Any]:
    """The samplers that change single logits."""
    samplers = []
    if sampling.logit_bias:
        biases = (bindings.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias)
        samplers.append(bindings.llama_sampler_init_logit_bias(n_vocab, len(biases), biases))
    if sampling.has_penalties:
        samplers.append(
            bindings.llama_sampler_init_penalties(
                n_vocab,
                sampling.repeat_last_n,
                sampling.repeat_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if sampling.dry_multiplier:
        samplers.append(dry.copy(sampling))
    return samplers


def _choosing(bindings: Any, sampling: Sampling) -> list[Any]:
    """The samplers after top-k, the draw the last."""
    return [
        bindings.llama_sampler_init_typical(sampling.typical_p, _MIN_KEEP),
        bindings.llama_sampler_init_top_p(sampling.top_p, _MIN_KEEP),
        bindings.llama_sampler_init_min_p(sampling.min_p, _MIN_KEEP),
        bindings.llama_sampler_init_xtc(
            sampling.xtc_probability, sampling.xtc_threshold, _MIN_KEEP, sampling.seed
        ),
        bindings.llama_sampler_init_temp_ext(
            sampling.temperature, sampling.dynatemp_range, sampling.dynatemp_exponent
        ),
        bindings.llama_sampler_init_dist(sampling.seed),
    ]


class _Mirostat:
    """Mirostat 2.0 (Basu et al., 2021), as ``llama_sampler_mirostat_v2_apply`` computes it.

    llama.cpp sorts all tokens for it; here only those that it does not cut off are.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._temperature = np.float32(sampling.temperature)
        self._tau, self._eta = sampling.mirostat_tau, sampling.mirostat_eta
        self._mu = 2 * sampling.mirostat_tau
        # std::mt19937 of this seed gives the same 32-bit numbers.
        self._numbers = np.random.RandomState(sampling.seed)._bit_generator

    def choose(self, logits: Floats) -> int | None:
        """A token, None where logits are NaN, or the largest is infinite."""
        most = logits.max()
        if not np.isfinite(most):
            return None
        weights = np.exp((logits - most) / self._temperature)
        kept = weights >= 2**-self._mu * weights.sum(dtype=np.float64)
        n_kept = max(int(np.count_nonzero(kept)), 1)
        total = max(float(weights.sum(where=kept, dtype=np.float64)), 1.0)
        # C++'s std::discrete_distribution draws no number where there is no choice.
        number = self._uniform() if n_kept > 1 else 0.0
        count = min(256, n_kept)
        buffer = np.zeros(count, CANDIDATE)
        while True:
            largest(logits, count, buffer)
            cumulated = np.cumsum(weights[buffer["id"]], dtype=np.float64) / total
            if cumulated[-1] >= number or count == n_kept:
                break
            count = min(8 * count, n_kept)
            buffer = np.zeros(count, CANDIDATE)
        token = int(buffer["id"][min(int(np.searchsorted(cumulated, number)), count - 1)])
        surprise = -np.log2(float(weights[token]) / total)
        self._mu -= self._eta * (surprise - self._tau)
        return token

    def _uniform(self) -> float:
        """A number from 0 to below 1, as C++'s ``std::generate_canonical<double, 53>`` makes it."""
        low, high = (int(number) for number in self._numbers.random_raw(2))
        return (low + high * 2.0**32) / 2.0**64
