"""What a safetensors file says it holds: the dtype, shape and extent of each tensor.

Layout: 8 bytes with the header's length, the header as JSON, then the tensors' bytes. Promises that
a header is whole, lists each tensor once, and covers the data exactly, so that whoever reads a
tensor later finds it where it was promised. Reads no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..untrusted import LFS_POINTER, MAX_INTEGER, Reader, brief, lfs_pointer, shown
from .shards import Shards

# Bytes a number takes, for each dtype of the safetensors format that a weight can have.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

# A published shard's header has some 100 kB; the format itself allows 100 MB.
_HEADERS = Reader(CheckpointError, limit=64 << 20, hint="Download it again.")
_MAX_AXES = 8
_MAX_NAME = 1000
# An entry has one object, two lists and at least 50 bytes. JSON of nothing but brackets takes
# twenty times its size in memory.
_BYTES_PER_BRACKET = 8

# How files begin that are not safetensors, but get its ending.
_OTHER_FORMATS = {
    b"GGUF": "a GGUF",
    b"PK\x03\x04": "a PyTorch file (zip)",
    b"\x80\x02": "a PyTorch file (pickle)",
    b"<!": "a web page",
    b"<html": "a web page",
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a shard: `nbytes` bytes from `offset` of `file`, rows along the last axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def parameters(self) -> int:
        """How many numbers the tensor holds."""
        return prod(self.shape)


def read_shard(path: Path, shards: Shards) -> list[StoredTensor]:
    """The tensors that the safetensors file `path` says it holds, in the order of their bytes.

    Raises:
        CheckpointError: the file is truncated, or its header is damaged or lies about the bytes.
    """
    size = shards.size(path) or 0
    beginning = shards.read(path, 0, 64)
    if beginning.startswith(LFS_POINTER):
        raise lfs_pointer(str(path), CheckpointError)
    length = int.from_bytes(beginning[:8], "little")
    if len(beginning) < 8 or length > size - 8:
        raise CheckpointError(
            f"{path} is truncated, or not a safetensors file",
            found=_other_format(beginning) or f"{size} bytes and a header length of {length}",
            hint="Download it again.",
        )
    if length > _HEADERS.limit:
        raise CheckpointError(
            f"{path} has a header that is too large",
            found=f"{length} bytes",
            expected=f"at most {_HEADERS.limit}",
        )
    tensors = [
        _stored_tensor(path, name, entry, start=8 + length)
        for name, entry in _parse_header(path, shards.read(path, 8, length), length).items()
        if name != "__metadata__"
    ]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_extents(path, tensors, start=8 + length, size=size)
    return tensors


def _parse_header(path: Path, raw: bytes, length: int) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise CheckpointError(
                f"{path} lists {brief(_first_repeated(pairs))} twice in its header"
            )
        return entries

    brackets = raw.count(b"[") + raw.count(b"{")
    if len(raw) != length or raw[:1] != b"{" or brackets * _BYTES_PER_BRACKET > length + 64:
        raise CheckpointError(
            f"{path} has a damaged header",
            found=shown(raw),
            expected="a JSON object with an entry for each tensor",
            hint=_HEADERS.hint,
        )
    header = _HEADERS.parse(raw, f"the header of {path}", pairs=unique)
    # What begins with a brace and is JSON is an object.
    return dict(header)


def _other_format(beginning: bytes) -> str | None:
    """What a file is that begins so, where that is known and not safetensors."""
    return next(
        (name for start, name in _OTHER_FORMATS.items() if beginning.startswith(start)), None
    )


def _first_repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    raise ValueError("no name is repeated")


def _stored_tensor(path: Path, name: str, entry: object, *, start: int) -> StoredTensor:
    if not 0 < len(name) <= _MAX_NAME:
        raise CheckpointError(
            f"{path} stores a tensor with an invalid name",
            found=f"{len(name)} characters",
            expected=f"1 to {_MAX_NAME}",
        )
    fields = entry if isinstance(entry, dict) else {}
    dtype = fields.get("dtype")
    shape = _whole_numbers(fields.get("shape"), most=_MAX_AXES)
    span = _whole_numbers(fields.get("data_offsets"), most=2)
    if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2:
        raise CheckpointError(
            f"{path} has a malformed entry for {brief(name)}",
            found=", ".join(f"{key}: {shown(value)}" for key, value in list(fields.items())[:3])
            or shown(entry),
            expected="dtype, shape and data_offsets",
        )
    if dtype not in DTYPE_BYTES:
        raise CheckpointError(
            f"{path} stores {brief(name)} in an unknown dtype",
            found=brief(dtype),
            expected=", ".join(DTYPE_BYTES),
        )
    nbytes = prod(shape) * DTYPE_BYTES[dtype]
    if span[1] - span[0] != nbytes:
        raise CheckpointError(
            f"{path} gives a wrong extent for {brief(name)}",
            found=f"data_offsets {span[0]} to {span[1]}",
            expected=f"{nbytes} bytes for {dtype} {list(shape)}",
        )
    return StoredTensor(name, dtype, tuple(shape), path, start + span[0], nbytes)


def _whole_numbers(value: object, most: int) -> list[int] | None:
    """The list, when it is one of at most so many whole numbers that a file can have."""
    if isinstance(value, list) and len(value) <= most:
        numbers = [item for item in value if type(item) is int and 0 <= item <= MAX_INTEGER]
        return numbers if len(numbers) == len(value) else None
    return None


def _check_extents(path: Path, tensors: list[StoredTensor], *, start: int, size: int) -> None:
    """Tensors must cover the data exactly: the format allows neither gap nor overlap."""
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            raise CheckpointError(
                f"{path} gives a wrong offset for {brief(tensor.name)}",
                found=f"byte {tensor.offset}",
                expected=f"byte {end}, where the tensor before it ends",
            )
        end += tensor.nbytes
    if end != size:
        raise CheckpointError(
            f"{path} is {'truncated' if size < end else 'longer than its header says'}",
            found=f"{size} bytes",
            expected=f"{end} bytes",
            hint="Download it again.",
        )
