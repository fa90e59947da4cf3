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
        (found.value - 1.96 * found.error, found.value + 1.96 * found.error)
    )


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
