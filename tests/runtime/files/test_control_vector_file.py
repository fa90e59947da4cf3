"""Control vectors: what is read of a sound file, and which are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama4_edge.errors import ModelFileError
from llama4_edge.runtime.files.control_vector_file import is_control_vector, read_control_vector
from llama4_edge.runtime.files.gguf_file import read_gguf
from llama4_edge.runtime.files.model_file import check_model_file
from tests.adapters import tiny_control_vector
from tests.gguf_maker import EMBD, LAYERS, STR, TinyModel, Value


def test_a_sound_file_is_read(tiny_path: Path, tmp_path: Path) -> None:
    path = tiny_control_vector().write(tmp_path / "vector.gguf")
    vector = read_control_vector(path, check_model_file(tiny_path).hparams)
    assert is_control_vector(read_gguf(path))
    assert vector.layers == (1, 2, 3)
    assert vector.directions.dtype == np.float32
    for layer in vector.layers:
        expected = tiny_control_vector().tensors[f"direction.{layer}"]
        assert np.array_equal(vector.directions[layer - 1], expected)


def test_layers_without_a_direction_are_left_as_they_are(tiny_path: Path, tmp_path: Path) -> None:
    sparse = tiny_control_vector()
    del sparse.tensors["direction.1"], sparse.tensors["direction.3"]
    path = sparse.write(tmp_path / "vector.gguf")
    vector = read_control_vector(path, check_model_file(tiny_path).hparams)
    assert vector.layers == (2,)
    assert not vector.directions[[0, 2]].any() and vector.directions[1].all()


def test_a_file_without_architecture_is_one_if_it_holds_directions_alone(
    tiny_path: Path, tmp_path: Path
) -> None:
    bare = tiny_control_vector()
    bare.keys.clear()
    path = bare.write(tmp_path / "vector.gguf")
    assert read_control_vector(path, check_model_file(tiny_path).hparams).layers == (1, 2, 3)


def put(name: str, value: float = 1.0, size: int = EMBD) -> Callable[[TinyModel], object]:
    return lambda vector: vector.tensors.update({name: np.full(size, value, np.float32)})


def as_f16(vector: TinyModel) -> None:
    vector.tensors["direction.1"] = vector.tensors["direction.1"].astype(np.float16)


FAULTS: dict[str, tuple[Callable[[TinyModel], object], str]] = {
    "of another kind": (
        lambda it: it.keys.update({"controlvector.model_hint": Value("qwen3", STR)}),
        "of another kind of model, found controlvector.model_hint qwen3, expected llama4",
    ),
    "no directions": (lambda it: it.tensors.clear(), "has no tensors, expected direction.1"),
    "something else": (put("vector.1"), "has a tensor that is no direction: vector.1"),
    "no number": (put("direction.one"), "has a tensor that is no direction: direction.one"),
    "signed": (put("direction.-1"), "has a tensor that is no direction: direction.-1"),
    "the first layer": (
        put("direction.0"),
        "found direction.0, expected direction.1 to direction.3",
    ),
    "a layer too many": (put(f"direction.{LAYERS}"), "found direction.4, expected direction.1 to"),
    "twice": (put("direction.01"), "has two directions for layer 1"),
    "of another width": (
        put("direction.2", size=EMBD + 1),
        "is a control vector of another model: direction.2, found [65] numbers, expected [64]",
    ),
    "NaN": (put("direction.2", np.nan), "with NaN or infinity: direction.2, found nan at 0"),
    "infinite": (put("direction.2", np.inf), "with NaN or infinity: direction.2, found inf at 0"),
    "of 16 bits": (as_f16, "has a direction of another type: direction.1, found F16, expected F32"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_any_other_file_is_refused(tiny_path: Path, tmp_path: Path, name: str) -> None:
    fault, message = FAULTS[name]
    vector = tiny_control_vector()
    fault(vector)
    path = vector.write(tmp_path / "vector.gguf")
    with pytest.raises(ModelFileError, match=re.escape(message)):
        read_control_vector(path, check_model_file(tiny_path).hparams)


def test_a_model_is_none(tiny_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is not a control vector, found architecture llama4"):
        read_control_vector(tiny_path, check_model_file(tiny_path).hparams)


def test_a_vector_of_a_wider_model_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    path = tiny_control_vector().write(tmp_path / "vector.gguf")
    wider = replace(check_model_file(tiny_path).hparams, n_embd=EMBD + 64)
    with pytest.raises(ModelFileError, match="is a control vector of another model"):
        read_control_vector(path, wider)
