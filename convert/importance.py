"""An importance matrix on its way to the encoders: which of its columns weigh which rows.

Promises what llama-quantize does with the same file: the same weights for each matrix and each
expert, and the same keys in the GGUF. Beyond that, promises that a matrix of another model is
refused by what differs, and that what is encoded without weights is said. Reads no weight of a
model.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from ..errors import ModelFileError, RecipeError
from ..quant import Assignment, Recipe, TensorSpec, TensorType
from ..quant.encode import Floats
from ..quant.importance import Activations, Counts, Importance
from ..quant.importance_file import read_importance
from ..quant.recipes import check_importance, is_typed
from ..quant.types import MXFP4, Q8_0
from ..untrusted import brief
from .report import MatrixUse
from .slabs import Output

# llama-quantize's keys, of which strings have as many bytes at most.
FILE_KEY = "quantize.imatrix.file"
DATASET_KEY = "quantize.imatrix.dataset"
ENTRIES_KEY = "quantize.imatrix.entries_count"
CHUNKS_KEY = "quantize.imatrix.chunks_count"
MATRIX_KEYS = (FILE_KEY, DATASET_KEY, ENTRIES_KEY, CHUNKS_KEY)
_MOST_BYTES = 127

_READ_BYTES = 16 << 20
_EMBEDDING = "token_embd.weight"
# Quantized types whose encoders in ggml take no weights.
_UNWEIGHED = (Q8_0, MXFP4)


@dataclass(frozen=True)
class ImportanceMatrix:
    """A file of activation statistics: what it says, and a `digest` of its bytes.

    `name` is the file's as it was given, which llama-quantize writes down.
    """

    name: str
    importance: Importance
    digest: str

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.name)

    def metadata(self) -> dict[str, str | int]:
        """What a GGUF says of it, in llama-quantize's keys and order."""
        keys: dict[str, str | int] = {FILE_KEY: _cut(self.name)}
        if self.importance.datasets:
            keys[DATASET_KEY] = _cut(self.importance.datasets[0])
        keys[ENTRIES_KEY] = len(self.importance.tensors)
        if self.importance.n_chunks > 0:
            keys[CHUNKS_KEY] = self.importance.n_chunks
        return keys

    def check(self, tensors: Sequence[TensorSpec], n_layer: int) -> None:
        """Hold it against the model that is converted.

        Args:
            tensors: the text model's, by their names in a GGUF.
            n_layer: its layers.

        Raises:
            ModelFileError: it is of another model.
        """
        specs = {spec.name: spec for spec in tensors}
        entries = self.importance.tensors
        layers = {int(match[1]) for match in map(_LAYER.match, entries) if match}
        absent = [name for name in entries if _LAYER.match(name) and name not in specs]
        if layers and layers != set(range(n_layer)):
            raise self._other_model(f"{len(layers)} layers", f"{n_layer}")
        if absent:
            more = f" and {len(absent) - 1:,} more" if len(absent) > 1 else ""
            raise self._other_model(f"{brief(absent[0])}{more}", "tensors of this model alone")
        if not any(name in specs for name in entries):
            first = next(iter(entries), "no tensor")
            raise self._other_model(brief(first), "the names of this model's tensors")
        for spec in tensors:
            self.find(spec)

    def weigh(self, outputs: Mapping[str, Output]) -> dict[str, Output]:
        """The places of a model's tensors, with the weights of their columns."""
        return {name: replace(it, columns=self._columns(it)) for name, it in outputs.items()}

    def _columns(self, output: Output) -> ColumnWeights | None:
        spec = TensorSpec(output.name, output.shape)
        if not takes_weights(output.type) or not is_typed(spec):
            return None
        found = self.find(spec)
        return None if found is None else ColumnWeights(found, output.shape[-2])

    def find(self, spec: TensorSpec) -> Activations | None:
        """What it has for a tensor; None where it has nothing.

        Raises:
            ModelFileError: it is of a tensor of another shape; but for the embedding's, which
                llama-quantize ignores.
        """
        shape = prod(spec.shape[:-2]), spec.shape[-1]
        found = self.importance.tensors.get(spec.name)
        if found is not None and spec.name == _EMBEDDING:
            return found.reshaped(shape)
        return self.importance.shaped(spec.name, shape)

    def _other_model(self, found: str, expected: str) -> ModelFileError:
        return ModelFileError(
            f"{self.path} is of another model",
            found=found,
            expected=expected,
            hint="Calibrate this model: llama4 calibrate.",
        )


@dataclass(frozen=True)
class ColumnWeights:
    """The weights of a tensor's columns, for each of its matrices of so many `rows`."""

    activations: Activations
    rows: int

    def of(self, matrix: int) -> Floats:
        """Float32 of [row_length]; an expert is a matrix."""
        one = slice(matrix, matrix + 1)
        sums, counts = self.activations.sums[one], self.activations.counts[one]
        weights: Floats = Activations(sums, counts).weights()[0]
        return weights


def open_matrix(path: str | os.PathLike[str]) -> ImportanceMatrix:
    """Read a file of activation statistics, in either of llama.cpp's forms.

    Raises:
        ModelFileError: it cannot be read, or is something else.
    """
    importance = read_importance(path)
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return ImportanceMatrix(os.fspath(path), importance, digest.hexdigest())


def check_recipe(recipe: Recipe, matrix: ImportanceMatrix | None) -> None:
    """Refuse a recipe that needs an importance matrix where there is none.

    Raises:
        RecipeError: it is one of those.
    """
    if recipe.needs_importance and matrix is None:
        raise RecipeError(
            f"recipe {recipe.name} needs an importance matrix",
            hint="Measure one with `llama4 calibrate`, and give it: imatrix=FILE",
        )


def matrix_use(
    matrix: ImportanceMatrix | None, assignments: Iterable[Assignment], encoded: Iterable[str]
) -> MatrixUse | None:
    """How much of a conversion a matrix weighs; None where there is no matrix.

    Args:
        matrix: the one that is given.
        assignments: the types of the text model's tensors.
        encoded: the names of those that are encoded, and not copied.

    Raises:
        RecipeError: a type cannot do without, and the matrix has nothing for its tensor.
    """
    names = set(encoded)
    taking = [
        one
        for one in assignments
        if one.tensor.name in names and is_typed(one.tensor) and takes_weights(one.type)
    ]
    found = {one.tensor.name: matrix.find(one.tensor) if matrix else None for one in taking}
    weighed = {name: one for name, one in found.items() if one is not None}
    check_importance(taking, weighed)
    if matrix is None:
        return None
    unseen = {name: _zeros(one.counts) for name, one in weighed.items()}
    return MatrixUse(
        file=matrix.name,
        entries=len(matrix.importance.tensors),
        weighed=len(weighed),
        without=tuple(name for name in found if name not in weighed),
        unseen={name: experts for name, experts in unseen.items() if experts},
        substituted={name: one.starved.experts for name, one in weighed.items() if one.starved},
    )


def takes_weights(tensor_type: TensorType) -> bool:
    """Whether weights change how numbers are encoded to a type."""
    return tensor_type.quantized and tensor_type not in _UNWEIGHED


_LAYER = re.compile(r"blk\.(\d{1,6})\.", re.ASCII)


def _zeros(counts: Counts) -> tuple[int, ...]:
    """Which are 0."""
    return tuple(np.flatnonzero(counts == 0).tolist())


def _cut(text: str) -> str:
    """A string as llama-quantize writes it."""
    data = text.encode("utf-8", "replace").partition(b"\0")[0]
    return data[:_MOST_BYTES].decode("utf-8", "ignore")
