"""The history of the chat: whose it is, and what becomes of one that is no sound file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llama4_edge.errors import SessionError
from llama4_edge.terminal.history import history_file, open_history


def test_the_history_is_for_its_owner_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = history_file()
    assert path == tmp_path / "state" / "llama4-edge" / "history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("state", ["", "relative/state"])
def test_a_state_home_that_is_no_absolute_path_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_file() == tmp_path / ".local" / "state" / "llama4-edge" / "history"


def test_a_history_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with pytest.raises(SessionError, match=r"history .* cannot be written"):
        history_file()


def test_a_history_that_is_a_pipe_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "llama4-edge").mkdir()
    os.mkfifo(tmp_path / "llama4-edge" / "history")
    with pytest.raises(SessionError, match="found not a regular file"):
        history_file()


def test_without_a_home_there_is_no_history_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def homeless(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(SessionError, match=r"cannot be written, .* Could not determine home"):
        history_file()


def test_messages_come_back_the_last_first(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.touch()
    history = open_history(path)
    for message in ("first", "two\nlines\n", "+ and # in it", "", "last"):
        history.store_string(message)
    loaded = list(open_history(path).load_history_strings())
    assert loaded == ["last", "", "+ and # in it", "two\nlines\n", "first"]


def test_of_a_history_without_end_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "history"
    with path.open("wb") as file:
        file.truncate(2**33)  # sparse: 8 GiB of zeros
        file.seek(0, os.SEEK_END)
        file.write(b"\xff\xfe not UTF-8\n\n# now\n+kept\n")
    assert list(open_history(path).load_history_strings()) == ["kept"]


def test_what_cannot_be_read_is_an_empty_history(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        assert list(open_history(path).load_history_strings()) == []


def test_a_full_disk_is_said_once_and_ends_no_chat(capsys: pytest.CaptureFixture[str]) -> None:
    history = open_history(Path("/dev/full"))
    history.append_string("first")
    history.append_string("second")
    assert history.get_strings() == ["first", "second"]
    said = "The history /dev/full cannot be written: No space left on device.\n"
    assert capsys.readouterr().err == said
