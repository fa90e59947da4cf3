"""What llama.cpp holds of one sequence, as a value: its tokens, and the bytes of its KV cache.

Promises that a state which exists has bytes that llama.cpp reads without ending the process: every
count, position and size in them was compared with every other, and nothing is left over. Whether
they are of the model at hand (number of layers, types, sizes of rows), llama.cpp itself compares.

The bytes are those of ``llama_state_seq_get_data_ext`` (llama-context.cpp, llama-kv-cache.cpp and
llama-kv-cache-iswa.cpp, ``state_write``), numbers in the byte order of the machine::

    u32 magic, i32 sequence                  both are skipped when a state is read
    cache of the full layers                 not in a checkpoint
    cache of the chunked layers

    a cache:   u32 n_stream, then for each stream: u32 cells, and unless that is 0:
               cells x (i32 position, u32 1, i32 sequence)
               u32 transposed, u32 layers
               layers x (i32 type, u64 row, cells x row bytes)                      keys
               layers x (i32 type, u64 row, cells x row bytes)                      values, or
               layers x (i32 type, u32 size, u32 width, width x cells x size bytes)   transposed

A context has a stream for each of its sequences; of a state, one stream at most has cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..architecture import ATTENTION_CHUNK
from ..errors import EngineError
from .adapters import Scales

Bytes = npt.NDArray[np.uint8]

_MAGIC = 0xAF143CD8  # llama-context.cpp, io_magic
_HEAD = 8  # bytes before the first cache
_CELL = np.dtype([("position", np.int32), ("n_sequences", np.uint32), ("sequence", np.int32)])
_MAX_STREAMS = 256  # LLAMA_MAX_SEQ
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The chunked layers alone, as they were when the first ``n_tokens`` were decoded.

    With it, a sequence goes on from any position of the chunk that these tokens end in.

    Args:
        n_tokens: tokens that the sequence had then, at least one.
        data: llama.cpp's bytes, uint8, contiguous; they are not copied.

    Raises:
        EngineError: the bytes are not such a checkpoint.
    """

    n_tokens: int
    data: Bytes

    def __post_init__(self) -> None:
        chunked = _parse(self.data, whole=False)[-1]
        if not _is_complete(chunked, self.n_tokens):
            raise _damaged(f"{chunked.cells} cells of the chunked layers", "a whole chunk's")

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return self.data.nbytes


@dataclass(frozen=True, eq=False)
class SequenceState:
    """Everything that a sequence needs to go on, in this or in another process.

    Args:
        tokens: what it holds, position by position: token ids, or negative numbers for rows of
            pictures.
        data: llama.cpp's bytes: the full layers of all tokens, and the chunked layers of the chunk
            that the last one is in. A uint8 array, contiguous; it is not copied.
        checkpoints: the chunked layers of earlier chunks, in the order of their ends.
        adapters: how much of each loaded adapter the model had when it read the tokens.

    ``highest`` is a position in the chunk that the chunked layers have without a gap: that of the
    last token, or the one behind it. At a chunk's end its cells may be missing, and the next chunk
    needs none of them.

    Raises:
        EngineError: the bytes are not those of so many tokens.
    """

    tokens: tuple[int, ...]
    data: Bytes
    checkpoints: tuple[Checkpoint, ...] = ()
    adapters: Scales = ()
    highest: int = field(init=False)

    def __post_init__(self) -> None:
        n_tokens = len(self.tokens)
        full, chunked = _parse(self.data, whole=True)
        if not n_tokens or not _is_range(full.positions, 0, n_tokens):
            raise _damaged(f"{full.cells} cells of the full layers", f"those of {n_tokens} tokens")
        missing = not _is_complete(chunked, n_tokens)
        object.__setattr__(self, "highest", n_tokens - 1 + missing)
        ends = [checkpoint.n_tokens for checkpoint in self.checkpoints]
        if sorted(set(ends)) != ends or any(end > n_tokens for end in ends):
            raise _damaged(f"checkpoints at {ends}", f"rising numbers up to {n_tokens}")
        for checkpoint in self.checkpoints if chunked.cells else ():
            if _parse(checkpoint.data, whole=False)[0].layers != chunked.layers:
                raise _damaged(f"other layers in a checkpoint at {checkpoint.n_tokens}", "the same")

    @property
    def nbytes(self) -> int:
        """Its size in memory, checkpoints among it; the tokens are not counted."""
        return self.data.nbytes + sum(checkpoint.nbytes for checkpoint in self.checkpoints)


def for_streams(data: Bytes, n_stream: int, *, whole: bool) -> Bytes:
    """The same bytes for a context of ``n_stream`` sequences: a copy, if it has another number.

    Args:
        whole: whether they are of a state, and not of a checkpoint.
    """
    caches = _parse(data, whole=whole)
    if all(cache.n_stream == n_stream for cache in caches):
        return data
    pieces: list[Bytes] = [data[:_HEAD]]
    for cache in caches:
        counts = np.zeros(1 + n_stream, np.uint32)
        # llama.cpp puts the cells of whichever stream into the sequence that it is asked to fill.
        counts[:2] = n_stream, cache.cells
        after = n_stream - 1 if cache.cells else 0
        pieces += [
            counts[: len(counts) - after].view(np.uint8),
            data[cache.begin : cache.end],
            np.zeros(4 * after, np.uint8),
        ]
    return np.concatenate(pieces)


def in_a_ring(data: Bytes, size: int, n_stream: int) -> Bytes | None:
    """The chunked layers of a state as a checkpoint, in the cells that one run would have them in.

    A cache of ``size`` cells is a ring: position p is in cell p modulo ``size``. llama.cpp saves
    none of earlier chunks, and puts what it restores into the first cells. Sums over the cells then
    have another order, which costs a part in a thousand where they are of 16 bits
    (ggml_compute_forward_flash_attn_ext for a few tokens). Zeros stand for what is of earlier
    chunks, which nothing attends to. One position too many is behind the last: dropping it makes
    llama.cpp put the next token into its cell.

    None where the order is the same: the ring has not come to its end.

    Args:
        n_stream: sequences of the context that it is for.
    """
    chunked = _parse(data, whole=True)[-1]
    if not chunked.cells or (last := int(chunked.positions.max())) < size:
        return None
    cells = np.zeros(size, _CELL)
    cells["n_sequences"] = 1
    cells["position"] = last - (last - np.arange(size)) % size
    where = chunked.positions % size
    # No earlier chunk may look as if it were whole: its first position is left out.
    of_earlier = np.ones(size, bool)
    of_earlier[where] = False
    cells["position"] += of_earlier & (cells["position"] % ATTENTION_CHUNK == 0)
    cells["position"][(last + 1) % size] = last + 1
    source = _Reader(data[chunked.begin : chunked.end])
    source.skip(chunked.cells * _CELL.itemsize)
    wider = source.left + (size - chunked.cells) * chunked.cell_bytes
    n_after = 4 * (n_stream - 1)
    ring = np.zeros(_HEAD + 8 + cells.nbytes + wider + n_after, np.uint8)
    target = _Reader(ring)
    target.skip(_HEAD)[:] = data[:_HEAD]
    target.skip(8)[:] = np.array([n_stream, size], np.uint32).view(np.uint8)
    target.skip(cells.nbytes)[:] = cells.view(np.uint8)
    _spread(source, target, chunked, where, size)
    return ring


def _spread(
    source: _Reader, target: _Reader, cache: _Cache, where: npt.NDArray[np.int32], size: int
) -> None:
    """Copy the layers of a cache, each cell to its place among ``size`` cells."""
    target.skip(8)[:] = source.skip(8)
    for outer, width in cache.rows:
        target.skip(12)[:] = source.skip(12)
        old = source.skip(outer * cache.cells * width).reshape(outer, cache.cells, width)
        target.skip(outer * size * width).reshape(outer, size, width)[:, where] = old


# --- what is in the bytes


@dataclass(frozen=True)
class _Cache:
    """One of the two caches: how many streams it was written for, and the one that has cells.

    ``layers`` are the numbers that describe the layers. ``data[begin:end]`` are its cells: their
    positions and then the layers.
    """

    n_stream: int
    positions: npt.NDArray[np.int32]
    layers: tuple[int, ...]
    begin: int
    end: int

    @property
    def cells(self) -> int:
        return len(self.positions)

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Of the keys of each layer, then of the values: rows of cells, and bytes of a cell there.

        There is one row, or one for each number where they are transposed.
        """
        transposed, n_layers, *numbers = self.layers
        keys, values = numbers[: 2 * n_layers], numbers[2 * n_layers :]
        pairs = [(1, width) for width in keys[1::2]]
        if transposed:
            return [*pairs, *zip(values[2::3], values[1::3], strict=True)]
        return [*pairs, *((1, width) for width in values[1::2])]

    @property
    def cell_bytes(self) -> int:
        """Bytes of a cell in all layers."""
        return sum(map(prod, self.rows))


def _parse(data: Bytes, *, whole: bool) -> list[_Cache]:
    """The caches in a state, or the one in a checkpoint.

    Raises:
        EngineError: the bytes have another form.
    """
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 1):
        raise _damaged(type(data).__name__, "an array of bytes (uint8)")
    if not data.flags.c_contiguous:
        raise _damaged("an array with gaps", "contiguous bytes")
    reader = _Reader(data)
    if (magic := reader.number(np.uint32)) != _MAGIC:
        raise _damaged(f"0x{magic:08x} at its beginning", f"0x{_MAGIC:08x}")
    reader.number(np.int32)
    caches = [_parse_cache(reader) for _ in range(1 + whole)]
    if reader.left:
        raise _damaged(f"{reader.left} bytes after its end", "none")
    return caches


def _parse_cache(reader: _Reader) -> _Cache:
    n_stream = reader.number(np.uint32)
    if not 1 <= n_stream <= _MAX_STREAMS:
        raise _damaged(f"{n_stream} streams", f"1 to {_MAX_STREAMS}")
    positions = np.empty(0, np.int32)
    layers: tuple[int, ...] = ()
    begin = end = reader.at
    for _ in range(n_stream):
        if not (cells := reader.number(np.uint32)):
            continue
        if len(positions):
            raise _damaged("cells in two streams", "in one")
        begin = reader.at
        positions = _parse_positions(reader, cells)
        layers = _parse_layers(reader, cells)
        end = reader.at
    return _Cache(n_stream, positions, layers, begin, end)


def _parse_positions(reader: _Reader, count: int) -> npt.NDArray[np.int32]:
    cells = reader.skip(count * _CELL.itemsize).view(_CELL)
    if (cells["n_sequences"] != 1).any():
        raise _damaged("a cell that is not of one sequence", "cells of one")
    return np.array(cells["position"])


def _parse_layers(reader: _Reader, count: int) -> tuple[int, ...]:
    """The numbers between the keys and values, which are skipped."""
    numbers = [reader.number(np.uint32), reader.number(np.uint32)]
    transposed, n_layers = numbers
    if transposed > 1 or not 1 <= n_layers <= _MAX_LAYERS:
        raise _damaged(f"{n_layers} layers", f"1 to {_MAX_LAYERS}")
    row = (np.uint64,)
    for sizes in (row, (np.uint32, np.uint32) if transposed else row):
        for _ in range(n_layers):
            numbers.append(reader.number(np.int32))
            width = [reader.number(size) for size in sizes]
            numbers += width
            reader.skip(count * prod(width))
    return tuple(numbers)


class _Reader:
    """Reads numbers one after the other, and never beyond the end."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def skip(self, size: int) -> Bytes:
        if size > self.left:
            raise _damaged(f"{self.left} bytes where its layers should be", f"{size}")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, kind: type[np.integer[Any]]) -> int:
        return int(self.skip(np.dtype(kind).itemsize).view(kind)[0])


def _is_range(positions: npt.NDArray[np.int32], begin: int, end: int) -> bool:
    """Whether these are all the positions from ``begin`` to before ``end``, in whatever order."""
    return np.array_equal(np.sort(positions), np.arange(begin, end))


def _is_complete(chunked: _Cache, n_tokens: int) -> bool:
    """Whether the chunked layers hold all of the chunk that so many tokens end in.

    At a chunk's end nothing that goes on needs them.

    Raises:
        EngineError: they hold something else, with which nothing can go on.
    """
    first = (n_tokens - 1) // ATTENTION_CHUNK * ATTENTION_CHUNK
    if n_tokens > 0 and _is_range(chunked.positions, first, n_tokens):
        return True
    if n_tokens % ATTENTION_CHUNK or (chunked.positions >= n_tokens).any():
        raise _damaged(f"{chunked.cells} cells of the chunked layers", f"those up to {n_tokens}")
    return False


def _damaged(found: str, expected: str) -> EngineError:
    return EngineError(
        "the state of a sequence is damaged, or is not llama.cpp's",
        found=found,
        expected=expected,
    )
