"""A reference's predictions over a text, in a file: what `compare` needs of it, and no more.

    magic, version, length of the header; a header in JSON; token ids, int32
    for each chunk: how many predictions and how many tokens are kept; these; a CRC-32

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
from .divergence import Prediction

MAGIC = b"L4-REFER"
_VERSION = 1
_BEGIN = struct.Struct("<8sII")
_CHUNK = struct.Struct("<IQI")
_MAX_HEADER = 1 << 20
_MAX_TOKENS = 1 << 31


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
        self._file, self._name, self._begin = file, name, begin

    def write(self, predictions: Sequence[Prediction]) -> None:
        """Append those of the next chunk."""
        data = b"".join(
            [
                np.array([len(one.ids) for one in predictions], "<u4").tobytes(),
                np.array([_numbers(one) for one in predictions], "<f4").tobytes(),
                *(one.ids.astype("<i4", copy=False).tobytes() for one in predictions),
                *(one.steps.astype("<u2", copy=False).tobytes() for one in predictions),
            ]
        )
        kept = sum(len(one.ids) for one in predictions)
        with _written(self._name):
            self._file.write(_CHUNK.pack(len(predictions), kept, zlib.crc32(data)) + data)

    def chunks(self) -> Iterator[list[Prediction]]:
        """Those of each chunk.

        Raises:
            ModelFileError: the file is damaged.
        """
        self._file.seek(self._begin)
        for number in range(self.text.n_chunks):
            yield self._chunk(number)

    def _chunk(self, number: int) -> list[Prediction]:
        count, kept, checksum = _CHUNK.unpack(self._read(_CHUNK.size))
        if count != self.text.n_predicted or kept > count * self.text.n_vocab:
            raise self._damaged(f"{count} predictions of {kept} tokens in chunk {number}")
        data = self._read(count * 20 + kept * 6)
        if zlib.crc32(data) != checksum:
            raise self._damaged(f"another checksum than that of chunk {number}")
        lengths = np.frombuffer(data, "<u4", count)
        scales = np.frombuffer(data, "<f4", count * 4, count * 4).reshape(count, 4)
        ids = np.frombuffer(data, "<i4", kept, count * 20)
        steps = np.frombuffer(data, "<u2", kept, count * 20 + kept * 4)
        if int(lengths.sum(dtype=np.uint64)) != kept or (
            kept and not (ids.min() >= 0 and ids.max() < self.text.n_vocab)
        ):
            raise self._damaged(f"tokens that are none in chunk {number}")
        edges = np.cumsum(lengths.astype(np.int64))[:-1]
        rows = zip(np.split(ids, edges), np.split(steps, edges), scales, strict=True)
        return [Prediction(one, above, *map(np.float32, few)) for one, above, few in rows]

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


def _numbers(prediction: Prediction) -> tuple[np.float32, ...]:
    """The single ones of a prediction, in their order."""
    return prediction.step, prediction.floor, prediction.own, prediction.own_kept


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
