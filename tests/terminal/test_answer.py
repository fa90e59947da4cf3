"""An answer on its way to stdout."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest

from llama4_edge.chat.answer import Completion
from llama4_edge.terminal.answer import AnswerWriter, timings_text
from llama4_edge.terminal.visible import printable


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("pieces", "written"),
    [
        (["Hello"], "Hello\n"),
        (["Hello", "\n"], "Hello\n"),
        (["Hello\n\n", "\n"], "Hello\n"),
        (["one\n", "\ntwo"], "one\n\ntwo\n"),
        (["\n", "Hello"], "\nHello\n"),
        ([], "\n"),
        (["", "a", ""], "a\n"),
        (["trailing space \n"], "trailing space \n"),
    ],
)
def test_an_answer_ends_in_exactly_one_newline(
    monkeypatch: pytest.MonkeyPatch, pieces: list[str], written: str
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    writer = AnswerWriter()
    for piece in pieces:
        writer.write(piece)
    writer.end()
    assert out.getvalue() == written


def test_timings_say_what_was_drafted_if_anything_was() -> None:
    plain = Completion("", (1, 2, 3), "length", None, 10, 4, 0, 2.0, 1.5)
    assert timings_text(plain) == (
        "10 tokens of prompt, 6 of them read at 3.0 tokens/s; 3 tokens, 2.0 tokens/s"
    )
    drafted = replace(plain, drafted_tokens=1234, accepted_tokens=1000)
    assert timings_text(drafted) == (
        timings_text(plain) + "; 1,000 of 1,234 drafted tokens accepted"
    )


def test_a_piece_is_shown_before_the_next_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    writer = AnswerWriter()
    writer.write("first")
    assert out.getvalue() == "first"


STEERING = "a\x1b]0;title\x07b\x9bJ\x7f\tc\r"


def test_a_terminal_is_not_steered_by_an_answer_and_a_pipe_gets_every_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for out, expected in (
        (Screen(), "a␛]0;title␇b\ufffdJ␡\tc␍\n"),
        (io.StringIO(), STEERING + "\n"),
    ):
        monkeypatch.setattr(sys, "stdout", out)
        writer = AnswerWriter()
        writer.write(STEERING)
        writer.end()
        assert out.getvalue() == expected


def test_printable_text_is_left_as_it_is() -> None:
    text = "Ünïcode 🦙 日本語\n\tcode"
    assert printable(text) == text
