"""One process at a time writes to a file."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama4_edge.system.locks import lock, try_lock


def test_a_file_is_locked_once_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with path.open("wb") as first, path.open("rb") as second:
        assert lock(first.fileno(), path)
        assert not lock(second.fileno(), path)
        first.close()
        assert lock(second.fileno(), path)


def test_a_process_that_was_killed_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "f"
    code = (
        "import os, sys; from llama4_edge.system.locks import lock\n"
        "file = open(sys.argv[1], 'wb'); print(lock(file.fileno(), ''), flush=True)\n"
        "sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None and child.stdout is not None
    with child.stdin, child.stdout, path.open("ab") as file:
        assert child.stdout.readline() == b"True\n"
        assert not lock(file.fileno(), path)
        child.kill()
        child.wait()
        assert lock(file.fileno(), path)
    assert list(tmp_path.iterdir()) == [path]


NO_LOCKS = ("ENOLCK", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EINVAL", "EPERM", "EACCES")


@pytest.mark.parametrize("number", [getattr(errno, name) for name in NO_LOCKS], ids=NO_LOCKS)
def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (tmp_path / "f").open("wb") as file, caplog.at_level(logging.WARNING):
        assert lock(file.fileno(), tmp_path / "f")
        assert f"{tmp_path / 'f'} cannot be locked ({os.strerror(number)})" in caplog.text
        with pytest.raises(OSError, match=os.strerror(number)):
            try_lock(file.fileno())


def test_another_failure_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (tmp_path / "f").open("wb") as file, pytest.raises(OSError, match="Input/output"):
        lock(file.fileno(), tmp_path / "f")
