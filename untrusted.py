"""Reads what somebody else wrote: within bounds, and each value as the type that it should have.

Promises that any file at all is either read or refused with one error that names the file, and in
JSON the entry: a directory, a pipe, a device, a link to nothing, a Git LFS pointer, a file that is
too large, text that is not UTF-8, JSON that is damaged, too deep or has numbers without end. Knows
no format but JSON, and no model.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from .errors import Llama4EdgeError
from .units import told_apart

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for one which ``git lfs pull`` would fetch."""

MAX_INTEGER = 2**63 - 1
"""The largest integer that any format here can hold."""

_MAX_DIGITS = 400  # 64-bit integers have 20, and what a float can hold 309
_SHOWN = 80  # characters of a value that an error shows


@dataclass(frozen=True)
class Reader:
    """Reads one kind of file.

    Args:
        error: what it raises about them.
        limit: bytes that such a file may have, at least a hundred times what is common.
        hint: what to do about a damaged one, as an imperative sentence.
        surrogates: whether strings of JSON may have lone surrogates, which UTF-8 cannot carry.
    """

    error: type[Llama4EdgeError]
    limit: int
    hint: str | None = None
    surrogates: bool = False

    @contextmanager
    def opened(self, path: str | os.PathLike[str]) -> Iterator[BufferedReader]:
        """A regular file, open for reading, whatever its length.

        Raises:
            Llama4EdgeError: of the class `error`, here and below: the file cannot be read, or is
                not a regular file.
        """
        # O_NONBLOCK: opening a pipe would wait for somebody to write to it.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            file = os.fdopen(os.open(path, flags), "rb")
        except (OSError, ValueError) as error:
            raise self._unreadable(path, error) from None
        with file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise self.error(f"{os.fspath(path)} is not a regular file")
            try:
                yield file
            except OSError as error:
                raise self._unreadable(path, error) from None

    def data(self, path: str | os.PathLike[str]) -> bytes:
        """All bytes of a regular file.

        Raises:
            Llama4EdgeError: it is larger than `limit`, or is a Git LFS pointer.
        """
        name = os.fspath(path)
        with self.opened(path) as file:
            # Python reserves what it is asked for. Some files of the kernel have no size.
            status = os.fstat(file.fileno())
            data = file.read(status.st_size) if status.st_size <= self.limit else b""
            if len(data) == status.st_size:
                data += file.read(self.limit + 1 - len(data)) if file.peek(1) else b""
        size = max(status.st_size, len(data))
        if size > self.limit:
            found, limit = told_apart(size, self.limit)
            raise self.error(
                f"{name} is too large",
                found=found,
                expected=f"at most {limit}",
                hint=self.hint,
            )
        if data.startswith(LFS_POINTER):
            raise lfs_pointer(name, self.error)
        return data

    def text(self, path: str | os.PathLike[str]) -> str:
        """The file as UTF-8 text, without a byte order mark."""
        return self.decoded(self.data(path), path)

    def decoded(self, data: bytes, path: str | os.PathLike[str]) -> str:
        """The bytes of a file as `text` gives them."""
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            found = f"byte 0x{error.object[error.start]:02x} at {error.start:,}"
            raise self.error(
                f"{os.fspath(path)} is not UTF-8 text", found=found, hint=self.hint
            ) from None

    def json(self, path: str | os.PathLike[str]) -> Any:
        """The value in a JSON file."""
        return self.parse(self.text(path), os.fspath(path))

    def record(self, path: str | os.PathLike[str]) -> Record:
        """The object in a JSON file."""
        return self.as_record(self.json(path), os.fspath(path))

    def parse(
        self,
        text: str | bytes,
        name: str,
        *,
        pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    ) -> Any:
        """The value in JSON text.

        Args:
            name: of the file that the text is from, for errors.
            pairs: makes a value of an object's entries, as ``object_pairs_hook`` of `json.loads`.
        """
        try:
            decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
            value = json.loads(decoded, object_pairs_hook=pairs, parse_int=_integer)
        except RecursionError:
            raise self.error(f"{name} is nested too deeply", hint=self.hint) from None
        except ValueError as error:  # not UTF-8, not JSON, or an integer of thousands of digits
            raise self.error(f"{name} is not JSON", found=str(error), hint=self.hint) from None
        # Only an escape can make one, as UTF-8 has been decoded.
        if not self.surrogates and ("\\ud" in decoded or "\\uD" in decoded):
            for string in _strings(value):
                _check_surrogates(self, name, string)
        return value

    def as_record(self, value: object, name: str) -> Record:
        """A value that should be a JSON object."""
        if not isinstance(value, Mapping):
            raise self.error(
                f"{name} is damaged",
                found=shown(value),
                expected="a JSON object",
                hint=self.hint,
            )
        return Record(value, name, self)

    def _unreadable(self, path: str | os.PathLike[str], error: OSError | ValueError) -> Exception:
        name = os.fspath(path)
        if isinstance(error, FileNotFoundError) and Path(path).is_symlink():
            return self.error(
                f"{name} is a symbolic link to a file that does not exist",
                found=str(Path(path).readlink()),
            )
        if isinstance(error, FileNotFoundError):
            return self.error(f"{name} does not exist")
        # A ValueError is a NUL in the name.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return self.error(f"{name} cannot be read", found=reason)


@dataclass(frozen=True)
class Record(Mapping[str, Any]):
    """A JSON object whose entries are read as the types that they should have.

    An entry that is null counts as missing. What is missing is the `default`, or an error where
    there is none.

    Args:
        fields: the entries.
        name: of the file, and of the object in it, for errors.
        reader: of the file; all methods raise its `error`.
    """

    fields: Mapping[str, Any]
    name: str
    reader: Reader

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def integer(
        self, key: str, least: int = 0, most: int = MAX_INTEGER, *, default: int | None = None
    ) -> int:
        """A whole number from `least` to `most`; booleans are none."""
        value = self._value(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.fault(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fault(key, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.fault(key, "a finite number")
        return number

    def boolean(self, key: str, *, default: bool | None = None) -> bool:
        """True or False."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.fault(key, "true or false")
        return value

    def text(self, key: str, *, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.fault(key, "a string")
        return value

    def elements(self, key: str, *, default: list[Any] | None = None) -> list[Any]:
        """A list of anything."""
        value = self._value(key, default)
        if not isinstance(value, list):
            raise self.fault(key, "a list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.elements(key)
        if not all(isinstance(value, str) for value in values):
            raise self.fault(key, "a list of strings")
        return tuple(values)

    def record(self, key: str) -> Record:
        """An object."""
        value = self._value(key, None)
        if not isinstance(value, Mapping):
            raise self.fault(key, "an object")
        return Record(value, f"{self.name}: {key}", self.reader)

    def records(self, key: str, *, default: list[Any] | None = None) -> list[Record]:
        """A list of objects."""
        values = self.elements(key, default=default)
        if not all(isinstance(value, Mapping) for value in values):
            raise self.fault(key, "a list of objects")
        return [
            Record(value, f"{self.name}: {key}[{number}]", self.reader)
            for number, value in enumerate(values)
        ]

    def fault(self, key: str, expected: str) -> Llama4EdgeError:
        """The error that the entry `key` is not what was `expected`."""
        value = self.fields.get(key)
        return self.reader.error(
            f"{self.name} has {'no' if value is None else 'an invalid'} {brief(key)}",
            found=None if value is None else shown(value),
            expected=expected,
            hint=self.reader.hint,
        )

    def _value(self, key: str, default: object) -> object:
        value = self.fields.get(key)
        return default if value is None else value


def _integer(text: str) -> int:
    """Reading one takes longer than its digits are many."""
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def lfs_pointer(name: str, error: type[Llama4EdgeError]) -> Llama4EdgeError:
    """The error that the file `name` is a pointer to one that was not fetched."""
    return error(
        f"{name} is a Git LFS pointer, not the file itself",
        hint="Fetch the files: git lfs pull",
    )


def shown(value: object) -> str:
    """A value in few characters; the whole of it may have millions."""
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    if isinstance(value, int) and value.bit_length() > 4 * _SHOWN:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"an object of {len(value)} entries"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def brief(text: object, most: int = _SHOWN) -> str:
    """What a stranger wrote, for an error: its beginning, where it has more than `most` letters."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[:most]}… ({len(whole):,} characters)"


def _strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)


def _check_surrogates(reader: Reader, name: str, string: str) -> None:
    try:
        string.encode("utf-8")
    except UnicodeEncodeError:
        raise reader.error(
            f"{name} has text that is not Unicode",
            found=f"a lone surrogate in {string[:_SHOWN]!r}",
            hint=reader.hint,
        ) from None
