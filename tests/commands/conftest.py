"""What the tests of the commands share: a way to call them, and a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llama4_edge.cli import main
from tests.command_line import Command


@pytest.fixture
def llama4(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    """Runs the command in an empty directory."""
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("llama4_edge")
    level, handlers = logger.level, list(logger.handlers)

    def run(*arguments: object, stdin: str | bytes = b"") -> Result:
        return CliRunner().invoke(
            main, [str(one) for one in arguments], input=stdin, catch_exceptions=False
        )

    yield run
    logger.setLevel(level)
    logger.handlers = handlers


@pytest.fixture(scope="session")
def model(make_gguf: Callable[..., Path], scout_checkpoint: Path) -> Path:
    return make_gguf(scout_checkpoint)
