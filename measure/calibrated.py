"""What a calibration found, as values: how many tokens each expert saw, and which saw too few.

Knows neither models nor how anything was measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..quant.importance import Importance
from ..quant.starved import FEWEST

_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down)_exps\.weight")


@dataclass(frozen=True)
class ExpertCounts:
    """How many tokens each expert of a layer saw, and which of them saw too few."""

    layer: int
    counts: tuple[int, ...]
    starved: tuple[int, ...]


@dataclass(frozen=True)
class Calibration:
    """What was found.

    Args:
        output: the file of statistics.
        n_tensors: that it has.
        n_tokens: that were read, by all files that are merged in it.
        n_chunks, n_conversations: that were read now, or by the interrupted run before.
        n_ctx: tokens of a chunk.
        perplexity: of the text, and its standard error; None where it was not computed.
        layers: those with experts.
        fewest: an expert that saw fewer tokens is starved.
    """

    output: str
    n_tensors: int
    n_tokens: int
    n_chunks: int
    n_conversations: int
    n_ctx: int
    perplexity: tuple[float, float] | None
    layers: tuple[ExpertCounts, ...]
    fewest: int = FEWEST

    @property
    def coverage(self) -> float:
        """The share of experts that have statistics of their own; 1 where there are no experts."""
        count = sum(len(layer.counts) for layer in self.layers)
        starved = sum(len(layer.starved) for layer in self.layers)
        return 1 - starved / count if count else 1.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "output": self.output,
            "n_tensors": self.n_tensors,
            "n_tokens": self.n_tokens,
            "n_chunks": self.n_chunks,
            "n_conversations": self.n_conversations,
            "n_ctx": self.n_ctx,
            "perplexity": None if self.perplexity is None else self.perplexity[0],
            "perplexity_error": None if self.perplexity is None else self.perplexity[1],
            "coverage": self.coverage,
            "fewest_tokens": self.fewest,
            "layers": [
                {
                    "layer": one.layer,
                    "experts": list(one.counts),
                    "starved": [
                        {"expert": expert, "tokens": one.counts[expert]} for expert in one.starved
                    ],
                }
                for one in self.layers
            ],
        }


def expert_counts(importance: Importance) -> tuple[ExpertCounts, ...]:
    """How many tokens each expert saw, by layers."""
    layers: dict[int, ExpertCounts] = {}
    for name, one in importance.tensors.items():
        if (match := _EXPERTS.fullmatch(name)) is not None:
            counts = tuple(one.measured().counts.tolist())
            starved = () if one.starved is None else one.starved.experts
            layers[int(match[1])] = ExpertCounts(int(match[1]), counts, starved)
    return tuple(layers[number] for number in sorted(layers))


def most_tokens(importance: Importance) -> int:
    """How many tokens the tensor saw that saw most."""
    counts = (int(one.measured().counts.max()) for one in importance.tensors.values())
    return max(counts, default=0)
