"""Does every tensor of a model file hold numbers? Reads all of it, on all cores.

Finds scales and numbers that are infinite or none, data that is missing because a file is truncated
or absent, and stretches of zeros such as a copy that was broken off leaves. Holds a few megabytes a
thread, and hands the page cache back as it goes. Knows the blocks of ggml's types; nothing of
headers, nor of which tensors there should be.

The numbers are judged here and not by ggml's own ``ggml_validate_row_data``, which stops at the
first fault, does not say where it is, and prints on stderr; the tests hold the two together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ...errors import ModelFileError
from ...progress import Progress
from ...system.cores import usable_threads
from .pieces import Bytes, in_order, read_into

# Zeros are looked for in units of a page, the unit in which a file system leaves a hole.
_UNIT = 4096
# A run of zeros worth a word: any hole of 1 MiB holds this many whole units, wherever it begins.
_HOLE_UNITS = (1 << 20) // _UNIT - 1
_PIECE_BYTES = 4 << 20
_buffers = threading.local()

# A float is infinite or NaN when these bits are all set: the word's type, and the mask.
_MASKS: dict[str, tuple[str, int]] = {
    "f16": ("<u2", 0x7C00),
    "bf16": ("<u2", 0x7F80),
    "f32": ("<u4", 0x7F800000),
    "f64": ("<u8", 0x7FF0000000000000),
    "e8m0": ("u1", 0xFF),
    # The exponent of IQ1_M's scale, spread over the upper nibbles of two of its four words.
    "iq1_m": ("<u4", 0x7000C000),
}
# The floats of one block, by their byte offset in it (ggml-common.h).
_FLOATS: dict[str, tuple[tuple[str, int], ...]] = {
    "F64": (("f64", 0),),
    "F32": (("f32", 0),),
    "F16": (("f16", 0),),
    "BF16": (("bf16", 0),),
    "I8": (), "I16": (), "I32": (), "I64": (),
    "Q1_0": (("f16", 0),),
    "Q4_0": (("f16", 0),),
    "Q4_1": (("f16", 0), ("f16", 2)),
    "Q5_0": (("f16", 0),),
    "Q5_1": (("f16", 0), ("f16", 2)),
    "Q8_0": (("f16", 0),),
    "Q8_1": (("f16", 0), ("f16", 2)),
    "Q2_K": (("f16", 80), ("f16", 82)),
    "Q3_K": (("f16", 108),),
    "Q4_K": (("f16", 0), ("f16", 2)),
    "Q5_K": (("f16", 0), ("f16", 2)),
    "Q6_K": (("f16", 208),),
    "Q8_K": (("f32", 0),),
    "IQ1_S": (("f16", 0),),
    "IQ1_M": (("iq1_m", 52),),
    "IQ2_XXS": (("f16", 0),),
    "IQ2_XS": (("f16", 0),),
    "IQ2_S": (("f16", 0),),
    "IQ3_XXS": (("f16", 0),),
    "IQ3_S": (("f16", 0),),
    "IQ4_NL": (("f16", 0),),
    "IQ4_XS": (("f16", 0),),
    "TQ1_0": (("f16", 52),),
    "TQ2_0": (("f16", 64),),
    "MXFP4": (("e8m0", 0),),
    # Every byte is a valid scale.
    "NVFP4": (),
}  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """What is wrong with a tensor, from byte `offset` of `file` on; without one, with the file.

    Not `certain`: something that a sound model hardly has, but could.
    """

    tensor: str | None
    file: str
    offset: int
    what: str
    certain: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return vars(self).copy()


def find_damage(
    tensors: Iterable[tuple[str, str, str | os.PathLike[str], int, int]],
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Damage]:
    """Read every tensor and say what is wrong with it.

    Args:
        tensors: for each its name, ggml's name of its type, its file, and the byte offset and
            number of bytes of its data there; in the order in which to read.
        threads: pieces that are read and judged at the same time; by default one for each core.
        progress: called after each piece, in order.

    Returns:
        The damage, tensors in the order given; at most one entry a tensor and kind of damage.

    Raises:
        ModelFileError: a tensor is of a type whose blocks are not known here.
    """
    workers = threads or usable_threads()
    with _Files() as files, ThreadPoolExecutor(workers, "check") as pool:
        checks = [_Check(_known(*tensor), files) for tensor in tensors]
        total = sum(check.available for check in checks)
        done = 0
        pieces = (
            ((check, piece), partial(check.read, piece))
            for check in checks
            for piece in check.pieces()
        )
        for (check, piece), finding in in_order(pool, pieces, ahead=2 * workers):
            check.add(piece, finding)
            done += piece.length
            if progress is not None:
                progress(Progress(done, total, check.tensor.name))
    return [damage for check in checks for damage in check.damage()]


@dataclass(frozen=True)
class _Tensor:
    name: str
    type_name: str
    path: str | os.PathLike[str]
    offset: int
    nbytes: int

    @property
    def block_bytes(self) -> int:
        return int(GGML_QUANT_SIZES[GGMLQuantizationType[self.type_name]][1])


def _known(
    name: str, type_name: str, path: str | os.PathLike[str], offset: int, nbytes: int
) -> _Tensor:
    if type_name not in _FLOATS:
        raise ModelFileError(
            f"{name} in {os.fspath(path)} cannot be checked",
            found=f"the type {type_name}",
            expected="one of " + ", ".join(_FLOATS),
        )
    return _Tensor(name, type_name, path, offset, nbytes)


@dataclass(frozen=True)
class _Piece:
    """Bytes of a tensor, from `start` on: whole blocks and whole units, but for its last."""

    start: int
    length: int


@dataclass(frozen=True)
class _Finding:
    """Of one piece: infinite or NaN floats, where the first is, runs of zero units [from, to)."""

    bad: int = 0
    first: int = 0
    zeros: tuple[tuple[int, int], ...] = ()
    error: str | None = None


class _Files:
    """The files of a model, each opened once."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int | None, int, str]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Files:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def get(self, path: str | os.PathLike[str]) -> tuple[int | None, int, str]:
        """Descriptor, length, and where there is no descriptor the reason."""
        key = os.fspath(path)
        if key not in self._open:
            try:
                descriptor = os.open(key, os.O_RDONLY)
                self._stack.callback(os.close, descriptor)
                self._open[key] = (descriptor, os.fstat(descriptor).st_size, "")
            except OSError as error:
                self._open[key] = (None, 0, error.strerror or str(error))
        return self._open[key]


class _Check:
    """What is known of one tensor, piece by piece; `available` of its bytes are there."""

    def __init__(self, tensor: _Tensor, files: _Files) -> None:
        self.tensor = tensor
        self._descriptor, size, self._reason = files.get(tensor.path)
        self.available = min(tensor.nbytes, max(0, size - tensor.offset))
        self._bad, self._first = 0, 0
        self._zeros: list[tuple[int, int]] = []
        self._error: tuple[int, str] | None = None

    def pieces(self) -> Iterator[_Piece]:
        step = self.tensor.block_bytes * _UNIT
        step *= max(1, _PIECE_BYTES // step)
        for start in range(0, self.available, step):
            yield _Piece(start, min(step, self.available - start))

    def read(self, piece: _Piece) -> _Finding:
        assert self._descriptor is not None
        offset = self.tensor.offset + piece.start
        try:
            data = _read(self._descriptor, offset, piece.length)
        except OSError as error:
            return _Finding(error=error.strerror or str(error))
        bad, first = _count_bad(data, self.tensor)
        return _Finding(bad, piece.start + first, _zero_runs(data, piece.start // _UNIT))

    def add(self, piece: _Piece, finding: _Finding) -> None:
        """Take in what the next piece has; pieces come in order."""
        if finding.error is not None and self._error is None:
            self._error = (piece.start, finding.error)
        if finding.bad and not self._bad:
            self._first = finding.first
        self._bad += finding.bad
        for begin, end in finding.zeros:
            if self._zeros and self._zeros[-1][1] == begin:
                begin = self._zeros.pop()[0]
            elif self._zeros and not _is_hole(self._zeros[-1]):
                self._zeros.pop()  # It can grow no more.
            self._zeros.append((begin, end))

    def damage(self) -> Iterator[Damage]:
        nbytes, missing = self.tensor.nbytes, self.tensor.nbytes - self.available
        if self._descriptor is None:
            yield self._damage(0, f"the file cannot be opened: {self._reason}")
            return
        if self._error is not None:
            yield self._damage(self._error[0], f"the file cannot be read here: {self._error[1]}")
        if self._bad:
            yield self._damage(self._first, f"{self._bad:,} {self._floats()} infinite or NaN")
        units = -(-nbytes // _UNIT)
        if self._zeros == [(0, units)] and not missing:
            yield self._damage(0, f"all {nbytes:,} bytes are zero", certain=False)
        else:
            holes = [run for run in self._zeros if _is_hole(run)]
            for begin, end in holes[:1]:
                length = min(end * _UNIT, nbytes) - begin * _UNIT
                more = f", and {len(holes) - 1:,} more such holes" if len(holes) > 1 else ""
                what = f"{length:,} bytes of zeros{more}"
                yield self._damage(begin * _UNIT, what, certain=False)
        if missing:
            yield self._damage(self.available, f"{missing:,} of {nbytes:,} bytes are missing")

    def _floats(self) -> str:
        """Subject and verb for `bad` floats of this type."""
        noun = "number" if self.tensor.type_name in ("F64", "F32", "F16", "BF16") else "scale"
        return f"{noun} is" if self._bad == 1 else f"{noun}s are"

    def _damage(self, at: int, what: str, *, certain: bool = True) -> Damage:
        path = os.fspath(self.tensor.path)
        return Damage(self.tensor.name, path, self.tensor.offset + at, what, certain)


def _read(descriptor: int, offset: int, length: int) -> Bytes:
    """Bytes of the file, in a buffer that the thread's next call uses again."""
    buffer: Bytes | None = getattr(_buffers, "data", None)
    if buffer is None or buffer.size < length:
        buffer = _buffers.data = np.empty(max(length, _PIECE_BYTES), np.uint8)
    data = buffer[:length]
    read_into(descriptor, offset, data)
    return data


def _count_bad(data: Bytes, tensor: _Tensor) -> tuple[int, int]:
    """Floats that are infinite or NaN, and the byte where the first of them begins."""
    step = tensor.block_bytes
    bad, places = 0, []
    for kind, at in _FLOATS[tensor.type_name]:
        word, mask = _MASKS[kind]
        words: npt.NDArray[Any] = np.ndarray(
            (data.size // step,), word, buffer=data, offset=at, strides=(step,)
        )
        indices = np.flatnonzero((words & words.dtype.type(mask)) == mask)
        if indices.size:
            bad += int(indices.size)
            places.append(int(indices[0]) * step + at)
    return bad, min(places, default=0)


def _zero_runs(data: Bytes, first_unit: int) -> tuple[tuple[int, int], ...]:
    """Runs [from, to) of units that are all zero; the last unit may be short."""
    whole = data.size // _UNIT
    # Of most units one byte says that they are not.
    zero = data[::_UNIT] == 0
    candidates = np.flatnonzero(zero[:whole])
    words = data[: whole * _UNIT].view(np.uint64).reshape(whole, _UNIT // 8)
    zero[candidates] = ~words[candidates].any(axis=1)
    if whole < zero.size:
        zero[whole] = not data[whole * _UNIT :].any()
    edges = np.flatnonzero(np.diff(zero.astype(np.int8), prepend=0, append=0)) + first_unit
    return tuple((int(begin), int(end)) for begin, end in edges.reshape(-1, 2))


def _is_hole(run: tuple[int, int]) -> bool:
    return run[1] - run[0] >= _HOLE_UNITS
