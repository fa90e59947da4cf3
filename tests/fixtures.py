"""The types of fixtures that are functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from demo.checkpoint import Geometry


class MakeCheckpoint(Protocol):
    """Writes a checkpoint of random weights, once for equal arguments."""

    def __call__(
        self, geometry: Geometry, seed: int = ..., tokenizer: Path | None = ...
    ) -> Path: ...


class MakeGGUF(Protocol):
    """Converts a checkpoint, once for equal arguments."""

    def __call__(self, checkpoint: Path, recipe: str = ...) -> Path: ...


class MakeProjector(Protocol):
    """Converts a checkpoint's vision tower, once for equal arguments."""

    def __call__(self, checkpoint: Path, vision_type: str = ...) -> Path: ...


class Once(Protocol):
    """The directory that `make` fills, once in a test run, whichever process comes first."""

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path: ...
