"""Activation statistics in a file: llama.cpp's GGUF, which is read and written, and the older form.

A GGUF has for each tensor ``NAME.in_sum2``, [n_matrices][row_length], and ``NAME.counts``,
[n_matrices][1], both F32; llama.cpp reads no other names. Where experts saw too few tokens, those
are substitutes, and beside them stands what was measured, [n_starved] rows: ``NAME.starved_sums``,
``NAME.starved_counts`` and, as I32, ``NAME.starved_experts``.

The older form (``.dat``, little-endian int32 and float32) has the number of tensors; of each the
length of its name, the name, a count of chunks, the number of values and the values, which are
means times that count; then, perhaps, a count of chunks and a data set's name with its length.

Promises that any file at all is either read or refused with one error that names it, and that
nothing is allocated that it is too short for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError
from ..gguf_header import MAX_NAME, MAX_TENSORS, Header, RawTensor, TooShortError, read_header
from ..untrusted import LFS_POINTER, Reader, brief, lfs_pointer, shown
from .importance import LARGEST_MEAN, Activations, Counts, Floats, Importance, Starved

LEGACY_CHUNK = 512
"""Tokens of a chunk where a file of the older form counts chunks: llama-imatrix's default."""

_MAGIC = b"GGUF"
_HINT = "Calibrate again, or fetch the file again."
_NEITHER = "a file that `llama4 calibrate` or llama-imatrix wrote"
# Of what is no GGUF, and of one tensor; Maverick's largest has 128 experts' 8192 sums.
_READER = Reader(ModelFileError, 2**33, _HINT)
_F32, _I32 = 0, 26  # enum ggml_type
_SUMS, _COUNTS = ".in_sum2", ".counts"
_STARVED_SUMS, _STARVED_COUNTS = ".starved_sums", ".starved_counts"
_STARVED_EXPERTS = ".starved_experts"
_MAX_COUNT = 2.0**53
_ALIGNMENT = 32
_INT = struct.Struct("<i")
_BEGIN = 2**16  # bytes, in which a file says what it is


def is_importance(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as activation statistics do, of either form."""
    path = Path(path)
    with suppress(ModelFileError, TooShortError), _READER.opened(path) as file:
        begin = file.read(_BEGIN)
        if not begin.startswith(_MAGIC):
            return _is_legacy(begin)
        # The header of a model, which names what it was quantized with too, is a long one.
        if b"imatrix" in begin:
            header = read_header(path, file.fileno())
            kind = header.metadata.get("general.type")
            return kind == "imatrix" or any(one.name.endswith(_SUMS) for one in header.tensors)
    return False


def read_importance(path: str | os.PathLike[str]) -> Importance:
    """Read activation statistics, of either form.

    Raises:
        ModelFileError: there is no such file, it is something else, or it is damaged.
    """
    path = Path(path)
    with _READER.opened(path) as file:
        prefix = file.read(len(LFS_POINTER))
        if prefix.startswith(LFS_POINTER):
            raise lfs_pointer(os.fspath(path), ModelFileError)
        if prefix.startswith(_MAGIC):
            return _Gguf(path, file.fileno()).read()
    if not prefix:
        raise ModelFileError(f"{path} is empty", expected=_NEITHER)
    return _legacy(_READER.data(path), os.fspath(path))


class _Gguf:
    """One reading of a GGUF."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._name, self._descriptor = os.fspath(path), descriptor
        self._size = os.fstat(descriptor).st_size
        version = os.pread(descriptor, 4, len(_MAGIC))
        if version not in (b"\2\0\0\0", b"\3\0\0\0"):
            raise self._damaged("version", version.hex() or "nothing", "a little-endian 2 or 3")
        try:
            self._header: Header = read_header(path, descriptor)
        except TooShortError:
            raise self._damaged("end", f"{self._size} bytes", "a whole header") from None
        self._tensors: Mapping[str, RawTensor] = {one.name: one for one in self._header.tensors}

    def read(self) -> Importance:
        sums = [name for name in self._tensors if name.endswith(_SUMS)]
        if not sums or self._header.metadata.get("general.type", "imatrix") != "imatrix":
            what = self._header.metadata.get("general.architecture", "another kind of GGUF")
            raise ModelFileError(
                f"{self._name} has no activation statistics",
                found=shown(what),
                expected=_NEITHER,
            )
        names = [name.removesuffix(_SUMS) for name in sums]
        for name in self._tensors:
            if name.endswith(_COUNTS) and name.removesuffix(_COUNTS) + _SUMS not in self._tensors:
                raise self._damaged(name, "counts", "sums beside them")
        return Importance(
            {name: self._activations(name) for name in names},
            self._name,
            self._datasets(),
            self._number("imatrix.chunk_count"),
            self._number("imatrix.chunk_size"),
        )

    def _activations(self, name: str) -> Activations:
        sums, counts = self._sums(name + _SUMS), self._counts(name + _COUNTS)
        if len(counts) not in (1, len(sums)):
            if len(sums) > 1 or sums.size % len(counts):
                raise self._damaged(name, f"{len(counts)} counts", f"{len(sums)}")
            sums = sums.reshape(len(counts), -1)
        one = Activations(sums, np.broadcast_to(counts, len(sums)).copy())
        _check_means(self._name, name, one)
        if name + _STARVED_EXPERTS not in self._tensors:
            return one
        return Activations(one.sums, one.counts, self._starved(name, one))

    def _starved(self, name: str, one: Activations) -> Starved:
        experts = self._array(name + _STARVED_EXPERTS, _I32, "<i4").ravel()
        sums, counts = self._sums(name + _STARVED_SUMS), self._counts(name + _STARVED_COUNTS)
        if not (
            sums.shape == (len(experts), one.sums.shape[1])
            and len(counts) == len(experts)
            and experts[0] >= 0
            and experts[-1] < len(one.sums)
            and (np.diff(experts) > 0).all()
        ):
            found = ", ".join(map(str, experts[:8]))
            raise self._damaged(name + _STARVED_EXPERTS, found, "experts, ascending")
        _check_means(self._name, name + _STARVED_SUMS, Activations(sums, counts))
        return Starved(tuple(experts.tolist()), sums, counts)

    def _sums(self, name: str) -> Floats:
        sums = self._array(name, _F32, "<f4")
        _check_sums(self._name, name, sums)
        return sums

    def _counts(self, name: str) -> Counts:
        counts = self._array(name, _F32, "<f4").ravel()
        bad = counts[~((counts >= 0) & (counts < _MAX_COUNT))]  # NaN is neither
        if bad.size:
            raise self._damaged(name, str(bad[0]), "how many rows were summed")
        # As llama.cpp rounds them: half away from zero.
        return np.floor(counts.astype(np.float64) + 0.5).astype(np.int64)

    def _array(self, name: str, kind: int, dtype: str) -> npt.NDArray[Any]:
        """A tensor as [n_matrices, row_length]."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise self._damaged(name, "no such tensor", "one")
        if tensor.type != kind:
            raise self._damaged(name, f"tensor type {tensor.type}", f"type {kind}")
        begin, nbytes = len(self._header.data) + tensor.offset, 4 * prod(tensor.shape)
        if not 0 < nbytes <= self._size - begin:
            raise self._damaged(name, f"{nbytes} bytes in a file of {self._size}", "a whole tensor")
        # (Read at once: reading in pieces is for networks, whose files are smaller than that.)
        data = _pread(self._descriptor, nbytes, begin)
        if len(data) < nbytes:
            raise self._damaged(name, f"{len(data)} bytes", f"{nbytes}")
        array = np.frombuffer(data, dtype).reshape(-1, tensor.shape[0])
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _number(self, key: str) -> int:
        value = self._header.metadata.get(key, 0)
        if type(value) is not int or value < 0:
            raise self._damaged(key, shown(value), "a whole number")
        return value

    def _datasets(self) -> tuple[str, ...]:
        key = "imatrix.datasets"
        value = self._header.metadata.get(key, ())
        if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
            raise self._damaged(key, shown(value), "a list of texts")
        return value

    def _damaged(self, what: str, found: str, expected: str) -> ModelFileError:
        return _damaged(self._name, what, found, expected)


def _pread(descriptor: int, nbytes: int, begin: int) -> bytes:
    data = bytearray()
    # Linux reads 2 GiB at a time, and a network may give less.
    while len(data) < nbytes:
        more = os.pread(descriptor, min(nbytes - len(data), 2**30), begin + len(data))
        if not more:
            break
        data += more
    return bytes(data)


def _check_sums(file: str, what: str, sums: Floats) -> None:
    if not (np.isfinite(sums).all() and sums.min() >= 0):
        bad = sums[~(np.isfinite(sums) & (sums >= 0))]
        raise _damaged(file, what, f"{bad.size} values like {bad.flat[0]}", "sums of squares")


def _check_means(file: str, what: str, one: Activations) -> None:
    if (most := one.largest_mean) > LARGEST_MEAN:
        expected = f"at most {LARGEST_MEAN:g}, as any model's"
        raise _damaged(file, what, f"a mean square of {most:.3g}", expected)


def _damaged(file: str, what: str, found: str, expected: str) -> ModelFileError:
    return ModelFileError(
        f"{file} has damaged activation statistics: {brief(what)}",
        found=found,
        expected=expected,
        hint=_HINT,
    )


# --- the older form


def _is_legacy(begin: bytes) -> bool:
    """Whether a file that begins so says how many tensors it has, and then a name."""
    if len(begin) < 2 * _INT.size:
        return False
    count, length = struct.unpack_from("<ii", begin)
    name = begin[2 * _INT.size :][:length] if length > 0 else b""
    return (
        0 < count <= MAX_TENSORS and 0 < length <= MAX_NAME and name.decode("latin-1").isprintable()
    )


def _legacy(data: bytes, file: str) -> Importance:
    walk = _LegacyWalk(data, file)
    tensors: dict[str, Activations] = {}
    count = walk.number("the number of tensors", 1, MAX_TENSORS)
    for index in range(count):
        name = walk.text(f"the name of tensor {index}", 1)
        if name in tensors:
            raise _damaged(file, name, "twice", "each tensor once")
        n_chunks = max(walk.number(f"the chunks of {brief(name)}", 0), 1)
        sums = walk.floats(name)[None]
        # Rows instead of chunks: a power of two changes no mean.
        _check_sums(file, name, sums)
        with np.errstate(over="ignore"):
            rows = sums * np.float32(LEGACY_CHUNK)
        tensors[name] = Activations(rows, np.array([n_chunks * LEGACY_CHUNK], np.int64))
        _check_means(file, name, tensors[name])
    n_chunks = 0 if walk.at_end else walk.number("the number of chunks", 0)
    dataset = "" if walk.at_end else walk.text("the name of the data set", 0)
    return Importance(tensors, file, (dataset,) if dataset else (), n_chunks)


class _LegacyWalk:
    """One pass over a file of the older form."""

    def __init__(self, data: bytes, file: str) -> None:
        self._data, self._file, self._at = data, file, 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def number(self, what: str, least: int, most: int = 2**31 - 1) -> int:
        (value,) = _INT.unpack(self._bytes(what, _INT.size))
        if not least <= value <= most:
            # Most likely no such file at all.
            raise ModelFileError(
                f"{self._file} has no activation statistics",
                found=f"{value:,} as {what}",
                expected=_NEITHER,
            )
        return int(value)

    def text(self, what: str, least: int) -> str:
        raw = self._bytes(what, self.number(f"the length of {what}", least, MAX_NAME))
        return raw.partition(b"\0")[0].decode("utf-8", "replace")

    def floats(self, name: str) -> Floats:
        count = self.number(f"the number of values of {brief(name)}", 1)
        data = self._bytes(name, 4 * count)
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)

    def _bytes(self, what: str, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) < count:
            raise _damaged(
                self._file, what, f"{len(found)} bytes before the file's end", f"{count:,}"
            )
        self._at += count
        return found


# --- writing


def importance_bytes(importance: Importance) -> bytes:
    """The file of activation statistics, byte for byte as llama-imatrix would write it."""
    tensors: list[tuple[str, npt.NDArray[Any]]] = []
    # In the order of the names' bytes, as std::map has them.
    for name, one in sorted(importance.tensors.items(), key=lambda item: item[0].encode()):
        tensors += [(name + _SUMS, one.sums), (name + _COUNTS, _column(one.counts))]
        if (starved := one.starved) is not None:
            tensors += [
                (name + _STARVED_SUMS, starved.sums),
                (name + _STARVED_COUNTS, _column(starved.counts)),
                (name + _STARVED_EXPERTS, np.array(starved.experts, np.int32)),
            ]
    texts = b"".join(map(_text, importance.datasets))
    keys = (
        _text("general.type") + struct.pack("<I", 8) + _text("imatrix"),
        _text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, len(importance.datasets)) + texts,
        _text("imatrix.chunk_count") + struct.pack("<II", 4, importance.n_chunks),
        _text("imatrix.chunk_size") + struct.pack("<II", 4, importance.chunk_size),
    )
    infos, bodies, offset = [], [], 0
    for name, array in tensors:
        kind = _I32 if array.dtype == np.int32 else _F32
        body = _padded(array.astype("<i4" if kind == _I32 else "<f4", copy=False).tobytes())
        shape = array.shape[::-1] if len(array) > 1 else array.shape[:0:-1] or (1,)
        infos.append(
            _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        )
        bodies.append(body)
        offset += len(body)
    head = _MAGIC + struct.pack("<IQQ", 3, len(tensors), len(keys))
    return b"".join([_padded(b"".join([head, *keys, *infos])), *bodies])


def _column(counts: Counts) -> Floats:
    return counts.astype(np.float32)[:, None]


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
