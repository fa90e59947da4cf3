"""Tensor data from shards into a GGUF: read, transpose, encode and write at the same time.

Works slab by slab. A slab is at most `SLAB_BYTES` however large its tensor is (20 GiB in Maverick),
and only `SLABS_IN_FLIGHT` exist at a time: while one is encoded on all cores, the next is read and
the one before is written. Knows shards, types and offsets; names only for its errors.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError, OutputError
from ..quant.encode import Bytes, bf16_to_f32, encode_rows, f32_to_bf16
from ..quant.types import BF16, F32, TensorType
from .checkpoint import DTYPE_BYTES, StoredTensor

# An expert of Scout's gate_up_proj is 160 MiB, and is read in one piece.
SLAB_BYTES = 256 << 20
SLABS_IN_FLIGHT = 3
# Numbers that one task encodes: enough to make Python's share small, few enough for every core.
BLOCK_NUMBERS = 1 << 18

Block = npt.NDArray[Any]
_VIEWS: dict[str, type] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True)
class Output:
    """A GGUF tensor to be filled: its data begins at byte `offset` of the file."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return self.type.row_bytes(self.shape[-1])


@dataclass(frozen=True)
class Slab:
    """Part of a stored tensor, a matrix of `rows` by `row_length`, and where it goes.

    Plain: `rows` rows from byte `source` become rows of the output from byte `target` on.
    Transposed: columns `first` to `last` of the matrix at `source` become those rows.
    """

    stored: StoredTensor
    output: Output
    source: int
    rows: int
    row_length: int
    target: int
    transposed: bool = False
    first: int = 0
    last: int = 0

    @property
    def columns(self) -> int:
        """Columns that are read."""
        return self.last - self.first if self.transposed else self.row_length

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return self.rows * self.columns * DTYPE_BYTES[self.stored.dtype]

    @property
    def output_rows(self) -> int:
        """Rows that are written."""
        return self.columns if self.transposed else self.rows

    @property
    def target_bytes(self) -> int:
        """Bytes that are written."""
        return self.output_rows * self.output.row_bytes


def slabs_of(stored: StoredTensor, outputs: Sequence[Output], *, experts: bool) -> Iterator[Slab]:
    """Cut a stored tensor into slabs, in the order of its bytes.

    With `experts` it is [expert, in, out] and each of `outputs` takes an even share of ``out``, as
    [expert, out, in]; otherwise it has one output of its own shape.
    """
    if not experts:
        yield from _plain_slabs(stored, outputs[0])
        return
    count, inputs, total = stored.shape
    size = DTYPE_BYTES[stored.dtype]
    share = total // len(outputs)
    width = min(share, max(1, SLAB_BYTES // (inputs * size)))
    for expert in range(count):
        source = stored.offset + expert * inputs * total * size
        for rank, output in enumerate(outputs):
            for column in range(0, share, width):
                yield Slab(
                    stored=stored,
                    output=output,
                    source=source,
                    rows=inputs,
                    row_length=total,
                    target=output.offset + (expert * share + column) * output.row_bytes,
                    transposed=True,
                    first=rank * share + column,
                    last=rank * share + min(column + width, share),
                )


def _plain_slabs(stored: StoredTensor, output: Output) -> Iterator[Slab]:
    length = stored.shape[-1]
    row_bytes = length * DTYPE_BYTES[stored.dtype]
    rows = stored.parameters // length
    step = max(1, SLAB_BYTES // row_bytes)
    for row in range(0, rows, step):
        yield Slab(
            stored=stored,
            output=output,
            source=stored.offset + row * row_bytes,
            rows=min(step, rows - row),
            row_length=length,
            target=output.offset + row * output.row_bytes,
        )


def run_pipeline(
    slabs: Iterable[Slab], target: int, *, threads: int, on_slab: Callable[[Slab], None]
) -> None:
    """Convert every slab and write it to the open file `target`, a descriptor.

    Args:
        slabs: in the order in which they are to be read.
        target: open for writing; written at each slab's own offset.
        threads: encoders that work at the same time.
        on_slab: called after each slab is written, in order.

    Raises:
        CheckpointError: a shard cannot be read, or holds numbers that are none.
        OutputError: writing failed.
    """
    with (
        _Shards() as shards,
        ThreadPoolExecutor(1, "read") as reader,
        ThreadPoolExecutor(threads, "encode") as encoders,
        ThreadPoolExecutor(1, "write") as writer,
    ):

        def read(slab: Slab) -> tuple[Bytes, list[Future[None]]]:
            block = shards.read(slab)
            encoded = np.empty(slab.target_bytes, np.uint8)
            tasks = [
                encoders.submit(_encode, slab, block, encoded, begin, end)
                for begin, end in _cuts(slab)
            ]
            return encoded, tasks

        def write(slab: Slab, started: Future[tuple[Bytes, list[Future[None]]]]) -> None:
            encoded, tasks = started.result()
            for task in tasks:
                task.result()
            _write(target, encoded, slab)

        flights: deque[tuple[Slab, Future[None]]] = deque()

        def land() -> None:
            slab, written = flights.popleft()
            written.result()
            on_slab(slab)

        try:
            for slab in slabs:
                if len(flights) == SLABS_IN_FLIGHT:
                    land()
                flights.append((slab, writer.submit(write, slab, reader.submit(read, slab))))
            while flights:
                land()
        except BaseException:
            for pool in (reader, encoders, writer):
                pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Shards:
    """Open shards by path; each is opened once."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def read(self, slab: Slab) -> Block:
        """The slab's numbers as stored: [rows, columns]."""
        path = slab.stored.file
        try:
            if path not in self._open:
                self._open[path] = os.open(path, os.O_RDONLY)
            return self._read(self._open[path], slab)
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"{path} cannot be read where {slab.stored.name} lies",
                found=getattr(error, "strerror", None) or str(error),
                hint="Check the disk and the file, then run the same command again.",
            ) from error

    def _read(self, descriptor: int, slab: Slab) -> Block:
        block: Block = np.empty((slab.rows, slab.columns), _VIEWS[slab.stored.dtype])
        if slab.columns == slab.row_length:
            _fill(descriptor, _bytes_of(block), slab.source)
            return block
        size = block.itemsize
        for row in range(slab.rows):
            start = slab.source + (row * slab.row_length + slab.first) * size
            _fill(descriptor, _bytes_of(block[row]), start)
        return block


def _bytes_of(block: Block) -> memoryview:
    return block.data.cast("B")


def _fill(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Read exactly ``len(buffer)`` bytes from `offset`."""
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise EOFError(f"the file ends at byte {offset + done}")
        done += count


def _write(descriptor: int, encoded: Bytes, slab: Slab) -> None:
    view, done = _bytes_of(encoded), 0
    try:
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], slab.target + done)
    except OSError as error:
        raise OutputError(
            f"writing {slab.output.name} failed",
            found=error.strerror,
            hint="Make room on the disk, then run the same command again.",
        ) from error


def _cuts(slab: Slab) -> Iterator[tuple[int, int]]:
    """Ranges of output rows, each the work of one task."""
    length = slab.output.shape[-1]
    step = max(1, BLOCK_NUMBERS // length)
    for begin in range(0, slab.output_rows, step):
        yield begin, min(begin + step, slab.output_rows)


def _encode(slab: Slab, block: Block, encoded: Bytes, begin: int, end: int) -> None:
    """Encode output rows `begin` to `end` of a slab into their place in `encoded`."""
    rows = _transposed(block, begin, end) if slab.transposed else block[begin:end]
    size = slab.output.row_bytes
    place = encoded[begin * size : end * size]
    try:
        _encode_rows(rows, slab.output.type, place)
    except ValueError as error:
        raise CheckpointError(
            f"{slab.stored.name} in {slab.stored.file.name} cannot be converted",
            found=str(error),
            hint="Download that shard again.",
        ) from None


def _transposed(block: Block, begin: int, end: int) -> Block:
    """Columns `begin` to `end` as rows.

    In two copies, since each then walks memory in order: four times as fast as one.
    """
    columns = np.ascontiguousarray(block[:, begin:end])
    return np.ascontiguousarray(columns.T)


def _encode_rows(rows: Block, tensor_type: TensorType, place: Bytes) -> None:
    """Encode `rows` [n, length] as stored into `place`.

    Numbers stored as F16 or F32 pass through bf16 on their way to any type but F32, as they do on
    llama.cpp's way through a bf16 file.
    """
    if rows.dtype == np.uint16:
        if int((rows & 0x7FFF).max()) >= 0x7F80:
            raise ValueError("not a number, or infinity")
    elif not np.isfinite(rows).all():
        raise ValueError("not a number, or infinity")
    if tensor_type is F32 and rows.dtype != np.uint16:
        place.view(np.float32)[:] = rows.reshape(-1)
        return
    halves = rows if rows.dtype == np.uint16 else f32_to_bf16(rows.astype(np.float32))
    if tensor_type is BF16:
        place.view(np.uint16)[:] = halves.reshape(-1)
        return
    floats = np.empty(halves.shape, np.float32)
    bf16_to_f32(halves, floats)
    encode_rows(floats, tensor_type, place)
