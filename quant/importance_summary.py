"""What activation statistics say of a model: of each tensor, and of the experts of each layer.

The figures are those of ``llama-imatrix --show-statistics``, in double precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import log2
from typing import Any

import numpy as np
import numpy.typing as npt

from .importance import Activations, Importance
from .starved import ExpertCounts, expert_counts

_ACTIVE = 1e-5  # a mean square that is larger is of an active column
_LAYER = re.compile(r"blk\.(\d{1,9})\.")


@dataclass(frozen=True)
class TensorStatistics:
    """The mean squares of what a tensor's columns were multiplied with, where there are any.

    Those of experts are all counted that saw something, with substitutes for starved ones.

    Args:
        name: of the tensor in a GGUF.
        n_matrices: that it has; experts are matrices.
        n_tokens: that the matrix saw that saw most.
        n_columns: of all matrices that saw something.
        sum, mean, minimum, maximum, deviation: of these columns' mean squares; the last is the
            standard deviation.
        active: the share of columns whose mean square is above 1e-5.
        entropy: of the mean squares as a distribution, in bits.
        evenness: the entropy as a share of what it would be if all columns were alike.
        outliers: the share of columns more than a standard deviation above the mean.
        similarity: the cosine between the sums and those of the same tensor one layer before; None
            where there is none of the same shape.
    """

    name: str
    n_matrices: int
    n_tokens: int
    n_columns: int
    sum: float
    mean: float
    minimum: float
    maximum: float
    deviation: float
    active: float
    entropy: float
    evenness: float
    outliers: float
    similarity: float | None


@dataclass(frozen=True)
class ImportanceSummary:
    """What a file of activation statistics holds.

    Args:
        path: of the file.
        datasets: names of the texts that the model read.
        n_chunks: how many chunks these were.
        chunk_size: tokens of each; 0 where the file does not say.
        tensors: by layers; those that saw nothing are left out.
        layers: those with experts.
    """

    path: str
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int
    tensors: tuple[TensorStatistics, ...]
    layers: tuple[ExpertCounts, ...]

    @classmethod
    def of(cls, importance: Importance) -> ImportanceSummary:
        """What these statistics say."""
        every = importance.tensors
        found = (_statistics(name, every) for name in sorted(every, key=_place))
        return cls(
            path=importance.name,
            datasets=importance.datasets,
            n_chunks=importance.n_chunks,
            chunk_size=importance.chunk_size,
            tensors=tuple(one for one in found if one is not None),
            # The older form does not tell experts apart.
            layers=tuple(one for one in expert_counts(importance) if len(one.counts) > 1),
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        record = {**vars(self), "kind": "imatrix", "datasets": list(self.datasets)}
        record["tensors"] = [asdict(one) for one in self.tensors]
        record["layers"] = [one.as_dict() for one in self.layers]
        return record


def _place(name: str) -> tuple[int, str]:
    """Where a tensor is listed: by its layer, what is in none last."""
    match = _LAYER.match(name)
    return (int(match[1]) if match else 10**9, name)


def _statistics(name: str, every: Mapping[str, Activations]) -> TensorStatistics | None:
    """Of one tensor; None where it saw nothing."""
    one = every[name]
    seen = one.counts > 0
    if not seen.any():
        return None
    means = (one.sums[seen].astype(np.float64) / one.counts[seen, None]).ravel()
    total, deviation = float(means.sum()), float(means.std())
    entropy = _entropy(means / total) if total > 0 else 0.0
    return TensorStatistics(
        name=name,
        n_matrices=len(one.counts),
        n_tokens=int(one.measured().counts.max()),
        n_columns=means.size,
        sum=total,
        mean=float(means.mean()),
        minimum=float(means.min()),
        maximum=float(means.max()),
        deviation=deviation,
        active=float((means > _ACTIVE).mean()),
        entropy=entropy,
        evenness=entropy / log2(means.size) if means.size > 1 else 1.0,
        outliers=float((means > means.mean() + deviation).mean()) if deviation else 0.0,
        similarity=_similarity(one, every.get(_before(name))),
    )


def _entropy(shares: npt.NDArray[np.float64]) -> float:
    some = shares[shares > 0]
    return max(float(-(some * np.log2(some)).sum()), 0.0)


def _before(name: str) -> str:
    """The same tensor's name one layer before."""
    return _LAYER.sub(lambda match: f"blk.{int(match[1]) - 1}.", name, count=1)


def _similarity(one: Activations, before: Activations | None) -> float | None:
    if before is None or before is one or before.sums.shape != one.sums.shape:
        return None
    first, second = (it.sums.ravel().astype(np.float64) for it in (before, one))
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / length if length else None
