"""What a calibration found, as values, and what is asked of a file of statistics and of logits.

Opens no models.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DamagedTensorError, ModelFileError
from ..quant.importance import LARGEST_MEAN, Activations, Floats, Importance
from ..quant.starved import FEWEST, ExpertCounts
from ..runtime.activations import Total
from ..runtime.bindings.candidates import log_sum
from ..runtime.files.model_file import ModelInfo
from ..untrusted import brief

DAMAGED_HINT = "Convert the model, or fetch it, again: `llama4 inspect --check` looks for damage."


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


def as_importance(
    totals: Mapping[str, Total], datasets: tuple[str, ...], n_ctx: int, model: Path
) -> Importance:
    """What was summed, as a file has it.

    Args:
        datasets: names of the texts.
        n_ctx: tokens of a chunk.
        model: the file, for errors.

    Raises:
        DamagedTensorError: a sum is larger than a model's can be.
    """
    tensors = {}
    for name, (sums, counts) in totals.items():
        with np.errstate(over="ignore"):
            one = Activations(sums.astype(np.float32), counts)
        if (most := one.largest_mean) > LARGEST_MEAN:
            raise DamagedTensorError(
                f"{model} cannot be calibrated",
                found=f"{name} is multiplied with numbers whose mean square is {most:.3g}",
                expected=f"at most {LARGEST_MEAN:g}, as any model's",
                hint=DAMAGED_HINT,
            )
        tensors[name] = one
    return Importance(tensors, datasets=datasets, chunk_size=n_ctx)


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
                expected=f"those of a tensor of {' x '.join(map(str, shape))}"
                if name in shapes
                else "only tensors of this model",
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
    """Write how unlikely the model finds the tokens of the second half of a chunk; NaN where its
    logits are no numbers.

    Args:
        place: that of the token after which the first of these logits are.
    """
    first = len(tokens) // 2

    def one(at: int) -> None:
        logits = rows[at - place]
        most = float(logits.max())
        own = float(logits[tokens[at + 1]])
        nll[at - first] = log_sum(logits, most) - own if isfinite(most) else nan

    for _ in pool.map(one, range(max(place, first), min(place + len(rows), len(tokens) - 1))):
        pass
