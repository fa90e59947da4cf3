"""How do two GGUFs differ? `llama4_edge.diff`.

Compares what they say, what tensors they have, and what numbers these hold. How a model is divided
into files is no difference. Knows no format itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ranges import as_path, check_callback, check_flag

if TYPE_CHECKING:
    from .progress import Progress
    from .runtime.files.difference import NumberDifference, StoredIn
    from .runtime.files.gguf_file import GGUFFile

# What says how a model is divided into files.
_SPLIT_KEYS = frozenset({"split.no", "split.count", "split.tensors.count"})
_SHOWN_ITEMS = 8


@dataclass(frozen=True)
class MetadataValue:
    """A value of metadata: its type in the file (``u32``, ``[str]``) and, of arrays, its length.

    Of an array ``value`` has a few items, from the first that differs on.
    """

    type: str
    value: object
    length: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same fields, ready for JSON."""
        return vars(self).copy()


@dataclass(frozen=True)
class MetadataDifference:
    """A key whose values differ; None where a file does not have it.

    ``index`` is the first item of arrays that differs, None for other values.
    """

    key: str
    a: MetadataValue | None
    b: MetadataValue | None
    index: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same fields, ready for JSON."""
        return {
            "key": self.key,
            "a": self.a and self.a.as_dict(),
            "b": self.b and self.b.as_dict(),
            "index": self.index,
        }


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that differs: in type, in shape (rows last) or in its numbers.

    Type and shape are None where a file does not have it. ``numbers`` is None where nobody compared
    them: where one is missing, the shapes differ, or `diff` was not asked to.
    """

    name: str
    type_a: str | None
    type_b: str | None
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    numbers: NumberDifference | None = None

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        numbers = self.numbers is not None and bool(self.numbers.differing)
        return self.type_a != self.type_b or self.shape_a != self.shape_b or numbers

    def as_dict(self) -> dict[str, Any]:
        """The same fields, ready for JSON."""
        return {
            "name": self.name,
            "type_a": self.type_a,
            "type_b": self.type_b,
            "shape_a": self.shape_a and list(self.shape_a),
            "shape_b": self.shape_b and list(self.shape_b),
            "numbers": self.numbers and self.numbers.as_dict(),
        }


@dataclass(frozen=True)
class Difference:
    """How the GGUF `b` differs from `a`: what differs, and of how many tensors nothing does."""

    a: str
    b: str
    metadata: tuple[MetadataDifference, ...]
    tensors: tuple[TensorDifference, ...]
    equal_tensors: int

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not (self.metadata or self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """The whole comparison, ready for JSON."""
        return {
            "a": self.a,
            "b": self.b,
            "equal": self.equal,
            "metadata": [difference.as_dict() for difference in self.metadata],
            "tensors": [difference.as_dict() for difference in self.tensors],
            "equal_tensors": self.equal_tensors,
        }


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    numbers: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Difference:
    """Say how two GGUFs differ, each of which may be any part of one that is split.

    Numbers are compared as ggml decodes them, whatever types they have, with a few megabytes of
    memory for each core.

    Args:
        a: a text model or a projector.
        b: another one.
        numbers: whether the tensors' numbers are read and compared; without that only headers are.
        progress: called with the bytes read so far of both while numbers are compared.

    Raises:
        ModelFileError: one is not a GGUF, is not whole, is of another architecture, or cannot be
            read.
        EngineError: llama.cpp's library does not load.
    """
    check_flag("numbers", numbers)
    check_callback("progress", progress)
    models = [_read(Path(as_path(name, path))) for name, path in (("a", a), ("b", b))]
    metadata = _metadata_differences(models[0][0], models[1][0])
    tensors = _tensor_differences(*map(_stored, models), numbers=numbers, progress=progress)
    different = tuple(tensor for tensor in tensors if tensor.differs)
    return Difference(
        a=str(models[0][0].path),
        b=str(models[1][0].path),
        metadata=metadata,
        tensors=different,
        equal_tensors=len(tensors) - len(different),
    )


def _read(path: Path) -> tuple[GGUFFile, ...]:
    """The headers of all parts of a model."""
    from .inspection import gguf_header
    from .runtime.files.split import read_parts

    parts, faults = read_parts(gguf_header(path, whole=True))
    if faults:
        raise faults[0]
    return parts


def _metadata_differences(a: GGUFFile, b: GGUFFile) -> tuple[MetadataDifference, ...]:
    from .runtime.files.gguf_file import packed_metadata

    packed_a, packed_b = packed_metadata(a), packed_metadata(b)
    keys = [key for key in dict.fromkeys([*packed_a, *packed_b]) if key not in _SPLIT_KEYS]
    differing = (key for key in keys if packed_a.get(key) != packed_b.get(key))
    return tuple(_metadata_difference(key, a, b) for key in differing)


def _metadata_difference(key: str, a: GGUFFile, b: GGUFFile) -> MetadataDifference:
    one, other = a.metadata.get(key), b.metadata.get(key)
    index = None
    if isinstance(one, tuple) and isinstance(other, tuple):
        pairs = enumerate(zip(one, other, strict=False))
        shorter = min(len(one), len(other))
        index = next((at for at, (left, right) in pairs if left != right), shorter)
    return MetadataDifference(key, _value(a, key, index or 0), _value(b, key, index or 0), index)


def _value(gguf: GGUFFile, key: str, first: int) -> MetadataValue | None:
    """A value, of an array a few items from `first` on; None where there is no such key."""
    from .gguf_header import LongArray
    from .inspection import plain_value

    if key not in gguf.metadata:
        return None
    value, kind = gguf.metadata[key], gguf.types[key]
    if isinstance(value, LongArray):
        return MetadataValue(kind, plain_value(value.first), value.count)
    if isinstance(value, tuple):
        return MetadataValue(kind, plain_value(value[first : first + _SHOWN_ITEMS]), len(value))
    return MetadataValue(kind, plain_value(value))


def _stored(parts: tuple[GGUFFile, ...]) -> dict[str, StoredIn]:
    """The tensors of all parts by name."""
    from .runtime.files.difference import StoredIn

    return {tensor.name: StoredIn(part.path, tensor) for part in parts for tensor in part.tensors}


def _tensor_differences(
    a: Mapping[str, StoredIn],
    b: Mapping[str, StoredIn],
    *,
    numbers: bool,
    progress: Callable[[Progress], None] | None,
) -> list[TensorDifference]:
    """Every tensor of either with how it differs, which may be in nothing."""
    from .runtime.files.difference import differences, is_comparable

    compared = [
        name
        for name in a
        if numbers
        and name in b
        and a[name].tensor.shape == b[name].tensor.shape
        and is_comparable(a[name].tensor)
        and is_comparable(b[name].tensor)
    ]
    found = differences([(a[name], b[name]) for name in compared], progress=progress)
    by_name = dict(zip(compared, found, strict=True))
    return [
        _tensor_difference(name, a.get(name), b.get(name), by_name.get(name))
        for name in dict.fromkeys([*a, *b])
    ]


def _tensor_difference(
    name: str, a: StoredIn | None, b: StoredIn | None, numbers: NumberDifference | None
) -> TensorDifference:
    return TensorDifference(
        name,
        type_a=None if a is None else a.tensor.type,
        type_b=None if b is None else b.tensor.type,
        shape_a=None if a is None else a.tensor.shape[::-1],
        shape_b=None if b is None else b.tensor.shape[::-1],
        numbers=numbers,
    )
