"""Files of activation statistics: both forms are read, and what is damaged is refused by name."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from llama4_edge.errors import ModelFileError
from llama4_edge.quant.importance import Activations, Importance, Starved
from llama4_edge.quant.importance_file import importance_bytes, read_importance
from llama4_edge.runtime.files.model_file import check_model_file

SUMS = np.array([[1, 2, 3], [0, 0, 0], [4, 5, 6]], np.float32)
IMPORTANCE = Importance(
    {
        "blk.0.ffn_up_exps.weight": Activations(SUMS, np.array([7, 0, 9])),
        "blk.0.attn_q.weight": Activations(SUMS[:1], np.array([16])),
        "blk.1.ffn_up_exps.weight": Activations(
            SUMS + 1,
            np.array([7, 1, 9]),
            Starved((1, 2), SUMS[1:], np.array([0, 9])),
        ),
    },
    datasets=("wiki.train.raw", "bücher.txt"),
    n_chunks=2,
    chunk_size=8,
)


def entry(name: str, values: list[float], n_chunks: int = 2) -> bytes:
    """One tensor of the older form."""
    raw = name.encode()
    head = struct.pack("<i", len(raw)) + raw + struct.pack("<ii", n_chunks, len(values))
    return head + struct.pack(f"<{len(values)}f", *values)


def legacy(*entries: bytes, after: bytes = b"") -> bytes:
    return struct.pack("<i", len(entries)) + b"".join(entries) + after


def same(one: Importance, other: Importance) -> bool:
    """Whether both say the same, bit for bit."""
    return importance_bytes(one) == importance_bytes(other)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(importance_bytes(IMPORTANCE))
    found = read_importance(path)
    assert same(found, IMPORTANCE)
    assert found.name == os.fspath(path)
    assert (found.datasets, found.n_chunks, found.chunk_size) == (IMPORTANCE.datasets, 2, 8)
    measured = found.tensors["blk.1.ffn_up_exps.weight"].measured()
    assert measured.sums.tolist() == [[2, 3, 4], [0, 0, 0], [4, 5, 6]]
    assert measured.counts.tolist() == [7, 0, 9]


def test_another_reader_of_gguf_finds_what_llama_imatrix_writes(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(importance_bytes(IMPORTANCE))
    reader = gguf.GGUFReader(path)
    keys = ("general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
    assert [reader.fields[key].contents() for key in keys] == [
        "imatrix", ["wiki.train.raw", "bücher.txt"], 2, 8,
    ]  # fmt: skip
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors)[:4] == [
        "blk.0.attn_q.weight.in_sum2",
        "blk.0.attn_q.weight.counts",
        "blk.0.ffn_up_exps.weight.in_sum2",
        "blk.0.ffn_up_exps.weight.counts",
    ]
    assert (tensors["blk.0.ffn_up_exps.weight.in_sum2"].data == SUMS).all()
    assert tensors["blk.0.ffn_up_exps.weight.counts"].data.ravel().tolist() == [7, 0, 9]


def test_it_is_not_taken_for_a_model(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(importance_bytes(IMPORTANCE))
    with pytest.raises(ModelFileError, match=r"statistics of a model, not a model.*--imatrix"):
        check_model_file(path)


def test_the_older_form_is_read(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    values = [0.5, 3.0, 7.0, 0.1]
    after = struct.pack("<ii", 5, 4) + b"text"
    for end in (after, b""):
        path.write_bytes(legacy(entry("a", values), entry("b", [1.0], 0), after=end))
        found = read_importance(path)
        weights = found.weights("a", (2, 2))
        assert weights is not None
        assert (weights.ravel() == np.array(values, np.float32) / np.float32(2)).all()
        only = found.weights("b")
        assert only is not None and only.tolist() == [[1.0]]
        assert found.datasets == (("text",) if end else ())
        assert found.n_chunks == (5 if end else 0)


ONE, TWO = np.ones((1, 1), np.float32), np.ones((2, 1), np.float32)
ROWS = np.ones((2, 3), np.float32)
IN_SUM2 = "a.in_sum2"


def make(path: Path, tensors: dict[str, np.ndarray], kind: str | None = "imatrix") -> None:
    writer = gguf.GGUFWriter(path, "llama4")
    if kind is not None:
        del writer.kv_data[0]["general.architecture"]
        writer.add_type(kind)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a.weight": ROWS}, r"has no activation statistics"),
        ({IN_SUM2: ROWS}, r"a.counts, found no such tensor"),
        ({IN_SUM2: ROWS, "a.counts": TWO, "b.counts": ONE}, r"b.counts, found counts"),
        ({IN_SUM2: ROWS, "a.counts": np.ones((3, 1), np.float32)}, "a, found 3 counts, expected 2"),
        ({IN_SUM2: ROWS.astype(np.float16), "a.counts": TWO}, "tensor type 1, expected type 0"),
        ({IN_SUM2: ROWS * np.nan, "a.counts": TWO}, "found 6 values like nan, expected sums of"),
        ({IN_SUM2: ROWS * np.inf, "a.counts": TWO}, "values like inf"),
        ({IN_SUM2: -ROWS, "a.counts": TWO}, "values like -1.0"),
        (
            {IN_SUM2: np.full((2, 3), 3e38, np.float32), "a.counts": TWO},
            r"a, found a mean square of 3e\+38, expected at most 1e\+15, as any model's",
        ),
        (
            {IN_SUM2: ROWS, "a.counts": -TWO},
            r"a.counts, found -1.0, expected how many rows were summed",
        ),
        ({IN_SUM2: ROWS, "a.counts": TWO * np.nan}, r"a.counts, found nan"),
        ({IN_SUM2: ROWS, "a.counts": TWO * np.float32(1e30)}, r"a.counts, found"),
        (
            {
                IN_SUM2: ROWS,
                "a.counts": TWO,
                "a.starved_experts": np.array([2], np.int32),
                "a.starved_sums": ROWS[:1],
                "a.starved_counts": ONE,
            },
            r"starved_experts, found 2, expected experts, ascending",
        ),
    ],
)
def test_statistics_that_contradict_themselves_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], reason: str
) -> None:
    path = tmp_path / "imatrix.gguf"
    make(path, tensors)
    with pytest.raises(ModelFileError, match=reason) as error:
        read_importance(path)
    assert os.fspath(path) in error.value.problem


def test_one_count_holds_for_all_matrices(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    make(path, {IN_SUM2: ROWS, "a.counts": ONE * 4})
    found = read_importance(path).tensors["a"]
    assert found.sums.shape == (2, 3) and found.counts.tolist() == [4, 4]
    make(path, {IN_SUM2: ROWS.reshape(1, 6), "a.counts": TWO * 2.5})
    found = read_importance(path).tensors["a"]
    assert found.sums.shape == (2, 3) and found.counts.tolist() == [3, 3]


def test_what_is_something_else_is_refused(tmp_path: Path, tiny_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no activation statistics, found 'llama4', expected"):
        read_importance(tiny_path)
    other = tmp_path / "other"
    for content, reason in (
        (b"", "is empty"),
        (b"abc", "before the file's end"),
        (b"A text, whatever it says.", "found 1,702,109,249 as the number of tensors"),
        (b"GGUF", "version, found nothing"),
        (b"GGUF\0\0\0\3", "version, found 00000003, expected a little-endian 2 or 3"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (legacy(entry("a", [-1.0])), "a, found 1 values like -1.0"),
        (legacy(entry("a", [3e38])), "a, found a mean square of inf"),
        (legacy(entry("a", [float("nan")])), "values like nan"),
        (legacy(entry("a", [1.0]), entry("a", [1.0])), "a, found twice"),
        (legacy(entry("a", [])), "found 0 as the number of values of a"),
    ):
        other.write_bytes(content)
        with pytest.raises(ModelFileError, match=reason):
            read_importance(other)
    for path, reason in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "cannot be read|not a regular file"),
        (Path("/dev/null"), "not a regular file"),
    ):
        with pytest.raises(ModelFileError, match=reason):
            read_importance(path)


def cut(data: bytes, at: int) -> bytes:
    return data[:at]


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x90]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [cut, flip])
def test_any_damage_is_read_or_refused(
    tmp_path: Path, damage: Callable[[bytes, int], bytes]
) -> None:
    path = tmp_path / "imatrix"
    after = struct.pack("<ii", 5, 4) + b"text"
    old = legacy(entry("a", [1.0, 2.0]), entry("b", [3.0]), after=after)
    for data in (importance_bytes(IMPORTANCE), old):
        for at in range(len(data)):
            path.write_bytes(damage(data, at))
            try:
                found = read_importance(path)
            except ModelFileError as error:
                assert os.fspath(path) in str(error)
            else:
                for name in found.tensors:
                    weights = found.weights(name)
                    assert weights is not None and np.isfinite(weights).all()
                    assert weights.min() >= 0
