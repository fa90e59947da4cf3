"""Walks the header of a GGUF: keys, values and tensors as they stand in the file, within bounds.

Promises that memory and time stay in proportion to the header, whatever its counts and lengths say,
and that a count beyond all reason is refused by name. Whether the header is sound is ggml's to say
(`gguf_file`). Knows nothing of models.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from .errors import ModelFileError
from .untrusted import brief

HEADER_LIMIT = 256 * 2**20
"""Bytes that a header may have; Llama 4's takes about 12 MiB."""

MAX_KEYS = 65_536
MAX_TENSORS = 131_072
MAX_STRING = 16 * 2**20
"""Bytes of one string. A chat template has a few thousand."""
MAX_NAME = 65_535
"""Bytes of a key, as the format has it, or of a tensor's name, of which ggml takes 63."""
MAX_NUMBERS = 2**24
"""Numbers in all arrays together; a vocabulary has 202,048."""
MAX_STRINGS = 2**22
"""Strings in all arrays together; Llama 4 has 640,000, most of them merges."""
MAX_ALIGNMENT = 2**20

# Numbers that are kept as Python values, in all arrays together: each takes up to 40 bytes.
_KEPT_NUMBERS = 2**22
_KEPT_OF_LONG = 8

_DEFAULT_ALIGNMENT = 32
# Bytes that are looked at first, and what follows where the header is longer.
_STEPS = (2**20, 16 * 2**20)

# enum gguf_type (gguf.h): the number's name, and its format where it is of a fixed size.
_STRING, _ARRAY = 8, 9
_FORMATS: dict[int, tuple[str, str]] = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "?"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


AGAIN = "Download or convert the file again."
"""What to do about most damage."""


@dataclass(frozen=True)
class LongArray:
    """An array that is too long for anything which is read here: its length and its beginning."""

    type: str
    count: int
    first: tuple[object, ...]

    def as_dict(self) -> dict[str, object]:
        """The same fields, ready for JSON."""
        return vars(self).copy()


@dataclass(frozen=True)
class RawTensor:
    """A tensor as the header has it: `type` is ggml's number, `offset` counts from the data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a header says, and its `data`: all of its bytes, padding included.

    ``metadata`` maps keys to bool, int, float, str or, for arrays, tuples of these, or a
    `LongArray`; ``types`` maps the same keys to the types in the file (``u32``, ``str``,
    ``[i32]``), and ``extents`` to where in ``data`` the value begins, with its type before it, and
    where it ends.
    """

    data: bytes
    version: int
    alignment: int
    metadata: Mapping[str, object]
    types: Mapping[str, str]
    extents: Mapping[str, tuple[int, int]]
    tensors: tuple[RawTensor, ...]


class TooShortError(Exception):
    """The bytes end before the header does."""


def read_bytes(descriptor: int, most: int, offset: int = 0) -> bytes:
    """Bytes of a file: `most`, or as many as there are."""
    # No larger buffer than the file: memory may be short.
    most = min(most, max(os.fstat(descriptor).st_size - offset, 0))
    data = os.pread(descriptor, most, offset)
    while len(data) < most:  # a signal, or a network, may cut a read short
        more = os.pread(descriptor, most - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def read_header(path: Path, descriptor: int) -> Header:
    """Walk the header of a file.

    Raises:
        TooShortError: the file ends before its header does.
        ModelFileError: a number in it is out of all bounds, or a text is not UTF-8.
    """
    for step in (*_STEPS, HEADER_LIMIT):
        data = read_bytes(descriptor, step)
        try:
            return _Walk(path, data).header()
        except (TooShortError, struct.error, OverflowError):
            if len(data) < step:  # all of the file
                raise TooShortError from None
    raise ModelFileError(
        f"{path} has a header without end",
        found=f"more than {HEADER_LIMIT:,} bytes",
        expected="about 12 MiB",
        hint=AGAIN,
    )


class _Walk:
    """One pass over the bytes that a file begins with."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self._at = path, data, 4
        self._numbers = self._strings = 0

    def header(self) -> Header:
        version = self._number(_U32)
        n_tensors = self._count("tensors", MAX_TENSORS)
        n_keys = self._count("keys", MAX_KEYS)
        metadata: dict[str, object] = {}
        types: dict[str, str] = {}
        extents: dict[str, tuple[int, int]] = {}
        for index in range(n_keys):
            key = self._name(f"key {index}")
            if key in metadata:
                raise self._error(f"has the key {brief(key)} twice")
            start = self._at
            metadata[key], types[key] = self._value(key)
            extents[key] = start, self._at
        alignment = self._alignment(metadata)
        tensors = self._tensors(n_tensors)
        end = self._at
        if n_tensors:
            end += -end % alignment
        if end > len(self._data):
            raise TooShortError
        return Header(self._data[:end], version, alignment, metadata, types, extents, tensors)

    # --- values

    def _value(self, key: str) -> tuple[object, str]:
        kind = self._number(_U32)
        if kind == _STRING:
            return self._text(self._string(key), key).partition("\0")[0], "str"
        if kind == _ARRAY:
            element, count = self._number(_U32), self._number(_U64)
            if element == _STRING:
                return self._string_array(key, count), "[str]"
            name, code = self._format(key, element)
            return self._number_array(key, name, code, count), f"[{name}]"
        name, code = self._format(key, kind)
        (value,) = self._unpack(f"<{code}")
        return value, name

    def _format(self, key: str, kind: int) -> tuple[str, str]:
        if kind not in _FORMATS:
            what = "an array of arrays" if kind == _ARRAY else f"type {kind}"
            raise self._error(f"has a value that llama.cpp does not read: {brief(key)}", what)
        return _FORMATS[kind]

    def _number_array(self, key: str, name: str, code: str, count: int) -> object:
        self._numbers += count
        if self._numbers > MAX_NUMBERS:
            raise self._too_many(key, count, "numbers", MAX_NUMBERS)
        if self._numbers <= _KEPT_NUMBERS:
            return self._unpack(f"<{count}{code}")
        start = self._at
        self._skip(count * struct.calcsize(f"<{code}"))
        few = min(count, _KEPT_OF_LONG)
        return LongArray(name, count, struct.unpack_from(f"<{few}{code}", self._data, start))

    def _string_array(self, key: str, count: int) -> tuple[str, ...]:
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise self._too_many(key, count, "texts", MAX_STRINGS)
        data, at, unpack = self._data, self._at, _U64.unpack_from
        raw: list[bytes] = []
        for _ in repeat(None, count):
            start = at + 8
            at = start + unpack(data, at)[0]
            raw.append(data[start:at])
        self._at = at
        self._skip(0)
        # One decoding for all. A text ends at a zero byte, as llama.cpp takes it.
        joined = b"\0".join(raw)
        if joined.count(b"\0") >= count:
            joined = b"\0".join(text.partition(b"\0")[0] for text in raw)
        return tuple(self._text(joined, key).split("\0")) if raw else ()

    def _text(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            at = max(0, error.start - 20)
            raise self._error(
                f"has text that is not UTF-8 in {brief(what)}", repr(raw[at : at + 40])
            ) from None

    # --- tensors

    def _tensors(self, count: int) -> tuple[RawTensor, ...]:
        tensors: dict[str, RawTensor] = {}
        for index in range(count):
            name = self._name(f"tensor {index}")
            if name in tensors:
                raise self._error(f"has the tensor {brief(name)} twice")
            n_dims = self._number(_U32)
            if n_dims > 4:
                raise self._error(
                    f"has a tensor of too many dimensions: {brief(name)}", n_dims, "at most 4"
                )
            shape = self._unpack(f"<{n_dims}Q")
            kind, offset = self._unpack("<IQ")
            while len(shape) > 1 and shape[-1] == 1:
                shape = shape[:-1]
            tensors[name] = RawTensor(name, shape or (1,), kind, offset)
        return tuple(tensors.values())

    def _alignment(self, metadata: Mapping[str, object]) -> int:
        value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        sound = type(value) is int and 0 < value <= MAX_ALIGNMENT and not value & (value - 1)
        if not sound:
            raise self._error(
                "has an invalid value of general.alignment",
                brief(value),
                f"a power of two, at most {MAX_ALIGNMENT}",
            )
        assert isinstance(value, int)
        return value

    # --- bytes

    def _name(self, what: str) -> str:
        raw = self._string(f"the name of {what}", MAX_NAME)
        if b"\0" in raw:
            raise self._error(f"has a zero byte in the name of {what}", repr(raw[:40]))
        return self._text(raw, f"the name of {what}")

    def _string(self, what: str, most: int = MAX_STRING) -> bytes:
        length = self._number(_U64)
        if length > most:
            raise self._error(
                f"has a text without end: {brief(what)}",
                f"{length:,} bytes",
                f"at most {most:,}",
            )
        start = self._at
        self._skip(length)
        return self._data[start : self._at]

    def _count(self, what: str, most: int) -> int:
        count = self._number(_U64)
        if count > most:
            raise self._error(f"has too many {what}", f"{count:,}", f"at most {most:,}")
        return count

    def _number(self, kind: struct.Struct) -> int:
        (value,) = kind.unpack_from(self._data, self._at)
        self._at += kind.size
        return int(value)

    def _unpack(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from(code, self._data, self._at)
        self._at += struct.calcsize(code)
        return values

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise TooShortError

    def _too_many(self, key: str, count: int, what: str, most: int) -> ModelFileError:
        return self._error(
            f"has an array without end: {brief(key)}",
            f"{count:,} {what}",
            f"at most {most:,} in all arrays",
        )

    def _error(self, problem: str, found: object = None, expected: object = None) -> ModelFileError:
        return ModelFileError(f"{self._path} {problem}", found=found, expected=expected, hint=AGAIN)
