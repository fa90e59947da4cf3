"""The GGUF being written: its parts, their headers, the room they need, their names.

Everything is checked before anything is written. A part carries its final name only when all are
whole; until then it lies beside it under a temporary one, with a journal that says how far it got,
so that the same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import gguf
import numpy as np
from gguf.gguf_writer import WriterState

from ..errors import DamagedTensorError, OutputError
from ..quant import Assignment
from ..quant.page_cache import forget_cached
from .pipeline import Output
from .shards import Room

ALIGNMENT = int(gguf.GGUF_DEFAULT_ALIGNMENT)
PARTIAL_SUFFIX = ".partial"
JOURNAL_SUFFIX = ".partial.json"
# How long finished work may lie in the page cache alone before it is made safe.
COMMIT_SECONDS = 2.0


# Part number, byte offset, length.
_Extent = tuple[int, int, int]


@dataclass(frozen=True)
class Part:
    """One file of the output: its final name, its first bytes, its size in bytes."""

    path: Path
    header: bytes
    nbytes: int

    @property
    def partial(self) -> Path:
        """Its name until all parts are whole."""
        return self.path.with_name(self.path.name + PARTIAL_SUFFIX)


def plan_parts(
    writer: gguf.GGUFWriter,
    tensors: Sequence[Assignment],
    target: Path,
    split_bytes: int | None,
) -> tuple[list[Part], dict[str, Output]]:
    """Lay the tensors out over one file, or over several of at most `split_bytes` of tensors.

    Args:
        writer: holds the metadata already, which all goes into the first part; opens no file.
        tensors: in the order in which they are to lie.
        target: the file's final name; parts are called ``NAME-00001-of-00003.gguf``, as llama.cpp
            finds them.
        split_bytes: a tensor larger than this has a part of its own.

    Returns:
        The parts, and each tensor's place by its name.
    """
    groups = _groups(tensors, split_bytes)
    parts, outputs = [], {}
    for number, group in enumerate(groups):
        if number:
            writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA4])
        if len(groups) > 1:
            _add_split(writer, number, len(groups), len(tensors))
        header = _header(writer, group)
        end = len(header)
        for assigned in group:
            shape = assigned.tensor.shape
            name = assigned.tensor.name
            outputs[name] = Output(name, assigned.type, shape, number, end)
            end += gguf.GGUFWriter.ggml_pad(assigned.type.nbytes(shape), ALIGNMENT)
        parts.append(Part(_part_name(target, number, len(groups)), header, end))
    return parts, outputs


def _groups(tensors: Sequence[Assignment], split_bytes: int | None) -> list[list[Assignment]]:
    groups: list[list[Assignment]] = [[]]
    filled = 0
    for assigned in tensors:
        nbytes = assigned.type.nbytes(assigned.tensor.shape)
        if split_bytes is not None and groups[-1] and filled + nbytes > split_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(assigned)
        filled += nbytes
    return groups


def _add_split(writer: gguf.GGUFWriter, number: int, count: int, tensors: int) -> None:
    keys = gguf.Keys.Split
    writer.add_uint16(keys.LLM_KV_SPLIT_NO, number)
    writer.add_uint16(keys.LLM_KV_SPLIT_COUNT, count)
    writer.add_int32(keys.LLM_KV_SPLIT_TENSORS_COUNT, tensors)


def _part_name(target: Path, number: int, count: int) -> Path:
    if count == 1:
        return target
    stem = target.name.removesuffix(".gguf")
    return target.with_name(gguf.SHARD_NAME_FORMAT.format(stem, number + 1, count))


def _header(writer: gguf.GGUFWriter, tensors: Sequence[Assignment]) -> bytes:
    """Everything before the tensors' data, padded to where that begins."""
    for assigned in tensors:
        writer.add_tensor_info(
            assigned.tensor.name,
            assigned.tensor.shape,
            np.dtype(np.float32),
            assigned.type.nbytes(assigned.tensor.shape),
            raw_dtype=gguf.GGMLQuantizationType(assigned.type.ggml_id),
        )
    buffer = io.BytesIO()
    writer.fout, writer.state = [buffer], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    header = buffer.getvalue()
    return header + bytes(-len(header) % ALIGNMENT)


def check_target(parts: Sequence[Part], *, force: bool, sources: Room | None) -> None:
    """Refuse a target that exists, cannot be written, or does not fit on its disk.

    Args:
        parts: what is to be written; what an interrupted conversion wrote of it needs no new room.
        force: existing files may be replaced.
        sources: further room that is needed while writing, for shards that are fetched.

    Raises:
        OutputError: says which.
    """
    for part in parts:
        if part.path.is_dir():
            raise OutputError(f"{part.path} is a directory", expected="a file to write")
        if part.path.exists() and not force:
            raise OutputError(
                f"{part.path} exists", hint="Give --force to replace it, or another name."
            )
    directory = parts[0].path.parent
    if not directory.is_dir():
        raise OutputError(f"{directory} is not a directory", hint="Make it first.")
    if not os.access(directory, os.W_OK):
        raise OutputError(f"{directory} cannot be written to", expected="write permission")
    shortage = room_shortage(parts, sources)
    if shortage is not None:
        raise shortage


def room_shortage(parts: Sequence[Part], sources: Room | None) -> OutputError | None:
    """The error that writing `parts`, and fetching their sources, would end in on a full disk."""
    directory = parts[0].path.parent
    if not directory.is_dir():
        return None
    written = sum(part.partial.stat().st_blocks * 512 for part in parts if part.partial.exists())
    needed = sum(part.nbytes for part in parts) - written
    if sources is not None and sources.nbytes:
        if sources.directory.stat().st_dev == directory.stat().st_dev:
            needed += sources.nbytes
        elif shortage := _shortage(sources.directory, sources.nbytes, "the shards to fetch"):
            return shortage
    return _shortage(directory, needed, parts[0].path.name)


def _shortage(directory: Path, needed: int, what: str) -> OutputError | None:
    free = shutil.disk_usage(directory).free
    if free >= needed:
        return None
    return OutputError(
        f"{directory} has too little room for {what}",
        found=f"{_readable(free)} free",
        expected=_readable(needed),
        hint="Make room, choose another disk, or a recipe with fewer bits.",
    )


def _readable(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"


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
        self._committing: Future[None] | None = None
        self._committed_at = time.monotonic()
        self._dirty: list[_Extent] = []
        self._when_safe: list[Callable[[], None]] = []
        self.slabs_done = 0
        resumable = all(part.partial.exists() for part in parts)
        try:
            for part in parts:
                self._descriptors.append(_open_locked(part.partial))
            self.slabs_done = self._slabs_to_skip(force=force) if resumable else 0
            if not self.slabs_done:
                self._begin()
        except OSError as error:
            self._close()
            raise _as_output_error(error, parts[0]) from error
        except BaseException:
            self._close()
            raise

    def _slabs_to_skip(self, *, force: bool) -> int:
        """Slabs that an interrupted conversion of the same kind has written."""
        journal = _read_journal(self._journal)
        if journal is None:
            return 0
        found, done, _ = journal
        sizes = [os.fstat(descriptor).st_size for descriptor in self._descriptors]
        if found == self._identity and sizes == [part.nbytes for part in self._parts]:
            return done
        if force:
            return 0
        names = self._identity.keys() | found.keys()
        changed = sorted(name for name in names if found.get(name) != self._identity.get(name))
        raise OutputError(
            f"{self._journal} is of another conversion",
            found=f"changed since: {', '.join(changed) or 'the size of its parts'}",
            hint="Give --force to begin anew, or repeat the command that was interrupted.",
        )

    def _begin(self) -> None:
        self._journal.unlink(missing_ok=True)
        try:
            for part, descriptor in zip(self._parts, self._descriptors, strict=True):
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, part.nbytes)
                _write_all(descriptor, 0, memoryview(part.header))
            self._commit(0, [], [])
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
        try:
            _write_all(self._descriptors[part], offset, data)
        except OSError as error:
            raise _as_output_error(error, self._parts[part]) from error
        self._dirty.append((part, offset, len(data)))

    def slab_done(self, when_safe: Callable[[], None] | None = None) -> None:
        """Count a slab, and now and then make sure of it, while the next ones are written.

        Args:
            when_safe: called, in another thread, once no loss of power can undo the slab.

        Raises:
            OutputError: what was written before could not be made safe.
        """
        self.slabs_done += 1
        if when_safe is not None:
            self._when_safe.append(when_safe)
        due = self._when_safe or time.monotonic() - self._committed_at > COMMIT_SECONDS
        if due and (self._committing is None or self._committing.done()):
            self._settle()
            state = self.slabs_done, self._dirty, self._when_safe
            self._dirty, self._when_safe = [], []
            self._committing = self._committer.submit(self._commit, *state)

    def _settle(self) -> None:
        """Wait for the commit under way, if any, and say whether it failed."""
        committing, self._committing = self._committing, None
        if committing is not None:
            try:
                committing.result()
            except OSError as error:
                raise _as_output_error(error, self._parts[0]) from error

    def _commit(
        self, slabs: int, dirty: Sequence[_Extent], when_safe: Sequence[Callable[[], None]]
    ) -> None:
        """First the data, then the journal that counts it: a loss of power loses no more."""
        for descriptor in self._descriptors:
            os.fdatasync(descriptor)
        self._write_journal(slabs, finishing=False)
        for part, offset, length in dirty:
            forget_cached(self._descriptors[part], offset, length)
        for call in when_safe:
            call()
        self._committed_at = time.monotonic()

    def _write_journal(self, slabs: int, *, finishing: bool) -> None:
        state = {
            "identity": self._identity,
            "slabs_done": slabs,
            "finishing": finishing,
        }
        fresh = self._journal.with_name(self._journal.name + ".new")
        fresh.write_text(json.dumps(state), encoding="utf-8")
        fresh.replace(self._journal)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._committer.shutdown()
        try:
            if error is None:
                self._settle()
                self._finish()
            elif isinstance(error, DamagedTensorError) or not self.slabs_done:
                self._discard()
            else:
                self._commit(self.slabs_done, self._dirty, self._when_safe)
        except OSError as failure:
            if error is None:
                raise _as_output_error(failure, self._parts[0]) from failure
        finally:
            self._close()

    def _finish(self) -> None:
        for descriptor in self._descriptors:
            os.fsync(descriptor)
        self._write_journal(self.slabs_done, finishing=True)
        for part, offset, length in self._dirty:
            forget_cached(self._descriptors[part], offset, length)
        _rename(self._parts, self._journal)
        for call in self._when_safe:
            call()

    def _discard(self) -> None:
        for part in self._parts:
            part.partial.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def _close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())


def finish_interrupted(parts: Sequence[Part], identity: Mapping[str, str]) -> bool:
    """Give parts their names where all were whole already when a conversion was stopped.

    Returns:
        Whether that was so, and the conversion is therefore done.
    """
    path = _journal_of(parts)
    journal = _read_journal(path)
    if journal is None or journal[0] != dict(identity) or not journal[2]:
        return False
    if not all(part.partial.exists() or part.path.exists() for part in parts):
        return False
    _rename(parts, path)
    return True


def _journal_of(parts: Sequence[Part]) -> Path:
    return parts[0].path.with_name(parts[0].path.name + JOURNAL_SUFFIX)


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
        if part.partial.exists():
            part.partial.replace(part.path)
    journal.unlink(missing_ok=True)
    directory = os.open(parts[0].path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def header_digest(parts: Sequence[Part]) -> str:
    """One hash over every header: names, types, places and all metadata."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.header)
    return digest.hexdigest()


def _as_output_error(error: OSError, part: Part) -> OutputError:
    """What the operating system said, and what to do."""
    return OutputError(
        f"writing {part.partial} failed",
        found=error.strerror,
        hint="Make room or mend the disk, then run the same command again: it goes on from there.",
    )


def _open_locked(partial: Path) -> int:
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise OutputError(f"another conversion is writing {partial}") from None
    return descriptor


def _write_all(descriptor: int, offset: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
