"""Where messages come from: pipes, terminals, the command line."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llama4_edge.errors import Llama4EdgeError
from llama4_edge.terminal import prompt
from llama4_edge.terminal.prompt import Lines, Prompt, _typed_text, decode

COMMANDS = ("/help", "/save", "/system")
ALT_ENTER, ENTER, CTRL_C, CTRL_D = "\x1b\r", "\r", "\x03", "\x04"


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def piped(data: bytes, wrapper: type[io.TextIOWrapper] = io.TextIOWrapper) -> io.TextIOWrapper:
    return wrapper(io.BytesIO(data), encoding="utf-8")


Typed = Callable[[str], str]


@pytest.fixture
def typed(tmp_path: Path) -> Typed:
    """What Prompt returns when these keys are pressed."""

    def read(keys: str) -> str:
        with create_pipe_input() as pipe:
            pipe.send_text(keys)
            with create_app_session(input=pipe, output=DummyOutput()):
                return Prompt(COMMANDS, ("/save",), tmp_path / "history").read()

    return read


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hello" + ENTER, "hello"),
        ("one" + ALT_ENTER + "two" + ENTER, "one\ntwo"),
        ("one\\" + ENTER + "two" + ENTER, "one\ntwo"),
        ("a\\" + ENTER + "b\\" + ENTER + "c" + ENTER, "a\nb\nc"),
        # A paste is bracketed by the terminal, and terminals send CR for its newlines.
        ("\x1b[200~first\rsecond\nthird\x1b[201~" + ENTER, "first\nsecond\nthird"),
        ("thrown away" + CTRL_C + "kept" + ENTER, "kept"),
    ],
)
def test_enter_sends_and_a_backslash_alt_enter_or_paste_keeps_lines(
    typed: Typed, keys: str, message: str
) -> None:
    assert typed(keys) == message


def test_ctrl_c_at_an_empty_prompt_is_an_interrupt_and_ctrl_d_the_end(typed: Typed) -> None:
    with pytest.raises(KeyboardInterrupt):
        typed(CTRL_C)
    with pytest.raises(EOFError):
        typed(CTRL_D)


@pytest.mark.parametrize(
    ("keys", "text", "left"),
    [
        (b"", "", False),
        ("né🦙".encode(), "né🦙", False),
        (b"one\rtwo\r", "one\ntwo", False),
        (b"onee\x7f", "one", False),
        (b"old\x15new", "new", False),
        (b"a\x1b[Ab\x1b[1;5Dc\x01d", "abcd", False),
        (b"\x1b[200~x\ry\x1b[201~", "x\ny", False),
        (b"\x04", "", True),
        (b"text\x04", "text", True),
    ],
)
def test_keys_typed_ahead_become_text(keys: bytes, text: str, left: bool) -> None:
    assert _typed_text(keys) == (text, left)


def test_messages_are_kept_for_the_next_chat(typed: Typed, tmp_path: Path) -> None:
    typed("first question" + ENTER)
    assert "+first question" in (tmp_path / "history").read_text()
    up = "\x1b[A"
    assert typed(up + ENTER) == "first question"


@pytest.mark.parametrize(
    ("text", "completions"),
    [
        ("/s", ["/save", "/system"]),
        ("/", list(COMMANDS)),
        ("/save", ["/save"]),
        ("//", []),
        ("hello /s", []),
        ("", []),
        ("/system note", []),
    ],
)
def test_commands_complete_at_the_start_of_a_message(text: str, completions: list[str]) -> None:
    assert complete(text) == completions


def test_file_names_complete_after_a_command_that_takes_one(tmp_path: Path) -> None:
    (tmp_path / "talk.json").touch()
    assert complete(f"/save {tmp_path}/ta") == ["lk.json"]


def complete(text: str) -> list[str]:
    from prompt_toolkit.completion import CompleteEvent

    from llama4_edge.terminal.prompt import _completer

    completer = _completer(COMMANDS, ("/save",))
    found = completer.get_completions(Document(text), CompleteEvent())
    return [completion.text for completion in found]


def test_lines_of_a_pipe_are_messages_and_a_backslash_joins_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", piped("one\ntwo\\\nthree\r\nünï\nlast\\".encode()))
    lines = Lines()
    assert [lines.read() for _ in range(4)] == ["one", "two\nthree", "ünï", "last\n"]
    with pytest.raises(EOFError):
        lines.read()


def test_a_line_that_never_ends_is_an_error_and_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompt, "MOST_BYTES", 8)
    monkeypatch.setattr(sys, "stdin", piped(b"short\n" + b"x" * 100))
    lines = Lines()
    assert lines.read() == "short"
    with pytest.raises(Llama4EdgeError, match="a line on standard input is too long"):
        lines.read()
    with pytest.raises(EOFError):
        lines.read()


def test_a_line_that_is_not_utf8_is_an_error_and_the_next_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", piped(b"ab\xff\nfine\n"))
    lines = Lines()
    with pytest.raises(Llama4EdgeError, match=r"not UTF-8, found byte 0xff at offset 2"):
        lines.read()
    assert lines.read() == "fine"


def test_bytes_that_are_not_utf8_are_refused_with_their_place() -> None:
    with pytest.raises(Llama4EdgeError) as caught:
        decode(b"abc\xc3(", "standard input")
    assert caught.value.problem == "standard input is not UTF-8"
    assert caught.value.found == "byte 0xc3 at offset 3"
