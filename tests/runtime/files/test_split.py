"""Parts of split models: which are refused, by whom, and in how many words."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType

from llama4_edge import inspect
from llama4_edge.errors import ModelFileError
from llama4_edge.runtime.bindings.library import llama
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.files.gguf_file import end_of_tensors, read_gguf
from llama4_edge.runtime.files.model_file import check_model_file
from llama4_edge.runtime.settings import EngineSettings
from tests.gguf_maker import I32, STR, U16, U32, TinyModel, Value, tiny_model

Parts = list[Path]


def split(directory: Path, count: int = 2, *, seed: int = 0, stem: str = "tiny") -> Parts:
    """A tiny model in several files, as llama-gguf-split writes them."""
    whole = tiny_model(seed=seed)
    names = list(whole.tensors)
    paths = []
    for number in range(count):
        keys = (whole.keys if number == 0 else {}) | {
            "split.no": Value(number, U16),
            "split.count": Value(count, U16),
            "split.tensors.count": Value(len(names), I32),
        }
        held = names[len(names) * number // count : len(names) * (number + 1) // count]
        part = TinyModel(keys, {name: whole.tensors[name] for name in held})
        paths.append(part.write(directory / f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"))
    return paths


def _refused(path: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        check_model_file(path)
    return caught.value


def _damage(path: Path) -> list[str]:
    inspection = inspect(path, check=True)
    assert inspection.damage is not None
    return [fault.what for fault in inspection.damage if fault.certain]


def test_a_split_model_is_whole_when_all_parts_lie_beside_the_first(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    info = check_model_file(first)
    assert [part.path for part in info.parts] == [first, second]
    assert info.bytes == first.stat().st_size + second.stat().st_size
    whole = tiny_model().write(tmp_path / "whole.gguf")
    assert {tensor.name for tensor in info.tensors} == {
        tensor.name for tensor in check_model_file(whole).tensors
    }
    with Engine(first, EngineSettings(n_ctx=64)) as one, Engine(whole, EngineSettings()) as other:
        np.testing.assert_array_equal(one.logits([1, 2, 3]), other.logits([1, 2, 3]))
    assert [_damage(path) for path in (first, second, whole)] == [[], [], []]


def test_a_later_part_is_sent_to_the_first(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    error = _refused(second)
    assert "is not the first part of its model" in error.problem
    assert (error.found, error.hint) == ("part 2 of 2", f"Give the first part: {first}")


# What becomes of the parts of a model (and of another one, of the same layout), which of them is
# then opened, and the words with which it is refused.
def _copied(parts: Parts, other: Parts) -> None:
    shutil.copy(parts[0], parts[1])


def _as_directory(parts: Parts, other: Parts) -> None:
    parts[1].unlink()
    parts[1].mkdir()


def _swapped(parts: Parts, other: Parts) -> None:
    data = [part.read_bytes() for part in parts]
    parts[0].write_bytes(data[1])
    parts[1].write_bytes(data[0])


def _other_split(parts: Parts, other: Parts) -> None:
    """The second of two parts is from a model that was cut elsewhere."""
    whole = tiny_model(seed=1)
    names = list(whole.tensors)
    keys = {
        "split.no": Value(1, U16),
        "split.count": Value(2, U16),
        "split.tensors.count": Value(len(names), I32),
    }
    TinyModel(keys, {name: whole.tensors[name] for name in names[10:]}).write(parts[1])


def _other_layers(parts: Parts, other: Parts) -> None:
    """Another model of as many tensors, whose names differ."""
    whole = tiny_model(layers=8)
    names = list(tiny_model().tensors)
    half = list(whole.tensors)[-(len(names) - len(names) // 2) :]
    keys = {
        "split.no": Value(1, U16),
        "split.count": Value(2, U16),
        "split.tensors.count": Value(len(names), I32),
    }
    TinyModel(keys, {name: whole.tensors[name] for name in half}).write(parts[1])


def _with_keys(number: int, **keys: Value) -> Callable[[Parts, Parts], object]:
    def change(parts: Parts, other: Parts) -> None:
        whole = tiny_model()
        names = list(whole.tensors)
        half = names[: len(names) // 2] if number == 0 else names[len(names) // 2 :]
        said = {
            "split.no": Value(number, U16),
            "split.count": Value(2, U16),
            "split.tensors.count": Value(len(names), I32),
        } | {key.replace("__", "."): value for key, value in keys.items()}
        kept = {key: value for key, value in said.items() if value.value is not None}
        model = TinyModel((whole.keys if number == 0 else {}) | kept, {})
        model.tensors = {name: whole.tensors[name] for name in half}
        model.write(parts[number])

    return change


_GONE = Value(None, U16)
FAULTS: dict[str, tuple[Callable[[Parts, Parts], object], str]] = {
    "part 2 is missing": (lambda parts, other: parts[1].unlink(), "1 part is missing: "),
    "part 2 is a copy of part 1": (
        _copied,
        "is not the part that its name says, found part 1 of 2, expected part 2 of 2",
    ),
    "the parts are swapped": (_swapped, "found part 2 of 2, expected part 1 of 2"),
    "part 2 is cut elsewhere": (_other_split, "has a tensor that tiny-00001-of-00002.gguf has too"),
    "part 2 is of a model of other layers": (_other_layers, "has no tensor "),
    "part 2 is of another count": (
        _with_keys(1, split__count=Value(3, U16)),
        "found part 2 of 3, expected part 2 of 2",
    ),
    "part 1 is of another count": (
        _with_keys(0, split__count=Value(3, U16)),
        "found part 1 of 3, expected part 1 of 2",
    ),
    "part 2 counts other tensors": (
        _with_keys(1, split__tensors__count=Value(7, I32)),
        "split.tensors.count, found 7, expected ",
    ),
    "part 1 counts other tensors": (
        _with_keys(0, split__tensors__count=Value(7, I32)),
        "split.tensors.count, found 7, expected ",
    ),
    "part 2 has no number": (_with_keys(1, split__no=_GONE), "has no split.no"),
    "part 2 has no count": (_with_keys(1, split__count=_GONE), "has no split.count"),
    "part 2 has a number of another type": (
        _with_keys(1, split__no=Value(1, U32)),
        "an invalid value of split.no, found type u32, expected type u16",
    ),
    "part 1 has a count of another type": (
        _with_keys(0, split__count=Value(2, U32)),
        "an invalid value of split.count, found type u32",
    ),
    "part 2 is of another architecture": (
        _with_keys(1, general__architecture=Value("qwen3", STR)),
        "is a part of another model, found architecture qwen3, expected llama4",
    ),
    "part 2 is cut off": (
        lambda parts, other: parts[1].write_bytes(parts[1].read_bytes()[:-5000]),
        "is truncated",
    ),
    "part 2 is something else": (
        lambda parts, other: parts[1].write_text("Entry not found"),
        "is not a GGUF file, found the text 'Entry not found'",
    ),
    "part 2 is a directory": (
        _as_directory,
        "found a directory",
    ),
    "part 2 is a whole model": (
        lambda parts, other: tiny_model().write(parts[1]),
        "has no split.no",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_parts_that_are_not_of_one_whole_model_are_refused(name: str, tmp_path: Path) -> None:
    damage, said = FAULTS[name]
    parts = split(tmp_path)
    (tmp_path / "other").mkdir()
    damage(parts, split(tmp_path / "other", seed=1))
    assert said in str(_refused(parts[0]))
    faults = _damage(parts[0])
    assert faults
    if "cut off" not in name:  # the check says which tensors, and how many bytes
        assert said in "\n".join(faults)


def test_parts_under_one_name_each_may_come_from_anywhere_else(tmp_path: Path) -> None:
    """Two models that were split alike cannot be told apart by their headers."""
    parts = split(tmp_path)
    (tmp_path / "other").mkdir()
    shutil.copy(split(tmp_path / "other", seed=1)[1], parts[1])
    assert check_model_file(parts[0]).tensors and _damage(parts[0]) == []


def test_parts_put_together_with_cat_are_no_model(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    error = _refused(joined)
    assert "is part 1 of 2 and is not named like one" in error.problem
    assert "llama-gguf-split --merge" in str(error.hint)
    assert not llama().llama_model_load_from_file(
        str(joined).encode(), llama().llama_model_default_params()
    )
    said = "\n".join(_damage(joined))
    assert "is not named like one" in said
    assert "another GGUF begins there, as where parts were put together with cat" in said
    # Under the first one's name too, though the second lies beside it.
    joined.rename(first)
    said = "\n".join(_damage(first))
    assert f"{second.stat().st_size:,} bytes after the last tensor: another GGUF begins" in said


@pytest.mark.parametrize("number", [0, 1])
def test_a_part_under_another_name_is_told_the_right_one(number: int, tmp_path: Path) -> None:
    parts = split(tmp_path)
    alone = parts[number].rename(tmp_path / "model.gguf")
    expected = f"tiny-{number + 1:05d}-of-00002.gguf"
    assert expected in "\n".join(_damage(alone))
    if number == 0:
        assert _refused(alone).expected == expected
        parts[1].unlink()
        assert _refused(alone).expected == "model-00001-of-00002.gguf"


def test_a_whole_model_under_a_part_s_name_is_opened_and_not_called_sound(tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "tiny-00001-of-00003.gguf")
    assert check_model_file(path).parts[0].path == path  # as llama.cpp opens it
    said = "\n".join(_damage(path))
    assert "has no split.no, expected part 1 of 3" in said
    assert f"2 parts are missing, the first is {tmp_path}/tiny-00002-of-00003.gguf" in said


def test_a_hundred_thousand_missing_parts_are_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "x-00001-of-99999.gguf"
    shutil.copy(split(tmp_path)[0], path)
    faults = _damage(path)
    assert faults == [
        f"99,998 parts are missing, the first is {tmp_path}/x-00002-of-99999.gguf. "
        "Download all parts into one directory.",
        f"{path} is not the part that its name says, found part 1 of 2, expected part 1 of 99,999. "
        "Download all parts of one model into one directory, under their published names.",
    ]


def test_parts_that_cannot_be_read_are_one_fault(tmp_path: Path) -> None:
    parts = split(tmp_path, 5)
    for part in parts[1:]:
        part.write_bytes(b"GGUF")
    (said,) = _damage(parts[0])
    assert f"{parts[1]} is truncated (and so with 3 more)" in said


# --- what other tools write


@pytest.mark.parametrize("keep_split", [False, True])
def test_what_llama_quantize_writes_is_whole(keep_split: bool, tmp_path: Path) -> None:
    import llama_cpp

    first, _ = split(tmp_path)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.keep_split, parameters.nthread = 7, keep_split, 1
    target = tmp_path / ("quantized" if keep_split else "quantized.gguf")
    assert not llama().llama_model_quantize(
        str(first).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    written = sorted(tmp_path.glob("quantized*"))
    assert len(written) == 1 + keep_split
    assert {tensor.type for tensor in check_model_file(written[0]).tensors} >= {"F32", "Q8_0"}
    assert [_damage(path) for path in written] == [[]] * len(written)


@pytest.mark.parametrize("small_first", [False, True])
def test_what_the_gguf_package_splits_is_whole(small_first: bool, tmp_path: Path) -> None:
    """As convert_hf_to_gguf.py does it, with a first part of metadata alone or not."""
    model = tiny_model()
    writer = gguf.GGUFWriter(
        tmp_path / "m.gguf", "llama4", split_max_tensors=20, small_first_shard=small_first
    )
    del writer.kv_data[0]["general.architecture"]
    for key, value in model.keys.items():
        kind = value.type if value.element is None else GGUFValueType.ARRAY
        writer.add_key_value(key, value.value, kind, sub_type=value.element)
    for name, data in model.tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file(tmp_path / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 3 + small_first
    assert len(check_model_file(parts[0]).gguf.tensors) == (0 if small_first else 20)
    assert [_damage(path) for path in parts] == [[]] * len(parts)


@pytest.mark.parametrize("more", [0, 1, 31])
def test_the_end_may_be_padded_or_not(more: int, tmp_path: Path) -> None:
    path = tiny_model().write(tmp_path / "tiny.gguf")
    gguf_file = read_gguf(path)
    end = end_of_tensors(gguf_file)
    data = path.read_bytes()[:end]
    padding = -end % 32
    path.write_bytes(data + bytes(min(more, padding)))
    assert _damage(path) == []
    path.write_bytes(data + bytes(padding) + b"x" * (more + 1))
    assert _damage(path) == [f"{path} has {more + 1} bytes after the last tensor"]
    check_model_file(path)  # llama.cpp does not look there
