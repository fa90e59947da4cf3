"""The arithmetic of a comparison, against float64 and by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge.measure.divergence import Divergence, Floats, Prediction, perplexity


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    result: npt.NDArray[np.float64] = wide - np.logaddexp.reduce(wide)
    return result


def measured(logits: Floats, other: Floats, following: int) -> Divergence:
    found = Divergence.empty(1)
    found.measure(0, other, following, Prediction.of(logits, following))
    return found


@pytest.fixture
def logits() -> tuple[Floats, Floats]:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, 5000).astype(np.float32)
    return logits, logits + rng.normal(0, 0.3, 5000).astype(np.float32)


def test_a_prediction_keeps_what_is_likelier_than_e_to_the_minus_16(
    logits: tuple[Floats, Floats],
) -> None:
    kept, exact = Prediction.of(logits[0], 7), log_softmax(logits[0])
    # A step is 16 nats / 65,535 at most.
    margin = 16 / 65535
    assert set(np.flatnonzero(exact > -16 + margin)) <= set(kept.ids)
    assert set(kept.ids) <= set(np.flatnonzero(exact > -16 - margin))
    assert np.abs(kept.logprobs - exact[kept.ids]).max() < margin
    assert kept.own == pytest.approx(exact[7], abs=1e-5)


def test_the_divergence_is_that_of_the_definition(logits: tuple[Floats, Floats]) -> None:
    p, q = map(log_softmax, logits)
    found = measured(*logits, following=7)
    # The steps of what is kept are wrong by 6e-5 nats on average, either way.
    assert found.kl[0] == pytest.approx((np.exp(p) * (p - q)).sum(), abs=1e-5)
    assert found.nll[0] == pytest.approx(-q[7], abs=1e-5)
    assert found.nll_reference[0] == pytest.approx(-p[7], abs=1e-5)
    assert found.p_difference[0] == pytest.approx(np.exp(q[7]) - np.exp(p[7]), abs=1e-6)
    assert found.same_top[0] == (p.argmax() == q.argmax())


def test_a_model_is_no_distance_from_itself(logits: tuple[Floats, Floats]) -> None:
    found = measured(logits[0], logits[0], following=7)
    assert abs(found.kl[0]) < 1e-5
    assert found.same_top[0] == 1


def test_equal_logits_are_a_uniform_prediction() -> None:
    same = np.full(100, 2.5, np.float32)
    found = measured(same, same, following=3)
    assert found.nll[0] == pytest.approx(np.log(100), abs=1e-6)
    assert found.kl[0] == pytest.approx(0, abs=1e-6)


def test_a_token_that_is_no_choice_of_the_reference_has_its_own_probability() -> None:
    certain = np.array([40, 0, 0, 0], np.float32)
    kept = Prediction.of(certain, 2)
    assert list(kept.ids) == [0]
    assert kept.own == pytest.approx(-40)  # and what is kept of it is cut at 16 nats
    assert kept.own_kept == pytest.approx(-16)


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_what_is_no_number_is_an_error(damage: float) -> None:
    logits = np.zeros(10, np.float32)
    logits[4] = damage
    with pytest.raises(ValueError, match="NaN or infinite"):
        Prediction.of(logits, 1)


def test_errors_are_those_of_a_mean() -> None:
    nll = np.array([1, 2, 3, 4], np.float32)
    found = perplexity(nll)
    assert found.value == pytest.approx(np.exp(2.5))
    assert found.error == pytest.approx(np.exp(2.5) * np.sqrt(1.25 / 3))
    assert found.interval == pytest.approx(
        np.exp([2.5 - 1.96 * np.sqrt(1.25 / 3), 2.5 + 1.96 * np.sqrt(1.25 / 3)])
    )


def test_no_interval_has_what_cannot_be() -> None:
    rng = np.random.default_rng(1)
    count = 40
    kl = np.zeros(count, np.float32)
    kl[7] = 3  # an error as large as the mean
    found = Divergence(
        nll=rng.gamma(0.1, 60, count).astype(np.float32),
        nll_reference=rng.gamma(0.1, 60, count).astype(np.float32),
        kl=kl,
        p_difference=(kl / 3).astype(np.float32),
        same_top=np.ones(count, np.float32),
    ).statistics()
    for one in (found.perplexity, found.perplexity_ratio, found.kl_mean, found.rms_p_difference):
        low, high = one.interval
        assert 0 < low < one.value < high
        assert low * high == pytest.approx(one.value**2)
    assert found.perplexity.error > found.perplexity.value  # so that a sum would end below 0
    assert found.kl_mean.interval == pytest.approx((0.075 / 7.0993, 0.075 * 7.0993), rel=1e-3)
    assert found.same_top.interval == pytest.approx((0.91237, 1), abs=1e-5)  # Wilson's of 40 of 40


def test_the_interval_of_nothing_but_rounding_begins_at_nothing() -> None:
    noise = np.array([3e-7, -3e-7, 2e-7, -1e-7], np.float32)
    zeros = np.zeros(4, np.float32)
    ones = np.ones(4, np.float32)
    found = Divergence(ones, ones, noise, zeros, ones).statistics()
    low, high = found.kl_mean.interval
    assert found.kl_mean.error > found.kl_mean.value > low == 0
    assert high == pytest.approx(found.kl_mean.value + 1.96 * found.kl_mean.error)
    below = Divergence(ones, ones, -np.abs(noise), zeros, ones).statistics().kl_mean
    assert below.value < 0 and below.interval[0] == below.value
    assert found.rms_p_difference.interval == (0, 0)


def test_a_perplexity_that_no_number_holds_is_infinite() -> None:
    found = perplexity(np.array([1e4, 2e4], np.float32))
    assert found.value == np.inf and found.interval[1] == np.inf


def test_quantiles_have_intervals_of_the_values_that_were_measured() -> None:
    count = 1000
    ordered = np.arange(count, dtype=np.float32)
    zeros = np.zeros(count, np.float32)
    found = Divergence(zeros, zeros, np.random.default_rng(2).permutation(ordered), zeros, zeros)
    statistics = found.statistics()
    assert list(statistics.kl_median_interval) == [468, 531]  # 1.96 · √(1000 / 4) places
    assert list(statistics.kl_p99_interval) == [982, 996]


def test_statistics_take_the_whole_text() -> None:
    count = 1000
    found = Divergence(
        nll=np.full(count, 2, np.float32),
        nll_reference=np.full(count, 1, np.float32),
        kl=np.arange(count, dtype=np.float32),
        p_difference=np.full(count, -0.5, np.float32),
        same_top=(np.arange(count) % 4 < 3).astype(np.float32),
    ).statistics()
    assert found.perplexity.value == pytest.approx(np.exp(2))
    assert found.perplexity_ratio.value == pytest.approx(np.e)
    assert found.perplexity_ratio.error == 0
    assert (found.kl_median, found.kl_max) == (499.5, 999)
    assert found.kl_p99 == pytest.approx(989.01, abs=1e-3)
    assert found.same_top.value == 0.75
    assert found.same_top.error == pytest.approx(np.sqrt(0.75 * 0.25 / 999))
    assert found.rms_p_difference.value == pytest.approx(0.5)
