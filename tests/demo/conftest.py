"""The model that comes with the repository, converted once a session for each recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from demo.training import MODEL
from tests.fixtures import MakeGGUF


@pytest.fixture(scope="session")
def trained() -> Path:
    return MODEL


@pytest.fixture(scope="session")
def trained_gguf(make_gguf: MakeGGUF, trained: Path) -> Callable[[str], Path]:
    return lambda recipe: make_gguf(trained, recipe)
