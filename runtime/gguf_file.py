"""Reads the header of a GGUF file with ggml's own parser, and checks it against the file's length.

Promises that a damaged header is one ModelFileError and never a crash. Knows nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. ``shape`` is in ggml's order: ``shape[0]`` is contiguous."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file; arrays of ``metadata`` are tuples."""

    path: Path
    version: int
    alignment: int
    data_offset: int
    size: int
    metadata: Mapping[str, object]
    tensors: tuple[TensorInfo, ...]


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Read a header. Raises ModelFileError for anything that is not a whole GGUF file."""
    raise NotImplementedError
