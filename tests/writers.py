"""Import the packages that write checkpoints, which warn and print when they are imported."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import ModuleType


def writer(name: str) -> ModuleType:
    """The module of this name."""
    with warnings.catch_warnings():
        # Of versions that it was not tested with, of deprecated parts of others, and the like.
        warnings.simplefilter("ignore")
        return import_module(name)
