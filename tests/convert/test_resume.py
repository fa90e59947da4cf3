"""An interrupted conversion goes on where it stopped and ends in the same bytes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llama4_edge import Progress, convert
from llama4_edge.convert import output, slabs
from llama4_edge.errors import CheckpointError, OutputError
from tests.fixtures import MakeCheckpoint

from .conftest import SMALL, edit_text_config, shards_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# The child of a test: converts with small slabs and a journal written after each. With a third
# argument, says when the first is written and waits there for the signal that is to end it.
CONVERT = """
import sys, time
from llama4_edge import convert
from llama4_edge.convert import output, slabs
slabs.SLAB_BYTES = slabs.ROW_SLAB_BYTES = 40_000
output.COMMIT_SECONDS = 0.0
def hold(_):
    print("written", flush=True)
    time.sleep(600)
convert(sys.argv[1], sys.argv[2], threads=1, progress=hold if sys.argv[3:] else None)
"""

# Forks one conversion after the other, kills each at a random moment, and finishes it. Each sets
# the clock that kills it by itself, so that no moment comes too late, however busy the machine is.
KILL_AT_RANDOM = """
import hashlib, json, os, random, signal, sys, time
from itertools import pairwise
from pathlib import Path
from statistics import median
from llama4_edge import convert
from llama4_edge.convert import output, slabs

source, target = sys.argv[1], Path(sys.argv[2])
journal = Path(sys.argv[2] + ".partial.json")
slabs.SLAB_BYTES = slabs.ROW_SLAB_BYTES = 40_000
output.COMMIT_SECONDS = 0.0
convert(source, target, threads=1, dry_run=True)  # imports what planning needs
started = time.monotonic()
convert(source, target, threads=1, dry_run=True)
planning = time.monotonic() - started
written = []
convert(source, target, threads=1, progress=lambda _: written.append(time.monotonic()))
a_slab = median(later - earlier for earlier, later in pairwise(written))
target.unlink()

def killed(seconds):
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))  # nothing handles SIGALRM

random.seed(4)
for number in range(20):
    n_slabs = random.randrange(1, len(written)) if number % 5 else 0
    seconds = random.uniform(0, 2 * a_slab if n_slabs else planning)
    pid = os.fork()
    if not pid:
        seen = []
        def progress(step):
            seen.append(step)
            if len(seen) == n_slabs:
                # Once a slab is safe, which takes long on a slow disk; or at any moment.
                while number % 2 and not json.loads(journal.read_text())["slabs_done"]:
                    time.sleep(0.001)
                killed(seconds)
                if number % 2:
                    signal.pause()  # before the end, however late that moment comes
        if not n_slabs:
            killed(seconds)
        convert(source, target, threads=1, progress=progress)
        os._exit(0)
    os.waitpid(pid, 0)
    whole = target.exists()
    report = convert(source, target, threads=1, force=whole)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    print(json.dumps([digest, report.resumed_at, whole]), flush=True)
    target.unlink()
"""


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many slabs, each made safe as soon as it is written."""
    monkeypatch.setattr(slabs, "SLAB_BYTES", 40_000)
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", 40_000)
    monkeypatch.setattr(output, "COMMIT_SECONDS", 0.0)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stop_at(share: float) -> Callable[[Progress], None]:
    """A progress callback that stops a conversion as Ctrl-C does, once `share` of it is done."""

    def progress(step: Progress) -> None:
        if step.bytes_done >= share * step.bytes_total:
            raise KeyboardInterrupt

    return progress


def interrupted(
    source: Path, target: Path, share: float = 0.5, *, recipe: str | None = None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, recipe=recipe, progress=stop_at(share))


def test_killed_at_twenty_random_moments_it_ends_in_the_same_bytes(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, small_slabs: None
) -> None:
    source = make_checkpoint(replace(SMALL, experts=16))
    convert(source, tmp_path / "whole.gguf")
    done = subprocess.run(
        [sys.executable, "-c", KILL_AT_RANDOM, str(source), str(tmp_path / "killed.gguf")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert [digest for digest, _, _ in rounds] == [sha256(tmp_path / "whole.gguf")] * 20
    assert sum(0 < resumed_at < 1 for _, resumed_at, _ in rounds) >= 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.gguf"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_conversion_leaves_nothing_under_the_final_name_and_goes_on(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, stop: signal.Signals
) -> None:
    source = make_checkpoint(replace(SMALL, experts=16))
    target, journal = tmp_path / "o.gguf", tmp_path / "o.gguf.partial.json"
    command = [sys.executable, "-c", CONVERT, str(source), str(target)]
    with subprocess.Popen(
        [*command, "hold"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        assert journal.exists()
        child.send_signal(stop)
        assert child.wait() != 0
    assert not target.exists()
    subprocess.run(command, check=True)
    convert(source, tmp_path / "whole.gguf")
    assert sha256(target) == sha256(tmp_path / "whole.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.gguf", "whole.gguf"]


def test_it_goes_on_instead_of_beginning_anew(
    checkpoint: Path, tmp_path: Path, small_slabs: None
) -> None:
    target = tmp_path / "o.gguf"
    convert(checkpoint, tmp_path / "whole.gguf")
    interrupted(checkpoint, target, 0.5)
    assert not target.exists()
    seen: list[int] = []
    report = convert(checkpoint, target, progress=lambda step: seen.append(step.bytes_done))
    assert 0.5 <= report.resumed_at < 0.6
    assert min(seen) > report.resumed_at * report.source_bytes
    assert sha256(target) == sha256(tmp_path / "whole.gguf")


def test_a_full_disk_is_said_and_can_be_gone_on_from(
    checkpoint: Path, tmp_path: Path, small_slabs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tenth slab meets a full disk; the kernel's own refusal is another test's."""
    target, write, count = tmp_path / "o.gguf", os.pwrite, 0

    def full(descriptor: int, data: ReadableBuffer, offset: int) -> int:
        nonlocal count
        count += 1
        if count > 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match=r"No space left on device.*it resumes"):
        convert(checkpoint, target)
    monkeypatch.setattr(os, "pwrite", write)
    assert convert(checkpoint, target).resumed_at > 0
    convert(checkpoint, tmp_path / "whole.gguf")
    assert sha256(target) == sha256(tmp_path / "whole.gguf")


def test_a_read_error_is_said_and_can_be_gone_on_from(
    checkpoint: Path, tmp_path: Path, small_slabs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, read, count = tmp_path / "o.gguf", os.preadv, 0

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal count
        count += 1
        if count > 50:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(CheckpointError, match=r"cannot be read where .* Input/output error"):
        convert(checkpoint, target)
    monkeypatch.setattr(os, "preadv", read)
    assert 0 < convert(checkpoint, target).resumed_at < 1
    convert(checkpoint, tmp_path / "whole.gguf")
    assert sha256(target) == sha256(tmp_path / "whole.gguf")


@pytest.mark.parametrize("call", ["preadv", "pwrite"])
def test_what_comes_after_a_slab_that_failed_is_not_counted_for_it(
    checkpoint: Path,
    tmp_path: Path,
    small_slabs: None,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """One bad sector, say; the slabs behind it are in flight, and could be written."""
    target, done, count = tmp_path / "o.gguf", getattr(os, call), 0

    def failing_once(descriptor: int, data: ReadableBuffer, offset: int) -> int:
        nonlocal count
        count += 1
        if count == 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return int(done(descriptor, data, offset))

    def late(step: object) -> None:
        if count > 16:
            time.sleep(0.2)

    monkeypatch.setattr(os, call, failing_once)
    with pytest.raises((CheckpointError, OutputError), match="Input/output error"):
        convert(checkpoint, target, progress=late)
    assert 0 < convert(checkpoint, target).resumed_at < 1
    convert(checkpoint, tmp_path / "whole.gguf")
    assert sha256(target) == sha256(tmp_path / "whole.gguf")


def test_what_a_failing_disk_has_lost_is_not_counted(
    checkpoint: Path, tmp_path: Path, small_slabs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says it once, and the next time that all is well: Linux, since 4.13."""
    target, journal = tmp_path / "o.gguf", tmp_path / "o.gguf.partial.json"
    sync, count, safe = os.fdatasync, 0, ""

    def failing(descriptor: int) -> None:
        nonlocal count, safe
        count += 1
        if count == 3:
            safe = journal.read_text()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OutputError, match=r"Input/output error.*it resumes"):
        convert(checkpoint, target)
    assert count == 3
    assert journal.read_text() == safe
    assert convert(checkpoint, target).resumed_at > 0
    convert(checkpoint, tmp_path / "whole.gguf")
    assert sha256(target) == sha256(tmp_path / "whole.gguf")


def test_a_second_ctrl_c_waits_for_what_is_being_written(
    checkpoint: Path, tmp_path: Path, small_slabs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, write, count = tmp_path / "o.gguf", os.pwrite, 0
    before = threading.enumerate()
    written = threading.Event()

    def slow(descriptor: int, data: ReadableBuffer, offset: int) -> int:
        nonlocal count
        count += 1
        if count == 10:
            for _ in range(2):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                time.sleep(0.1)
            done = write(descriptor, data, offset)
            written.set()
            return done
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, target)
    assert written.is_set()
    begun = [one for one in threading.enumerate() if one not in before]
    assert not [one for one in begun if one.name.startswith(("read", "write"))]


def test_an_output_that_is_removed_while_it_is_written_is_no_success(
    checkpoint: Path, tmp_path: Path, small_slabs: None
) -> None:
    target = tmp_path / "o.gguf"
    with pytest.raises(OutputError, match="No such file"):
        convert(
            checkpoint,
            target,
            progress=lambda _: (tmp_path / "o.gguf.partial").unlink(missing_ok=True),
        )
    assert not target.exists()


def test_a_directory_that_cannot_be_made_safe_is_no_failure(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems."""
    sync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    convert(checkpoint, tmp_path / "o.gguf")
    assert sorted(path.name for path in tmp_path.glob("o.*")) == ["o.gguf"]


# Another conversion, or the same one elsewhere ----------------------------------------------------


def test_a_disk_without_locks_is_written_to_with_a_warning(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    convert(checkpoint, tmp_path / "o.gguf")
    assert "o.gguf.partial cannot be locked (No locks available)" in caplog.text
    assert sorted(path.name for path in tmp_path.glob("o.*")) == ["o.gguf"]


def test_a_disk_that_fails_to_lock_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, how: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OutputError, match=r"cannot be locked, found Input/output.*a local disk"):
        convert(checkpoint, tmp_path / "o.gguf")


def test_a_file_that_another_process_has_just_finished_is_left_alone(
    checkpoint: Path, tmp_path: Path, small_slabs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one renames it between this one's opening it and locking it."""
    target, lock = tmp_path / "o.gguf", fcntl.flock
    interrupted(checkpoint, target)
    partial = tmp_path / "o.gguf.partial"
    content = partial.read_bytes()

    def finished_first(descriptor: int, how: int) -> None:
        partial.replace(target)
        (tmp_path / "o.gguf.partial.json").unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", finished_first)
    with pytest.raises(OutputError, match=r"another conversion is writing .*Wait for it"):
        convert(checkpoint, target)
    assert target.read_bytes() == content


def test_a_projector_that_another_conversion_is_writing_is_left_alone(
    scout_checkpoint: Path, tmp_path: Path
) -> None:
    """Two recipes of one checkpoint have the same projector beside them."""
    target = tmp_path / "scout-int4.gguf"
    report = convert(scout_checkpoint, target, dry_run=True)
    assert report.projector is not None
    partial = Path(f"{report.projector}.partial")
    with partial.open("wb") as file:
        file.write(b"half")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="exists and is not an interrupted conversion's"):
            convert(scout_checkpoint, target)
        with pytest.raises(OutputError, match="another conversion is writing"):
            convert(scout_checkpoint, target, force=True)
        assert partial.read_bytes() == b"half" and not target.exists()
    convert(scout_checkpoint, target, force=True)
    assert not partial.exists()


def test_a_changed_shard_is_noticed(checkpoint: Path, tmp_path: Path, small_slabs: None) -> None:
    target = tmp_path / "o.gguf"
    interrupted(checkpoint, target)
    shard = shards_of(checkpoint)[1]
    os.utime(shard)
    with pytest.raises(
        OutputError, match=f"another conversion.*changed since: {shard.name}.*--force"
    ):
        convert(checkpoint, target)
    assert convert(checkpoint, target, force=True).resumed_at == 0


def test_a_changed_shard_with_the_time_of_the_old_one_is_noticed(
    checkpoint: Path, tmp_path: Path, small_slabs: None
) -> None:
    """As after unpacking an archive whose files are all of one time."""
    target = tmp_path / "o.gguf"
    interrupted(checkpoint, target)
    shard = shards_of(checkpoint)[0]
    times = shard.stat()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(OutputError, match=f"changed since: {shard.name}"):
        convert(checkpoint, target)


def test_a_changed_recipe_is_noticed(checkpoint: Path, tmp_path: Path, small_slabs: None) -> None:
    target = tmp_path / "o.gguf"
    interrupted(checkpoint, target)
    with pytest.raises(OutputError, match="changed since: recipe, types, config or tokenizer"):
        convert(checkpoint, target, recipe="q8_0")
    with pytest.raises(OutputError, match="changed since: recipe, types, config or tokenizer"):
        convert(checkpoint, target, types=[("attn", "f16")])
    edit_text_config(checkpoint, rms_norm_eps=1e-6)
    with pytest.raises(OutputError, match="changed since: recipe, types, config or tokenizer"):
        convert(checkpoint, target)


def test_another_version_is_noticed(
    checkpoint: Path, tmp_path: Path, small_slabs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama4_edge.convert import job

    target = tmp_path / "o.gguf"
    interrupted(checkpoint, target)
    monkeypatch.setattr(job, "encoder_version", lambda: "0.0.0 (another)")
    monkeypatch.setattr(job, "__version__", "9.9")
    with pytest.raises(OutputError, match="changed since: ggml, llama4-edge"):
        convert(checkpoint, target)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"identity": 3, "slabs_done": 1}', "\x00"])
def test_a_damaged_journal_is_refused(
    checkpoint: Path, tmp_path: Path, small_slabs: None, text: str
) -> None:
    target = tmp_path / "o.gguf"
    interrupted(checkpoint, target)
    (tmp_path / "o.gguf.partial.json").write_text(text)
    with pytest.raises(OutputError, match="another conversion, found nothing that can be read"):
        convert(checkpoint, target)


def test_a_journal_without_its_file_begins_anew(
    checkpoint: Path, tmp_path: Path, small_slabs: None
) -> None:
    target = tmp_path / "o.gguf"
    interrupted(checkpoint, target)
    (tmp_path / "o.gguf.partial").unlink()
    assert convert(checkpoint, target).resumed_at == 0


def test_stopped_between_two_names_it_only_gives_names(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two parts one has its name already when the process dies."""
    target, rename = tmp_path / "o.gguf", Path.replace

    def die(self: Path, to: Path) -> Path:
        if self.name.endswith("00001-of-00002.gguf.partial"):
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", die)
    half = replace(convert(checkpoint, target, dry_run=True)).bytes * 6 // 10
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, target, split_size=half)
    monkeypatch.setattr(Path, "replace", rename)
    report = convert(checkpoint, target, split_size=half)
    assert report.resumed_at == 1
    assert sorted(path.name for path in tmp_path.glob("o*")) == [
        "o-00001-of-00002.gguf",
        "o-00002-of-00002.gguf",
    ]


def stopped_before_its_name(source: Path, target: Path, *, force: bool = False) -> None:
    """A conversion that dies when all is written and only the name is missing."""
    rename = Path.replace

    def die(self: Path, to: Path) -> Path:
        if self.name.endswith(".gguf.partial"):
            raise KeyboardInterrupt
        return rename(self, to)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", die)
        convert(source, target, force=force)


def test_a_missing_name_is_given_over_an_existing_file_only_by_force(
    checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "o.gguf"
    target.write_bytes(b"precious")
    stopped_before_its_name(checkpoint, target, force=True)
    with pytest.raises(OutputError, match=r"o\.gguf exists.*--force"):
        convert(checkpoint, target)
    assert target.read_bytes() == b"precious"
    assert convert(checkpoint, target, force=True).resumed_at == 1
    convert(checkpoint, tmp_path / "whole.gguf")
    assert sha256(target) == sha256(tmp_path / "whole.gguf")


def test_another_file_of_the_name_is_not_taken_for_the_output(
    checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "o.gguf"
    stopped_before_its_name(checkpoint, target)
    (tmp_path / "o.gguf.partial").unlink()
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"o\.gguf exists.*--force"):
        convert(checkpoint, target)
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["file", "symbolic link", "hard link"])
def test_a_partial_that_is_somebody_elses_is_left_alone(
    checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    partial = tmp_path / "o.gguf.partial"
    if kind == "symbolic link":
        partial.symlink_to(victim)
    elif kind == "hard link":
        partial.hardlink_to(victim)
    else:
        partial.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists and is not an interrupted conversion's"):
        convert(checkpoint, tmp_path / "o.gguf")
    assert (partial.read_bytes(), victim.read_bytes()) == (b"precious", b"precious")
    convert(checkpoint, tmp_path / "o.gguf", force=True)
    assert victim.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.glob("[ov]*")) == ["o.gguf", "victim"]


def test_a_linked_partial_beside_a_journal_does_not_lead_to_its_victim(
    checkpoint: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "o.gguf.partial").symlink_to(victim)
    (tmp_path / "o.gguf.partial.json").write_text("{}")
    with pytest.raises(OutputError, match="or a link"):
        convert(checkpoint, tmp_path / "o.gguf")
    assert victim.read_bytes() == b"precious"


def test_two_that_begin_at_once_do_not_disturb_each_other(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one runs while this one has its journal and has not locked its part."""
    target, open_locked = tmp_path / "o.gguf", output._open_locked
    others: list[Path] = []

    def slow(partial: Path, flags: int = 0) -> int:
        if not others:
            others.append(partial)
            convert(checkpoint, target)
            target.unlink()
        return open_locked(partial, flags)

    monkeypatch.setattr(output, "_open_locked", slow)
    convert(checkpoint, target)
    assert others
    assert sorted(path.name for path in tmp_path.glob("*o.gguf*")) == ["o.gguf"]


@pytest.mark.parametrize("kind", ["directory", "symbolic link", "file"])
def test_a_journal_that_is_somebody_elses_is_left_alone(
    checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    journal = tmp_path / "o.gguf.partial.json"
    if kind == "directory":
        journal.mkdir()
    elif kind == "file":
        journal.write_text('{"precious": 1}')
    else:
        journal.symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="exists and is not an interrupted conversion's"):
        convert(checkpoint, tmp_path / "o.gguf")
    assert [path.name for path in tmp_path.glob("[ov]*")] == [journal.name]


def test_what_a_journal_is_called_at_first_is_left_alone_too(
    checkpoint: Path, tmp_path: Path
) -> None:
    fresh = tmp_path / "o.gguf.partial.json.new"
    fresh.write_text("precious")
    with pytest.raises(OutputError, match="exists and is not an interrupted conversion's"):
        convert(checkpoint, tmp_path / "o.gguf")
    assert fresh.read_text() == "precious"


def test_a_journal_with_nothing_in_it_yet_is_begun_anew(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "o.gguf.partial.json").touch()
    convert(checkpoint, tmp_path / "o.gguf")
    assert [path.name for path in tmp_path.glob("o*")] == ["o.gguf"]
