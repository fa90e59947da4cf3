"""How two GGUFs differ: what they say, their tensors, and the numbers in these."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from gguf.quants import dequantize

from llama4_edge import Difference, NumberDifference, Progress, convert, diff
from llama4_edge.errors import ModelFileError
from llama4_edge.runtime.files import difference as numbers
from tests.fixtures import MakeGGUF
from tests.gguf_maker import I32, STR, U32, TinyModel, Value, tiny_model, tiny_projector


def edited(tmp_path: Path, name: str = "b.gguf") -> tuple[TinyModel, Path, Path]:
    """A tiny model to be changed, where it goes, and the same one unchanged."""
    return tiny_model(), tmp_path / name, tiny_model().write(tmp_path / "a.gguf")


def by_name(difference: Difference) -> dict[str, NumberDifference | None]:
    return {tensor.name: tensor.numbers for tensor in difference.tensors}


def test_a_file_equals_itself_and_its_copy(tmp_path: Path) -> None:
    model, path, other = edited(tmp_path)
    difference = diff(other, model.write(path))
    assert difference.equal and not difference.metadata and not difference.tensors
    assert difference.equal_tensors == len(model.tensors)


def test_metadata_that_differ_or_are_missing_are_named_with_both_values(tmp_path: Path) -> None:
    model, path, other = edited(tmp_path)
    model.keys["general.name"] = Value("Other", STR)
    model.keys["llama4.context_length"] = Value(4096, I32)
    del model.keys["llama4.attention.key_length"]
    model.keys["custom.key"] = Value([1, 2], GGUFValueType.ARRAY, U32)
    tokens = model.keys["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, list)
    tokens[200] = "two hundred"
    metadata = {entry.key: entry.as_dict() for entry in diff(other, model.write(path)).metadata}
    was = tiny_model().keys["tokenizer.ggml.tokens"].value
    assert isinstance(was, list)
    assert metadata == {
        "general.name": {
            "key": "general.name",
            "a": {"type": "str", "value": "Tiny", "length": None},
            "b": {"type": "str", "value": "Other", "length": None},
            "index": None,
        },
        "llama4.context_length": {
            "key": "llama4.context_length",
            "a": {"type": "u32", "value": 32768, "length": None},
            "b": {"type": "i32", "value": 4096, "length": None},
            "index": None,
        },
        "llama4.attention.key_length": {
            "key": "llama4.attention.key_length",
            "a": {"type": "u32", "value": 16, "length": None},
            "b": None,
            "index": None,
        },
        "custom.key": {
            "key": "custom.key",
            "a": None,
            "b": {"type": "[u32]", "value": (1, 2), "length": 2},
            "index": None,
        },
        "tokenizer.ggml.tokens": {
            "key": "tokenizer.ggml.tokens",
            "a": {"type": "[str]", "value": tuple(was[200:208]), "length": len(was)},
            "b": {"type": "[str]", "value": tuple(tokens[200:208]), "length": len(was)},
            "index": 200,
        },
    }


def test_tensors_that_are_missing_or_of_another_shape_are_not_compared(tmp_path: Path) -> None:
    model, path, other = edited(tmp_path)
    model.tensors["extra.weight"] = model.tensors.pop("output.weight")
    model.tensors["token_embd.weight"] = model.tensors["token_embd.weight"][:-1]
    tensors = {tensor.name: tensor for tensor in diff(other, model.write(path)).tensors}
    rows = len(tiny_model().tensors["output.weight"])
    assert {
        name: (one.type_a, one.type_b, one.shape_a, one.shape_b, one.numbers)
        for name, one in tensors.items()
    } == {
        "token_embd.weight": ("F32", "F32", (rows, 64), (rows - 1, 64), None),
        "output.weight": ("F32", None, (rows, 64), None, None),
        "extra.weight": (None, "F32", None, (rows, 64), None),
    }


def test_the_difference_of_numbers_is_that_of_numpy(tmp_path: Path) -> None:
    model, path, other = edited(tmp_path)
    name = "blk.1.ffn_up_exps.weight"
    a, b = tiny_model().tensors[name], model.tensors[name]
    b[1, 2, 3] += 0.5
    b[0, 0, 0] = -b[0, 0, 0]
    distance = np.abs(a - b)
    (tensor,) = diff(other, model.write(path)).tensors
    assert tensor.numbers is not None and tensor.name == name
    assert (tensor.numbers.numbers, tensor.numbers.differing) == (a.size, 2)
    assert tensor.numbers.largest == distance.max()
    assert tensor.numbers.largest_relative == 2.0
    rms = math.sqrt((distance.astype(np.float64) ** 2).mean())
    assert tensor.numbers.rms == pytest.approx(rms, rel=1e-12)
    of_a = math.sqrt((a.astype(np.float64) ** 2).mean())
    assert tensor.numbers.relative_rms == pytest.approx(rms / of_a, rel=1e-12)


@pytest.mark.parametrize("piece", [256, numbers._PIECE_NUMBERS])
def test_files_of_other_types_are_compared_as_ggml_decodes_them(
    make_gguf: MakeGGUF, scout_checkpoint: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numbers, "_PIECE_NUMBERS", piece)
    monkeypatch.setattr(numbers, "_local", type(numbers._local)())
    paths = [make_gguf(scout_checkpoint, recipe) for recipe in ("bf16", "int4")]
    decoded = [
        {
            tensor.name: dequantize(tensor.data, tensor.tensor_type).reshape(-1)
            for tensor in GGUFReader(path).tensors
        }
        for path in paths
    ]
    difference = diff(*paths)
    assert {entry.key for entry in difference.metadata} == {
        "general.file_type", "llama4_edge.recipe",
    }  # fmt: skip
    found = by_name(difference)
    assert difference.equal_tensors == len(decoded[0]) - len(found) > 0
    for name, numbers_of in found.items():
        assert numbers_of is not None
        between = np.abs(decoded[0][name] - decoded[1][name])
        assert numbers_of.largest == between.max()
        assert numbers_of.differing == np.count_nonzero(between)
        rms = math.sqrt((between.astype(np.float64) ** 2).mean())
        assert numbers_of.rms == pytest.approx(rms, rel=1e-12)


def test_other_types_that_hold_the_same_numbers_differ_in_type_alone(tmp_path: Path) -> None:
    model, path, other = edited(tmp_path)
    model.tensors["blk.0.ffn_gate_inp.weight"][:] = 0.5
    reference = model.write(other)
    halves = np.full((4, 64), 0.5, np.float16)
    model.tensors["blk.0.ffn_gate_inp.weight"] = halves
    model.types["blk.0.ffn_gate_inp.weight"] = GGMLQuantizationType.F16
    (tensor,) = diff(reference, model.write(path)).tensors
    assert (tensor.type_a, tensor.type_b) == ("F32", "F16")
    assert tensor.numbers == NumberDifference(256, 0, 0.0, 0.0, 0.0, 0.0, 0)


def test_numbers_that_are_not_finite_are_counted_and_left_out(tmp_path: Path) -> None:
    model, path, other = edited(tmp_path)
    values = model.tensors["output.weight"]
    values[:] = tiny_model().tensors["output.weight"]
    values[0, 0], values[0, 1] = math.nan, math.inf
    first = model.write(other)
    values[0, 0], values[0, 1], values[0, 2] = math.nan, 1.0, math.inf
    values[0, 3] += 1.0
    (tensor,) = diff(first, model.write(path)).tensors
    assert tensor.numbers is not None
    assert (tensor.numbers.differing, tensor.numbers.not_finite) == (3, 2)
    assert tensor.numbers.largest == pytest.approx(1.0, abs=1e-6)


def test_how_a_model_is_split_is_no_difference(scout_checkpoint: Path, tmp_path: Path) -> None:
    whole = convert(scout_checkpoint, tmp_path / "whole.gguf", vision=False)
    parts = convert(scout_checkpoint, tmp_path / "p.gguf", vision=False, split_size=1_000_000)
    assert len(parts.outputs) > 2
    assert diff(whole.output, parts.outputs[1]).equal


def test_projectors_are_compared_too(tmp_path: Path) -> None:
    first = tiny_projector().write(tmp_path / "a.gguf")
    second = tiny_projector(seed=1).write(tmp_path / "b.gguf")
    assert diff(first, first).equal
    names = {tensor.name for tensor in diff(first, second).tensors}
    assert "v.blk.0.attn_q.weight" in names and "mm.model.fc.weight" in names


def test_without_numbers_only_headers_are_read(tmp_path: Path) -> None:
    model, path, other = edited(tmp_path)
    model.tensors["output.weight"] += 1
    assert diff(other, model.write(path), numbers=False).equal


def test_a_missing_part_and_another_architecture_are_refused(tmp_path: Path) -> None:
    model, path, other = edited(tmp_path)
    model.keys["general.architecture"] = Value("llama", STR)
    with pytest.raises(ModelFileError, match="is not a Llama 4 model"):
        diff(other, model.write(path))
    model, path, _ = edited(tmp_path, "b-00001-of-00002.gguf")
    with pytest.raises(ModelFileError, match="1 part is missing"):
        diff(other, model.write(path))


def test_progress_ends_at_the_bytes_of_both(tmp_path: Path) -> None:
    model, path, other = edited(tmp_path)
    steps: list[Progress] = []
    diff(other, model.write(path), progress=steps.append)
    nbytes = sum(data.nbytes for data in model.tensors.values())
    assert steps[-1].bytes_done == steps[-1].bytes_total == 2 * nbytes
