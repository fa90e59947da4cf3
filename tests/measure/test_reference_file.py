"""Saved predictions: whole or not there, and nothing in one is believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama4_edge.errors import ModelFileError, OutputError
from llama4_edge.measure.divergence import Prediction
from llama4_edge.measure.reference_file import (
    ReferenceText,
    is_reference_file,
    new_reference,
    opened_reference,
)

TEXT = ReferenceText("m.gguf", "0" * 64, 50, 8, 1, tuple(range(16)))


def predictions(seed: int) -> list[Prediction]:
    rng = np.random.default_rng(seed)
    return [Prediction.of(rng.normal(0, 9, 50).astype(np.float32), 4) for _ in range(3)]


def save(path: Path) -> bytes:
    with new_reference(TEXT, path) as file:
        for seed in range(2):
            file.write(seed, 0, predictions(seed))
    return path.read_bytes()


def read(path: Path) -> tuple[ReferenceText, list[list[Prediction]]]:
    with opened_reference(path) as file:
        return file.text, [list(file.predictions(number)) for number in range(2)]


def assert_equal(left: Sequence[Prediction], right: Sequence[Prediction]) -> None:
    for one, other in zip(left, right, strict=True):
        assert (one.ids == other.ids).all() and (one.steps == other.steps).all()
        assert (one.step, one.floor) == (other.step, other.floor)
        assert (one.own, one.own_kept) == (other.own, other.own_kept)


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    path = tmp_path / "reference"
    save(path)
    text, chunks = read(path)
    assert text == TEXT
    assert is_reference_file(path)
    for seed, chunk in enumerate(chunks):
        assert_equal(chunk, predictions(seed))
    assert list(tmp_path.iterdir()) == [path]


def test_a_prediction_takes_two_bytes_a_token_of_the_vocabulary_at_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    unsure = [rng.normal(0, spread, 50).astype(np.float32) for spread in (0, 0.01, 1, 4, 9, 40)]
    unsure[2][7] = -30  # one token does not count
    text = replace(TEXT, n_ctx=14, tokens=tuple(range(14)))
    kept = [Prediction.of(logits, 4) for logits in unsure]
    assert [len(one.ids) for one in kept[:3]] == [50, 50, 49]
    assert len(kept[5].ids) < 50 / 3
    path = tmp_path / "reference"
    with new_reference(text, path) as file:
        file.write(0, 0, kept)
    with opened_reference(path) as file:
        assert_equal(list(file.predictions(0)), kept)
    rows = [20 + min(2 * 50, 6 * len(one.ids)) for one in kept]
    header = path.read_bytes().index(b"}") + 1 + 4 * 14
    assert path.stat().st_size == header + 16 + sum(rows)


def test_a_chunk_comes_in_pieces_and_again_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "reference"
    with new_reference(TEXT, path) as file:
        file.write(0, 0, predictions(0))
        file.write(1, 0, predictions(7)[:2])
        file.write(1, 0, predictions(1)[:1])
        file.write(1, 1, predictions(1)[1:])
        next(file.predictions(0))
        assert_equal(list(file.predictions(0)), predictions(0))
    assert_equal(read(path)[1][1], predictions(1))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelFileError, match="another checksum than that of chunk 1"):
        read(path)


def test_the_half_of_a_chunk_is_context() -> None:
    assert (TEXT.n_chunks, TEXT.first, TEXT.n_predicted) == (2, 4, 3)
    assert TEXT.chunk(1) == [1, 9, 10, 11, 12, 13, 14, 15]
    assert list(TEXT.following(1)) == [13, 14, 15]


def test_every_place_that_is_damaged_is_one_error(tmp_path: Path) -> None:
    whole = save(tmp_path / "reference")
    path = tmp_path / "damaged"
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place])
        with pytest.raises(ModelFileError):
            read(path)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read(path)
        except ModelFileError:
            continue
        # What is left are letters of names in the header, and token ids, which nothing checks.
        assert place < whole.index(b"}") + 1 + 64


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_reference(TEXT, tmp_path / "reference") as file:
        file.write(0, 0, predictions(0))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save(tmp_path / "none" / "reference")


def test_another_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("hello, this is no file of predictions at all")
    assert not is_reference_file(path)
    assert not is_reference_file(tmp_path / "absent")
    with pytest.raises(ModelFileError, match="not a file of predictions"):
        read(path)
