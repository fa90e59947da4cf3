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

import errno
import json
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ..._version import __version__
from ...errors import EngineError, SessionError
from ...progress import Progress
from ...system.files import disk_hint, sync
from ...system.locks import lock
from ...units import told_apart
from ...untrusted import MAX_INTEGER, Reader, brief
from ..fingerprint import Fingerprint
from ..state import Checkpoint, SequenceState

MAGIC = b"L4EDGES\n"
"""The first bytes of every session."""

VERSION = 1

MAX_TEXT = 1 << 27
"""The longest text that is read, in bytes."""

OnProgress = Callable[[Progress], None]

_PREAMBLE = struct.Struct("<8sIIQ")
_CHECKED = struct.Struct("<IQ")
_FRAME = struct.Struct("<4sIQ")
_TAG_AND_LENGTH = struct.Struct("<4sQ")
_MAX_HEAD = 1 << 20
_PIECE = 1 << 20  # bytes that are read or written at a time, while a checksum has them in the cache
_MOVE_AWAY = "Move it away to begin anew."


def is_session(path: str | os.PathLike[str]) -> bool:
    """Whether a regular file begins as a session does; False too where it cannot be read."""
    with suppress(OSError, ValueError, SessionError), _opened(Path(path)) as (file, _):
        return file.read(len(MAGIC)) == MAGIC
    return False


@dataclass(frozen=True)
class Head:
    """What a session's file says of its state.

    ``n_tokens`` and ``nbytes`` are 0, and ``checkpoints`` empty, where it has none; of a checkpoint
    it names the tokens and the bytes.
    """

    writer: str
    fingerprint: Fingerprint
    n_tokens: int
    nbytes: int
    checkpoints: tuple[tuple[int, int], ...]

    @property
    def state_bytes(self) -> int:
        """Bytes of the state, checkpoints among them."""
        return self.nbytes + sum(nbytes for _, nbytes in self.checkpoints)


class SessionFile:
    """A session's file, opened to be read: its text was read, its state can be.

    Close it, or use it in a ``with`` statement. ``text`` is the conversation when the file was
    written, ``turns`` are its changes since, in order; ``log_end`` is where the next one goes, and
    ``torn`` how many bytes of one that was not written whole follow there. ``fault`` is what keeps
    the state from being used, None where nothing does; then ``head`` is there.

    Raises:
        SessionError: it cannot be read, is not a session, or its text is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self.size = _open(path)
        self.head: Head | None = None
        self.text = b""
        self.turns: tuple[bytes, ...] = ()
        self.fault: SessionError | None = None
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
            checkpoints = tuple(
                Checkpoint(n_tokens, reader.array(b"CHKP", nbytes))
                for n_tokens, nbytes in head.checkpoints
            )
            return SequenceState(tuple(tokens), data, checkpoints)
        except EngineError as error:
            raise SessionError(
                f"{self.path}: the session's state is damaged",
                found=error.found,
                expected=error.expected,
                hint=_MOVE_AWAY,
            ) from error
        except MemoryError:
            raise SessionError(
                f"{self.path}: this machine has not enough memory for the session",
                found=told_apart(head.state_bytes, 0)[0],
            ) from None

    def _read(self) -> None:
        """The text, and all else that is not the state."""
        preamble = self._file.read(_PREAMBLE.size)
        if preamble[: len(MAGIC)] != MAGIC:
            raise _not_a_session(self.path, preamble)
        frames = _Frames(self._file, self.path, _PREAMBLE.size, self.size)
        self.text = frames.content(b"TEXT", "the conversation in it", MAX_TEXT)
        _, self.version, checksum, log_begin = _PREAMBLE.unpack(preamble)
        try:
            if zlib.crc32(_CHECKED.pack(self.version, log_begin)) != checksum:
                raise _damaged(self.path, "its beginning")
            self._read_log(log_begin, frames.at)
            if self.version != VERSION:
                newer = self.version > VERSION
                raise SessionError(
                    f"{self.path}: the session is of {'a newer' if newer else 'an older'} version",
                    found=str(self.version),
                    expected=str(VERSION),
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
            found, expected = told_apart(self.size, begin)
            raise SessionError(
                f"{self.path}: the session is truncated",
                found=found,
                expected=f"at least {expected}",
                hint="Copy it again, or move it away to begin anew.",
            )
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
        # What a crash left is at the end: something whole after it means that bytes were changed.
        if self.torn and frames.has_passed_whole:
            self.fault = _damaged(self.path, f"what was said after change {len(turns)}")


class _Frames:
    """Reads one frame after the other, within the file and within limits."""

    def __init__(self, file: BinaryIO, path: Path, begin: int, end: int) -> None:
        self.at = begin
        self.on_progress: OnProgress | None = None
        self.total = self._done = 0
        self.has_passed_whole = False
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

    def _array(self, tag: bytes, what: str, least: int, most: int) -> npt.NDArray[np.uint8]:
        if self.left < _FRAME.size:
            raise _damaged(self._path, what)
        self._file.seek(self.at)
        header = self._file.read(_FRAME.size)
        found, checksum, length = _FRAME.unpack(header)
        if found != tag or not least <= length <= min(most, self.left - _FRAME.size):
            raise _damaged(self._path, what)
        content = np.empty(length, np.uint8)
        computed = zlib.crc32(_TAG_AND_LENGTH.pack(tag, length))
        for begin in range(0, length, _PIECE):
            piece = content[begin : begin + _PIECE]
            if self._file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
                raise _damaged(self._path, what)
            computed = zlib.crc32(piece, computed)
            self._done += len(piece)
            if self.on_progress is not None:
                self.on_progress(Progress(self._done, self.total, self._path.name))
        if computed != checksum:
            self.has_passed_whole = self.left > _FRAME.size + length
            raise _damaged(self._path, what)
        self.at += _FRAME.size + length
        return content


def _head(content: bytes, path: Path) -> Head:
    """The head, in which every number is one that a file can have.

    Raises:
        SessionError: an entry is missing, or is of another type.
    """
    reader = Reader(SessionError, _MAX_HEAD, hint=_MOVE_AWAY)
    record = reader.as_record(reader.parse(content, str(path)), str(path))
    checkpoints = tuple(
        (one.integer("n_tokens", 1, MAX_INTEGER // 16), one.integer("bytes"))
        for one in record.records("checkpoints")
    )
    n_tokens = record.integer("n_tokens", 0, MAX_INTEGER // 16)
    fingerprint = Fingerprint.of_record(record.record("fingerprint"))
    return Head(
        brief(record.text("writer")), fingerprint, n_tokens, record.integer("bytes"), checkpoints
    )


def _state_size(head: Head) -> int:
    """Bytes that the state takes in the file, frames among them."""
    if not head.n_tokens:
        return 0
    n_frames = 2 + len(head.checkpoints)
    return n_frames * _FRAME.size + 8 * head.n_tokens + head.state_bytes


# --- writing


class SessionWriter:
    """A session's file that this process alone writes, whether it exists yet or not. Close it.

    ``exists`` is whether there is one. Reading it needs no writer.

    Raises:
        SessionError: another process has it, or what is there is not a session.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # Beside the file that a link points to: a rename works within one file system.
        self._target = Path(os.path.realpath(self.path))
        name = self._target.name
        self._partial = self._target.with_name(
            f".{name[:40]}.{zlib.crc32(os.fsencode(name)):08x}.partial"
        )
        self._file: BinaryIO | None = None
        self._end = self._size = 0
        with _writing(self.path):
            self._claim()
        self.exists = self._file is not None

    def __enter__(self) -> SessionWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(
        self,
        text: bytes,
        fingerprint: Fingerprint,
        state: SequenceState | None,
        on_progress: OnProgress | None = None,
    ) -> int:
        """Replace the file in one step, or begin it; returns its bytes.

        Raises:
            SessionError: it cannot be written; what was there before is still there.
        """
        if len(text) > MAX_TEXT:
            found, limit = told_apart(len(text), MAX_TEXT)
            raise SessionError(
                f"{self.path}: the conversation is too long", found=found, expected=limit
            )
        with _writing(self.path):
            file = self._begin()
            try:
                end = _write(file, text, fingerprint, state, on_progress, self.path.name)
                file.flush()
                sync(file.fileno())
                if os.name == "nt":  # where a file that is open cannot get another name
                    file.close()
                    self.close()
                self._partial.replace(self._target)
            except BaseException:
                file.close()
                self._partial.unlink(missing_ok=True)
                raise
            self.close()
            self._file, self.exists = file, True
            self._end = self._size = end
            if os.name == "nt":
                self._claim()
            else:
                _sync_directory(self._target.parent)
        return end

    def append(self, turn: bytes) -> None:
        """Add a change of the conversation to the end, in place of one that was not written whole.

        Raises:
            SessionError: it cannot be written, or another process has changed the file.
        """
        file = self._file
        assert file is not None
        with _writing(self.path):
            if os.fstat(file.fileno()).st_size != self._size or not self._is_current(file):
                raise SessionError(
                    f"{self.path}: another process has changed the session meanwhile",
                    hint="Save the conversation under another name.",
                )
            file.truncate(self._end)
            file.seek(self._end)
            try:
                end = self._end + _write_frame(file, b"TURN", [turn])
                file.flush()
                sync(file.fileno(), data_only=True)
                self._end = end
            finally:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), self._end)
                self._size = os.fstat(file.fileno()).st_size

    def goes_on(self, file: SessionFile) -> None:
        """Append where the log that was read ends."""
        self._end, self._size = file.log_end, file.size

    def remove(self) -> None:
        """Remove the file, in which nothing was said, and close."""
        with suppress(OSError):
            if self._file is not None and self._is_current(self._file):
                self._target.unlink()
        self.close()

    def _claim(self) -> None:
        """Lock what is there, and remove what a process that was killed left beside it."""
        while self._file is None and os.path.lexists(self._target):
            file = _open_locked(self._target, os.O_RDWR, self.path)
            if not self._is_current(file):  # it was replaced before it was locked
                file.close()
                continue
            self._file = file
            beginning = file.read(_PREAMBLE.size)
            if beginning[: len(MAGIC)] != MAGIC:
                self.close()
                raise _not_a_session(self.path, beginning)
        if self._partial.exists():
            self._begin().close()
            self._partial.unlink(missing_ok=True)

    def _begin(self) -> BinaryIO:
        """The file that gets the session's name when it is whole: locked, and empty."""
        while True:
            file = _open_locked(self._partial, os.O_RDWR | os.O_CREAT, self.path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._partial)):
                    file.truncate(0)
                    return file
            file.close()

    def _is_current(self, file: BinaryIO) -> bool:
        """Whether the session's name is still that of this open file."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._target))
        except FileNotFoundError:
            return False


def _write(
    file: BinaryIO,
    text: bytes,
    fingerprint: Fingerprint,
    state: SequenceState | None,
    on_progress: OnProgress | None,
    name: str,
) -> int:
    """Write all of a session; returns where its log begins."""
    checkpoints = () if state is None else state.checkpoints
    head = {
        "writer": f"llama4-edge {__version__}",
        "fingerprint": asdict(fingerprint),
        "n_tokens": 0 if state is None else len(state.tokens),
        "bytes": 0 if state is None else state.data.nbytes,
        "checkpoints": [{"n_tokens": one.n_tokens, "bytes": one.nbytes} for one in checkpoints],
    }
    total = 0 if state is None else 8 * len(state.tokens) + state.nbytes
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if on_progress is not None:
            on_progress(Progress(done, total, name))

    file.write(bytes(_PREAMBLE.size))
    _write_frame(file, b"TEXT", [text])
    _write_frame(file, b"HEAD", [json.dumps(head).encode()])
    if state is not None:
        _write_frame(file, b"TOKS", _pieces(np.array(state.tokens, "<i8").view(np.uint8)), count)
        _write_frame(file, b"STAT", _pieces(state.data), count)
        for checkpoint in checkpoints:
            _write_frame(file, b"CHKP", _pieces(checkpoint.data), count)
    end = file.tell()
    file.seek(0)
    file.write(_PREAMBLE.pack(MAGIC, VERSION, zlib.crc32(_CHECKED.pack(VERSION, end)), end))
    file.seek(end)
    return end


def _write_frame(
    file: BinaryIO,
    tag: bytes,
    pieces: Iterable[bytes | npt.NDArray[np.uint8]],
    count: Callable[[int], None] = lambda _: None,
) -> int:
    """Write a frame whose content comes in pieces; returns its bytes."""
    pieces = list(pieces)
    length = sum(len(piece) for piece in pieces)
    begin = file.tell()
    file.write(bytes(_FRAME.size))
    checksum = zlib.crc32(_TAG_AND_LENGTH.pack(tag, length))
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        file.write(piece)
        count(len(piece))
    file.seek(begin)
    file.write(_FRAME.pack(tag, checksum, length))
    file.seek(begin + _FRAME.size + length)
    return _FRAME.size + length


def _pieces(data: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.uint8]]:
    """Views of all of it, one after the other."""
    return (data[begin : begin + _PIECE] for begin in range(0, len(data), _PIECE))


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


def _open_locked(target: Path, flags: int, path: Path) -> BinaryIO:
    """A regular file for this process alone, private if it is made.

    Raises:
        OSError: it cannot be opened, or is something else.
        SessionError: another process has it.
    """
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = os.fdopen(os.open(target, flags | getattr(os, "O_BINARY", 0), 0o600), "r+b")
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", os.fspath(target))
        if not lock(file.fileno(), path):
            raise SessionError(
                f"{path}: another process has this session open",
                hint="Close the chat that uses it, or choose another file.",
            )
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the system refuses is one error."""
    try:
        yield
    except (OSError, ValueError) as error:
        is_of_disk = isinstance(error, OSError)
        raise SessionError(
            f"{path}: the session cannot be saved",
            found=getattr(error, "strerror", None) or str(error),
            hint=disk_hint(error) if is_of_disk else None,
        ) from error


def _sync_directory(directory: Path) -> None:
    """Bring the file's name to the disk; a failure costs only the newest state after a crash."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def _damaged(path: Path, what: str) -> SessionError:
    return SessionError(
        f"{path}: the session is damaged",
        found=f"{what} that does not fit its checksum or its length",
        hint=f"Copy it again from where it is whole. {_MOVE_AWAY}",
    )


def _not_a_session(path: Path, beginning: bytes) -> SessionError:
    is_json = beginning.lstrip()[:1] == b"{"
    return SessionError(
        f"{path} is not a session",
        found="nothing in it" if not beginning else "JSON" if is_json else "something else",
        expected="a file that --session or save_session wrote",
        hint="/load opens a saved conversation." if is_json else "Choose another name.",
    )
