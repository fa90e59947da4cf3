"""A session's file: whole or not there, and whatever else it is refused by name."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from llama4_edge.chat.conversation import Conversation, conversation_in
from llama4_edge.errors import EngineError, SessionError
from llama4_edge.runtime.files.session_file import FRAME, PREAMBLE, SessionFile, is_session
from llama4_edge.runtime.files.session_writer import SessionWriter
from llama4_edge.runtime.state import SequenceState
from tests.fuzzing import damaged_bytes, damaged_json, efforts, fuzz
from tests.sessions import FINGERPRINT, TALK, append, state_of, with_frame, with_version, write

TURN = b'{"keep": 2, "messages": [{"role": "user", "content": "Why?"}]}'


@pytest.fixture(scope="module")
def state(tiny_path: Path) -> SequenceState:
    return state_of(tiny_path)


@pytest.fixture
def path(tmp_path: Path, state: SequenceState) -> Path:
    return write(tmp_path / "talk.l4s", state)


def fault_of(path: Path) -> str:
    """What keeps the state from being used, "" where nothing does."""
    with SessionFile(path) as file:
        try:
            file.read_state()
        except SessionError as error:
            return str(error)
    return ""


def test_what_was_written_is_read_bit_for_bit(path: Path, state: SequenceState) -> None:
    with SessionFile(path) as file:
        assert file.fault is None
        assert file.head is not None
        assert file.head.fingerprint == FINGERPRINT
        assert (file.head.n_tokens, file.head.nbytes) == (100, state.data.nbytes)
        assert conversation_in(file) == TALK
        read = file.read_state()
    assert read is not None
    assert read.tokens == state.tokens
    np.testing.assert_array_equal(read.data, state.data)
    (one,), (other,) = read.checkpoints, state.checkpoints
    assert one.n_tokens == other.n_tokens
    np.testing.assert_array_equal(one.data, other.data)


def test_rows_of_pictures_are_tokens_too(tmp_path: Path, state: SequenceState) -> None:
    tokens = (-(2**62), *state.tokens[1:])
    write(tmp_path / "a.l4s", SequenceState(tokens, state.data))
    with SessionFile(tmp_path / "a.l4s") as file:
        read = file.read_state()
    assert read is not None
    assert read.tokens == tokens


def test_a_session_without_a_state_is_one(tmp_path: Path) -> None:
    with SessionFile(write(tmp_path / "a.l4s")) as file:
        assert file.read_state() is None
        assert conversation_in(file) == TALK


def test_only_the_owner_may_read_it_and_nothing_lies_beside_it(path: Path) -> None:
    write(path)
    append(path, TURN)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_link_is_written_through(tmp_path: Path, path: Path) -> None:
    link = tmp_path / "link.l4s"
    link.symlink_to(path)
    write(link, talk=Conversation().user("x"))
    assert link.is_symlink()
    assert Conversation.load(path).messages[0].content == "x"


def test_changes_are_appended_and_come_after_what_is_kept(path: Path) -> None:
    append(path, TURN, b'{"keep": 3, "messages": [{"role": "assistant", "content": "So."}]}')
    append(path, b'{"keep": 1, "messages": []}')
    assert fault_of(path) == ""
    with SessionFile(path) as file:
        assert len(file.turns) == 3
    assert Conversation.load(path).messages == TALK.messages[:1]


def test_a_change_that_was_not_written_whole_is_left_out_and_replaced(path: Path) -> None:
    whole = path.stat().st_size
    append(path, TURN)
    data = path.read_bytes()
    for end in range(whole + 1, len(data)):
        path.write_bytes(data[:end])
        with SessionFile(path) as file:
            assert (file.turns, file.torn, file.fault) == ((), end - whole, None)
    append(path, TURN)
    assert path.read_bytes() == data


def test_a_change_that_is_damaged_before_others_is_no_torn_one(path: Path) -> None:
    begin = path.stat().st_size
    append(path, TURN, TURN, TURN)
    data = bytearray(path.read_bytes())
    second = begin + FRAME.size + len(TURN)
    for at in (second + 2, second + 9, second + FRAME.size + 5):
        damaged = data.copy()
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert "what was said after change 1" in fault_of(path)
        with SessionFile(path) as file:
            assert (len(file.turns), file.is_appendable) == (1, False)


@pytest.mark.parametrize(
    ("tag", "what"),
    [(b"HEAD", "its head"), (b"TOKS", "its state"), (b"STAT", "its state"), (b"CHKP", "its state")],
)
def test_a_changed_bit_is_found_in_whichever_part_and_the_text_opens(
    path: Path, tag: bytes, what: str
) -> None:
    append(path, TURN)
    data = bytearray(path.read_bytes())
    data[data.index(tag) + FRAME.size + 20] ^= 4
    path.write_bytes(data)
    assert f"{path}: the session is damaged, found {what} that does not fit" in fault_of(path)
    assert len(Conversation.load(path).messages) == 3


def test_a_damaged_beginning_leaves_the_text_of_the_file(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[PREAMBLE.size - 3] ^= 1
    path.write_bytes(data)
    assert "found its beginning that does not fit" in fault_of(path)
    assert Conversation.load(path) == TALK


def test_a_damaged_text_is_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[PREAMBLE.size + FRAME.size + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(SessionError, match="found the conversation in it that does not fit"):
        SessionFile(path)


def test_a_truncated_session_says_by_how_much_and_its_text_opens(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert re.match(
        rf"{path}: the session is truncated, found [0-9.]+ KiB, expected at least [0-9.]+ KiB\. ",
        fault_of(path),
    )
    assert Conversation.load(path) == TALK


@pytest.mark.parametrize(("version", "age"), [(0, "an older"), (3, "a newer"), (2**32 - 1, "a n")])
def test_another_version_is_refused_and_its_text_opens(path: Path, version: int, age: str) -> None:
    append(path, TURN)
    path.write_bytes(with_version(path.read_bytes(), version))
    assert f"the session is of {age}" in fault_of(path)
    assert f"found {version}, expected 1" in fault_of(path)
    assert len(Conversation.load(path).messages) == 3


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "nothing in it"), (b"GGUF" + bytes(50), "something else"), (b'{"a": 1}', "JSON")],
)
def test_another_file_is_neither_read_nor_replaced(
    tmp_path: Path, content: bytes, found: str
) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    for refused in (SessionFile, SessionWriter):
        with pytest.raises(SessionError, match=f"is not a session, found {found}"):
            refused(path)
    assert path.read_bytes() == content
    assert not is_session(path)


@pytest.mark.parametrize("name", ["", "absent/a.l4s", "a\0b", "x" * 300, "."])
def test_a_name_that_cannot_be_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SessionError):
        write(Path(name) if name else tmp_path)
    with pytest.raises(SessionError):
        SessionFile(name)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SessionError, match="is not a regular file"):
        SessionFile(tmp_path / "pipe")
    with pytest.raises(SessionError, match="Not a regular file"):
        SessionWriter(tmp_path / "pipe")


def test_progress_ends_with_all_bytes(tmp_path: Path, state: SequenceState) -> None:
    total = 800 + state.nbytes
    seen: list[tuple[int, int]] = []
    with SessionWriter(tmp_path / "a.l4s") as writer:
        writer.write(
            b"{}", FINGERPRINT, state, lambda at: seen.append((at.bytes_done, at.bytes_total))
        )
    assert seen[-1] == (total, total)
    seen.clear()
    with SessionFile(tmp_path / "a.l4s") as file:
        file.read_state(lambda at: seen.append((at.bytes_done, at.bytes_total)))
    assert seen[-1] == (total, total)


@pytest.mark.parametrize("error", [ValueError("no more"), BrokenPipeError(), EngineError("no")])
def test_what_progress_raises_is_not_the_files(
    path: Path, state: SequenceState, error: Exception
) -> None:
    def refuse(_: object) -> None:
        raise error

    before = path.read_bytes()
    with SessionWriter(path) as writer, pytest.raises(type(error)) as raised:
        writer.write(b"{}", FINGERPRINT, state, refuse)
    assert raised.value is error
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before
    with SessionFile(path) as file, pytest.raises(type(error)) as raised:
        file.read_state(refuse)
    assert raised.value is error


# --- two processes, full disks, and the end of processes

OTHER = """
import sys
from llama4_edge.runtime.files.session_writer import SessionWriter
from llama4_edge.errors import SessionError
try: SessionWriter(sys.argv[1])
except SessionError as error: print(error)
else: print("free")
"""


def test_one_process_writes_at_a_time_and_others_read(path: Path) -> None:
    def other() -> str:
        command = [sys.executable, "-c", OTHER, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with SessionWriter(path) as writer:
        assert "another process has this session open" in other()
        writer.write(b"{}", FINGERPRINT, None)
        assert "another process has this session open" in other()
        assert is_session(path)
    assert other() == "free\n"


def test_what_another_process_replaced_is_not_added_to(path: Path) -> None:
    """As on a file system that has no locks."""
    with SessionWriter(path) as writer:
        with SessionFile(path) as file:
            writer.goes_on(file)
        other = path.read_bytes()
        path.unlink()
        path.write_bytes(other)
        with pytest.raises(SessionError, match="another process has changed the session"):
            writer.append(TURN)
        assert path.read_bytes() == other


FULL = """
import sys
from pathlib import Path
from llama4_edge.errors import SessionError
from llama4_edge.runtime.files.session_file import SessionFile
from tests.sessions import write, append
path = Path(sys.argv[1])
with SessionFile(path) as file: state = file.read_state()
for act in (lambda: write(path, state), lambda: append(path, b"x" * 200_000)):
    try: act()
    except SessionError as error: print(error)
"""


def test_a_full_disk_is_one_error_and_leaves_what_was_there(path: Path) -> None:
    before = path.read_bytes()
    limit = len(before) - 1000
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    whole, change = done.stdout.splitlines()
    for error in (whole, change):
        assert error.startswith(f"{path}: the session cannot be saved, found File too large. ")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from llama4_edge.chat.conversation import conversation_in
from llama4_edge.runtime.files.session_file import SessionFile
from tests.sessions import TALK, append, write
path = Path(sys.argv[1])
with SessionFile(path) as file: state = file.read_state()
chance, seen = random.Random(0), set()
talks = [TALK.user("x" * 20_000), TALK]
for kill in range(20):
    done, doing = os.pipe()
    if not (child := os.fork()):
        while True:
            for number, talk in enumerate(talks):
                write(path, state if number else None, talk)
                os.write(doing, b"x")
                append(path, b'{"keep": 0, "messages": []}')
                os.write(doing, b"x")
    for _ in range(chance.randrange(6)):
        os.read(done, 1)
    time.sleep(chance.uniform(0.0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(done)
    os.close(doing)
    with SessionFile(path) as file:
        assert file.fault is None, file.fault
        kept, messages = file.read_state(), conversation_in(file).messages
        number = 0 if kept is None else 1
        assert messages in ((), talks[number].messages), messages
        seen.add((number, bool(messages)))
    write(path, state)
    assert list(path.parent.iterdir()) == [path]
print(len(seen))
"""


def test_a_process_killed_while_saving_leaves_the_old_session_or_the_new_one(
    tmp_path: Path, tiny_path: Path
) -> None:
    path = write(tmp_path / "a.l4s", state_of(tiny_path, 4000))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1  # it was killed in different states


# --- whatever bytes


def read_all(path: Path) -> None:
    """Read what can be read; anything but a SessionError fails."""
    try:
        with SessionFile(path) as file:
            conversation_in(file)
            file.read_state()
    except SessionError as error:
        assert len(str(error)) < 2000


@pytest.mark.parametrize("tag", [b"TEXT", b"HEAD", b"TOKS", b"STAT", b"CHKP", b"TURN"])
@pytest.mark.parametrize("length", [2**20, 2**40, 2**63, 2**64 - 1])
def test_a_length_beyond_the_file_takes_no_memory(path: Path, tag: bytes, length: int) -> None:
    append(path, TURN)
    data = bytearray(path.read_bytes())
    at = data.index(tag) + 8
    data[at : at + 8] = length.to_bytes(8, "little")
    path.write_bytes(data)
    tracemalloc.start()
    read_all(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(data) + 1_000_000


def test_a_head_that_promises_more_than_the_file_has_takes_no_memory(path: Path) -> None:
    def change(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), "n_tokens": 2**50, "bytes": 2**60}).encode()

    path.write_bytes(with_frame(path.read_bytes(), b"HEAD", change))
    tracemalloc.start()
    assert "the session is damaged, found its head" in fault_of(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@efforts
def test_damaged_bytes_are_read_or_refused(path: Path, effort: settings) -> None:
    append(path, TURN, TURN)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        read_all(path)

    fuzz(check, damaged_bytes(path.read_bytes()), effort)


@efforts
@pytest.mark.parametrize("tag", [b"TEXT", b"HEAD", b"TURN"])
def test_what_is_written_soundly_and_means_nothing_is_refused(
    path: Path, tag: bytes, effort: settings
) -> None:
    append(path, TURN)
    data = path.read_bytes()
    at = data.index(tag)
    _, _, length = FRAME.unpack(data[at : at + FRAME.size])
    sound = json.loads(data[at + FRAME.size : at + FRAME.size + length])

    def check(value: Any) -> None:
        try:
            content = json.dumps(value).encode()
        except ValueError:  # an integer of thousands of digits
            return
        path.write_bytes(with_frame(data, tag, lambda _: content))
        read_all(path)

    fuzz(check, damaged_json(sound), effort)


@efforts
@pytest.mark.parametrize("tag", [b"TOKS", b"STAT", b"CHKP"])
def test_a_state_of_damaged_bytes_with_sound_checksums_is_read_or_refused(
    path: Path, tag: bytes, effort: settings
) -> None:
    data = path.read_bytes()
    change: Callable[[bytes], st.SearchStrategy[bytes]] = damaged_bytes
    at = data.index(tag)
    _, _, length = FRAME.unpack(data[at : at + FRAME.size])

    def check(content: bytes) -> None:
        path.write_bytes(with_frame(data, tag, lambda _: content))
        read_all(path)

    fuzz(check, change(data[at + FRAME.size : at + FRAME.size + length]), effort)
