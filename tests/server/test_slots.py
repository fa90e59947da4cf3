"""States that are kept from one start of a server to the next."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama4_edge import Model
from llama4_edge.server.slots import Slots
from tests.tiny_model import never_ending

PROMPT = "The quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return never_ending().write(tmp_path_factory.mktemp("slots") / "model.gguf")


@pytest.fixture
def model(path: Path) -> Iterator[Model]:
    """A model that has read nothing."""
    with Model(path, n_ctx=256, n_threads=1, n_parallel=2) as loaded:
        yield loaded


def reused(model: Model) -> int:
    """How many tokens of the prompt need not be read."""
    return model.generate(PROMPT, max_tokens=1, temperature=0.0).reused_tokens


def test_what_was_read_is_taken_up_and_written_in_its_place(
    path: Path, model: Model, tmp_path: Path
) -> None:
    assert reused(model) == 0
    Slots(tmp_path).save(model)
    (kept,) = tmp_path.iterdir()
    with Model(path, n_ctx=256, n_threads=1, n_parallel=2) as other:
        slots = Slots(tmp_path)
        slots.restore(other)
        assert reused(other) > 0
        slots.save(other)
    assert list(tmp_path.iterdir()) == [kept]


def test_files_that_were_not_taken_up_are_left_as_they_are(
    path: Path, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Model(path, n_ctx=256, n_threads=1, flash_attention="off") as other:
        reused(other)
        Slots(tmp_path).save(other)
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (tmp_path / "slot-0001.l4s").symlink_to(outside)
    (tmp_path / "slot-0002.l4s").write_bytes(b"damaged")
    (tmp_path / "slot-0003.l4s").mkdir()
    (tmp_path / "slot-0004.l4s").symlink_to(tmp_path / "nowhere")
    before = {one.name: one.read_bytes() for one in tmp_path.glob("*") if one.is_file()}
    slots = Slots(tmp_path)
    with caplog.at_level(logging.WARNING):
        slots.restore(model)
    told = [one.getMessage() for one in caplog.records if one.name.endswith("slots")]
    assert ["left there" in one for one in told] == [True] * 5
    assert reused(model) == 0
    slots.save(model)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert (tmp_path / "slot-0005.l4s").is_file()
    slots.save(model)
    assert not (tmp_path / "slot-0006.l4s").exists()


def test_a_directory_that_is_gone_is_told(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slots = Slots(tmp_path / "states")
    reused(model)
    (tmp_path / "states").rmdir()
    slots.save(model)
    assert "not all that was read is kept" in caplog.text
