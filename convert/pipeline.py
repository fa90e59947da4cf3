"""Tensor data from shards into a GGUF: read, transpose, encode and write at the same time.

Works slab by slab, of which only `SLABS_IN_FLIGHT` exist at a time: while one is encoded on all
cores, the next is read and the one before is written. Slabs are written in the order in which they
are given, so that a count of them says how far a conversion got. Knows shards, types and offsets;
names only for its errors.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import CheckpointError, DamagedTensorError
from ..quant.encode import Bytes
from ..system.page_cache import forget_cached
from ..system.threads import end
from .forms import VIEWS, Block, Decoder, Rounded, part_reader
from .numbers import encode_decoded, encode_stored, widened
from .shard_header import StoredTensor
from .shards import Shards
from .slabs import Output, Share, Slab

SLABS_IN_FLIGHT = 3
# Numbers that one task encodes: enough to make Python's share small, few enough for every core.
BLOCK_NUMBERS = 1 << 21
_LINE_NUMBERS = 256  # as many lines are read side by side


class Sink(Protocol):
    """Where encoded bytes go."""

    def write(self, part: int, offset: int, data: memoryview) -> None:
        """Put `data` at byte `offset` of a part."""

    def slab_done(self, settled: Callable[[bool], None] | None = None) -> None:
        """All of the next slab is written.

        `settled` is to be called, once, when it is known whether it is so for good.
        """


class Tally:
    """What is counted while a conversion runs, by GGUF tensor; several threads add to it.

    Seconds spent in each stage: reading and writing are waited for, transposing and encoding are a
    core's time. `rounded` has the groups of numbers that were to be kept as they are.
    """

    STAGES = ("reading", "transposing", "encoding", "writing")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.rounded: dict[str, Rounded] = {}

    def add(self, stage: str, name: str, seconds: float) -> None:
        """Add to `stage` for the GGUF tensor `name`."""
        with self._lock:
            self._seconds[name, stage] += seconds

    def kept(self, name: str, rounded: Rounded) -> None:
        """Count groups of the GGUF tensor `name`."""
        with self._lock:
            self.rounded[name] = self.rounded.get(name, Rounded(0, 0)) + rounded

    def by_tensor(self) -> dict[str, dict[str, float]]:
        """GGUF tensor name to stage to seconds."""
        with self._lock:
            totals: dict[str, dict[str, float]] = {}
            for (name, stage), seconds in self._seconds.items():
                totals.setdefault(name, dict.fromkeys(self.STAGES, 0.0))[stage] += seconds
            return totals


class _Buffers:
    """Memory that slabs use one after the other: fresh pages cost as much as copying into them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Bytes] = []

    def take(self, nbytes: int) -> Bytes:
        """A buffer of at least `nbytes`, whatever it held before."""
        with self._lock:
            self._free.sort(key=len)
            largest = self._free.pop() if self._free else None
        if largest is not None and len(largest) >= nbytes:
            return largest
        # A smaller one is dropped, so that there are never more of them than slabs in flight.
        return np.empty(nbytes, np.uint8)

    def give(self, buffer: Bytes) -> None:
        """Nothing refers to `buffer` any more."""
        with self._lock:
            self._free.append(buffer)


@dataclass(frozen=True)
class _Numbers:
    """A slab as stored: `block` [rows, columns], in a form with what decodes its lines."""

    block: Block
    decoder: Decoder | None


@dataclass(frozen=True)
class _Encoding:
    """A share's bytes, complete once every task is; `buffer` holds them."""

    share: Share
    buffer: Bytes
    tasks: list[Future[None]]


@dataclass(frozen=True)
class _Started:
    """A slab that is read, in `buffer`, and whose shares are being encoded."""

    buffer: Bytes
    encodings: list[_Encoding]


def run_pipeline(
    slabs: Sequence[Slab],
    shards: Shards,
    sink: Sink,
    *,
    threads: int,
    seconds: Tally,
    on_slab: Callable[[Slab], None],
) -> None:
    """Convert every slab into `sink`.

    Args:
        slabs: in the order in which they are read and written, shard by shard.
        shards: fetched one after the other, and given back once nothing needs them.
        sink: takes the encoded bytes.
        threads: encoders that work at the same time.
        seconds: is added to.
        on_slab: called after each slab is written, in order.

    Raises:
        DamagedTensorError: a stored tensor holds NaN, infinity, or numbers that are too large.
        CheckpointError: a shard cannot be read.
        OutputError: the sink cannot write.
    """
    last = {slab.stored.file: index for index, slab in enumerate(slabs)}
    shards.expect(list(last))
    with (
        _OpenShards(shards) as files,
        _threads(1, "read") as reader,
        _threads(threads, "encode") as encoders,
        _threads(1, "write") as writer,
    ):
        stages = _Stages(files, encoders, sink, seconds)
        flights: deque[tuple[Slab, Future[None]]] = deque()

        def land() -> None:
            slab, written = flights.popleft()
            written.result()
            on_slab(slab)

        try:
            for index, slab in enumerate(slabs):
                if len(flights) == SLABS_IN_FLIGHT:
                    land()
                reading = reader.submit(stages.read, slab)
                is_last = last[slab.stored.file] == index
                written = writer.submit(stages.write, slab, reading, last_of_shard=is_last)
                flights.append((slab, written))
            while flights:
                land()
        except BaseException:
            for pool in (reader, encoders, writer):
                pool.shutdown(wait=False, cancel_futures=True)
            # The reader may be waiting for a shard to arrive.
            shards.close()
            raise


class _Stages:
    """What becomes of a slab: `read` hands it to the encoders, and `write` waits for them."""

    def __init__(
        self,
        files: _OpenShards,
        encoders: ThreadPoolExecutor,
        sink: Sink,
        seconds: Tally,
    ) -> None:
        self._files = files
        self._encoders = encoders
        self._sink = sink
        self._seconds = seconds
        self._sources, self._targets = _Buffers(), _Buffers()
        self._failed = False

    def read(self, slab: Slab) -> _Started:
        buffer = self._sources.take(slab.block_bytes)
        started = time.perf_counter()
        numbers = _Numbers(self._files.read(slab, buffer), self._files.decoder(slab))
        output = slab.shares[0].output
        if numbers.decoder is not None and slab.kept is output.type and output.merge is None:
            self._seconds.kept(output.name, numbers.decoder.rounded())
        self._seconds.add("reading", slab.shares[0].output.name, time.perf_counter() - started)
        return _Started(buffer, [self._start(slab, share, numbers) for share in slab.shares])

    def _start(self, slab: Slab, share: Share, numbers: _Numbers) -> _Encoding:
        buffer = self._targets.take(share.nbytes)
        tasks = [
            self._encoders.submit(_encode, slab, share, numbers, buffer, begin, end, self._seconds)
            for begin, end in _cuts(share, slab.lines_per_item)
        ]
        return _Encoding(share, buffer, tasks)

    def write(self, slab: Slab, reading: Future[_Started], *, last_of_shard: bool) -> None:
        """Write a slab, unless one before it failed: the sink counts them, and may miss none."""
        if self._failed:
            raise CancelledError
        self._failed = True
        self._write(slab, reading.result(), last_of_shard=last_of_shard)
        self._failed = False

    def _write(self, slab: Slab, started: _Started, *, last_of_shard: bool) -> None:
        for encoding in started.encodings:
            for task in encoding.tasks:
                task.result()
        self._sources.give(started.buffer)
        for encoding in started.encodings:
            begun, share = time.perf_counter(), encoding.share
            data = encoding.buffer[: share.nbytes].data
            self._sink.write(share.output.part, share.target, data)
            self._seconds.add("writing", share.output.name, time.perf_counter() - begun)
            self._targets.give(encoding.buffer)
        shard = slab.stored.file
        self._sink.slab_done(partial(self._files.settled, shard) if last_of_shard else None)


@contextmanager
def _threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended when the block has, however often its end is interrupted.

    What they read and write is closed next.
    """
    pool = ThreadPoolExecutor(count, name)
    try:
        yield pool
    finally:
        end(pool)


class _OpenShards:
    """Open shards by path, each opened once; the reader opens, the writer releases."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._read_part = part_reader(shards)
        self._open: dict[Path, int] = {}

    def __enter__(self) -> _OpenShards:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def release(self, path: Path) -> None:
        """Nothing will be read from `path` any more."""
        descriptor = self._open.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)
        self._shards.release(path)

    def settled(self, path: Path, safe: bool) -> None:
        """All that came from `path` is safe; or it is not, and then nothing need come any more."""
        if safe:
            self.release(path)
        else:
            self._shards.close()

    def read(self, slab: Slab, buffer: Bytes) -> Block:
        """The slab's numbers as stored, [rows, columns], in `buffer`."""
        path = slab.stored.file
        try:
            if path not in self._open:
                self._shards.acquire(path)
                self._open[path] = os.open(path, os.O_RDONLY)
            return _read(self._open[path], slab, buffer)
        except (OSError, EOFError) as error:
            raise CheckpointError(
                f"{path} cannot be read where {slab.stored.name} lies",
                found=getattr(error, "strerror", None) or str(error),
                hint="Check the disk and the file, then run the same command again: it goes on "
                "from here.",
            ) from error

    def decoder(self, slab: Slab) -> Decoder | None:
        """What decodes a slab of codes; its scales are read for that."""
        if slab.weight is None or slab.region is None:
            return None
        return slab.weight.form.decoder(slab.weight, slab.region, self._read_part)


def _damaged(stored: StoredTensor, error: ValueError) -> DamagedTensorError:
    too_large = "too large" in str(error)
    return DamagedTensorError(
        f"{stored.name} in {stored.file.name} cannot be converted",
        found=str(error),
        hint="Choose a type of a larger range, as bf16 has, or download that shard again."
        if too_large
        else "Download that shard again.",
    )


def _read(descriptor: int, slab: Slab, buffer: Bytes) -> Block:
    numbers: Block = buffer[: slab.block_bytes].view(VIEWS[slab.stored.dtype])
    block = numbers.reshape(slab.rows, slab.columns)
    if slab.columns == slab.stride:
        _fill(descriptor, block.data.cast("B"), slab.source)
        forget_cached(descriptor, slab.source, block.nbytes)
        return block
    for row in range(slab.rows):
        start = slab.source + row * slab.stride * block.itemsize
        _fill(descriptor, block[row].data.cast("B"), start)
    return block


def _fill(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Read exactly ``len(buffer)`` bytes from `offset`."""
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise EOFError(f"the file ends at byte {offset + done}")
        done += count


def _cuts(share: Share, lines_per_item: int) -> Iterator[tuple[int, int]]:
    """Ranges of a share's lines, each the work of one task and of whole items."""
    step = BLOCK_NUMBERS // share.output.shape[-1]
    step -= step % (_LINE_NUMBERS if step > _LINE_NUMBERS else lines_per_item)
    step = max(lines_per_item, step)
    for begin in range(share.first, share.last, step):
        yield begin, min(begin + step, share.last)


def _encode(
    slab: Slab,
    share: Share,
    numbers: _Numbers,
    encoded: Bytes,
    begin: int,
    end: int,
    seconds: Tally,
) -> None:
    """Encode lines `begin` to `end` of a slab into their place in the share's bytes."""
    started = time.thread_time()
    block, decoder, output = numbers.block, numbers.decoder, share.output
    per = slab.lines_per_item
    rows = block[:, begin // per : end // per].T if slab.transposed else block[begin:end]
    first, size = share.row + begin - share.first, output.row_bytes
    place = encoded[(begin - share.first) * size : (end - share.first) * size]
    transposing = 0.0
    try:
        if output.merge is not None:
            rows = widened(rows) if decoder is None else decoder.decode(rows, begin, end)
            output.merge.add(rows, first)
            transposing = _encode_rows(encode_stored, rows, output, first, place)
        elif decoder is None:
            transposing = _encode_rows(encode_stored, rows, output, first, place)
        elif slab.kept is output.type or decoder.holds(output.type):
            decoder.repack(rows, begin, end, output.type, place)
        else:
            rows = decoder.decode(rows, begin, end)
            encode = encode_stored if decoder.exact else encode_decoded
            transposing = _encode_rows(encode, rows, output, first, place)
    except ValueError as error:
        raise _damaged(slab.stored, error) from None
    seconds.add("transposing", output.name, transposing)
    seconds.add("encoding", output.name, time.thread_time() - started - transposing)


def _encode_rows(
    encode: Callable[..., float], rows: Block, output: Output, first: int, place: Bytes
) -> float:
    """Encode rows of an output, of which `first` is the first through all matrices.

    Each matrix, as an expert is one, has weights of its own.
    """
    if output.columns is None:
        return encode(rows, output.type, place)
    seconds, at = 0.0, 0
    while at < len(rows):
        matrix, row = divmod(first + at, output.columns.rows)
        end = min(len(rows), at + output.columns.rows - row)
        piece = place[at * output.row_bytes : end * output.row_bytes]
        seconds += encode(rows[at:end], output.type, piece, output.columns.of(matrix))
        at = end
    return seconds
