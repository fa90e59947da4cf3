"""By how much do the numbers of two files differ? Reads and decodes both, on all cores.

Holds a few megabytes a thread, and hands the page cache back as it goes. Numbers are decoded as
ggml does, so that a file can be compared with another one of other types. Knows nothing of headers.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelFileError
from ...progress import Progress
from ...quant.encode import Floats, decode_blocks, has_decoder
from ...system.cores import usable_threads
from .gguf_file import TensorInfo
from .pieces import Bytes, in_order, read_into

# Decoded, both sides and what is between them stay in a core's cache.
_PIECE_NUMBERS = 1 << 17
_READ_PIECES = 8  # that are read at once


@dataclass(frozen=True)
class NumberDifference:
    """How the numbers of a tensor A differ from those of B.

    Of ``numbers``, ``differing`` have other values. ``largest`` is the largest of |a - b|, and
    ``largest_relative`` of |a - b| / max(|a|, |b|); ``rms`` is the root of the mean of (a - b)²,
    and ``relative_rms`` that divided by the same of a. ``not_finite`` differ in that one of them,
    or both, are NaN or infinite: those are left out of the rest.
    """

    numbers: int
    differing: int
    largest: float
    largest_relative: float
    rms: float
    relative_rms: float
    not_finite: int

    def as_dict(self) -> dict[str, Any]:
        """The same fields, ready for JSON."""
        return vars(self).copy()


@dataclass(frozen=True)
class StoredIn:
    """A tensor, and the file in which it lies."""

    path: Path
    tensor: TensorInfo


def is_comparable(tensor: TensorInfo) -> bool:
    """Whether ggml turns a tensor's bytes into numbers."""
    return has_decoder(tensor.encoding)


def differences(
    pairs: Sequence[tuple[StoredIn, StoredIn]],
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[NumberDifference]:
    """Compare the numbers of pairs of tensors, each of as many numbers, of types `is_comparable`.

    Args:
        pairs: in the order in which to read.
        threads: pieces that are compared at the same time; by default one for each core.
        progress: called after each piece with the bytes read so far of both files.

    Raises:
        ModelFileError: a file cannot be read.
    """
    workers = threads or usable_threads()
    with ExitStack() as stack, ThreadPoolExecutor(workers, "compare") as pool:
        files = _Files(stack)
        comparisons = [_Comparison(_Side(a, files), _Side(b, files)) for a, b in pairs]
        total = sum(comparison.nbytes for comparison in comparisons)
        done = 0
        pieces = (
            ((comparison, count), partial(comparison.compare, start, count))
            for comparison in comparisons
            for start, count in comparison.pieces()
        )
        for (comparison, count), sums in in_order(pool, pieces, ahead=2 * workers):
            comparison.sums.add(sums)
            done += comparison.bytes_of(count)
            if progress is not None:
                progress(Progress(done, total, comparison.name))
    return [comparison.difference() for comparison in comparisons]


class _Files:
    """Descriptors of files, each opened once, until `stack` closes them."""

    def __init__(self, stack: ExitStack) -> None:
        self._open: dict[Path, int] = {}
        self._stack = stack

    def get(self, path: Path) -> int:
        if path not in self._open:
            try:
                self._open[path] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise _unreadable(path, error) from None
            self._stack.callback(os.close, self._open[path])
        return self._open[path]


def _unreadable(path: Path, error: OSError) -> ModelFileError:
    return ModelFileError(f"{path} cannot be read", found=error.strerror or str(error))


class _Side:
    """One of two tensors."""

    def __init__(self, stored: StoredIn, files: _Files) -> None:
        self.stored = stored
        self.type = stored.tensor.encoding
        self._descriptor = files.get(stored.path)

    def bytes_of(self, numbers: int) -> int:
        return self.type.row_bytes(numbers)

    def read(self, start: int, numbers: int, buffer: Bytes) -> Bytes:
        """The encoded bytes of `numbers` numbers, from number `start` on."""
        data = buffer[: self.bytes_of(numbers)]
        try:
            read_into(self._descriptor, self.stored.tensor.offset + self.bytes_of(start), data)
        except OSError as error:
            raise _unreadable(self.stored.path, error) from None
        return data

    def decoded(self, data: Bytes, out: Floats) -> Floats:
        numbers = out[: data.size // self.type.block_bytes * self.type.block]
        decode_blocks(data, self.type, numbers)
        return numbers


@dataclass
class _Sums:
    """What is known of some of a tensor's numbers."""

    differing: int = 0
    largest: float = 0.0
    relative: float = 0.0
    squares: float = 0.0
    squares_of_a: float = 0.0
    not_finite: int = 0

    def add(self, other: _Sums) -> None:
        self.differing += other.differing
        self.largest = max(self.largest, other.largest)
        self.relative = max(self.relative, other.relative)
        self.squares += other.squares
        self.squares_of_a += other.squares_of_a
        self.not_finite += other.not_finite


@dataclass(eq=False)
class _Comparison:
    """Two tensors of one name, and what is known of them so far."""

    a: _Side
    b: _Side
    sums: _Sums = field(default_factory=_Sums)

    @property
    def name(self) -> str:
        return self.a.stored.tensor.name

    @property
    def numbers(self) -> int:
        return math.prod(self.a.stored.tensor.shape)

    @property
    def nbytes(self) -> int:
        return self.bytes_of(self.numbers)

    def bytes_of(self, numbers: int) -> int:
        return self.a.bytes_of(numbers) + self.b.bytes_of(numbers)

    @property
    def _step(self) -> int:
        """Numbers that are decoded at a time: whole blocks of both."""
        block = lcm(self.a.type.block, self.b.type.block)
        return _PIECE_NUMBERS // block * block

    def pieces(self) -> Iterator[tuple[int, int]]:
        step = self._step * _READ_PIECES
        for start in range(0, self.numbers, step):
            yield start, min(step, self.numbers - start)

    def compare(self, start: int, count: int) -> _Sums:
        buffers = _thread_buffers()
        raw_a = self.a.read(start, count, buffers.raw_a)
        raw_b = self.b.read(start, count, buffers.raw_b)
        sums = _Sums()
        for at in range(0, count, self._step):
            numbers = min(self._step, count - at)
            piece_a, piece_b = (
                raw[side.bytes_of(at) : side.bytes_of(at + numbers)]
                for side, raw in ((self.a, raw_a), (self.b, raw_b))
            )
            a = self.a.decoded(piece_a, buffers.a)
            same = self.a.type == self.b.type and np.array_equal(piece_a, piece_b)
            sums.add(_compared(a, a if same else self.b.decoded(piece_b, buffers.b)))
        return sums

    def difference(self) -> NumberDifference:
        sums, counted = self.sums, max(1, self.numbers - self.sums.not_finite)
        scale = math.sqrt(sums.squares_of_a)
        root = math.sqrt(sums.squares)
        return NumberDifference(
            numbers=self.numbers,
            differing=sums.differing,
            largest=sums.largest,
            largest_relative=sums.relative,
            rms=root / math.sqrt(counted),
            relative_rms=root / scale if scale else math.inf if root else 0.0,
            not_finite=sums.not_finite,
        )


class _Buffers:
    """Memory that a thread uses for one piece after the other."""

    def __init__(self) -> None:
        # No type takes more than four bytes a number.
        self.raw_a, self.raw_b = (
            np.empty(4 * _PIECE_NUMBERS * _READ_PIECES, np.uint8) for _ in range(2)
        )
        self.a, self.b = (np.empty(_PIECE_NUMBERS, np.float32) for _ in range(2))


_local = threading.local()


def _thread_buffers() -> _Buffers:
    buffers: _Buffers | None = getattr(_local, "buffers", None)
    if buffers is None:
        buffers = _local.buffers = _Buffers()
    return buffers


def _compared(a: Floats, b: Floats) -> _Sums:
    """What is between numbers, `a` of which may be `b` itself."""
    if a is not b and not (np.isfinite(a).all() and np.isfinite(b).all()):
        return _compared_with_gaps(a, b)
    squares_of_a = float(np.square(a, dtype=np.float64).sum()) if a.size else 0.0
    if a is b:
        return _Sums(squares_of_a=squares_of_a if math.isfinite(squares_of_a) else 0.0)
    with np.errstate(over="ignore"):
        distance = np.abs(a - b)
    differing = int(np.count_nonzero(distance))
    if not differing:
        return _Sums(squares_of_a=squares_of_a)
    scale = np.maximum(np.abs(a), np.abs(b))
    relative = np.divide(distance, scale, out=np.zeros_like(distance), where=scale > 0)
    return _Sums(
        differing=differing,
        largest=float(distance.max()),
        relative=float(relative.max()),
        squares=float(np.square(distance, dtype=np.float64).sum()),
        squares_of_a=squares_of_a,
    )


def _compared_with_gaps(a: Floats, b: Floats) -> _Sums:
    """The same where some are NaN or infinite, which are equal where both are the same."""
    finite = np.isfinite(a) & np.isfinite(b)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    sums = _compared(a[finite], b[finite])
    gaps = int(np.count_nonzero(~finite & ~equal))
    sums.not_finite += gaps
    sums.differing += gaps
    return sums
