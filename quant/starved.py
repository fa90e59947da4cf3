"""Experts that saw too few tokens for statistics of their own, and what stands in for these.

With fewer than 32 tokens, an expert's own statistics are better with a little of the others'
beside: 4 tokens' worth where columns are alike, and 1 where they are not; and worse with more. From
there on it changes what is lost by a hundredth at most (``benchmarks/starved.py``: what Q4_K loses
of the demo model, and of one with 32 experts). So that is done for experts that saw fewer than 32.

The columns of an expert's gate and up matrices are those of the residual stream, which all experts
share: column by column the others' mean is added. Those of its down matrix are its own neurons, to
which the others' say nothing but how large they are: all get the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .importance import Activations, Floats, Importance, Starved

FEWEST = 32
"""Tokens of an expert that has statistics of its own."""

_ADDED_ALIKE, _ADDED_UNLIKE = 4, 1  # tokens of the others'
_EXPERTS = re.compile(r"blk\.(\d{1,9})\.ffn_(?:gate|up|down)_exps\.weight")


@dataclass(frozen=True)
class ExpertCounts:
    """How many tokens each expert of a layer saw, and which of them saw too few."""

    layer: int
    counts: tuple[int, ...]
    starved: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        starved = [{"expert": one, "tokens": self.counts[one]} for one in self.starved]
        return {"layer": self.layer, "experts": list(self.counts), "starved": starved}


def expert_counts(importance: Importance) -> tuple[ExpertCounts, ...]:
    """How many tokens each expert saw, by layers."""
    layers: dict[int, ExpertCounts] = {}
    for name, one in importance.tensors.items():
        if (match := _EXPERTS.fullmatch(name)) is not None:
            counts = tuple(one.measured().counts.tolist())
            # Those of a layer that saw nothing have no substitutes, and are starved all the same.
            starved = tuple(expert for expert, count in enumerate(counts) if count < FEWEST)
            layers[int(match[1])] = ExpertCounts(int(match[1]), counts, starved)
    return tuple(layers[number] for number in sorted(layers))


def with_substitutes(importance: Importance) -> Importance:
    """The same statistics, with substitutes for those of starved experts."""
    return replace(
        importance,
        tensors={name: _substituted(name, one) for name, one in importance.tensors.items()},
    )


def _substituted(name: str, one: Activations) -> Activations:
    measured = one.measured()
    starved = np.flatnonzero(measured.counts < FEWEST)
    if len(measured.counts) < 2 or not len(starved) or not measured.counts.any():
        return measured
    alike = "ffn_down" not in name
    added = _ADDED_ALIKE if alike else _ADDED_UNLIKE
    sums, counts = measured.sums.copy(), measured.counts.copy()
    for expert in starved.tolist():
        count = measured.counts[expert]
        others = np.float32(added) * _mean_of_others(measured, expert, alike=alike)
        mean = (measured.sums[expert] + others) / np.float32(count + added)
        # llama.cpp takes a count of 0 for no statistics.
        counts[expert] = max(count, 1)
        sums[expert] = mean * np.float32(counts[expert])
    kept = Starved(tuple(starved.tolist()), measured.sums[starved], measured.counts[starved])
    return Activations(sums, counts, kept)


def _mean_of_others(measured: Activations, expert: int, *, alike: bool) -> Floats:
    """The mean squares that the other experts saw: of each column, or where these are not alike,
    of all columns."""
    others = np.arange(len(measured.counts)) != expert
    if not measured.counts[others].any():
        others[:] = True  # nobody else saw anything
    sums = measured.sums[others].sum(0, dtype=np.float64)
    mean = (sums / measured.counts[others].sum()).astype(np.float32)
    return mean if alike else np.full_like(mean, mean.mean(dtype=np.float64))
