"""Reads the header of a GGUF file with ggml's own parser, and checks it against the file's length.

Promises that any file at all, however damaged, is either read or refused with one ModelFileError:
ggml's parser judges the header, because it is the one that llama.cpp will use, and everything that
it trusts is checked here. Knows nothing of models: which keys and tensors there should be is the
business of ``model_file``.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from math import prod
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from ..bindings.library import captured_log, native_function

HEADER_LIMIT = 512 * 2**20
"""Bytes of a file that ggml's parser is shown. The header of Llama 4 takes about 12 MiB; a damaged
count could otherwise make the parser allocate four times the size of the file."""

MAGIC = b"GGUF"
"""The first bytes of every GGUF."""
_VERSIONS = (2, 3)

# enum gguf_type (gguf.h): the number's name, and its C type where it has one.
_ARRAY, _STRING = 9, 8
_VALUE_TYPES: dict[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float),
    7: ("bool", ctypes.c_bool),
    8: ("str", None),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
    12: ("f64", ctypes.c_double),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in the file.

    ``shape`` is in ggml's order, without trailing ones: ``shape[0]`` is the row length, whose
    numbers lie side by side. ``offset`` counts from the start of the file, in bytes. ``type`` is
    ggml's name in upper case (``F32``, ``Q4_K``).
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file, checked: every tensor lies inside the file.

    ``metadata`` maps keys to bool, int, float, str or, for arrays, tuples of these; ``types`` maps
    the same keys to the types in the file (``u32``, ``str``, ``[i32]``), because llama.cpp refuses
    a number of another width. ``size`` is the file's length and ``data_offset`` where its tensors
    begin, both in bytes.
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
    """Read the header of a GGUF file; about a second for Llama 4's vocabulary.

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
        _check_prefix(path, os.pread(descriptor, 8, 0), size)
        with _parsed(path, descriptor, size) as context:
            metadata, types = _read_metadata(path, context)
            gguf = GGUFFile(
                path=path,
                version=_call("gguf_get_version", ctypes.c_uint32, context),
                alignment=_call("gguf_get_alignment", ctypes.c_size_t, context),
                data_offset=_call("gguf_get_data_offset", ctypes.c_size_t, context),
                size=size,
                metadata=metadata,
                types=types,
                tensors=_read_tensors(path, context),
            )
    _check_places(gguf)
    if whole:
        _check_length(gguf)
    return gguf


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """A descriptor of the regular file at `path`, and its length in bytes."""
    try:
        if path.is_dir():
            raise ModelFileError(
                f"{path} is not a model file",
                found="a directory",
                expected="a .gguf file",
                hint="Turn a checkpoint directory into one with: llama4 convert",
            )
        if path.exists() and not path.is_file():
            # opening a pipe would wait for somebody to write to it
            raise ModelFileError(f"{path} is not a model file", expected="a regular .gguf file")
        descriptor = os.open(path, os.O_RDONLY)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelFileError(f"cannot read {path}", found=reason) from error
    try:
        yield descriptor, os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _check_prefix(path: Path, prefix: bytes, size: int) -> None:
    """Magic and version, with clearer words than the parser's."""
    if size == 0:
        raise ModelFileError(f"{path} is empty", expected="a GGUF file", hint=_AGAIN)
    if prefix[:4] != MAGIC:
        raise ModelFileError(
            f"{path} is not a GGUF file",
            found=f"the first bytes {prefix[:4]!r}",
            expected=repr(MAGIC),
            hint="Turn a checkpoint of safetensors into one with: llama4 convert",
        )
    if len(prefix) < 8:
        raise ModelFileError(f"{path} is truncated", found=f"{size} bytes", hint=_AGAIN)
    version = int.from_bytes(prefix[4:], "little")
    if int.from_bytes(prefix[4:], "big") in _VERSIONS:
        raise ModelFileError(
            f"{path} has the wrong byte order",
            found="a big-endian file",
            expected="a little-endian one",
        )
    if version not in _VERSIONS:
        raise ModelFileError(
            f"{path} has a GGUF version that llama.cpp does not read",
            found=version,
            expected=" or ".join(map(str, _VERSIONS)),
        )


_AGAIN = "Download or convert the file again."


class _InitParams(ctypes.Structure):
    """struct gguf_init_params: only the header, and no ggml tensors made of it."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@contextmanager
def _parsed(path: Path, descriptor: int, size: int) -> Iterator[int]:
    """ggml's view of the header: the address of a ``gguf_context``, freed afterwards."""
    parse = native_function(
        "gguf_init_from_buffer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, _InitParams
    )
    free = native_function("gguf_free", None, ctypes.c_void_p)
    shown = min(size, HEADER_LIMIT)
    # ACCESS_COPY: ctypes takes the address of writable memory only; nothing is ever written
    with mmap.mmap(descriptor, shown, access=mmap.ACCESS_COPY) as mapped, captured_log() as log:
        start = ctypes.c_char.from_buffer(mapped)
        try:
            context = parse(ctypes.addressof(start), shown, _InitParams(True, None))
        finally:
            del start  # a mapping with a view into it cannot be closed
    if not context:
        # the parser's last line only says which part failed; the one before says why
        reasons = [line.partition(": ")[2] or line for line in log.errors]
        raise ModelFileError(
            f"{path} has a damaged header",
            found="; ".join(reasons) or "no reason given by ggml",
            hint=_AGAIN,
        )
    try:
        yield context
    finally:
        free(context)


def _call(name: str, result: Any, context: int) -> Any:
    return native_function(name, result, ctypes.c_void_p)(context)


def _getter(name: str, result: Any, *more: Any) -> Callable[..., Any]:
    """A function of a context, an index and perhaps more."""
    return native_function(name, result, ctypes.c_void_p, ctypes.c_int64, *more)


def _text(path: Path, what: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{path} has text that is not UTF-8 in {what}", found=repr(raw[:40]), hint=_AGAIN
        ) from error


def _read_metadata(path: Path, context: int) -> tuple[dict[str, object], dict[str, str]]:
    """Every key with its value, and every key with its type in the file."""
    key_of = _getter("gguf_get_key", ctypes.c_char_p)
    type_of = _getter("gguf_get_kv_type", ctypes.c_int)
    element_of = _getter("gguf_get_arr_type", ctypes.c_int)
    value_at = _getter("gguf_get_val_data", ctypes.c_void_p)
    string_at = _getter("gguf_get_val_str", ctypes.c_char_p)
    values: dict[str, object] = {}
    types: dict[str, str] = {}
    for index in range(_call("gguf_get_n_kv", ctypes.c_int64, context)):
        key = _text(path, f"the name of key {index}", key_of(context, index))
        if key in values:
            raise ModelFileError(f"{path} has the key {key} twice", hint=_AGAIN)
        number = type_of(context, index)
        if number == _ARRAY:
            element = element_of(context, index)
            types[key] = f"[{_VALUE_TYPES[element][0]}]"
            values[key] = _read_array(path, context, index, key, element)
            continue
        name, c_type = _VALUE_TYPES[number]
        types[key] = name
        if number == _STRING:
            values[key] = _text(path, key, string_at(context, index))
        else:
            values[key] = c_type.from_address(value_at(context, index)).value
    return values, types


def _read_array(path: Path, context: int, index: int, key: str, element: int) -> tuple[object, ...]:
    count = _getter("gguf_get_arr_n", ctypes.c_size_t)(context, index)
    if element == _STRING:
        string_at = _getter("gguf_get_arr_str", ctypes.c_char_p, ctypes.c_size_t)
        # map over ready-made arguments: with 640,000 strings the calls are all the time there is
        fixed = (repeat(ctypes.c_void_p(context)), repeat(ctypes.c_int64(index)))
        raw = list(map(string_at, *fixed, range(count)))
        # one decoding for all: no string holds the separator, because each one ends at a zero byte
        joined = _text(path, key, b"\0".join(raw))
        return tuple(joined.split("\0")) if raw else ()
    if count == 0:
        return ()
    address = _getter("gguf_get_arr_data", ctypes.c_void_p)(context, index)
    return tuple((_VALUE_TYPES[element][1] * count).from_address(address))


def _read_tensors(path: Path, context: int) -> tuple[TensorInfo, ...]:
    name_of = _getter("gguf_get_tensor_name", ctypes.c_char_p)
    shape_of = _getter("gguf_get_tensor_ne", ctypes.POINTER(ctypes.c_int64))
    type_of = _getter("gguf_get_tensor_type", ctypes.c_int)
    offset_of = _getter("gguf_get_tensor_offset", ctypes.c_size_t)
    type_name = native_function("ggml_type_name", ctypes.c_char_p, ctypes.c_int)
    block_of = native_function("ggml_blck_size", ctypes.c_int64, ctypes.c_int)
    block_bytes_of = native_function("ggml_type_size", ctypes.c_size_t, ctypes.c_int)
    data_offset = _call("gguf_get_data_offset", ctypes.c_size_t, context)
    tensors: dict[str, TensorInfo] = {}
    for index in range(_call("gguf_get_n_tensors", ctypes.c_int64, context)):
        name = _text(path, f"the name of tensor {index}", name_of(context, index))
        if name in tensors:
            raise ModelFileError(f"{path} has the tensor {name} twice", hint=_AGAIN)
        number = type_of(context, index)
        shape = tuple(shape_of(context, index)[:4])
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        tensors[name] = TensorInfo(
            name=name,
            shape=shape,
            type=type_name(number).decode().upper(),
            offset=data_offset + offset_of(context, index),
            # computed here, because ggml's own product can overflow
            nbytes=prod(shape) // block_of(number) * block_bytes_of(number),
        )
    return tuple(tensors.values())


def _check_places(gguf: GGUFFile) -> None:
    """Every tensor begins aligned, and after the one before it."""
    end = gguf.data_offset
    for tensor in gguf.tensors:
        if tensor.offset % gguf.alignment or tensor.offset < end:
            raise ModelFileError(
                f"{gguf.path} has a tensor at a wrong offset: {tensor.name}",
                found=f"offset {tensor.offset}",
                expected=f"a multiple of {gguf.alignment}, at {end} or after",
                hint=_AGAIN,
            )
        end = tensor.offset + tensor.nbytes


def _check_length(gguf: GGUFFile) -> None:
    """Every tensor ends inside the file."""
    end = max((tensor.offset + tensor.nbytes for tensor in gguf.tensors), default=0)
    beyond = [tensor for tensor in gguf.tensors if tensor.offset + tensor.nbytes > gguf.size]
    if beyond:
        raise ModelFileError(
            f"{gguf.path} is truncated: {len(beyond)} of {len(gguf.tensors)} tensors are not "
            f"whole, the first is {beyond[0].name}",
            found=f"{gguf.size} bytes",
            expected=f"at least {end}",
            hint=_AGAIN,
        )
