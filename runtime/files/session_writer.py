"""Writes the file of a session; see ``session_file`` for its form.

Promises that it is replaced in one step, that one process writes it at a time, and that nothing is
left of a process that was killed meanwhile, or the next one removes it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from io import RawIOBase
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..._version import __version__
from ...errors import SessionError
from ...progress import Progress
from ...ranges import as_path
from ...system.files import disk_hint, sync
from ...system.locks import lock
from ...units import told_apart
from ..features import SeenPicture
from ..fingerprint import Fingerprint
from ..state import SequenceState
from .foreign import SESSION_MAGIC
from .session_file import (
    CHECKED,
    FRAME,
    MAX_TEXT,
    PIECE,
    PREAMBLE,
    TAG_AND_LENGTH,
    VERSION,
    VERSION_BEFORE,
    OnProgress,
    SessionFile,
    not_a_session,
)


class SessionWriter:
    """A session's file that this process alone writes, whether it exists yet or not. Close it.

    ``exists`` is whether there is one. Reading it needs no writer.

    Raises:
        SessionError: another process has it, or what is there is not a session.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(as_path("path", path))
        self._file: RawIOBase | None = None
        self._end = self._size = 0
        with _writing(self.path):
            # Beside the file that a link points to: a rename works within one file system.
            self._target = Path(os.path.realpath(self.path))
            name = self._target.name
            self._partial = self._target.with_name(
                f".{name[:40]}.{zlib.crc32(os.fsencode(name)):08x}.partial"
            )
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
        pictures: Sequence[SeenPicture] = (),
    ) -> int:
        """Replace the file in one step, or begin it; returns its bytes.

        Args:
            text: the conversation.
            fingerprint: of the state.
            state: None where there is none.
            on_progress: called with the bytes written so far.
            pictures: those that the state has features of.

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
                end = _write(file, text, fingerprint, state, on_progress, self.path.name, pictures)
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
            beginning = file.read(PREAMBLE.size)
            if beginning[: len(SESSION_MAGIC)] != SESSION_MAGIC:
                self.close()
                raise not_a_session(self.path, beginning)
        # Whether one can be written is known from here on.
        self._begin().close()
        self._partial.unlink(missing_ok=True)

    def _begin(self) -> RawIOBase:
        """The file that gets the session's name when it is whole: locked, and empty."""
        while True:
            file = _open_locked(self._partial, os.O_RDWR | os.O_CREAT, self.path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self._partial.stat()):
                    file.truncate(0)
                    return file
            file.close()

    def _is_current(self, file: RawIOBase) -> bool:
        """Whether the session's name is still that of this open file."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._target.stat())
        except FileNotFoundError:
            return False


def _write(
    file: RawIOBase,
    text: bytes,
    fingerprint: Fingerprint,
    state: SequenceState | None,
    on_progress: OnProgress | None,
    name: str,
    pictures: Sequence[SeenPicture],
) -> int:
    """Write all of a session; returns where its log begins."""
    checkpoints = () if state is None else state.checkpoints
    head = {
        "writer": f"llama4-edge {__version__}",
        "fingerprint": asdict(fingerprint),
        "n_tokens": 0 if state is None else len(state.tokens),
        "bytes": 0 if state is None else state.data.nbytes,
        "checkpoints": [{"n_tokens": one.n_tokens, "bytes": one.nbytes} for one in checkpoints],
        "pictures": [
            {
                "file": one.file.hex(),
                "columns": one.size[0],
                "rows": one.size[1],
                "digest": one.digest.hex(),
            }
            for one in pictures
        ],
    }
    total = 0 if state is None else 8 * len(state.tokens) + state.nbytes
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if on_progress is not None:
            try:
                on_progress(Progress(done, total, name))
            except Exception as error:
                raise _ProgressError from error

    _write_bytes(file, bytes(PREAMBLE.size))
    _write_frame(file, b"TEXT", [text])
    _write_frame(file, b"HEAD", [json.dumps(head).encode()])
    if state is not None:
        _write_frame(file, b"TOKS", _pieces(np.array(state.tokens, "<i8").view(np.uint8)), count)
        _write_frame(file, b"STAT", _pieces(state.data), count)
        for checkpoint in checkpoints:
            _write_frame(file, b"CHKP", _pieces(checkpoint.data), count)
    end = file.tell()
    file.seek(0)
    has_adapters = fingerprint.adapters or fingerprint.control_vector
    version = VERSION if has_adapters else VERSION_BEFORE
    _write_bytes(
        file, PREAMBLE.pack(SESSION_MAGIC, version, zlib.crc32(CHECKED.pack(version, end)), end)
    )
    file.seek(end)
    return end


def _write_frame(
    file: RawIOBase,
    tag: bytes,
    pieces: Iterable[bytes | memoryview],
    count: Callable[[int], None] = lambda _: None,
) -> int:
    """Write a frame whose content comes in pieces; returns its bytes."""
    pieces = list(pieces)
    length = sum(len(piece) for piece in pieces)
    begin = file.tell()
    _write_bytes(file, bytes(FRAME.size))
    checksum = zlib.crc32(TAG_AND_LENGTH.pack(tag, length))
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        _write_bytes(file, piece)
        count(len(piece))
    file.seek(begin)
    _write_bytes(file, FRAME.pack(tag, checksum, length))
    file.seek(begin + FRAME.size + length)
    return FRAME.size + length


def _write_bytes(file: RawIOBase, data: bytes | memoryview) -> None:
    """Write all of it; the system may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def _pieces(data: npt.NDArray[np.uint8]) -> Iterator[memoryview]:
    """Views of all of it, one after the other."""
    return (data[begin : begin + PIECE].data for begin in range(0, len(data), PIECE))


# --- opening, and what the system refuses


def _open_locked(target: Path, flags: int, path: Path) -> RawIOBase:
    """A regular file for this process alone, private if it is made.

    Raises:
        OSError: it cannot be opened, or is something else.
        SessionError: another process has it.
    """
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    # Without a buffer: what a full disk refused is not tried again later.
    descriptor = os.open(target, flags | getattr(os, "O_BINARY", 0), 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", os.fspath(target))
    file = os.fdopen(descriptor, "r+b", buffering=0)
    try:
        if not lock(file.fileno(), path):
            raise SessionError(
                f"{path}: another process has this session open",
                hint="Close the chat that uses it, or choose another file.",
            )
    except BaseException:
        file.close()
        raise
    return file


class _ProgressError(Exception):
    """Its cause is what ``on_progress`` raised, which is not the file's."""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the system refuses is one error."""
    try:
        yield
    except _ProgressError as raised:
        assert raised.__cause__ is not None
        raise raised.__cause__ from None
    except (OSError, ValueError) as error:
        raise SessionError(
            f"{path}: the session cannot be saved",
            found=getattr(error, "strerror", None) or str(error),
            hint=disk_hint(error) if isinstance(error, OSError) else None,
        ) from error


def _sync_directory(directory: Path) -> None:
    """Bring the file's name to the disk; a failure costs only the newest state after a crash."""
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)
