"""Reads the header of a GGUF file, has ggml judge it, and checks it against the file's length.

Promises that any file at all, however damaged, is either read or refused with one ModelFileError:
``header`` walks it within bounds, and ggml's parser judges it, because it is the one that llama.cpp
will use; everything that it trusts is checked here. Knows nothing of models: which keys and tensors
there should be is the business of ``model_file``.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ...errors import ModelFileError
from ...gguf_header import (
    HEADER_LIMIT,
    Header,
    RawTensor,
    TooShortError,
    read_bytes,
    read_header,
)
from ...quant.types import TensorType
from ...untrusted import brief
from ..bindings.library import captured_log, native_function
from .foreign import PREFIX_BYTES, absent, again, directory, foreign

MAGIC = b"GGUF"
"""The first bytes of every GGUF."""
_VERSIONS = (2, 3)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in the file.

    ``shape`` is in ggml's order, without trailing ones: ``shape[0]`` is the row length, whose
    numbers lie side by side. ``offset`` counts from the start of the file, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    encoding: TensorType
    offset: int
    nbytes: int

    @property
    def type(self) -> str:
        """ggml's name of the type in upper case: ``F32``, ``Q4_K``."""
        return self.encoding.name


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file, checked: every tensor lies inside the file.

    ``metadata`` maps keys to bool, int, float, str or, for arrays, tuples of these, or a
    `LongArray`; ``types`` maps the same keys to the types in the file (``u32``, ``str``,
    ``[i32]``), because llama.cpp refuses a number of another width. ``size`` is the file's length
    and ``data_offset`` where its tensors begin, both in bytes.
    """

    path: Path
    version: int
    alignment: int
    data_offset: int
    size: int
    metadata: Mapping[str, object]
    types: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]


def read_gguf(path: str | os.PathLike[str], *, whole: bool = True) -> GGUFFile:
    """Read the header of a GGUF file; half a second for Llama 4's vocabulary.

    Args:
        path: the file.
        whole: refuse a file that ends before its last tensor does.

    Raises:
        ModelFileError: there is no such file, it cannot be read, it is not a GGUF file, its header
            is damaged, or it is not whole.
        EngineError: llama.cpp's library does not load.
    """
    path = Path(path)
    with _opened(path) as (descriptor, size):
        try:
            _check_prefix(path, read_bytes(descriptor, PREFIX_BYTES))
            header = _judged(path, descriptor)
        except OSError as error:
            raise _unreadable(path, error) from None
        except MemoryError:
            raise ModelFileError(f"cannot read {path}", found="no memory for its header") from None
    gguf = GGUFFile(
        path=path,
        version=header.version,
        alignment=header.alignment,
        data_offset=len(header.data),
        size=size,
        metadata=header.metadata,
        types=header.types,
        tensors=_tensors(header.tensors, len(header.data)),
    )
    _check_places(gguf)
    if whole:
        _check_length(gguf)
    return gguf


def packed_metadata(gguf: GGUFFile) -> dict[str, bytes]:
    """The metadata of a file as it stands there: for each key its value's type and bytes.

    Raises:
        ModelFileError: the file is another one than it was, or cannot be read any more.
    """
    with _opened(gguf.path) as (descriptor, _):
        try:
            header = read_header(gguf.path, descriptor)
        except TooShortError:
            raise _changed(gguf) from None
        except OSError as error:
            raise _unreadable(gguf.path, error) from None
    if (header.types, len(header.data)) != (gguf.types, gguf.data_offset):
        raise _changed(gguf)
    return {key: header.data[begin:end] for key, (begin, end) in header.extents.items()}


def _changed(gguf: GGUFFile) -> ModelFileError:
    return ModelFileError(
        f"{gguf.path} changed while it was read",
        hint="Wait until the download or the copy is complete, then try again.",
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """A descriptor of the regular file at `path`, and its length in bytes."""
    # O_NONBLOCK: opening a pipe would wait for somebody to write to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_dir():
            raise directory(path)
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise absent(path) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path} is not a model file", expected="a regular .gguf file")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def _unreadable(path: Path, error: OSError | ValueError) -> ModelFileError:
    # A ValueError is a zero byte in the name.
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ModelFileError(f"cannot read {path}", found=reason)


def _check_prefix(path: Path, prefix: bytes) -> None:
    """Magic and version, with clearer words than the parser's."""
    if not prefix:
        raise ModelFileError(f"{path} is empty", expected="a GGUF file", hint=again(path))
    if prefix[:4] != MAGIC:
        raise foreign(path, prefix)
    if len(prefix) < 8:
        found = f"{len(prefix)} bytes"
        raise ModelFileError(f"{path} is truncated", found=found, hint=again(path))
    version = int.from_bytes(prefix[4:8], "little")
    if int.from_bytes(prefix[4:8], "big") in _VERSIONS:
        raise ModelFileError(
            f"{path} has the wrong byte order",
            found="a big-endian file",
            expected="a little-endian one",
            hint="Take the little-endian file of the same model: most are.",
        )
    if version not in _VERSIONS:
        raise ModelFileError(
            f"{path} has a GGUF version that llama.cpp does not read",
            found=version,
            expected=" or ".join(map(str, _VERSIONS)),
            hint="Convert the original checkpoint, with: llama4 convert",
        )


class _InitParams(ctypes.Structure):
    """struct gguf_init_params: only the header, and no ggml tensors made of it."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _judged(path: Path, descriptor: int) -> Header:
    """The header, which ggml's parser takes too."""
    try:
        header = read_header(path, descriptor)
    except TooShortError:
        # It ends too early: ggml says in what.
        raise _damaged(path, _verdict(read_bytes(descriptor, HEADER_LIMIT))) from None
    reasons = _verdict(header.data)
    if reasons is not None:
        raise _damaged(path, reasons)
    return header


def _damaged(path: Path, reasons: str | None) -> ModelFileError:
    return ModelFileError(
        f"{path} has a damaged header", found=reasons or "it ends too early", hint=again(path)
    )


def _verdict(data: bytes) -> str | None:
    """What ggml's parser has against a header; None where it takes it."""
    parse = native_function(
        "gguf_init_from_buffer", ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, _InitParams
    )
    free = native_function("gguf_free", None, ctypes.c_void_p)
    with captured_log() as log:
        context = parse(data, len(data), _InitParams(True, None))
    if context:
        free(context)
        return None
    # The parser's last line only says which part failed; the one before says why.
    reasons = [line.partition(": ")[2] or line for line in log.errors]
    return "; ".join(brief(reason, 300) for reason in reasons) or "no reason given by ggml"


def _tensors(raw: tuple[RawTensor, ...], data_offset: int) -> tuple[TensorInfo, ...]:
    """The tensors that ggml took, with their types' names and their bytes."""
    type_name = native_function("ggml_type_name", ctypes.c_char_p, ctypes.c_int)
    block_of = native_function("ggml_blck_size", ctypes.c_int64, ctypes.c_int)
    block_bytes_of = native_function("ggml_type_size", ctypes.c_size_t, ctypes.c_int)
    encodings = {
        kind: TensorType(
            type_name(kind).decode().upper(), kind, block_of(kind), block_bytes_of(kind)
        )
        for kind in {tensor.type for tensor in raw}
    }
    return tuple(
        TensorInfo(
            name=tensor.name,
            shape=tensor.shape,
            encoding=(encoding := encodings[tensor.type]),
            offset=data_offset + tensor.offset,
            # Computed here, because ggml's own product can overflow.
            nbytes=prod(tensor.shape) // encoding.block * encoding.block_bytes,
        )
        for tensor in raw
    )


def end_of_tensors(gguf: GGUFFile) -> int:
    """Where the last tensor ends, in bytes from the start of the file."""
    return max((tensor.offset + tensor.nbytes for tensor in gguf.tensors), default=gguf.data_offset)


def bytes_after_tensors(gguf: GGUFFile) -> int:
    """Bytes of the file that belong to no tensor and are not padding either."""
    end = end_of_tensors(gguf)
    return max(0, gguf.size - (end + -end % gguf.alignment))


def gguf_begins_at(path: Path, offset: int) -> bool:
    """Whether the bytes of a file from `offset` on begin like a GGUF."""
    with _opened(path) as (descriptor, _):
        return read_bytes(descriptor, len(MAGIC), offset) == MAGIC


def _check_places(gguf: GGUFFile) -> None:
    """Every tensor begins aligned, and after the one before it."""
    end = gguf.data_offset
    for tensor in gguf.tensors:
        if tensor.offset % gguf.alignment or tensor.offset < end:
            raise ModelFileError(
                f"{gguf.path} has a tensor at a wrong offset: {tensor.name}",
                found=f"offset {tensor.offset}",
                expected=f"a multiple of {gguf.alignment}, at {end} or after",
                hint=again(gguf.path),
            )
        end = tensor.offset + tensor.nbytes


def _check_length(gguf: GGUFFile) -> None:
    """Every tensor ends inside the file."""
    beyond = [tensor for tensor in gguf.tensors if tensor.offset + tensor.nbytes > gguf.size]
    if beyond:
        raise ModelFileError(
            f"{gguf.path} is truncated: {len(beyond)} of {len(gguf.tensors)} tensors are not "
            f"whole, the first is {beyond[0].name}",
            found=f"{gguf.size} bytes",
            expected=f"at least {end_of_tensors(gguf)}",
            hint=again(gguf.path),
        )
