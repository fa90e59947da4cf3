"""A reference's predictions over a text, in a file: what `compare` needs of it, and no more.

    magic, version, length of the header; a header in JSON; token ids, int32
    blocks of predictions: how many, of how many bytes, their CRC-32; these

Several blocks make up a chunk. In a block come, of all its predictions, how many tokens are kept,
uint32, and four float32; then of each the ids that are kept, int32, and their steps, uint16. Where
a model is unsure of everything, the steps of the whole vocabulary without ids take less, as they do
in llama-perplexity's file: their number is then `_DENSE`.

Promises that a file is whole or not there, and that nothing is allocated that it is too short for.
Numbers are little-endian. Knows no model.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import ModelFileError, OutputError
from ..system.files import disk_hint, sync
from ..untrusted import Reader, shown
from .divergence import Prediction, counting

MAGIC = b"L4-REFER"
_VERSION = 2
_BEGIN = struct.Struct("<8sII")
_BLOCK = struct.Struct("<IQI")
_MAX_HEADER = 1 << 20
_MAX_TOKENS = 1 << 31
_MAX_ROWS = 1 << 12  # predictions of a block; those of one call are at most 256
_DENSE = 0xFFFFFFFF
_SPARSE_BYTES, _DENSE_BYTES = 6, 2  # of a token that is kept, and of one of the vocabulary


@dataclass(frozen=True)
class ReferenceText:
    """What was predicted: the text's tokens, in chunks of `n_ctx`, by a vocabulary.

    Args:
        model: the name of the reference's file.
        vocabulary: a digest of its tokens.
        n_vocab: how many these are.
        bos: the token that stands in place of the first one of each chunk; None for none.
        tokens: n_ctx of them for each chunk.
    """

    model: str
    vocabulary: str
    n_vocab: int
    n_ctx: int
    bos: int | None
    tokens: tuple[int, ...]

    @property
    def first(self) -> int:
        """The first place in a chunk whose prediction counts: the half before it is context."""
        return self.n_ctx // 2

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return len(self.tokens) // self.n_ctx

    @property
    def n_predicted(self) -> int:
        """How many predictions of each chunk count."""
        return self.n_ctx - 1 - self.first

    def chunk(self, number: int) -> list[int]:
        """The tokens to decode."""
        begin = number * self.n_ctx
        tokens = list(self.tokens[begin : begin + self.n_ctx])
        return tokens if self.bos is None else [self.bos, *tokens[1:]]

    def following(self, number: int) -> Sequence[int]:
        """The tokens that are predicted."""
        begin = number * self.n_ctx
        return self.tokens[begin + self.first + 1 : begin + self.n_ctx]


class ReferenceFile:
    """Predictions that are written chunk by chunk and then read, any number of times."""

    def __init__(self, file: IO[bytes], name: str, text: ReferenceText, begin: int) -> None:
        self.text = text
        self._file, self._name = file, name
        self._begins = {0: begin}  # of each chunk that is known

    def write(self, number: int, place: int, predictions: Sequence[Prediction]) -> None:
        """Append those of chunk `number` from `place` on; from 0, what it had is written anew."""
        data = _encoded(predictions, self.text.n_vocab)
        with _written(self._name):
            if place == 0:
                self._file.seek(self._begins[number])
                self._file.truncate()
            head = _BLOCK.pack(len(predictions), len(data), zlib.crc32(data))
            self._file.write(head + data)
            self._begins[number + 1] = self._file.tell()

    def predictions(self, number: int) -> Iterator[Prediction]:
        """Those of a chunk; of a chunk after those that were read or written.

        Raises:
            ModelFileError: the file is damaged.
        """
        self._file.seek(self._begins[number])
        left = self.text.n_predicted
        while left:
            block = self._block(number, left)
            left -= len(block)
            if not left:
                self._begins[number + 1] = self._file.tell()
            yield from block

    def _block(self, number: int, most: int) -> list[Prediction]:
        count, length, checksum = _BLOCK.unpack(self._read(_BLOCK.size))
        if not 0 < count <= min(most, _MAX_ROWS):
            raise self._damaged(f"{count} predictions together in chunk {number}")
        data = self._read(length)
        if zlib.crc32(data) != checksum:
            raise self._damaged(f"another checksum than that of chunk {number}")
        block = _decoded(data, count, self.text.n_vocab)
        if block is None:
            raise self._damaged(f"tokens that are none in chunk {number}")
        return block

    def _read(self, count: int) -> bytes:
        left = os.fstat(self._file.fileno()).st_size - self._file.tell()
        data = self._file.read(count) if count <= left else b""
        if len(data) != count:
            raise self._damaged(f"{left} bytes where {count} are needed")
        return data

    def _damaged(self, found: str) -> ModelFileError:
        return ModelFileError(
            f"{self._name} is a damaged file of predictions",
            found=found,
            hint="Save the predictions again.",
        )


def _encoded(predictions: Sequence[Prediction], n_vocab: int) -> bytes:
    """The bytes of a block."""
    dense = [_SPARSE_BYTES * len(one.ids) > _DENSE_BYTES * n_vocab for one in predictions]
    lengths = [_DENSE if row else len(one.ids) for row, one in zip(dense, predictions, strict=True)]
    numbers = [(one.step, one.floor, one.own, one.own_kept) for one in predictions]
    parts = [np.array(lengths, "<u4").tobytes(), np.array(numbers, "<f4").tobytes()]
    for row, one in zip(dense, predictions, strict=True):
        if row:
            # A token without a step is at the floor. Either all that are there count, and all are
            # kept, or they do not count.
            steps = np.zeros(n_vocab, "<u2")
            steps[one.ids] = one.steps
            parts.append(steps.tobytes())
        else:
            parts.append(one.ids.astype("<i4", copy=False).tobytes())
            parts.append(one.steps.astype("<u2", copy=False).tobytes())
    return b"".join(parts)


def _decoded(data: bytes, count: int, n_vocab: int) -> list[Prediction] | None:
    """The predictions of a block; None where its bytes are not that many."""
    if len(data) < 20 * count:
        return None
    lengths = np.frombuffer(data, "<u4", count).tolist()
    numbers = np.frombuffer(data, "<f4", 4 * count, 4 * count).reshape(count, 4)
    sizes = [_DENSE_BYTES * n_vocab if n == _DENSE else _SPARSE_BYTES * n for n in lengths]
    if sum(sizes) != len(data) - 20 * count:
        return None
    predictions = []
    place = 20 * count
    for length, size, few in zip(lengths, sizes, numbers, strict=True):
        step, floor, own, own_kept = map(np.float32, few)
        if length == _DENSE:
            every = np.frombuffer(data, "<u2", n_vocab, place)
            kept = counting(every, step, floor)
            ids = np.flatnonzero(kept).astype(np.int32)
            steps = every[kept]
        else:
            ids = np.frombuffer(data, "<i4", length, place)
            steps = np.frombuffer(data, "<u2", length, place + 4 * length)
            if length and not (ids.min() >= 0 and ids.max() < n_vocab):
                return None
        predictions.append(Prediction(ids, steps, step, floor, own, own_kept))
        place += size
    return predictions


def is_reference_file(path: Path) -> bool:
    """Whether a file of predictions is there."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):  # a NUL in the name, or what is no text, is a ValueError
        return False


@contextmanager
def new_reference(text: ReferenceText, path: Path | None) -> Iterator[ReferenceFile]:
    """A file to write and then to read, which gets its name when the block ends well.

    Args:
        path: None is a file without a name, which is gone afterwards.

    Raises:
        OutputError: it cannot be written.
    """
    name = "the temporary file of predictions" if path is None else os.fspath(path)
    target = None if path is None else Path(os.path.realpath(path))
    with _written(name):
        if target is None:
            file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
            partial = None
        else:
            partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
            file = partial.open("w+b")
    try:
        begin = _write_header(file, name, text)
        yield ReferenceFile(file, name, text, begin)
        if partial is not None and target is not None:
            with _written(name):
                sync(file.fileno())
                partial.replace(target)
    finally:
        with suppress(OSError):
            file.close()
        if partial is not None:
            partial.unlink(missing_ok=True)


@contextmanager
def opened_reference(path: Path) -> Iterator[ReferenceFile]:
    """A file of predictions, to be read.

    Raises:
        ModelFileError: it is none, or damaged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read", found=error.strerror) from error
    with file:
        yield _read_header(file, path)


def _write_header(file: IO[bytes], name: str, text: ReferenceText) -> int:
    header = {key: value for key, value in asdict(text).items() if key != "tokens"}
    header["n_tokens"] = len(text.tokens)
    data = json.dumps(header).encode()
    with _written(name):
        file.write(_BEGIN.pack(MAGIC, _VERSION, len(data)) + data)
        file.write(np.array(text.tokens, "<i4").tobytes())
    return _BEGIN.size + len(data) + 4 * len(text.tokens)


def _read_header(file: IO[bytes], path: Path) -> ReferenceFile:
    begin = file.read(_BEGIN.size)
    magic, version, length = _BEGIN.unpack(begin) if len(begin) == _BEGIN.size else (b"", 0, 0)
    if magic != MAGIC:
        raise ModelFileError(f"{path} is not a file of predictions", found=shown(begin[:8]))
    if version != _VERSION or length > _MAX_HEADER:
        raise ModelFileError(
            f"{path} is of another version of this program", found=version, expected=_VERSION
        )
    reader = Reader(ModelFileError, _MAX_HEADER, hint="Save the predictions again.")
    name = f"the header of {path}"
    header = reader.as_record(reader.parse(file.read(length), name), name)
    n_vocab, n_ctx = header.integer("n_vocab", least=1), header.integer("n_ctx", least=2)
    n_tokens = header.integer("n_tokens", least=0)
    left = os.fstat(file.fileno()).st_size - file.tell()
    if n_tokens > min(left // 4, _MAX_TOKENS) or n_tokens % n_ctx:
        raise header.fault("n_tokens", f"chunks of {n_ctx}, in {left} bytes")
    tokens = np.frombuffer(file.read(4 * n_tokens), "<i4")
    bos = header.integer("bos", -1, default=-1)
    text = ReferenceText(
        model=header.text("model"),
        vocabulary=header.text("vocabulary"),
        n_vocab=n_vocab,
        n_ctx=n_ctx,
        bos=None if bos < 0 else bos,
        tokens=tuple(tokens.tolist()),
    )
    if n_tokens and not (tokens.min() >= 0 and max(int(tokens.max()), bos) < n_vocab):
        raise header.fault("n_vocab", "more than every token")
    return ReferenceFile(file, os.fspath(path), text, file.tell())


@contextmanager
def _written(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{name} cannot be written", found=error.strerror, hint=disk_hint(error)
        ) from error
