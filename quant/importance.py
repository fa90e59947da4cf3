"""How much each column of each matrix matters: sums of the squares of what it is multiplied with.

What llama.cpp calls an importance matrix. Promises the weights that llama-quantize takes from the
same file, bit for bit. Knows no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError
from ..untrusted import brief

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

LARGEST_MEAN = 1e15
"""A larger mean square, of numbers beyond 30 million, is no model's, and what encoders compute with
it overflows."""


@dataclass(frozen=True)
class Starved:
    """Of experts that saw too few tokens, what was measured: `Activations` has a substitute.

    Args:
        experts: their numbers, ascending.
        sums: [n_experts, row_length].
        counts: [n_experts].
    """

    experts: tuple[int, ...]
    sums: Floats
    counts: Counts


@dataclass(frozen=True)
class Activations:
    """What a tensor's matrices were multiplied with.

    Args:
        sums: of the squares of each column, float32 of [n_matrices, row_length]; experts are
            matrices.
        counts: how many rows were summed, int64 of [n_matrices].
        starved: experts whose sums and counts are substitutes; None where there are none.
    """

    sums: Floats
    counts: Counts
    starved: Starved | None = None

    def measured(self) -> Activations:
        """The same without substitutes."""
        if self.starved is None:
            return self
        experts = list(self.starved.experts)
        sums, counts = self.sums.copy(), self.counts.copy()
        sums[experts], counts[experts] = self.starved.sums, self.starved.counts
        return Activations(sums, counts)

    def weights(self) -> Floats:
        """The mean squares, 1 where nothing was summed: float32 of [n_matrices, row_length]."""
        counts = self.counts.astype(np.float32)[:, None]
        return np.divide(self.sums, counts, out=np.ones_like(self.sums), where=counts > 0)

    @property
    def largest_mean(self) -> float:
        """The largest of the mean squares, and of sums that are of nothing; 0 where are none."""
        means = self.sums / np.maximum(self.counts, 1)[:, None]
        return float(means.max(initial=0))

    def reshaped(self, shape: tuple[int, int]) -> Activations | None:
        """With so many matrices of so many columns; None where it cannot have them.

        Files that stem from the older form have all experts' columns in one matrix.
        """
        if self.sums.shape == shape:
            return self
        if len(self.sums) != 1 or self.sums.size != shape[0] * shape[1]:
            return None
        return Activations(self.sums.reshape(shape), np.repeat(self.counts, shape[0]))


@dataclass(frozen=True)
class Importance:
    """Activation statistics of a model, by the names of its tensors in a GGUF.

    Args:
        tensors: of each that was multiplied with.
        name: of the file that they are from, for errors.
        datasets: names of the texts that the model read.
        n_chunks: how many chunks these were.
        chunk_size: tokens of each; 0 where the file does not say.
    """

    tensors: Mapping[str, Activations]
    name: str = "the activation statistics"
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    chunk_size: int = 0

    def __contains__(self, tensor: object) -> bool:
        return tensor in self.tensors

    def weights(self, tensor: str, shape: tuple[int, int] | None = None) -> Floats | None:
        """What llama-quantize weighs the columns of a tensor with; None where it has nothing.

        Args:
            shape: its matrices and their row length; None is as in the file.

        Returns:
            Float32 of [n_matrices, row_length], contiguous, finite, none negative.

        Raises:
            ModelFileError: the statistics are of a tensor of another shape.
        """
        shaped = self.tensors.get(tensor) if shape is None else self.shaped(tensor, shape)
        return None if shaped is None else shaped.weights()

    def shaped(self, tensor: str, shape: tuple[int, int]) -> Activations | None:
        """What there is of a tensor with so many matrices of so many columns; None if nothing.

        Raises:
            ModelFileError: the statistics are of a tensor of another shape.
        """
        found = self.tensors.get(tensor)
        shaped = None if found is None else found.reshaped(shape)
        if found is not None and shaped is None:
            raise ModelFileError(
                f"{self.name} is of another model",
                found=f"{_shape(found.sums.shape)} of {brief(tensor)}",
                expected=_shape(shape),
                hint="Calibrate this model: llama4 calibrate.",
            )
        return shaped


def merged(parts: Sequence[Importance], chunk_size: int) -> Importance:
    """The statistics of several texts as those of one: of what was measured, not of substitutes.

    Args:
        parts: at least one, each of the same model.
        chunk_size: tokens of the chunks that the result counts.

    Raises:
        ModelFileError: they are of models of other shapes, or too large together.
    """
    tensors: dict[str, Activations] = {}
    for part in parts:
        if tensors and not tensors.keys() & part.tensors.keys():
            raise _other_model(part, f"none of the tensors of {parts[0].name}", None)
        for name, one in part.tensors.items():
            measured = one.measured()
            before = tensors.get(name)
            tensors[name] = measured if before is None else _sum(before, measured, name, part)
    most = max((int(one.counts.max()) for one in tensors.values()), default=0)
    return Importance(
        tensors,
        datasets=tuple(text for part in parts for text in part.datasets),
        n_chunks=most // chunk_size,
        chunk_size=chunk_size,
    )


def _sum(before: Activations, one: Activations, name: str, part: Importance) -> Activations:
    same, other = before, one.reshaped((len(before.sums), before.sums.shape[1]))
    if other is None:
        other, reshaped = one, before.reshaped((len(one.sums), one.sums.shape[1]))
        if reshaped is None:
            found = f"{_shape(one.sums.shape)} of {brief(name)}"
            raise _other_model(part, found, _shape(before.sums.shape))
        same = reshaped
    with np.errstate(over="ignore"):
        sums = same.sums + other.sums
    if not np.isfinite(sums).all():
        raise ModelFileError(
            f"{part.name} cannot be merged",
            found=f"sums of {brief(name)} that are too large together",
            expected="sums that float32 holds",
            hint="Calibrate again: no model's are.",
        )
    return Activations(sums, same.counts + other.counts)


def _shape(shape: tuple[int, ...]) -> str:
    n_matrices, row_length = shape
    return f"{n_matrices} matrices of {row_length} columns"


def _other_model(part: Importance, found: str, expected: str | None) -> ModelFileError:
    return ModelFileError(
        f"{part.name} is of another model than the statistics that it should be merged with",
        found=found,
        expected=expected,
        hint="Merge statistics of the same model.",
    )
