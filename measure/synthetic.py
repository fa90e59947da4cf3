"""A model file of true geometry with random weights, to measure a machine before a download.

Every tensor has the type, size and place that a conversion would give it, and sound numbers: blocks
that ggml's own encoders made of normally distributed weights, of a size that keeps activations near
one through any number of layers, and routers that spread tokens over all experts. A tensor is a
small encoded tile laid out again and again, each time from another block on, so that the file is
made as fast as the disk takes it, in the memory of the tiles.

The same blueprint and seed give the same bytes. The file has learned nothing, and says so.
"""

from __future__ import annotations

import errno
import math
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..convert.blueprint import Blueprint, BlueprintTensor
from ..convert.metadata import rope_factors
from ..convert.output import write_all
from ..convert.target import disk_shortage
from ..errors import OutputError
from ..progress import Progress
from ..quant import TensorType
from ..quant.encode import encode_rows
from ..system.cores import usable_threads
from ..system.locks import lock, try_lock
from ..system.threads import end
from ..units import bytes_text

# Numbers in a tile. Every type's blocks divide it, and encoding it takes a part of a second.
TILE_NUMBERS = 1 << 21
# Tensors larger than this are written by several threads.
_CHUNK_BYTES = 16 << 20
_SCRATCH_PREFIX = ".synthetic-"


@dataclass(frozen=True)
class _Tile:
    """Encoded numbers, twice in a row, so that `length` bytes can be taken from any block on."""

    data: memoryview
    length: int
    block_bytes: int


@dataclass(frozen=True)
class _Chunk:
    """Bytes of one tensor that one task writes, from `offset` of the file on."""

    tensor: BlueprintTensor
    offset: int
    nbytes: int
    number: int


def default_directory() -> Path:
    """Where synthetic files go unless told otherwise: ``llama4-edge/synthetic`` in the cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "llama4-edge" / "synthetic"


@contextmanager
def synthetic_file(
    blueprint: Blueprint,
    directory: str | os.PathLike[str] | None = None,
    *,
    keep: bool = False,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[Path]:
    """A file for the time of the block: made on entering, removed on leaving, however it is left.

    Args:
        blueprint: of the model, with ``synthetic=True``.
        directory: where the file lies; by default `default_directory`. Made if it is absent.
        keep: leave the file there, and take the one that an earlier call left.
        threads: tasks that write at the same time; by default one for each core.
        progress: called now and then with the bytes written so far.

    Raises:
        OutputError: the directory cannot be used, has too little room, or writing failed.
    """
    place = Path(directory) if directory is not None else default_directory()
    kept = place / _file_name(blueprint)
    if _is_whole(kept, blueprint):
        yield kept
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        shortage = disk_shortage(place, blueprint.nbytes, kept.name, encodes=True)
        if shortage is not None:
            raise shortage
        descriptor, scratch = _scratch_file(place, kept.name)
    except OSError as error:
        raise OutputError(f"{place} cannot be written to", found=error.strerror) from error
    try:
        write_synthetic(blueprint, descriptor, scratch, threads=threads, progress=progress)
        if keep:
            scratch = scratch.replace(kept)
        yield scratch
    finally:
        os.close(descriptor)
        if scratch != kept:
            scratch.unlink(missing_ok=True)


def write_synthetic(
    blueprint: Blueprint,
    descriptor: int,
    path: Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Write header and tensors into the open, empty file `descriptor`, which is called `path`.

    Raises:
        OutputError: the disk is full, or otherwise at fault.
    """
    workers = threads or usable_threads()
    tiles = _Tiles(blueprint, seed)
    chunks = [chunk for tensor in blueprint.tensors for chunk in _chunks(tensor)]
    done, total = 0, sum(chunk.nbytes for chunk in chunks)
    pool = ThreadPoolExecutor(workers, "synthetic")
    try:
        os.ftruncate(descriptor, blueprint.nbytes)
        write_all(descriptor, 0, memoryview(blueprint.header))
        for chunk in _in_flight(
            pool, chunks, lambda chunk: tiles.write(descriptor, chunk), ahead=2 * workers
        ):
            done += chunk.nbytes
            if progress is not None:
                progress(Progress(done, total, chunk.tensor.name))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise OutputError(
            f"{path.parent} has no room left for {bytes_text(total)}"
            if full
            else f"{path} cannot be written",
            found=error.strerror,
            hint="Choose another disk (--dir), or fewer layers (--layers)." if full else None,
        ) from error
    finally:
        end(pool)


def _file_name(blueprint: Blueprint) -> str:
    """Tells models, recipes and types apart; the number is of all that the header says."""
    model = re.sub(r"[^a-z0-9]+", "-", blueprint.name.lower()).strip("-")
    digest = zlib.crc32(blueprint.header)
    return f"{model}-{blueprint.recipe}-{blueprint.config.hparams.n_layer}-layers-{digest:08x}.gguf"


def _is_whole(path: Path, blueprint: Blueprint) -> bool:
    """Whether an earlier call left this very model."""
    if not path.is_file() or path.stat().st_size != blueprint.nbytes:
        return False
    with path.open("rb") as file:
        return file.read(len(blueprint.header)) == blueprint.header


def _scratch_file(directory: Path, name: str) -> tuple[int, Path]:
    """A new file, locked for as long as it is open: what nobody holds, another call sweeps away."""
    while True:
        descriptor, path = tempfile.mkstemp(f"-{name}", _SCRATCH_PREFIX, directory)
        # Another call may have swept in between.
        if lock(descriptor, path) and os.fstat(descriptor).st_nlink:
            return descriptor, Path(path)
        os.close(descriptor)


def _sweep(directory: Path) -> None:
    """Remove what calls that were killed have left."""
    for scratch in directory.glob(f"{_SCRATCH_PREFIX}*"):
        with suppress(OSError), scratch.open("rb") as file:
            if try_lock(file.fileno()):
                scratch.unlink()


def _chunks(tensor: BlueprintTensor) -> Iterator[_Chunk]:
    step = _CHUNK_BYTES - _CHUNK_BYTES % tensor.type.block_bytes
    for number, start in enumerate(range(0, tensor.nbytes, step)):
        yield _Chunk(tensor, tensor.offset + start, min(step, tensor.nbytes - start), number)


def _in_flight(
    pool: ThreadPoolExecutor,
    chunks: Sequence[_Chunk],
    work: Callable[[_Chunk], None],
    *,
    ahead: int,
) -> Iterator[_Chunk]:
    """Each chunk once it is written; `ahead` of them are handed out at a time."""
    flights: dict[Future[None], _Chunk] = {}
    waiting = iter(chunks)
    try:
        while True:
            while len(flights) < ahead and (chunk := next(waiting, None)) is not None:
                flights[pool.submit(work, chunk)] = chunk
            if not flights:
                return
            for future in wait(flights, return_when=FIRST_COMPLETED).done:
                future.result()
                yield flights.pop(future)
    finally:
        for future in flights:
            future.cancel()


class _Tiles:
    """What each tensor is laid out of; tiles are encoded when first needed."""

    def __init__(self, blueprint: Blueprint, seed: int) -> None:
        self._config, self._seed = blueprint.config, seed
        self._tiles: dict[tuple[TensorType, float], _Tile] = {}
        self._lock = threading.Lock()

    def write(self, descriptor: int, chunk: _Chunk) -> None:
        """Fill one chunk of the file."""
        tensor = chunk.tensor
        exact = self._exact(tensor)
        if exact is not None:
            write_all(descriptor, chunk.offset, memoryview(exact))
            return
        tile = self._tile(tensor.type, self._spread(tensor))
        phases = np.random.PCG64([self._seed, zlib.crc32(tensor.name.encode()), chunk.number])
        done = 0
        while done < chunk.nbytes:
            length = min(tile.length, chunk.nbytes - done)
            begin = int(phases.random_raw()) % (tile.length // tile.block_bytes) * tile.block_bytes
            write_all(descriptor, chunk.offset + done, tile.data[begin : begin + length])
            done += length

    def _exact(self, tensor: BlueprintTensor) -> bytes | None:
        """The bytes of a tensor that is not random: norms are one, RoPE factors are themselves."""
        if tensor.role == "norm":
            return np.ones(tensor.shape, "<f4").tobytes()
        if tensor.role == "rope":
            factors = rope_factors(self._config)
            assert factors is not None
            return factors.astype("<f4").tobytes()
        return None

    def _spread(self, tensor: BlueprintTensor) -> float:
        """The standard deviation of a tensor's numbers.

        Rows of n numbers with deviation 1/sqrt(n) keep the variance of what they are multiplied
        with. What a layer adds to the stream is smaller, so that all layers together add as much as
        the embedding put there.
        """
        if tensor.role == "embedding" and not self._config.tied:
            return 1.0
        spread = 1 / math.sqrt(tensor.shape[-1])
        adds = ".attn_output." in tensor.name or ".ffn_down" in tensor.name
        return spread / math.sqrt(2 * self._config.hparams.n_layer) if adds else spread

    def _tile(self, tensor_type: TensorType, spread: float) -> _Tile:
        with self._lock:
            key = (tensor_type, spread)
            if key not in self._tiles:
                self._tiles[key] = _encode_tile(tensor_type, spread, self._seed)
            return self._tiles[key]


def _encode_tile(tensor_type: TensorType, spread: float, seed: int) -> _Tile:
    # Another stream for each tile: a matrix that repeats the embedding would single out one token.
    random = np.random.default_rng([seed, tensor_type.ggml_id, int(1 / spread * 1e6)])
    numbers: npt.NDArray[np.float32] = random.standard_normal(TILE_NUMBERS, np.float32)
    numbers *= np.float32(spread)
    row = max(tensor_type.block, 32)
    length = tensor_type.nbytes((TILE_NUMBERS,))
    data = np.empty(2 * length, np.uint8)
    equal = np.ones(row, np.float32) if tensor_type.needs_importance else None
    encode_rows(numbers.reshape(-1, row), tensor_type, data[:length], equal)
    data[length:] = data[:length]
    return _Tile(data.data, length, tensor_type.block_bytes)
