"""What somebody else wrote is read, or refused with one error that names it."""

from __future__ import annotations

import os
import socket
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llama4_edge.errors import CheckpointError, HubError, Llama4EdgeError, SettingError
from llama4_edge.untrusted import Reader, Record

READER = Reader(CheckpointError, 1000, hint="Download it again.")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def record(**values: Any) -> Record:
    return READER.as_record(values, "config.json")


def test_an_object_is_read_with_or_without_a_byte_order_mark(file: Path) -> None:
    for prefix in (b"", b"\xef\xbb\xbf"):
        file.write_bytes(prefix + b'{"a": "\xc3\xa9"}')
        assert READER.record(file).text("a") == "é"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is too large"),
        (b"\xff", "is not UTF-8 text"),
        (b"[]", "a list of 0, expected a JSON object"),
        (b'{"a": "\\uD800"}', "a lone surrogate in '\\ud800'"),
        (b'{"\\udc00": 1}', "a lone surrogate"),
        (b"version https://git-lfs.github.com/spec/v1\noid x", "is a Git LFS pointer"),
    ],
)
def test_a_file_that_is_no_json_object_is_one_error(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json") as error:
        READER.record(file)
    assert words in str(error.value)


def test_integers_without_end_and_deep_nesting_are_errors() -> None:
    with pytest.raises(CheckpointError, match="is not JSON, found an integer of 5000 digits"):
        READER.parse("9" * 5000, "x")
    with pytest.raises(CheckpointError, match="x is nested too deeply"):
        READER.parse("[" * 200_000, "x")


def test_a_surrogate_pair_is_a_character_and_lone_ones_may_be_asked_for() -> None:
    assert READER.parse('"\\ud83d\\ude00"', "x") == "😀"
    assert Reader(HubError, 10, surrogates=True).parse('"\\ud800"', "x") == "\ud800"


def test_a_sparse_file_beyond_the_limit_is_not_read(file: Path) -> None:
    with file.open("wb") as sink:
        sink.truncate(6_000_000_000)
    with pytest.raises(CheckpointError, match=r"too large, found 5\.6 GiB, expected at most 1000"):
        READER.data(file)


def test_what_is_no_regular_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    pipe, link, door = tmp_path / "pipe", tmp_path / "link", tmp_path / "door"
    os.mkfifo(pipe)
    link.symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(door.name)
    for path, words in (
        (pipe, "is not a regular file"),
        (tmp_path, "cannot be read, found Is a directory"),
        (Path("/dev/zero"), "is not a regular file"),
        (link, "is a symbolic link to a file that does not exist, found nowhere"),
        (door, "cannot be read"),
        (tmp_path / "missing", "does not exist"),
        (Path("a\0b"), "cannot be read, found embedded null byte"),
    ):
        with pytest.raises(CheckpointError) as error:
            READER.data(path)
        assert words in str(error.value)


@pytest.mark.parametrize("error", [CheckpointError, SettingError])
def test_what_is_no_regular_file_is_said_once(error: type[Llama4EdgeError]) -> None:
    with pytest.raises(error, match=r"^/dev/zero is not a regular file$"):
        Reader(error, 10).data("/dev/zero")


def test_entries_are_read_as_their_types() -> None:
    values = record(n=3, x=0.5, t="s", b=True, l=["a"], o={"k": 1}, os=[{"k": 2}])
    assert values.integer("n", 1, 3) == 3
    assert (values.number("x"), values.number("n")) == (0.5, 3.0)
    assert (values.text("t"), values.boolean("b"), values.texts("l")) == ("s", True, ("a",))
    assert values.record("o").integer("k") == 1
    assert [entry.integer("k") for entry in values.records("os")] == [2]
    assert values.integer("missing", default=7) == 7


@pytest.mark.parametrize(
    ("method", "value"),
    [
        *[("integer", value) for value in (True, 1.0, "1", None, -1, 2**63, [1])],
        *[("number", value) for value in (True, "1", float("nan"), float("inf"), 10**400)],
        *[("text", value) for value in (1, None, b"x", ["x"])],
        *[("boolean", value) for value in (0, "true")],
        ("elements", "x"),
        ("elements", {}),
        ("texts", "x"),
        ("texts", ["x", None]),
        ("record", "x"),
        ("record", []),
        ("records", {}),
        ("records", [{}, None]),
    ],
)
def test_an_entry_of_another_type_is_an_error_that_names_it(method: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json has (no|an invalid) entry, .*again"):
        getattr(record(entry=value), method)("entry")


def test_an_error_shows_little_of_a_long_value() -> None:
    with pytest.raises(CheckpointError) as error:
        record(entry="x" * 1_000_000).integer("entry")
    assert len(str(error.value)) < 300


def test_the_name_of_an_inner_entry_says_where_it_is() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: files\[1\] has no size"):
        record(files=[{"size": 1}, {}]).records("files")[1].integer("size")


def test_an_integer_with_more_digits_than_any_number_has_is_refused() -> None:
    assert READER.parse(f"[{'9' * 400}]", "x") == [10**400 - 1]
    with pytest.raises(CheckpointError, match="x is not JSON, found an integer of 401 digits"):
        READER.parse(f"[{'9' * 401}]", "x")


def test_a_small_file_takes_no_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    tracemalloc.start()
    try:
        assert Reader(CheckpointError, limit=1 << 30).json(file) == {}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
