"""How far one model's predictions are from another's, as llama-perplexity measures it.

The arithmetic of ``llama-perplexity --kl-divergence`` (tools/perplexity/perplexity.cpp), so that
figures can stand beside published ones to their printed digits: the reference's probabilities are
kept in steps of a 65,535th of the 16 nats below the likeliest token, and less likely tokens than
e^-16 do not count. Those that count are all that is kept of a prediction. Knows neither models nor
files.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp, floor, inf, log, sqrt

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

RANGE = 16.0
"""Nats below the likeliest token, or below certainty, that are looked at."""

_STEPS = 65535
_LARGEST = 709.0  # of what exp() has a number for
_Z = 1.96  # standard errors to either side, for 95%


@dataclass(frozen=True)
class Prediction:
    """What a reference predicts after one token.

    Args:
        ids: the tokens whose probability counts, ascending, int32 of [n].
        steps: how many steps each is above the floor, uint16 of [n].
        step, floor: in nats: the logarithm of a probability is ``step * steps + floor``.
        own: the logarithm of the probability of the token that follows in the text.
        own_kept: the same as the others are kept, in steps and no lower than the floor.
    """

    ids: npt.NDArray[np.int32]
    steps: npt.NDArray[np.uint16]
    step: np.float32
    floor: np.float32
    own: np.float32
    own_kept: np.float32

    @classmethod
    def of(cls, logits: Floats, following: int) -> Prediction:
        """What is kept of logits, float32 of [n_vocab].

        Raises:
            ValueError: they are NaN, or the largest is infinite.
        """
        largest = _largest(logits)
        least = max(np.float32(logits.min()), np.float32(largest - RANGE))
        log_sum = _log_sum(logits, largest)
        floor = np.float32(np.float32(least - largest) - log_sum)
        step = np.float32((largest - least) / np.float32(_STEPS))
        # The others are further below than what counts.
        ids = np.flatnonzero(logits > np.float32(largest + log_sum - RANGE - 2 * step))
        above = np.maximum(logits[ids] - least, np.float32(0))
        inverse = np.float32(1) / step if step else np.float32(0)
        steps = np.rint(above * inverse).astype(np.uint16)
        counts = counting(steps, step, floor)
        own = np.maximum(np.float32(logits[following] - least), np.float32(0))
        log_total = np.float32(largest + log_sum)
        return cls(
            ids=ids[counts].astype(np.int32),
            steps=steps[counts],
            step=step,
            floor=floor,
            own=np.float32(logits[following] - log_total),
            own_kept=np.float32(step * np.rint(own * inverse) + floor),
        )

    @property
    def logprobs(self) -> Floats:
        """The logarithm of the probability of each of ``ids``."""
        logprobs: Floats = self.step * self.steps.astype(np.float32) + self.floor
        return logprobs


def counting(
    steps: npt.NDArray[np.uint16], step: np.float32, floor: np.float32
) -> npt.NDArray[np.bool_]:
    """Which of some tokens count, by how many steps each is above the floor."""
    counts: npt.NDArray[np.bool_] = step * steps.astype(np.float32) + floor > -RANGE
    return counts


MEASURES = ("nll", "nll_reference", "kl", "p_difference", "same_top")


@dataclass(frozen=True)
class Divergence:
    """What was measured at each token, float32 of [n_tokens].

    Args:
        nll, nll_reference: minus the logarithm of the probability of the token that follows.
        kl: the Kullback-Leibler divergence from the reference, in nats.
        p_difference: the probability of the token that follows, less that of the reference.
        same_top: 1 where both find the same token likeliest, else 0.
    """

    nll: Floats
    nll_reference: Floats
    kl: Floats
    p_difference: Floats
    same_top: Floats

    @classmethod
    def empty(cls, count: int) -> Divergence:
        """Room for `count` tokens, none of which is measured."""
        return cls(*(np.full(count, np.nan, np.float32) for _ in MEASURES))

    def measure(self, place: int, logits: Floats, following: int, reference: Prediction) -> None:
        """Measure token number `place`.

        Args:
            logits: of the model that is compared, float32 of [n_vocab].

        Raises:
            ValueError: they are NaN, or the largest is infinite.
        """
        largest = _largest(logits)
        log_total = np.float32(largest + _log_sum(logits, largest))
        theirs = reference.logprobs
        nll = np.float32(log_total - logits[following])
        terms = np.exp(theirs) * (theirs - logits[reference.ids] + log_total)
        top = reference.ids[int(theirs.argmax())] if len(theirs) else -1
        self.nll[place] = nll
        self.nll_reference[place] = -reference.own
        self.kl[place] = terms.sum(dtype=np.float64)
        self.p_difference[place] = np.exp(-nll) - np.exp(reference.own_kept)
        self.same_top[place] = int(logits.argmax()) == top

    def statistics(self) -> Statistics:
        """What these say of the model."""
        nll, base = _Mean.of(self.nll), _Mean.of(self.nll_reference)
        ratio_error = sqrt(
            max(nll.error**2 + base.error**2 - 2 * _covariance(self.nll, self.nll_reference), 0)
        )
        kl, squared = _Mean.of(self.kl), _Mean.of(self.p_difference.astype(np.float64) ** 2)
        rms = sqrt(squared.value)
        ordered = np.sort(self.kl)
        return Statistics(
            perplexity=Estimate.of_logarithm(nll.value, nll.error),
            perplexity_ratio=Estimate.of_logarithm(nll.value - base.value, ratio_error),
            kl_mean=Estimate.of_positive(kl.value, kl.error),
            kl_median=_quantile(ordered, 0.5),
            kl_p99=_quantile(ordered, 0.99),
            kl_max=float(ordered[-1]),
            same_top=Estimate.of_share(int(self.same_top.sum(dtype=np.float64)), len(self.kl)),
            rms_p_difference=Estimate.of_positive(rms, 0.5 / rms * squared.error if rms else 0.0),
            kl_median_interval=_quantile_interval(ordered, 0.5),
            kl_p99_interval=_quantile_interval(ordered, 0.99),
        )


@dataclass(frozen=True)
class Estimate:
    """What is estimated from the tokens of a text, and its standard error.

    Args:
        interval: in which the true value lies with 95% confidence, if tokens were independent.
    """

    value: float
    error: float
    interval: tuple[float, float]

    @classmethod
    def of_logarithm(cls, mean: float, error: float) -> Estimate:
        """Of what a mean of logarithms is the logarithm of, as perplexity."""
        value = _exp(mean)
        interval = _exp(mean - _Z * error), _exp(mean + _Z * error)
        return cls(value, value * error, interval)

    @classmethod
    def of_positive(cls, value: float, error: float) -> Estimate:
        """Of what is not negative: the interval is that of its logarithm.

        A mean of what is not negative is no smaller than its standard error. Rounding can leave a
        divergence of almost nothing at or below 0, or below its error: its interval is that of the
        mean itself, from 0 on.
        """
        if value > 0 and error <= value * (1 + 1e-6):
            factor = exp(_Z * error / value)
            return cls(value, error, (value / factor, value * factor))
        return cls(value, error, (min(value, max(value - _Z * error, 0.0)), value + _Z * error))

    @classmethod
    def of_share(cls, count: int, total: int) -> Estimate:
        """Of the share that `count` of `total` are."""
        share = count / total
        error = sqrt(share * (1 - share) / max(total - 1, 1))
        return cls(share, error, wilson(count, total))


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95% interval of the share that `count` of `total` are (E. B. Wilson, 1927)."""
    z, share = _Z, count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    # Neither end rounds to another side of the share.
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


@dataclass(frozen=True)
class Statistics:
    """How far a model is from its reference on a text.

    Args:
        perplexity: of the model.
        perplexity_ratio: the same divided by the reference's, of which errors cancel.
        kl_mean, kl_median, kl_p99, kl_max: of the divergence at each token, in nats.
        same_top: the share of tokens where both find the same one likeliest.
        rms_p_difference: the root mean square of what the probability of the right token changed.
        kl_median_interval, kl_p99_interval: in which the true ones lie with 95% confidence, if
            tokens were independent. Of the largest there is none.
    """

    perplexity: Estimate
    perplexity_ratio: Estimate
    kl_mean: Estimate
    kl_median: float
    kl_p99: float
    kl_max: float
    same_top: Estimate
    rms_p_difference: Estimate
    kl_median_interval: tuple[float, float]
    kl_p99_interval: tuple[float, float]


def perplexity(nll: Floats) -> Estimate:
    """The perplexity that minus the logarithms of tokens' probabilities give."""
    mean = _Mean.of(nll)
    return Estimate.of_logarithm(mean.value, mean.error)


@dataclass(frozen=True)
class _Mean:
    value: float
    error: float

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> _Mean:
        wide = values.astype(np.float64)
        mean = float(wide.mean())
        variance = float((wide * wide).mean()) - mean * mean
        count = len(wide)
        return cls(mean, sqrt(variance / (count - 1)) if variance > 0 and count > 1 else 0.0)


def _covariance(a: Floats, b: Floats) -> float:
    """Of the means of two measures of the same tokens."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    both = float((left * right).mean()) - float(left.mean()) * float(right.mean())
    return both / max(len(left) - 1, 1)


def _quantile(ordered: Floats, share: float) -> float:
    """Between the two values that are nearest, in llama-perplexity's precision."""
    last = len(ordered) - 1
    place = np.float32(share) * np.float32(last)
    below = int(place)
    part = np.float32(place - np.float32(below))
    above = ordered[min(below + 1, last)]
    return float((np.float32(1) - part) * ordered[below] + part * above)


def _quantile_interval(ordered: Floats, share: float) -> tuple[float, float]:
    """The values as far to either side as the count of those below it may differ from `share`."""
    last = len(ordered) - 1
    half = _Z * sqrt(len(ordered) * share * (1 - share))
    low, high = floor(share * last - half), ceil(share * last + half)
    return float(ordered[max(low, 0)]), float(ordered[min(high, last)])


def _exp(logarithm: float) -> float:
    return exp(logarithm) if logarithm < _LARGEST else inf


def _largest(logits: Floats) -> np.float32:
    largest: np.float32 = np.float32(logits.max())
    if not np.isfinite(largest):
        raise ValueError("the logits are NaN or infinite")
    return largest


def _log_sum(logits: Floats, largest: np.float32) -> np.float32:
    """The logarithm of the sum of exponentials, above the largest logit."""
    total: float = np.exp(logits - largest).sum(dtype=np.float64)
    log_sum: np.float32 = np.float32(log(total))
    return log_sum
