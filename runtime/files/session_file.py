"""The file of a session: what was said, as text, and what llama.cpp holds of it.

Promises that a file which exists is whole: it is replaced in one step, and what is appended counts
only when all of it is there. Every part has a checksum and a length that is compared with the
file's before memory is taken for it. The text opens even where nothing else does. Does not know
what the text says.

Numbers are little endian. A frame is a tag of 4 bytes, the CRC-32 of its tag, length and content
(u32), the length of its content (u64), and the content::

    8 bytes   magic
    u32       version
    u32       CRC-32 of the version and of the next number
    u64       where the log begins, in bytes from the beginning
    TEXT      the conversation as JSON, when the file was written
    HEAD      JSON: the fingerprint, and how many tokens and bytes follow
    TOKS      int64 of each position                   these three only where there is a state
    STAT      llama.cpp's bytes of the sequence
    CHKP      the same of each checkpoint
    TURN …    the log: changes of the conversation as JSON, appended one by one

The first five stay what they are in every version, so that the text can always be read. Nothing is
compressed: the bytes of a KV cache hardly become fewer (``benchmarks/session.py``).
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ...errors import EngineError, SessionError
from ...progress import Progress
from ...ranges import as_path
from ...units import told_apart
from ...untrusted import MAX_INTEGER, Reader, Record, brief
from ..features import SeenPicture
from ..fingerprint import Fingerprint
from ..state import Checkpoint, SequenceState
from .foreign import SESSION_MAGIC

VERSION, VERSION_BEFORE = 2, 1
"""Of what was read with adapters, which releases that know none must not take up; of all else."""

MAX_TEXT = 1 << 27
"""The longest text that is read, in bytes."""

OnProgress = Callable[[Progress], None]

PREAMBLE = struct.Struct("<8sIIQ")
CHECKED = struct.Struct("<IQ")
FRAME = struct.Struct("<4sIQ")
TAG_AND_LENGTH = struct.Struct("<4sQ")
_MAX_HEAD = 1 << 22
_MOST_PIXELS = 1 << 31  # of a picture's side
_MOST_GUESSES = 1000
PIECE = 1 << 20  # bytes that are read or written at a time, while a checksum has them in the cache
_AGAIN = "Copy it again from where it is whole, or move it away to begin anew."


def is_session(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file begins as a session does; False too where it cannot be read."""
    with suppress(OSError, ValueError, SessionError), _opened(Path(path)) as (file, _):
        return file.read(len(SESSION_MAGIC)) == SESSION_MAGIC
    return False


@dataclass(frozen=True)
class Head:
    """What a session's file says of its state.

    ``n_tokens`` and ``nbytes`` are 0, and the others empty, where it has none; of a checkpoint
    it names the tokens and the bytes. ``pictures`` are those that it has features of.
    """

    writer: str
    fingerprint: Fingerprint
    n_tokens: int
    nbytes: int
    checkpoints: tuple[tuple[int, int], ...]
    pictures: tuple[SeenPicture, ...] = ()

    @property
    def state_bytes(self) -> int:
        """Bytes of the state, checkpoints among them."""
        return self.nbytes + sum(nbytes for _, nbytes in self.checkpoints)


class SessionFile:
    """A session's file, opened to be read: its text was read, its state can be.

    Close it, or use it in a ``with`` statement. ``text`` is the conversation when the file was
    written, ``turns`` are its changes since, in order; ``log_end`` is where the next one goes, and
    ``torn`` how many bytes of one that was not written whole follow there. ``fault`` is what keeps
    the state from being used, None where nothing does; then ``head`` is there. ``is_appendable`` is
    whether the log is whole, but for a torn end.

    Raises:
        SessionError: it cannot be read, is not a session, or its text is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(as_path("path", path))
        self._file, self.size = _open(self.path)
        self.head: Head | None = None
        self.text = b""
        self.turns: tuple[bytes, ...] = ()
        self.fault: SessionError | None = None
        self.is_appendable = False
        self.version, self.log_end, self.torn, self._state_begin = VERSION, 0, 0, 0
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SessionFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the text stays."""
        self._file.close()

    def read_state(self, on_progress: OnProgress | None = None) -> SequenceState | None:
        """The state, None if there is none; raises `fault` if there is one.

        Raises:
            SessionError: it is damaged, or memory is short.
        """
        if self.fault is not None:
            raise self.fault
        head = self.head
        assert head is not None
        if not head.n_tokens:
            return None
        reader = _Frames(self._file, self.path, self._state_begin, self.size)
        reader.on_progress = on_progress
        reader.total = 8 * head.n_tokens + head.state_bytes
        try:
            tokens = reader.array(b"TOKS", 8 * head.n_tokens).view("<i8").tolist()
            data = reader.array(b"STAT", head.nbytes)
            parts = [(at, reader.array(b"CHKP", nbytes)) for at, nbytes in head.checkpoints]
        except MemoryError:
            raise SessionError(
                f"{self.path}: this machine has not enough memory for the session",
                found=told_apart(head.state_bytes, 0)[0],
            ) from None
        try:
            checkpoints = tuple(Checkpoint(*part) for part in parts)
            return SequenceState(tuple(tokens), data, checkpoints)
        except EngineError as error:
            raise SessionError(
                f"{self.path}: the session's state is damaged",
                found=error.found,
                expected=error.expected,
                hint=_AGAIN,
            ) from error

    def _read(self) -> None:
        """The text, and all else that is not the state."""
        preamble = self._file.read(PREAMBLE.size)
        if preamble[: len(SESSION_MAGIC)] != SESSION_MAGIC:
            raise not_a_session(self.path, preamble)
        frames = _Frames(self._file, self.path, PREAMBLE.size, self.size)
        self.text = frames.content(b"TEXT", "the conversation in it", MAX_TEXT)
        _, self.version, checksum, log_begin = PREAMBLE.unpack(preamble)
        try:
            if zlib.crc32(CHECKED.pack(self.version, log_begin)) != checksum:
                raise _damaged(self.path, "its beginning")
            self._read_log(log_begin, frames.at)
            if self.version not in (VERSION, VERSION_BEFORE):
                newer = self.version > VERSION
                raise SessionError(
                    f"{self.path}: the session is of {'a newer' if newer else 'an older'} version",
                    found=str(self.version),
                    expected=f"{VERSION_BEFORE} or {VERSION}",
                    hint="Open it with the release that saved it.",
                )
            self.head = _head(frames.content(b"HEAD", "its head", _MAX_HEAD), self.path)
            self._state_begin = frames.at
            if frames.at + _state_size(self.head) != log_begin:
                raise _damaged(self.path, "its head")
        except SessionError as error:
            self.fault = self.fault or error

    def _read_log(self, begin: int, least: int) -> None:
        """What was appended; an incomplete end is left out."""
        if begin > self.size:
            raise _truncated(self.path, self.size, begin)
        if begin < least:
            raise _damaged(self.path, "its beginning")
        frames = _Frames(self._file, self.path, begin, self.size)
        turns = []
        self.log_end = begin
        while frames.left:
            try:
                turns.append(frames.content(b"TURN", "what was said last", MAX_TEXT))
            except SessionError:
                break
            self.log_end = frames.at
        self.turns = tuple(turns)
        self.torn = self.size - self.log_end
        # A crash leaves something at the end; what is whole after it means that bytes were changed.
        if self.torn and frames.has_whole_after(b"TURN"):
            self.fault = _damaged(self.path, f"what was said after change {len(turns)}")
        self.is_appendable = self.fault is None and self.version in (VERSION, VERSION_BEFORE)


class _Frames:
    """Reads one frame after the other, within the file and within limits."""

    def __init__(self, file: BinaryIO, path: Path, begin: int, end: int) -> None:
        self.at = begin
        self.on_progress: OnProgress | None = None
        self.total = self._done = 0
        self._file, self._path, self._end = file, path, end

    @property
    def left(self) -> int:
        return self._end - self.at

    def content(self, tag: bytes, what: str, most: int) -> bytes:
        """The content of the next frame, of `most` bytes at most.

        Raises:
            SessionError: it is damaged, or the file ends before it does.
        """
        return self._array(tag, what, 0, most).tobytes()

    def array(self, tag: bytes, length: int) -> npt.NDArray[np.uint8]:
        """The same as an array, of exactly `length` bytes."""
        return self._array(tag, "its state", length, length)

    def has_whole_after(self, tag: bytes) -> bool:
        """Whether there is a whole frame anywhere after the next byte."""
        self._file.seek(self.at + 1)
        rest = self._file.read(min(self.left, MAX_TEXT))
        at = -1
        for _ in range(_MOST_GUESSES):
            if (at := rest.find(tag, at + 1)) < 0:
                return False
            guess = _Frames(self._file, self._path, self.at + 1 + at, self._end)
            with suppress(SessionError):
                guess.content(tag, "", MAX_TEXT)
                return True
        return False

    def _array(self, tag: bytes, what: str, least: int, most: int) -> npt.NDArray[np.uint8]:
        if self.left < FRAME.size:
            raise _damaged(self._path, what)
        self._file.seek(self.at)
        header = self._file.read(FRAME.size)
        found, checksum, length = FRAME.unpack(header)
        if found != tag or not least <= length <= most:
            raise _damaged(self._path, what)
        if (end := self.at + FRAME.size + length) > self._end:
            raise _truncated(self._path, self._end, end)
        content = np.empty(length, np.uint8)
        computed = zlib.crc32(TAG_AND_LENGTH.pack(tag, length))
        for begin in range(0, length, PIECE):
            piece = content[begin : begin + PIECE]
            if self._file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
                raise _damaged(self._path, what)
            computed = zlib.crc32(piece.data, computed)
            self._done += len(piece)
            if self.on_progress is not None:
                self.on_progress(Progress(self._done, self.total, self._path.name))
        if computed != checksum:
            raise _damaged(self._path, what)
        self.at += FRAME.size + length
        return content


def _head(content: bytes, path: Path) -> Head:
    """The head, in which every number is one that a file can have.

    Raises:
        SessionError: an entry is missing, or is of another type.
    """
    reader = Reader(SessionError, _MAX_HEAD, hint=_AGAIN)
    record = reader.as_record(reader.parse(content, str(path)), str(path))
    checkpoints = tuple(
        (one.integer("n_tokens", 1, MAX_INTEGER // 16), one.integer("bytes"))
        for one in record.records("checkpoints")
    )
    n_tokens = record.integer("n_tokens", 0, MAX_INTEGER // 16)
    return Head(
        brief(record.text("writer")),
        Fingerprint.of_record(record.record("fingerprint")),
        n_tokens,
        record.integer("bytes"),
        checkpoints,
        tuple(map(_picture, record.records("pictures", default=[]))),
    )


def _picture(record: Record) -> SeenPicture:
    """A picture in the head."""

    def digest(key: str) -> bytes:
        text = record.text(key)
        if re.fullmatch("[0-9a-f]{64}", text) is None:
            raise record.fault(key, "64 hexadecimal digits")
        return bytes.fromhex(text)

    size = record.integer("columns", 1, _MOST_PIXELS), record.integer("rows", 1, _MOST_PIXELS)
    return SeenPicture(digest("file"), size, digest("digest"))


def _state_size(head: Head) -> int:
    """Bytes that the state takes in the file, frames among them."""
    if not head.n_tokens:
        return 0
    n_frames = 2 + len(head.checkpoints)
    return n_frames * FRAME.size + 8 * head.n_tokens + head.state_bytes


# --- opening, and what goes wrong


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    file, size = _open(path)
    with file:
        yield file, size


def _open(path: Path) -> tuple[BinaryIO, int]:
    """A regular file and its size.

    Raises:
        SessionError: there is none, or it cannot be read.
    """
    # O_NONBLOCK: opening a pipe would wait for somebody to write to it.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError:
        raise SessionError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # a ValueError is a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise SessionError(f"{path} cannot be read", found=reason) from None
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise SessionError(f"{path} is not a regular file")
    return file, status.st_size


def _truncated(path: Path, size: int, least: int) -> SessionError:
    found, expected = told_apart(size, least)
    return SessionError(
        f"{path}: the session is truncated",
        found=found,
        expected=f"at least {expected}",
        hint=_AGAIN,
    )


def _damaged(path: Path, what: str) -> SessionError:
    return SessionError(
        f"{path}: the session is damaged",
        found=f"{what} that does not fit its checksum or its length",
        hint=_AGAIN,
    )


def not_a_session(path: Path, beginning: bytes) -> SessionError:
    """The error that a file begins otherwise."""
    is_json = beginning.lstrip()[:1] == b"{"
    return SessionError(
        f"{path} is not a session",
        found="nothing in it" if not beginning else "JSON" if is_json else "something else",
        expected="a file that --session or save_session wrote",
        hint="/load opens a saved conversation." if is_json else "Choose another name.",
    )
