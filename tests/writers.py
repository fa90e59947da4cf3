"""The packages that write checkpoints, which warn when they are imported and when they are used."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType


@contextmanager
def quiet() -> Iterator[None]:
    """Without their warnings: of versions not tested, of deprecated parts of others, of speed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def writer(name: str) -> ModuleType:
    """The module of this name."""
    with quiet():
        return import_module(name)
