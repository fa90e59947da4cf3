"""What a comparison found, as values: of each model, and of all of them.

Knows neither models nor how anything was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.settings import KVTypes, kv_text
from .divergence import Estimate, Statistics, wilson


@dataclass(frozen=True)
class Accuracy:
    """How many of the questions a model answered right, by log-likelihood.

    Args:
        value: the share of right answers.
        interval: in which the true share lies with 95% confidence (Wilson's).
        same: the share that is answered as the reference answers; None for the reference itself,
            and where that is saved predictions, which know no answers.
        chosen: the number of the choice that it found likeliest, of each question.
    """

    value: float
    interval: tuple[float, float]
    same: float | None
    chosen: tuple[int, ...]

    @classmethod
    def of(
        cls, chosen: Sequence[int], answers: Sequence[int], reference: Sequence[int] | None
    ) -> Accuracy:
        """Of the choices of a model, the right ones, and the reference's where they are known."""
        right, count = sum(map(int.__eq__, chosen, answers)), len(answers)
        same = None if reference is None else sum(map(int.__eq__, chosen, reference)) / count
        return cls(right / count, wilson(right, count), same, tuple(chosen))


@dataclass(frozen=True)
class ModelResult:
    """What was found of one model.

    Args:
        model: its file.
        bytes: of the file and its parts; None for saved predictions.
        kv_type: what its KV cache was kept as; None for saved predictions.
        n_expert_used: routed experts that a token visited; None is as many as the file says.
        perplexity: on the text; None where there was none.
        statistics: how far it is from the reference; None for the reference itself.
        accuracy: of its answers; None where there were no questions.
    """

    model: str
    bytes: int | None
    kv_type: KVTypes | None = None
    n_expert_used: int | None = None
    perplexity: Estimate | None = None
    statistics: Statistics | None = None
    accuracy: Accuracy | None = None

    @property
    def label(self) -> str:
        """Its file's name, and what it was opened with where that is not the usual."""
        return with_settings(Path(self.model).name, self.kv_type, self.n_expert_used)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; probabilities as shares of 1, divergences in nats."""
        pair = [self.kv_type] * 2 if isinstance(self.kv_type, str) else self.kv_type
        record: dict[str, Any] = {
            "model": self.model,
            "bytes": self.bytes,
            "kv_type": None if pair is None else list(pair),
            "n_expert_used": self.n_expert_used,
        }
        if self.perplexity is not None:
            record |= _named("perplexity", self.perplexity)
        if self.statistics is not None:
            found = self.statistics
            record |= _named("perplexity_ratio", found.perplexity_ratio)
            record["kl"] = {
                **_named("mean", found.kl_mean),
                "median": found.kl_median,
                "median_interval": list(found.kl_median_interval),
                "p99": found.kl_p99,
                "p99_interval": list(found.kl_p99_interval),
                "max": found.kl_max,
            }
            record |= _named("same_top", found.same_top)
            record |= _named("rms_p_difference", found.rms_p_difference)
        if self.accuracy is not None:
            right = self.accuracy
            record |= {
                "accuracy": right.value,
                "accuracy_interval": list(right.interval),
                "same_answers": right.same,
            }
        return record


def with_settings(model: str, kv_type: KVTypes | None, n_expert_used: int | None) -> str:
    """``int4.gguf, KV q8_0, 2 experts``: a model's name, and what is not as usual of it."""
    parts = [model]
    if kv_type not in (None, "f16"):
        parts.append(f"KV {kv_type}" if isinstance(kv_type, str) else kv_text(kv_type))
    if n_expert_used is not None:
        parts.append(f"{n_expert_used} {'expert' if n_expert_used == 1 else 'experts'}")
    return ", ".join(parts)


@dataclass(frozen=True)
class Comparison:
    """A reference, and what differs of each candidate.

    Args:
        n_ctx, n_chunks: the text was read in so many chunks of so many tokens.
        n_tokens: how many predictions were compared.
        n_questions: how many questions were asked.
    """

    reference: ModelResult
    candidates: tuple[ModelResult, ...]
    n_ctx: int
    n_chunks: int
    n_tokens: int
    n_questions: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "n_tokens": self.n_tokens,
            "n_questions": self.n_questions,
            "reference": self.reference.as_dict(),
            "candidates": [one.as_dict() for one in self.candidates],
        }


def _named(name: str, estimate: Estimate) -> dict[str, Any]:
    return {
        name: estimate.value,
        f"{name}_error": estimate.error,
        f"{name}_interval": list(estimate.interval),
    }
