"""Features of pictures: in reading order, those of transformers, and each encoded once."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import llama4_edge
from llama4_edge.errors import EngineError, ImageError, ModelFileError, SettingError
from llama4_edge.model import Model
from llama4_edge.vision.images import ImageTiles, image_tiles
from llama4_edge.vision.projector import in_reading_order, row_names
from tests.fixtures import MakeGGUF, MakeProjector
from tests.reference.pictures import noise
from tests.reference.vision_reference import reference_features

DEMO = Path(__file__).parents[2] / "demo" / "Llama-4-Tiny"


@pytest.fixture(scope="module")
def text_path(make_gguf: MakeGGUF) -> Path:
    return make_gguf(DEMO)


@pytest.fixture(scope="module")
def projector_path(make_projector: MakeProjector) -> Path:
    return make_projector(DEMO)


@pytest.fixture(scope="module")
def model(text_path: Path, projector_path: Path) -> Iterator[Model]:
    with Model(text_path, n_ctx=2048, projector=projector_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def tiles() -> ImageTiles:
    """Two by two tiles and the whole."""
    return image_tiles(noise(500, 400))


@pytest.fixture(scope="module")
def reference(tiles: ImageTiles) -> npt.NDArray[np.float32]:
    """transformers' features, in float32."""
    every = [reference_features(DEMO, tile).reshape(144, -1) for tile in tiles.levels]
    return np.stack(every)


def test_features_are_those_of_transformers_tile_by_tile(
    model: Model, reference: npt.NDArray[np.float32]
) -> None:
    features = model.image_features(noise(500, 400))
    assert features.shape == (5, 144, 256)
    assert features.dtype == np.float32
    for ours, theirs in zip(features, reference, strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-3 * np.linalg.norm(theirs)
        assert np.abs(ours - theirs).max() <= 2e-3 * np.abs(theirs).max()
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        assert ((ours * theirs).sum(axis=1) / norms).min() >= 0.99999


def test_llama_cpp_itself_still_returns_columns(
    model: Model, tiles: ImageTiles, reference: npt.NDArray[np.float32]
) -> None:
    """Where this fails, llama.cpp was mended: `in_reading_order` has to go."""
    encoder = model._pictures.loaded()._encoder
    raw = model.engine.in_thread(lambda: encoder.encode(tiles.levels[0]))
    wrong = np.linalg.norm(raw - reference[0]) / np.linalg.norm(reference[0])
    right = np.linalg.norm(in_reading_order(raw) - reference[0]) / np.linalg.norm(reference[0])
    assert right < 1e-3
    assert wrong > 0.3
    # No other order of the axes would do: each feature is nearest to that of its transposed place.
    distances = np.linalg.norm(raw[:, None] - reference[0][None], axis=2)
    expected = [column * 12 + row for row in range(12) for column in range(12)]
    assert distances.argmin(axis=1).tolist() == expected


def test_progress_is_told_after_each_tile_and_can_cancel(model: Model) -> None:
    told: list[float] = []
    model.image_features(noise(400, 340), on_progress=told.append)
    assert told == [pytest.approx(number / 5) for number in range(1, 6)]
    picture = noise(401, 340)
    with pytest.raises(EngineError, match="encoding the picture was cancelled"):
        model.image_features(picture, on_progress=lambda fraction: fraction < 0.3)
    # What was encoded is kept, and the rest is encoded now.
    assert np.isfinite(model.image_features(picture)).all()
    # At the end there is nothing left to cancel.
    model.image_features(picture, on_progress=lambda fraction: fraction < 1)
    with pytest.raises(SettingError, match="on_progress"):
        model.image_features(picture, on_progress=3)  # type: ignore[arg-type]


def test_a_picture_is_encoded_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = noise(600, 100)
    first = model.image_features(picture)
    encoder = model._pictures.loaded()._encoder
    monkeypatch.setattr(encoder, "encode", None)
    again = model.image_features(picture)
    assert np.array_equal(first, again)
    again[:] = 0  # the caller's own
    assert np.array_equal(first, model.image_features(picture))


def test_what_is_kept_is_bounded_and_the_oldest_leaves(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama4_edge.vision import projector

    one_tile = 144 * 256 * 4
    monkeypatch.setattr(projector, "_KEPT_BYTES", 2 * one_tile)
    pictures = [noise(40 + number, 40) for number in range(3)]
    for picture in pictures:
        model.image_features(picture)
    kept = model._pictures._kept
    assert [image_tiles(picture).digest for picture in pictures[1:]] == list(kept)
    # A picture that is larger than all that may be kept is encoded all the same.
    assert len(model.image_features(noise(337, 337))) == 5
    assert len(kept) == 1


def test_features_that_are_not_numbers_are_an_error(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = model._pictures.loaded()._encoder
    broken = np.zeros((144, 256), dtype=np.float32)
    broken[7, 3] = np.nan
    monkeypatch.setattr(encoder, "encode", lambda tile: broken)
    with pytest.raises(EngineError, match="not finite numbers, found NaN or infinity"):
        model.image_features(noise(10, 10))


def test_threads_may_encode_at_the_same_time_and_beside_answers(model: Model) -> None:
    expected = [model.image_features(noise(340 + number, 100)) for number in range(3)]
    model._pictures._kept.clear()
    found: dict[int, npt.NDArray[np.float32]] = {}

    def encode(number: int) -> None:
        found[number] = model.image_features(noise(340 + number % 3, 100))

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    assert model.generate("One", max_tokens=8, temperature=0).tokens
    for thread in threads:
        thread.join()
    for number in range(6):
        assert np.array_equal(found[number], expected[number % 3])


def test_nothing_is_written_to_the_terminal(
    text_path: Path, projector_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Model(text_path, n_ctx=64, projector=projector_path) as model:
        model.image_features(noise(10, 10))
    assert capfd.readouterr() == ("", "")


# ---- which projector


def beside(text_path: Path, directory: Path, *projectors: Path) -> Path:
    """A directory with a model, and projectors."""
    for number, projector in enumerate(projectors):
        shutil.copyfile(projector, directory / f"mmproj-{number}.gguf")
    model = directory / "model.gguf"
    model.symlink_to(text_path)
    return model


def test_the_only_projector_beside_the_model_is_loaded_with_the_first_picture(
    text_path: Path, projector_path: Path, tmp_path: Path
) -> None:
    with Model(beside(text_path, tmp_path, projector_path), n_ctx=64) as model:
        assert model.projector == tmp_path / "mmproj-0.gguf"
        assert model._pictures._projector is None
        assert model.image_features(noise(10, 10)).shape == (1, 144, 256)
        assert model._pictures.loaded().device == "CPU"


def test_several_projectors_are_refused_when_a_picture_comes_and_one_can_be_named(
    text_path: Path, projector_path: Path, tmp_path: Path
) -> None:
    path = beside(text_path, tmp_path, projector_path, projector_path)
    with Model(path, n_ctx=64) as model:
        assert model.generate("One", max_tokens=1).tokens
        with pytest.raises(ModelFileError, match=r"several projectors .*mmproj-0.gguf, mmproj-1"):
            model.image_features(noise(10, 10))
    with Model(path, n_ctx=64, projector=tmp_path / "mmproj-1.gguf") as model:
        assert len(model.image_features(noise(10, 10))) == 1


def test_a_model_without_a_projector_says_what_it_needs(text_path: Path, tmp_path: Path) -> None:
    with Model(beside(text_path, tmp_path), n_ctx=64) as model:
        assert model.projector is None
        with pytest.raises(EngineError, match="opened without a projector, which pictures need"):
            model.image_features(noise(10, 10))
        with pytest.raises(ImageError):
            model.image_features(b"no picture")


def test_a_projector_that_is_none_is_refused_before_the_model_loads(
    text_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.gguf").write_text("GGUF")
    with pytest.raises(ModelFileError):
        Model(text_path, projector=tmp_path / "text.gguf")
    with pytest.raises(ModelFileError, match="does not exist"):
        Model(text_path, projector=tmp_path / "none.gguf")
    with pytest.raises(ModelFileError):
        Model(text_path, projector=text_path)
    with pytest.raises(SettingError, match="projector"):
        Model(text_path, projector=3)  # type: ignore[arg-type]


def test_a_projector_of_another_width_is_refused(tiny_path: Path, projector_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is the projector of another model"):
        Model(tiny_path, n_ctx=64, projector=projector_path)


# ---- names of features


def test_names_of_features_are_numbers_below_zero_that_picture_and_projector_decide(
    tiles: ImageTiles,
) -> None:
    names = row_names(tiles.digest, b"one", 5)
    assert len(names) == len(set(names)) == 5 * 144
    assert all(-(2**63) <= name < 0 for name in names)
    assert names == row_names(image_tiles(noise(500, 400)).digest, b"one", 5)
    assert not set(names) & set(row_names(image_tiles(noise(500, 401)).digest, b"one", 5))
    assert not set(names) & set(row_names(tiles.digest, b"other", 5))


def test_a_closed_model_encodes_nothing(text_path: Path, projector_path: Path) -> None:
    model = llama4_edge.Model(text_path, n_ctx=64, projector=projector_path)
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.image_features(noise(10, 10))
