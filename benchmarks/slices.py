"""A slice of Scout's widths whose weights have the statistics of a trained model's.

Independent normal numbers make every type equally good at a size: there are neither outliers nor
rows that differ. So each matrix has its scales from the demo model's of the same kind: those of its
columns, those of its rows, and the distribution of what is left when these are divided out, which
has heavier tails than the normal one. A column of the residual stream is that of the same column of
the demo model in all matrices and norms, so that outliers meet as they do there. Promises the same
bytes for the same geometry. What else a trained model has, directions that matter together, a slice
has not.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from demo.checkpoint import Geometry, write_checkpoint
from demo.training import MODEL
from llama4_edge.quant.encode import Floats, f32_to_bf16

_LEVELS = 1 << 16  # quantiles of a distribution: what 16 random bits choose from
_PIECE = 1 << 22  # numbers that are made at a time
_LAYERS = (1, 3)  # of the demo model, those with experts

Indices = npt.NDArray[np.intp]


def write_trained_slice(directory: Path, geometry: Geometry) -> Path:
    """Write the checkpoint of a slice, whole or not at all."""
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_checkpoint(partial, geometry, holes=True)
    trained = Trained.read(MODEL)
    places = _Places(geometry, trained)
    for shard in sorted(partial.glob("*.safetensors")):
        _fill(shard, trained, places)
    return partial.rename(directory)


def _header(shard: Path) -> tuple[dict[str, Any], int]:
    """The entries of a file in safetensors, and where their data begin."""
    with shard.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


@dataclass(frozen=True)
class Trained:
    """The tensors of the demo model, by their names, matrices as [..., rows, columns]."""

    tensors: dict[str, Floats]

    @classmethod
    def read(cls, checkpoint: Path) -> Trained:
        """All that is in bf16."""
        tensors = {}
        for shard in sorted(checkpoint.glob("*.safetensors")):
            header, begin = _header(shard)
            data = np.memmap(shard, np.uint8, "r", begin)
            for name, entry in header.items():
                first, last = entry["data_offsets"]
                bits = np.array(data[first:last]).view(np.uint16).astype(np.uint32) << 16
                tensors[name] = _rows_first(name, bits.view(np.float32).reshape(entry["shape"]))
        return cls(tensors)

    def like(self, name: str) -> Floats:
        """The tensor that one of a slice is made like: of a layer with experts."""
        parts = name.split(".")
        if "layers" in parts:
            at = parts.index("layers") + 1
            parts[at] = str(_LAYERS[int(parts[at]) % len(_LAYERS)])
        return self.tensors[".".join(parts)]


def _rows_first(name: str, tensor: Floats) -> Floats:
    """Experts are stored with their columns first."""
    return tensor.swapaxes(-1, -2) if ".experts." in name else tensor


class _Places:
    """Which row or column of the demo model each one of the slice is made like."""

    def __init__(self, geometry: Geometry, trained: Trained) -> None:
        width = len(trained.like("language_model.model.norm.weight"))
        self._width, self._of = geometry.hidden, width
        self._stream = _drawn("stream", geometry.hidden, width)

    def of(self, name: str, count: int, source: int) -> Indices:
        """For `count` rows or columns, those of the `source` there are in the demo model."""
        if (count, source) == (self._width, self._of):
            return self._stream
        return _drawn(name, count, source)


def _drawn(name: str, count: int, source: int) -> Indices:
    """Each as often as the others, in random order."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return rng.permutation(np.arange(count) % source)


def _fill(shard: Path, trained: Trained, places: _Places) -> None:
    """Write the data of a shard."""
    header, begin = _header(shard)
    with shard.open("r+b") as file, ThreadPoolExecutor(os.cpu_count()) as pool:

        def write(name: str) -> None:
            at = begin + header[name]["data_offsets"][0]
            shape = tuple(header[name]["shape"])
            source = trained.like(name)
            if len(shape) == 1:
                _put(file.fileno(), at, source[places.of(name, shape[0], len(source))])
                return
            rng = np.random.PCG64(zlib.crc32(name.encode()))
            for number in range(prod(shape[:-2])):
                like = source if source.ndim == 2 else source[number % len(source)]
                at = _write_matrix(file.fileno(), at, name, shape[-2:], like, places, rng)

        list(pool.map(write, header))


def _write_matrix(
    descriptor: int,
    at: int,
    name: str,
    shape: tuple[int, int],
    like: Floats,
    places: _Places,
    rng: np.random.PCG64,
) -> int:
    """Write a matrix made like a trained one, and return where it ends."""
    rows, columns, levels = statistics(like)
    stored_by_columns = ".experts." in name
    n_rows, n_columns = shape[::-1] if stored_by_columns else shape
    if not name.endswith("embed_tokens.weight"):
        # More terms of the same size would make a larger sum.
        columns = columns * np.float32(sqrt(len(columns) / n_columns))
    rows = rows[places.of(f"{name} rows", n_rows, len(rows))]
    columns = columns[places.of(f"{name} columns", n_columns, len(columns))]
    outer, inner = (columns, rows) if stored_by_columns else (rows, columns)
    step = max(1, _PIECE // len(inner))
    for first in range(0, len(outer), step):
        scales = outer[first : first + step]
        count = len(scales) * len(inner)
        bits = rng.random_raw(-(-count // 4)).astype("<u8").view("<u2")[:count]
        at = _put(descriptor, at, levels[bits].reshape(-1, len(inner)) * scales[:, None] * inner)
    return at


def statistics(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    """The scales of the rows and of the columns of a matrix, and quantiles of what is left without
    them."""
    rows = np.sqrt(np.square(matrix).mean(axis=1)) + np.float32(1e-12)
    left = matrix / rows[:, None]
    columns = np.sqrt(np.square(left).mean(axis=0)) + np.float32(1e-12)
    left /= columns
    ordered = np.sort(left, axis=None)
    return rows, columns, ordered[np.arange(_LEVELS) * len(ordered) // _LEVELS]


def _put(descriptor: int, at: int, numbers: Floats) -> int:
    data = f32_to_bf16(np.ascontiguousarray(numbers, np.float32))
    os.pwrite(descriptor, data.tobytes(), at)
    return at + data.nbytes
