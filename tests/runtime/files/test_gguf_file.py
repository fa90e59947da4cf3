from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from llama4_edge.errors import ModelFileError
from llama4_edge.quant.types import TensorType
from llama4_edge.runtime.files.gguf_file import TensorInfo, read_gguf
from tests.gguf_maker import Value, tiny_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model().write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def _refused(path: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    assert str(path) in caught.value.problem
    return caught.value


def test_a_header_is_read_as_the_gguf_package_reads_it(whole: Path) -> None:
    found, reference = read_gguf(whole), gguf.GGUFReader(whole)
    assert (found.version, found.alignment) == (3, 32)
    assert found.data_offset == reference.data_offset
    assert found.size == whole.stat().st_size
    expected = {
        key: tuple(value) if isinstance(value := field.contents(), list) else value
        for key, field in reference.fields.items()
        if not key.startswith("GGUF.")
    }
    assert found.metadata == expected
    for tensor, other in zip(found.tensors, reference.tensors, strict=True):
        assert tensor == TensorInfo(
            other.name,
            tuple(int(size) for size in other.shape),
            TensorType(
                other.tensor_type.name,
                int(other.tensor_type),
                *gguf.GGML_QUANT_SIZES[other.tensor_type],
            ),
            int(other.data_offset),
            int(other.n_bytes),
        )


def test_every_type_of_value_is_read_with_its_type(tmp_path: Path) -> None:
    scalars = {
        GGUFValueType.UINT8: (255, "u8"),
        GGUFValueType.INT8: (-128, "i8"),
        GGUFValueType.UINT16: (65535, "u16"),
        GGUFValueType.INT16: (-32768, "i16"),
        GGUFValueType.UINT32: (2**32 - 1, "u32"),
        GGUFValueType.INT32: (-(2**31), "i32"),
        GGUFValueType.FLOAT32: (0.5, "f32"),
        GGUFValueType.BOOL: (True, "bool"),
        GGUFValueType.STRING: ("naïve 🦙", "str"),
        GGUFValueType.UINT64: (2**64 - 1, "u64"),
        GGUFValueType.INT64: (-(2**63), "i64"),
        GGUFValueType.FLOAT64: (0.1, "f64"),
    }
    model = tiny_model()
    for kind, (value, _) in scalars.items():
        model.keys[f"test.{kind.name}"] = Value(value, kind)
        model.keys[f"test.list.{kind.name}"] = Value([value, value], kind, kind)
    found = read_gguf(model.write(tmp_path / "types.gguf"))
    for kind, (value, name) in scalars.items():
        assert found.metadata[f"test.{kind.name}"] == value
        assert found.types[f"test.{kind.name}"] == name
        assert found.metadata[f"test.list.{kind.name}"] == (value, value)
        assert found.types[f"test.list.{kind.name}"] == f"[{name}]"


def test_quantized_tensors_have_their_type_and_size(tmp_path: Path) -> None:
    model = tiny_model()
    rows, row_bytes = model.tensors["output.weight"].shape[0], 64 // 32 * 18
    model.tensors["output.weight"] = np.zeros((rows, row_bytes), np.uint8)
    model.types["output.weight"] = GGMLQuantizationType.Q4_0
    found = {t.name: t for t in read_gguf(model.write(tmp_path / "q.gguf")).tensors}
    assert found["output.weight"].type == "Q4_0"
    assert found["output.weight"].shape == (64, rows)
    assert found["output.weight"].nbytes == rows * row_bytes


def test_another_alignment_is_kept(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "wide.gguf", "llama4")
    writer.add_custom_alignment(128)
    writer.add_tensor("a", np.zeros(3, np.float32))
    writer.add_tensor("b", np.zeros(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "wide.gguf")
    assert found.alignment == 128
    assert [tensor.offset - found.data_offset for tensor in found.tensors] == [0, 128]


def test_what_is_no_model_file_is_named(tmp_path: Path) -> None:
    assert "absent.gguf does not exist" in str(_refused(tmp_path / "absent.gguf"))
    assert "found a directory" in str(_refused(tmp_path))
    (tmp_path / "file").touch()
    assert "Not a directory" in str(_refused(tmp_path / "file" / "model.gguf"))
    assert "is empty" in str(_refused(tmp_path / "file"))
    os.mkfifo(tmp_path / "pipe")
    assert "regular .gguf file" in str(_refused(tmp_path / "pipe"))
    assert "cannot read" in str(_refused(Path(f"{tmp_path}/a\0b")))


def test_a_file_without_permission_is_named(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read anything
    assert "cannot read" in str(_refused(whole))
    assert _refused(whole).found == "Permission denied"


@pytest.mark.parametrize(
    ("first_bytes", "said"),
    [
        (b"\xf0\x9f\xa6\x99\0\0\0\0", "is not a GGUF file, found the first bytes b'\\xf0"),
        (b"GGUF\x03", "is truncated, found 5 bytes"),
        (b"GGUF\x01\0\0\0", "found 1, expected 2 or 3"),
        (b"GGUF\x04\0\0\0", "found 4, expected 2 or 3"),
        (b"GGUF\0\0\0\x03", "found a big-endian file"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, first_bytes: bytes, said: str) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(first_bytes + bytes(64) if len(first_bytes) > 5 else first_bytes)
    assert said in str(_refused(path))


def test_a_file_cut_off_in_its_header_quotes_the_parser(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole.read_bytes()[:1000])
    error = _refused(path)
    assert "has a damaged header" in error.problem
    assert "failed to read key-value pairs" in str(error.found)


def test_a_file_cut_off_in_its_tensors_says_how_much_is_missing(
    whole: Path, tmp_path: Path
) -> None:
    found = read_gguf(whole)
    last = found.tensors[-1]
    end = last.offset + last.nbytes
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole.read_bytes()[: end - 1])
    error = _refused(path)
    assert f"1 of {len(found.tensors)} tensors are not whole, the first is {last.name}" in str(
        error
    )
    assert (error.found, error.expected) == (f"{end - 1} bytes", f"at least {end}")
    path.write_bytes(whole.read_bytes()[:end])
    assert read_gguf(path).tensors == found.tensors


def test_a_tensor_in_the_wrong_place_is_refused(whole: Path, tmp_path: Path) -> None:
    data, found = bytearray(whole.read_bytes()), read_gguf(whole)
    second = found.tensors[1]
    name = struct.pack("<Q", len(second.name)) + second.name.encode()
    # after the name: number of dimensions, the dimensions, the type, then the offset
    at = data.index(name) + len(name) + 4 + 8 * len(second.shape) + 4
    relative = second.offset - found.data_offset
    assert data[at : at + 8] == struct.pack("<Q", relative)
    data[at : at + 8] = struct.pack("<Q", relative - 32)
    path = tmp_path / "overlap.gguf"
    path.write_bytes(data)
    assert f"tensor '{second.name}' has offset {relative - 32}" in str(_refused(path).found)


def test_text_that_is_not_utf8_is_one_clear_error(whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    path = tmp_path / "text.gguf"
    path.write_bytes(data.replace(b"<|eot|>", b"<|\xff\xfet|>"))
    assert "not UTF-8 in tokenizer.ggml.tokens" in _refused(path).problem
    path.write_bytes(data.replace(b"general.name", b"general.\xffame"))
    assert "not UTF-8 in the name of key 1" in _refused(path).problem


def test_a_name_with_a_zero_byte_is_refused(whole: Path, tmp_path: Path) -> None:
    """llama.cpp would end the name there, and find another tensor or key than was written."""
    data = whole.read_bytes()
    path = tmp_path / "zero.gguf"
    path.write_bytes(data.replace(b"blk.0.attn_q.weight", b"blk.0.attn\0_.weight"))
    assert "has a zero byte in the name of tensor" in _refused(path).problem
    path.write_bytes(data.replace(b"general.name", b"general\0name"))
    assert "has a zero byte in the name of key 1" in _refused(path).problem
