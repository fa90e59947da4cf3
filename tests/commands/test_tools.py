"""`llama4 chat --tools`: nothing is called that nobody has allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest

from llama4_edge.chat.tool_calls import ToolCall
from llama4_edge.commands.tools import QUESTION, ToolCalls, read_tools
from llama4_edge.errors import SettingError

MODULE = '''
"""Tools."""
from os.path import join

def greet(name: str) -> str:
    """Greet."""
    return f"Hello {name}"

def undocumented(name: str) -> str:
    return name

def _private(name: str) -> str:
    """Not public."""
    return name
'''


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(MODULE, encoding="utf-8")
    return str(path)


def answering(*answers: str | type[BaseException]) -> tuple[list[str], Callable[[str], str]]:
    """What was asked, and what answers it."""
    asked: list[str] = []
    left = iter(answers)

    def ask(question: str) -> str:
        asked.append(question)
        answer = next(left)
        if isinstance(answer, str):
            return answer
        raise answer

    return asked, ask


CALL = ToolCall("1", "greet", {"name": "Ana"})
REFUSED = "Error: the user refused this call"


def test_public_functions_with_a_docstring_are_tools(module: str) -> None:
    assert [tool.name for tool in read_tools([module], may_ask=True)] == ["greet"]
    assert read_tools([], may_ask=False) == ()


def test_nothing_is_run_where_nobody_can_be_asked(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="--yes-tools calls without asking"):
        read_tools([str(tmp_path / "missing.py")], may_ask=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist, expected a Python file"),
        ("1 / 0", "cannot be run, found ZeroDivisionError"),
        ("exit(3)", "cannot be run, found SystemExit"),
        ("x = 1", "no public functions with a docstring"),
        ('async def f(x: int) -> int:\n    "Doc."', "f is async"),
        ('def f(x):\n    "Doc."', "parameter x of f"),
    ],
)
def test_a_file_without_tools_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match=message):
        read_tools([str(path)], may_ask=True)


def test_a_folder_is_refused_as_one(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is no file, expected a Python file for --tools"):
        read_tools([str(tmp_path)], may_ask=True)


def test_each_call_is_shown_and_asked_about(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, ask = answering("maybe", "y", "n", EOFError, "a")
    carry_out = ToolCalls(read_tools([module], may_ask=True), ask)
    results = [carry_out(CALL).content for _ in range(6)]
    assert results == ["Hello Ana", REFUSED, REFUSED, "Hello Ana", "Hello Ana", "Hello Ana"]
    assert asked == [QUESTION] * 5
    shown = capsys.readouterr().err
    assert shown.count("→ greet(name='Ana')") == 6
    assert shown.count("← Hello Ana") == 4


def test_all_of_a_long_call_is_shown_to_whoever_is_asked(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{'x' * 5000} and more {'y' * 5000}"
    long = ToolCall("1", "greet", {"name": name})
    _, ask = answering("y")
    ToolCalls(read_tools([module], may_ask=True), ask)(long)
    assert "and more" in capsys.readouterr().err.replace("\n", " ").partition("←")[0]
    ToolCalls(read_tools([module], may_ask=True), None)(long)
    assert "and more" not in capsys.readouterr().err


def test_nobody_is_asked_where_that_was_said(module: str) -> None:
    assert ToolCalls(read_tools([module], may_ask=True), None)(CALL).content == "Hello Ana"


def test_a_call_that_is_wrong_is_told_to_the_model_without_a_question(module: str) -> None:
    asked, ask = answering()
    broken = ToolCall.of("1", "greet", '{"name": ')
    result = ToolCalls(read_tools([module], may_ask=True), ask)(broken)
    assert result.content.startswith("Error: the arguments are not JSON")
    assert asked == []


def test_ctrl_c_at_the_question_ends_the_call(module: str) -> None:
    _, ask = answering(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        ToolCalls(read_tools([module], may_ask=True), ask)(CALL)
