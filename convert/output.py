"""The GGUF being written: its parts, as `part_layout` has laid them out.

A part carries its final name only when all are whole; until then it lies beside it under a
temporary one, with a journal that says how far it got, so that the same command goes on where an
interrupted one stopped.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ..errors import DamagedTensorError, OutputError
from ..system.files import disk_hint, sync, write_atomically
from ..system.locks import lock
from ..system.page_cache import forget_cached, start_writing
from ..system.threads import end
from .part_layout import Part

JOURNAL_SUFFIX = ".partial.json"
# How long finished work may lie in the page cache alone before it is made safe.
COMMIT_SECONDS = 2.0

# Part number, byte offset, length.
_Extent = tuple[int, int, int]
# Told whether what it is about is safe.
_Settled = Callable[[bool], None]


class PartialOutput:
    """Parts under their temporary names, while they are filled.

    A context: left without an error it renames the parts; left with one it keeps them for the next
    run, unless the error says that the source itself is at fault.
    """

    def __init__(self, parts: Sequence[Part], identity: Mapping[str, str], *, force: bool) -> None:
        self._parts = parts
        self._identity = dict(identity)
        self._journal = _journal_of(parts)
        self._descriptors: list[int] = []
        self._committer = ThreadPoolExecutor(1, "commit")
        self._commits: deque[Future[None]] = deque()
        self._committed_at = time.monotonic()
        self._dirty: list[_Extent] = []
        self._lost = False
        self.slabs_done = 0
        resumable = all(part.partial.exists() for part in parts)
        _check_partials(parts, force=force)
        try:
            with _writing(parts[0]):
                # Before any part: what lies there without a journal is somebody else's.
                self._claim_journal()
                for part in parts:
                    self._descriptors.append(_open_locked(part.partial, os.O_CREAT))
                self.slabs_done = self._slabs_to_skip(force=force) if resumable else 0
                if not self.slabs_done:
                    self._begin()
        except BaseException:
            self._close()
            raise

    def _slabs_to_skip(self, *, force: bool) -> int:
        """Slabs that an interrupted conversion of the same kind has written."""
        journal = _read_journal(self._journal)
        if journal is None:
            return 0
        identity, done, _ = journal
        sizes = [os.fstat(descriptor).st_size for descriptor in self._descriptors]
        whole = sizes == [part.nbytes for part in self._parts]
        if identity == self._identity and (whole or not done):
            return done
        if force:
            return 0
        names = self._identity.keys() | identity.keys()
        changed = sorted(name for name in names if identity.get(name) != self._identity.get(name))
        since = f"changed since: {', '.join(changed) or 'the size of its parts'}"
        raise OutputError(
            f"{self._journal} belongs to another conversion",
            found=since if identity else "nothing that can be read",
            hint="Give --force to start over, or repeat the command that was interrupted.",
        )

    def _begin(self) -> None:
        self._write_journal(0, finishing=False)
        try:
            for part, descriptor in zip(self._parts, self._descriptors, strict=True):
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, part.nbytes)
                write_all(descriptor, 0, memoryview(part.header))
            self._commit(0, [])
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> PartialOutput:
        return self

    def write(self, part: int, offset: int, data: memoryview) -> None:
        """Put `data` at byte `offset` of a part.

        Raises:
            OutputError: the disk is full, or fails.
        """
        with _writing(self._parts[part]):
            write_all(self._descriptors[part], offset, data)
        # The kernel would leave gigabytes in memory for a while, and then all would wait for them.
        start_writing(self._descriptors[part], offset, len(data))
        self._dirty.append((part, offset, len(data)))

    def slab_done(self, settled: _Settled | None = None) -> None:
        """Count a slab, and now and then make sure of it, while the next ones are written.

        Args:
            settled: called, in another thread, with True once no loss of power can undo the slab,
                or with False when it could not be made safe.

        Raises:
            OutputError: what was written before could not be made safe.
        """
        self.slabs_done += 1
        while self._commits and self._commits[0].done():
            self._settle()
        late = time.monotonic() - self._committed_at > COMMIT_SECONDS
        # Whoever waits to be told must not wait for another slab, which may never come.
        if settled is not None or (late and not self._commits):
            dirty, self._dirty = self._dirty, []
            commit = self._committer.submit(self._commit, self.slabs_done, dirty, settled)
            self._commits.append(commit)

    def _settle(self) -> None:
        """Wait for the commits under way, and say whether one failed."""
        while self._commits:
            with _writing(self._parts[0]):
                self._commits.popleft().result()

    def _commit(
        self, slabs: int, dirty: Sequence[_Extent], settled: _Settled | None = None
    ) -> None:
        """First the data, then the journal that counts it: a loss of power loses no more.

        What the kernel failed to bring to the disk it says once, and then forgets; so after that
        the journal is left as it is.
        """
        safe = False
        try:
            if not self._lost:
                self._lost = True
                for descriptor in self._descriptors:
                    sync(descriptor, data_only=True)
                self._lost = False
                self._write_journal(slabs, finishing=False)
                safe = True
        finally:
            if settled is not None:
                settled(safe)
        for part, offset, length in dirty:
            forget_cached(self._descriptors[part], offset, length)
        self._committed_at = time.monotonic()

    def _claim_journal(self) -> None:
        """Have a journal before there is a part; of two that begin at once, the parts' locks choose
        one, which then writes its own."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with suppress(FileExistsError):
            descriptor = os.open(self._journal, flags, 0o666)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(self._state(0, finishing=False))
                file.flush()
                sync(descriptor)

    def _write_journal(self, slabs: int, *, finishing: bool) -> None:
        """Replace the journal; only who has locked the parts does."""
        state = self._state(slabs, finishing=finishing)
        write_atomically(self._journal, state, temporary=_fresh(self._journal))

    def _state(self, slabs: int, *, finishing: bool) -> str:
        state = {"identity": self._identity, "slabs_done": slabs, "finishing": finishing}
        return json.dumps(state)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            end(self._committer)
            # Where one failed, that is why anything else did.
            self._settle()
            if error is None:
                with _writing(self._parts[0]):
                    self._finish()
            elif isinstance(error, DamagedTensorError) or not self.slabs_done:
                self._discard()
            else:
                with suppress(OSError):
                    self._commit(self.slabs_done, self._dirty)
        finally:
            self._close()

    def _finish(self) -> None:
        for descriptor in self._descriptors:
            sync(descriptor)
        for part, offset, length in self._dirty:
            forget_cached(self._descriptors[part], offset, length)
        self._write_journal(self.slabs_done, finishing=True)
        _rename(self._parts, self._journal)

    def _discard(self) -> None:
        for part in self._parts:
            part.partial.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


def finish_interrupted(parts: Sequence[Part], identity: Mapping[str, str], *, force: bool) -> bool:
    """Give parts their names where all were whole already when a conversion was stopped.

    Args:
        parts: the whole output.
        identity: of the conversion; another one's parts are left alone.
        force: existing files may be replaced.

    Returns:
        Whether that was so, and the conversion is therefore done.

    Raises:
        OutputError: it was so, but the names cannot be given.
    """
    path = _journal_of(parts)
    journal = _read_journal(path)
    if journal is None or journal[0] != dict(identity) or not journal[2]:
        return False
    waiting = [part for part in parts if part.partial.exists()]
    if any(part.path.exists() for part in waiting) and not force:
        return False
    if not all(_is_whole(part, part.partial if part in waiting else part.path) for part in parts):
        return False
    with _writing(parts[0]), ExitStack() as locks:
        for part in waiting:
            locks.callback(os.close, _open_locked(part.partial))
        _rename(waiting, path)
    return True


def may_lack_names(parts: Sequence[Part]) -> bool:
    """Whether a conversion was stopped while it gave parts their names, perhaps this one.

    For a conversion whose types, and so whose bytes, are not chosen yet: `finish_interrupted` says
    afterwards whether it is the same one.

    Raises:
        OutputError: a temporary name is taken by something that is not a part under way.
    """
    _check_partials(parts, force=False)
    journal = _read_journal(_journal_of(parts))
    is_finishing = journal is not None and journal[2]
    return is_finishing and all(part.partial.exists() != part.path.exists() for part in parts)


def _check_partials(parts: Sequence[Part], *, force: bool) -> None:
    """Refuse to write into a file that no conversion has left; with `force` it is removed.

    Raises:
        OutputError: a temporary name is taken by something that is not a part under way.
    """
    journal = _journal_of(parts)
    has_journal = journal.is_file() and not journal.is_symlink()
    if not all(part.partial.exists() for part in parts):
        # Without parts that it could be for, a journal has to say itself what it is.
        has_journal = has_journal and _is_journal(journal)
    for path in (journal, _fresh(journal), *(part.partial for part in parts)):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        is_file = stat.S_ISREG(status.st_mode)
        if has_journal and is_file and status.st_nlink == 1:
            continue
        is_directory = path.is_dir()
        if is_directory or not force:
            raise OutputError(
                f"{path} exists and is not an interrupted conversion's",
                found="a directory" if is_directory else "no journal beside it, or a link",
                hint="Move it away, or give another name.",
            )
        with suppress(FileNotFoundError):
            if is_file:  # which another conversion, of the same projector perhaps, may be writing
                os.close(_open_locked(path))
            path.unlink()


def _is_journal(path: Path) -> bool:
    """Whether a file is a conversion's journal, or one that was begun and has nothing in it yet."""
    journal = _read_journal(path)
    return journal is not None and (bool(journal[0]) or path.stat().st_size == 0)


def _is_whole(part: Part, path: Path) -> bool:
    """Whether the file is the part, as far as its size and its header say."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return size == part.nbytes and file.read(len(part.header)) == part.header
    except OSError:
        return False


def _journal_of(parts: Sequence[Part]) -> Path:
    return parts[0].path.with_name(parts[0].path.name + JOURNAL_SUFFIX)


def _fresh(journal: Path) -> Path:
    """What a journal is called until it is whole."""
    return journal.with_name(journal.name + ".new")


def _read_journal(path: Path) -> tuple[dict[str, str], int, bool] | None:
    """Identity, slabs done, and whether only names were missing; None when there is no journal.

    A damaged one belongs to no conversion.
    """
    try:
        journal = json.loads(path.read_text(encoding="utf-8"))
        return dict(journal["identity"]), int(journal["slabs_done"]), bool(journal["finishing"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        return {}, 0, False


def _rename(parts: Sequence[Part], journal: Path) -> None:
    """Last part first: llama.cpp is given the first, which then has all the others beside it."""
    for part in reversed(parts):
        part.partial.replace(part.path)
    # After a loss of power in between, the journal says that only names are missing.
    _sync_directory(journal.parent)
    journal.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(part: Part) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _as_output_error(error, part) from error


def _as_output_error(error: OSError, part: Part) -> OutputError:
    """What the operating system said, and what to do."""
    return OutputError(
        f"writing {part.partial} failed",
        found=error.strerror,
        hint=f"{disk_hint(error)} Then run the same command again: it resumes.",
    )


def _open_locked(partial: Path, flags: int = 0) -> int:
    """A descriptor that no other conversion has until it is closed."""
    descriptor = os.open(partial, os.O_RDWR | flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        if not lock(descriptor, partial):
            raise BlockingIOError
        # Another one may have given the file its final name since it was opened.
        if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise BlockingIOError
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError(
            f"another conversion is writing {partial}", hint="Wait for it, or give another name."
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise OutputError(
            f"{partial} cannot be locked",
            found=error.strerror,
            hint="Write to a local disk, and move the file when it is whole.",
        ) from error
    return descriptor


def write_all(descriptor: int, offset: int, data: memoryview) -> None:
    """Put all of `data` at byte `offset`, however many calls that takes."""
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
