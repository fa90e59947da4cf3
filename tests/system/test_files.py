"""A small file is the old one or the new one, whatever happens."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from llama4_edge.system.files import (
    disk_hint,
    is_directory,
    is_file,
    open_partial,
    sync,
    write_atomically,
)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_text_and_bytes_are_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "text", "größer\n")
    write_atomically(str(tmp_path / "bytes"), b"\x00\xff")
    assert (tmp_path / "text").read_bytes() == "größer\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["bytes", "text"]


def test_a_file_is_replaced_and_who_reads_the_old_one_reads_on(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with path.open() as old:
        write_atomically(path, "new")
        assert old.read() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "f").write_text("old")
    monkeypatch.setattr(os, step, fail)
    monkeypatch.setattr(Path, "replace", fail if step == "replace" else Path.replace)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_modes_follow_the_umask_or_keep_others_out(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "shared", "")
        write_atomically(tmp_path / "private", "", private=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("old")
    (tmp_path / "link").symlink_to("there/file")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there/file").read_text() == "new"


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(OSError, match="Not a regular file"):
            write_atomically(path, "new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_what_a_killed_process_left_under_the_temporary_name_is_removed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "f.new").symlink_to(victim)
    write_atomically(tmp_path / "f", "new", temporary=tmp_path / "f.new")
    assert (victim.read_text(), (tmp_path / "f").read_text()) == ("precious", "new")
    assert names(tmp_path) == ["f", "victim"]


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent/file", "new")


@pytest.mark.parametrize("name", ["EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP"])
def test_a_file_system_without_fsync_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(errno, name)

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "fdatasync", refuse)
    write_atomically(tmp_path / "f", "text")
    assert (tmp_path / "f").read_text() == "text"
    with (tmp_path / "f").open("rb") as file:
        sync(file.fileno(), data_only=True)


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EDQUOT", "EROFS"])
def test_a_disk_that_loses_what_was_written_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "f").write_text("old")

    def refuse(_: int) -> None:
        raise OSError(getattr(errno, name), "lost")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="lost"):
        write_atomically(tmp_path / "f", "new")
    assert ((tmp_path / "f").read_text(), names(tmp_path)) == ("old", ["f"])


def test_a_name_with_no_room_for_more_is_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        write_atomically(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


def test_what_is_written_bit_by_bit_is_a_file_of_its_own(tmp_path: Path) -> None:
    with open_partial(tmp_path / "f") as file:
        file.write(b"one")
    with open_partial(tmp_path / "f") as file:
        file.write(b"two")
        file.seek(0)
        assert file.read() == b"onetwo"
    (tmp_path / "link").symlink_to("f")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "dangling", "directory", "fifo"):
        with pytest.raises(OSError, match=name):
            open_partial(tmp_path / name)
    (tmp_path / "hard").hardlink_to(tmp_path / "f")
    with pytest.raises(FileExistsError, match="one with another name"):
        open_partial(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"onetwo"


def test_a_path_that_cannot_be_one_is_neither_file_nor_directory(tmp_path: Path) -> None:
    for path in (
        tmp_path / ("x" * 300),
        tmp_path / "a\0b",
        Path("x/" * 3000),
        tmp_path / "nothing",
    ):
        assert not is_file(path)
        assert not is_directory(path)


def test_every_reason_of_a_disk_is_followed_by_what_to_do() -> None:
    for number in errno.errorcode:
        assert disk_hint(OSError(number, "x")).endswith(".")
    assert "space" not in disk_hint(OSError(errno.EROFS, "x"))
    assert "Check that disk" in disk_hint(OSError("of no number"))
