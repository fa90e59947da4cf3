"""Real damage, at its place in the block of every type, and held against ggml's own judgement."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from llama4_edge.errors import ModelFileError
from llama4_edge.progress import Progress
from llama4_edge.quant import RECIPES, encode
from llama4_edge.quant.types import TYPES
from llama4_edge.runtime.files import damage as verify
from llama4_edge.runtime.files.damage import Damage, find_damage
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.fixtures import MakeGGUF

# Where a block's scales lie (ggml-common.h) and the bytes that make one infinite or NaN.
HALF_NAN, HALF_INF = b"\x01\x7e", b"\x00\xfc"
SCALES: dict[str, dict[int, tuple[bytes, ...]]] = {
    "F32": {0: (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff")},
    "F16": {0: (HALF_NAN, HALF_INF)},
    "BF16": {0: (b"\xc0\x7f", b"\x80\xff")},
    "Q8_0": {0: (HALF_NAN, HALF_INF)},
    "Q6_K": {128 + 64 + 16: (HALF_NAN, HALF_INF)},
    "Q5_K": {0: (HALF_NAN, HALF_INF), 2: (HALF_NAN, HALF_INF)},
    "Q5_1": {0: (HALF_NAN, HALF_INF), 2: (HALF_NAN, HALF_INF)},
    "Q5_0": {0: (HALF_NAN, HALF_INF)},
    "Q4_K": {0: (HALF_NAN, HALF_INF), 2: (HALF_NAN, HALF_INF)},
    "Q4_1": {0: (HALF_NAN, HALF_INF), 2: (HALF_NAN, HALF_INF)},
    "Q4_0": {0: (HALF_NAN, HALF_INF)},
    "IQ4_NL": {0: (HALF_NAN, HALF_INF)},
    "IQ4_XS": {0: (HALF_NAN, HALF_INF)},
    "MXFP4": {0: (b"\xff",)},
    "IQ3_S": {0: (HALF_NAN, HALF_INF)},
    "Q3_K": {32 + 64 + 12: (HALF_NAN, HALF_INF)},
    "Q2_K": {16 + 64: (HALF_NAN, HALF_INF), 16 + 64 + 2: (HALF_NAN, HALF_INF)},
}
# Data begins here, so that no offset is a round one.
START = 96
MIB = 1 << 20


def encoded(name: str, rows: int = 4, length: int = 512) -> bytearray:
    """`rows` rows of normal numbers."""
    numbers = np.random.default_rng(7).standard_normal((rows, length), dtype=np.float32)
    out = np.empty(TYPES[name].nbytes(numbers.shape), np.uint8)
    encode.encode_rows(numbers, TYPES[name], out)
    return bytearray(out.tobytes())


def written(tmp_path: Path, data: bytes | bytearray) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(START) + data)
    return path


def damage_of(path: Path, type_name: str, nbytes: int) -> list[Damage]:
    return find_damage([("t", type_name, path, START, nbytes)], threads=2)


def noise(nbytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, nbytes, dtype=np.uint8)


def test_the_scales_of_every_type_that_is_written_without_importance_are_listed() -> None:
    assert tuple(SCALES) == tuple(
        name for name, tensor_type in TYPES.items() if not tensor_type.needs_importance
    )


@pytest.mark.parametrize("name", SCALES)
def test_what_the_encoder_writes_is_sound(name: str, tmp_path: Path) -> None:
    data = encoded(name)
    assert damage_of(written(tmp_path, data), name, len(data)) == []


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        (name, at, value)
        for name, scales in SCALES.items()
        for at, values in scales.items()
        for value in values
    ],
)
def test_a_broken_scale_is_found_where_it_is(
    name: str, at: int, value: bytes, tmp_path: Path
) -> None:
    data = encoded(name)
    place = 3 * TYPES[name].block_bytes + at
    data[place : place + len(value)] = value
    path = written(tmp_path, data)
    noun = "number" if name in ("F32", "F16", "BF16") else "scale"
    what = f"1 {noun} is infinite or NaN"
    assert damage_of(path, name, len(data)) == [Damage("t", str(path), START + place, what)]


@pytest.mark.parametrize("name", sorted(verify._FLOATS.keys() - {"Q8_1", "F64"}))
def test_random_blocks_are_judged_as_ggml_judges_them(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One block at a time, its bytes drawn so that about every fourth has a broken scale.

    ggml has no judgement of Q8_1, and takes F64 for infinite where float32 would be.
    """
    member = GGMLQuantizationType[name]
    size = int(GGML_QUANT_SIZES[member][1])
    random = np.random.default_rng(1)
    blocks = random.choice(np.array([0x00, 0x3C, 0x7C, 0x7F, 0xFF], np.uint8), (300, size))
    ggml = encode._ggml()
    # ggml reads the words of a block in place, and wants them aligned.
    buffer = (ctypes.c_uint64 * (size // 8 + 1))()
    sound = []
    for block in blocks:
        ctypes.memmove(buffer, block.tobytes(), size)
        sound.append(bool(ggml.ggml_validate_row_data(int(member), ctypes.addressof(buffer), size)))
    path = written(tmp_path, blocks.tobytes())
    tensors = [(str(i), name, path, START + i * size, size) for i in range(len(blocks))]
    damaged = {one.tensor for one in find_damage(tensors, threads=1) if one.certain}
    assert damaged == {str(i) for i, good in enumerate(sound) if not good}
    if verify._FLOATS[name]:
        assert 0 < len(damaged) < len(blocks)
    capfd.readouterr()  # What ggml says of each.


def test_every_type_of_the_gguf_package_is_known() -> None:
    assert verify._FLOATS.keys() == {member.name for member in GGML_QUANT_SIZES}


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"t in .* cannot be checked, found the type Q9_Z"):
        damage_of(written(tmp_path, b"12345678"), "Q9_Z", 8)


def test_broken_scales_are_counted_over_pieces(tmp_path: Path) -> None:
    """Q8_0 is read in pieces of a little under 4 MiB."""
    data = np.tile(np.frombuffer(encoded("Q8_0", 1, 32), np.uint8), 300_000)
    blocks = data.reshape(-1, 34)
    for broken in (7, 130_000, 299_999):
        blocks[broken, :2] = list(HALF_NAN)
    found = damage_of(written(tmp_path, data.tobytes()), "Q8_0", data.size)
    assert [(one.offset, one.what) for one in found] == [
        (START + 7 * 34, "3 scales are infinite or NaN")
    ]


def test_a_truncated_file_lacks_what_it_lacks(tmp_path: Path) -> None:
    data = encoded("Q4_0")
    path = written(tmp_path, data)
    os.truncate(path, START + 100)
    assert damage_of(path, "Q4_0", len(data)) == [
        Damage(
            "t", str(path), START + 100, f"{len(data) - 100:,} of {len(data):,} bytes are missing"
        )
    ]
    os.truncate(path, 10)
    (found,) = damage_of(path, "Q4_0", len(data))
    assert (found.offset, found.what) == (
        START,
        f"{len(data):,} of {len(data):,} bytes are missing",
    )


def test_an_absent_part_damages_its_tensors_only(tmp_path: Path) -> None:
    data = encoded("Q8_0")
    path = written(tmp_path, data)
    absent = tmp_path / "model-00002-of-00002.gguf"
    found = find_damage(
        [("here", "Q8_0", path, START, len(data)), ("gone", "Q8_0", absent, 32, len(data))]
    )
    what = "the file cannot be opened: No such file or directory"
    assert found == [Damage("gone", str(absent), 32, what)]


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    """A directory opens, and every read of it fails."""
    size = tmp_path.stat().st_size
    (found,) = find_damage([("t", "I8", tmp_path, 0, size)])
    assert found.what == "the file cannot be read here: Is a directory"


def test_a_tensor_of_zeros_is_suspicious_however_small(tmp_path: Path) -> None:
    for nbytes in (64, 5000, 9 * MIB):
        path = written(tmp_path, bytes(nbytes))
        what = f"all {nbytes:,} bytes are zero"
        expected = Damage("t", str(path), START, what, certain=False)
        assert damage_of(path, "F32", nbytes) == [expected]


@pytest.mark.parametrize("begin", [0, 12_288, 3 * MIB + 1, 7 * MIB])
def test_a_hole_of_a_mebibyte_is_found_wherever_it_begins(begin: int, tmp_path: Path) -> None:
    data = noise(8 * MIB)
    data[begin : begin + MIB] = 0
    (found,) = damage_of(written(tmp_path, data.tobytes()), "I8", data.size)
    assert not found.certain
    # Found in units of 4 KiB.
    assert begin <= found.offset - START < begin + 4096
    assert found.what in ("1,048,576 bytes of zeros", "1,044,480 bytes of zeros")


def test_a_hole_that_spans_pieces_is_one_hole(tmp_path: Path) -> None:
    data = noise(24 * MIB)
    data[2 * MIB : 11 * MIB] = 0
    data[13 * MIB : 15 * MIB] = 0
    (found,) = damage_of(written(tmp_path, data.tobytes()), "I8", data.size)
    assert found.offset == START + 2 * MIB
    assert found.what == f"{9 * MIB:,} bytes of zeros, and 1 more such holes"


def test_less_than_a_mebibyte_of_zeros_is_no_hole(tmp_path: Path) -> None:
    data = noise(8 * MIB)
    for begin in range(0, data.size, 2 * MIB):
        data[begin : begin + MIB - 4097] = 0
    assert damage_of(written(tmp_path, data.tobytes()), "I8", data.size) == []


def test_damage_comes_in_the_order_of_the_tensors(tmp_path: Path) -> None:
    data = bytearray(encoded("F32"))
    data[4096:4100] = SCALES["F32"][0][0]
    path = written(tmp_path, bytes(data))
    tensors = [(f"t{i}", "F32", path, START, len(data)) for i in range(40)]
    found = find_damage(tensors, threads=4)
    assert [one.tensor for one in found] == [name for name, *_ in tensors]
    assert found[0].as_dict() == {
        "tensor": "t0",
        "file": str(path),
        "offset": START + 4096,
        "what": "1 number is infinite or NaN",
        "certain": True,
    }


def test_progress_counts_every_byte_once_and_in_order(tmp_path: Path) -> None:
    data = noise(9 * MIB)
    path = written(tmp_path, data.tobytes())
    seen: list[Progress] = []
    tensors = [("a", "I8", path, START, data.size), ("b", "I8", path, START + 1, data.size - 1)]
    find_damage(tensors, threads=2, progress=seen.append)
    steps = [one.bytes_done for one in seen]
    assert [one.item for one in seen] == ["a"] * 3 + ["b"] * 3
    assert steps == sorted(set(steps))
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (2 * data.size - 1, 2 * data.size - 1)


def test_a_caller_that_stops_in_the_middle_stops_the_check(tmp_path: Path) -> None:
    data = noise(9 * MIB)
    path = written(tmp_path, data.tobytes())
    calls = []

    def stop(state: Progress) -> None:
        calls.append(state)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_damage([("a", "I8", path, START, data.size)], progress=stop)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(name, marks=[pytest.mark.heavy] * name.startswith("iq3"))  # by ggml, slowly
        for name, recipe in RECIPES.items()
        if not recipe.needs_importance
    ],
)
def test_a_converted_model_is_sound(
    recipe: str, make_gguf: MakeGGUF, scout_checkpoint: Path
) -> None:
    path = make_gguf(scout_checkpoint, recipe)
    tensors = read_gguf(path).tensors
    found = find_damage((one.name, one.type, path, one.offset, one.nbytes) for one in tensors)
    assert found == []
