"""Headers whose numbers are beyond all reason: refused by name, in little memory and time."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llama4_edge import gguf_header
from llama4_edge.errors import ModelFileError
from llama4_edge.gguf_header import LongArray
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.gguf_maker import F32, STR, U32, Value, tiny_model


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def _array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _tensor(name: bytes, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def _gguf(
    *keys: bytes, tensors: tuple[bytes, ...] = (), counts: tuple[int, int] | None = None
) -> bytes:
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys)
    return head + b"".join(keys) + b"".join(tensors)


_STRING, _ARRAY = 8, 9
# What a header says, and the words with which it is refused.
HEADERS: dict[str, tuple[bytes, str]] = {
    "keys without end": (
        _gguf(counts=(0, 2**63)),
        "too many keys, found 9,223,372,036,854,775,808",
    ),
    "tensors without end": (_gguf(counts=(2**40, 0)), "has too many tensors, found 1,099,511,627"),
    "a key without end": (
        _gguf(struct.pack("<Q", 2**62)),
        "a text without end: the name of key 0, found 4,611,686,018,427,387,904 bytes",
    ),
    "a text without end": (
        _gguf(_key(b"a", _STRING, struct.pack("<Q", 2**24 + 1))),
        "a text without end: a, found 16,777,217 bytes, expected at most 16,777,216",
    ),
    "numbers without end": (
        _gguf(_key(b"a", _ARRAY, _array(0, 2**63))),
        "an array without end: a, found 9,223,372,036,854,775,808 numbers, expected at most",
    ),
    "texts without end": (
        _gguf(_key(b"a", _ARRAY, _array(_STRING, 2**32))),
        "an array without end: a, found 4,294,967,296 texts, expected at most 4,194,304",
    ),
    "arrays that are long together": (
        _gguf(*(_key(b"abc"[n : n + 1], _ARRAY, _array(0, 2**23, bytes(2**23))) for n in range(3))),
        "an array without end: c, found 8,388,608 numbers, expected at most 16,777,216 in all",
    ),
    "an array of arrays": (
        _gguf(_key(b"a", _ARRAY, _array(_ARRAY, 1, _array(_ARRAY, 1)))),
        "has a value that llama.cpp does not read: a, found an array of arrays",
    ),
    "a type that is none": (
        _gguf(_key(b"a", 13, bytes(8))),
        "has a value that llama.cpp does not read: a, found type 13",
    ),
    "an array of a type that is none": (
        _gguf(_key(b"a", _ARRAY, _array(2**31, 0))),
        "does not read: a, found type 2147483648",
    ),
    "a key twice": (_gguf(_key(b"a", 0, b"1"), _key(b"a", 0, b"1")), "has the key a twice"),
    "a key of a thousand letters twice": (
        _gguf(*[_key(b"k" * 1000, 0, b"1")] * 2),
        f"has the key {'k' * 80}… (1,000 characters) twice",
    ),
    "a key that is not UTF-8": (
        _gguf(_key(b"a\xffb", 0, b"1")),
        r"has text that is not UTF-8 in the name of key 0, found b'a\xffb'",
    ),
    "a key with a zero byte": (
        _gguf(_key(b"a\0b", 0, b"1")),
        r"has a zero byte in the name of key 0, found b'a\x00b'",
    ),
    "no key": (_gguf(_key(b"", 0, b"1")), "key 0 is empty"),
    "an alignment of 0": (
        _gguf(_key(b"general.alignment", 4, struct.pack("<I", 0))),
        "an invalid value of general.alignment, found 0, expected a power of two, at most 1048576",
    ),
    "an alignment that is no power of two": (
        _gguf(_key(b"general.alignment", 4, struct.pack("<I", 48))),
        "general.alignment, found 48",
    ),
    "a huge alignment": (
        _gguf(_key(b"general.alignment", 4, struct.pack("<I", 2**31)), tensors=(_tensor(b"a", 1),)),
        "general.alignment, found 2147483648",
    ),
    "an alignment that is text": (
        _gguf(_key(b"general.alignment", _STRING, _text(b"32"))),
        "general.alignment, found 32, expected a power of two",
    ),
    "an alignment of another width": (
        _gguf(_key(b"general.alignment", 10, struct.pack("<Q", 32))),
        "must be of type u32 but is u64",
    ),
    "a tensor of five dimensions": (
        _gguf(tensors=(_tensor(b"a", 1, 1, 1, 1, 1),)),
        "a tensor of too many dimensions: a, found 5, expected at most 4",
    ),
    "a tensor of dimensions without end": (
        _gguf(tensors=(_text(b"a") + struct.pack("<I", 2**32 - 1),)),
        "a tensor of too many dimensions: a, found 4294967295",
    ),
    "a tensor twice": (_gguf(tensors=(_tensor(b"a", 1),) * 2), "has the tensor a twice"),
    "a tensor of a long name": (_gguf(tensors=(_tensor(b"a" * 64, 1),)), "is too long: 64 >= 64"),
    "a tensor with a zero byte": (
        _gguf(tensors=(_tensor(b"a\0b", 1),)),
        "has a zero byte in the name of tensor 0",
    ),
    "a tensor that is not UTF-8": (
        _gguf(tensors=(_tensor(b"\xff", 1),)),
        "not UTF-8 in the name of tensor 0",
    ),
    "a tensor of fewer than no numbers": (
        _gguf(tensors=(_tensor(b"a", 2**63),)),
        "invalid number of elements",
    ),
    "a tensor of more bytes than there are": (
        _gguf(tensors=(_tensor(b"a", 2**31, 2**31, 2**31),)),
        "may cause overflow",
    ),
    "a tensor of a type that is none": (
        _gguf(tensors=(_tensor(b"a", 1, kind=2**31),)),
        "invalid ggml type",
    ),
    "a tensor of a type that was removed": (
        _gguf(tensors=(_tensor(b"a", 32, kind=4),)),
        "not a multiple of block size",
    ),
    "a tensor of half a block": (
        _gguf(tensors=(_tensor(b"a", 31, kind=2),)),
        "not a multiple of block size",
    ),
    "a tensor somewhere else": (
        _gguf(tensors=(_tensor(b"a", 1, offset=2**63),)) + bytes(64),
        "has offset 9223372036854775808, expected 0",
    ),
    "a header of nothing": (b"GGUF\3\0\0\0", "failed to read"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_number_beyond_reason_is_refused_by_name(name: str, tmp_path: Path) -> None:
    data, said = HEADERS[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    assert said in str(caught.value)
    assert str(path) in caught.value.problem
    assert len(str(caught.value)) < 600 + 2 * len(str(path))


def test_a_header_of_hundreds_of_megabytes_has_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_header, "HEADER_LIMIT", 20 * 2**20)
    path = tmp_path / "long.gguf"
    long = _key(b"a", _STRING, _text(bytes(15 * 2**20))), _key(b"b", _STRING, _text(bytes(2**23)))
    path.write_bytes(_gguf(*long))
    with pytest.raises(
        ModelFileError, match="has a header without end, found more than 20,971,520"
    ):
        read_gguf(path)


def test_a_long_array_is_summed_up_where_nobody_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    long = _key(b"long", _ARRAY, _array(0, 5_120_000, bytes(range(256)) * 20_000))
    path.write_bytes(_gguf(long, _key(b"short", _ARRAY, _array(10, 1, b"\xff" * 8))))
    found = read_gguf(path)
    assert found.metadata["long"] == LongArray("u8", 5_120_000, (0, 1, 2, 3, 4, 5, 6, 7))
    assert found.metadata["short"] == LongArray("u64", 1, (2**64 - 1,))
    assert found.types["long"] == "[u8]"


_MEASURE = """
import resource, sys
from llama4_edge import inspect
from llama4_edge.errors import ModelFileError
from llama4_edge.runtime.bindings.library import llama
from llama4_edge.runtime.files.model_file import check_model_file
llama()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for read in (inspect, check_model_file, lambda path: inspect(path, check=True)):
    try:
        read(sys.argv[1])
        said = "read"
    except ModelFileError as error:
        said = str(error)
    print(said)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _memory(path: Path) -> tuple[list[str], int]:
    """What is said of a file, and the KiB that it took to say it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *said, taken = done.stdout.splitlines()
    return said, int(taken)


@pytest.mark.parametrize(
    ("kind", "count", "data_bytes"),
    [(0, 500_000_000, 500_000_000), (12, 60_000_000, 480_000_000), (_STRING, 62_000_000, 2**29)],
)
def test_an_array_of_half_a_gigabyte_takes_next_to_nothing(
    kind: int, count: int, data_bytes: int, tmp_path: Path
) -> None:
    path = tmp_path / "array.gguf"
    path.write_bytes(_gguf(_key(b"test.array", _ARRAY, _array(kind, count))))
    with path.open("r+b") as file:  # a hole: nothing is written
        file.truncate(path.stat().st_size + data_bytes)
    said, taken = _memory(path)
    assert all(f"an array without end: test.array, found {count:,} " in line for line in said)
    assert taken < 64 * 1024


def test_what_is_read_takes_a_few_times_the_header(tmp_path: Path) -> None:
    """The longest arrays that are read, of numbers and of texts."""
    numbers = np.arange(2**20, dtype="<f4") / 3  # no two are the same object of Python
    path = tmp_path / "long.gguf"
    path.write_bytes(
        _gguf(
            _key(b"general.architecture", _STRING, _text(b"llama4")),
            _key(b"test.numbers", _ARRAY, _array(6, 2**20, numbers.tobytes())),
            _key(b"test.more", _ARRAY, _array(5, 2**21, bytes(2**23))),
            _key(b"test.texts", _ARRAY, _array(_STRING, 2**19, _text(b"some text") * 2**19)),
        )
    )
    said, taken = _memory(path)
    assert (said[0], said[2]) == ("read", "read")
    assert taken * 1024 < 10 * path.stat().st_size


def test_text_that_steers_a_terminal_is_read_and_shown_as_what_it_is(tmp_path: Path) -> None:
    model = tiny_model()
    model.keys["test.\x1b[2J\u202e"] = Value("\x9b31m\x07", STR)
    found = read_gguf(model.write(tmp_path / "steer.gguf"))
    assert found.metadata["test.\x1b[2J\u202e"] == "\x9b31m\x07"


def test_numbers_that_json_does_not_have_are_text_in_json(tmp_path: Path) -> None:
    from llama4_edge import inspect

    model = tiny_model()
    nan, infinity = float("nan"), float("inf")
    model.keys["test.nan"] = Value(nan, F32)
    model.keys["test.list"] = Value([1.0, infinity, nan], F32, F32)
    model.keys["test.count"] = Value(5, U32)
    record = inspect(model.write(tmp_path / "nan.gguf")).as_dict()
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text)["metadata"]["test.list"] == [1.0, "inf", "nan"]
    assert json.loads(text)["metadata"]["test.nan"] == "nan"
