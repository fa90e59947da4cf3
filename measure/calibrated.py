"""What a calibration found, as values, and what is asked of a file of statistics and of logits.

Opens no models.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DamagedTensorError, ModelFileError
from ..quant.importance import Activations, Floats, Importance
from ..quant.starved import FEWEST, ExpertCounts
from ..runtime.bindings.candidates import log_sum
from ..runtime.files.model_file import ModelInfo
from ..untrusted import brief


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
            "layers": [one.as_dict() for one in self.layers],
        }


def most_tokens(importance: Importance) -> int:
    """How many tokens the tensor saw that saw most."""
    counts = (int(one.measured().counts.max()) for one in importance.tensors.values())
    return max(counts, default=0)


def of_model(importance: Importance, info: ModelInfo) -> Importance:
    """Statistics that are those of this model, as far as shapes tell."""
    shapes = {tensor.name: tensor.shape for tensor in info.tensors}
    tensors: dict[str, Activations] = {}
    for name, one in importance.tensors.items():
        shape = shapes.get(name, (0,))
        shaped = one.reshaped((shape[2] if len(shape) > 2 else 1, shape[0]))
        if shaped is None:
            found = "{} matrices of {} columns".format(*one.sums.shape)
            raise ModelFileError(
                f"{importance.name} is of another model than {info.path}",
                found=f"{found} of {brief(name)}",
                expected=f"those of a tensor of {' x '.join(map(str, shape))}",
                hint="Merge statistics of the same model.",
            )
        tensors[name] = shaped
    return replace(importance, tensors=tensors)


def unlikelihoods(
    tokens: npt.NDArray[np.int32],
    nll: npt.NDArray[np.float64],
    pool: Executor,
    place: int,
    rows: Floats,
) -> None:
    """Write how unlikely the model finds the tokens of the second half of a chunk.

    Args:
        place: that of the token after which the first of these logits are.
    """
    first = len(tokens) // 2

    def one(at: int) -> None:
        logits = rows[at - place]
        most = float(logits.max())
        if not isfinite(most):
            raise DamagedTensorError("the model computes NaN or infinite logits")
        nll[at - first] = log_sum(logits, most) - float(logits[tokens[at + 1]])

    for _ in pool.map(one, range(max(place, first), min(place + len(rows), len(tokens) - 1))):
        pass
