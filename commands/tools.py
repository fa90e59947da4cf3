"""``--tools``: functions of a module that the model may call, each call after a question.

Promises that nothing is called which a person at the terminal has not seen and allowed, unless they
said beforehand that nobody asks.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import SettingError
from ..terminal.console import note
from ..terminal.visible import LONGEST_LINE
from .declare import flag, option

if TYPE_CHECKING:
    from ..chat.tool_calls import ToolCall
    from ..chat.tool_results import ToolResult
    from ..chat.tools import Tool

_MOST_SHOWN = 600  # characters of a call or a result

QUESTION = "Call it? [y]es, [n]o, [a]lways this one: "


def tools_option() -> Any:
    """The modules with the functions."""
    return option(
        "--tools", kind=click.Path(), metavar="MODULE.PY", multiple=True,
        help="Let the model call the public functions of a Python file that have a docstring. Asks "
        "before each call. May be given several times.",
    )  # fmt: skip


def yes_tools_flag() -> Any:
    """Whether nobody is asked."""
    return flag("--yes-tools", help="Call the functions of --tools without asking.")


def read_tools(paths: Sequence[str], *, may_ask: bool) -> tuple[Tool, ...]:
    """The functions of the files, which are run for that.

    Args:
        may_ask: whether somebody can be asked, or said that nobody need be.

    Raises:
        SettingError: a file cannot be run, has no such function, or one that cannot be described.
        click.UsageError: nobody can be asked.
    """
    if not paths:
        return ()
    if not may_ask:
        raise click.UsageError(
            "--tools asks before each call, and nobody is at the terminal. --yes-tools calls "
            "without asking."
        )
    from ..chat.tools import as_tools

    return as_tools([function for path in paths for function in _functions(path)])


class ToolCalls:
    """Carries out what a model calls, as far as the person allows it.

    Args:
        tools: what there is.
        ask: puts a question, and returns what was typed; None asks nothing.
    """

    def __init__(self, tools: Sequence[Tool], ask: Callable[[str], str] | None) -> None:
        self._tools, self._ask = tools, ask
        self._always: set[str] = set()

    def __call__(self, call: ToolCall) -> ToolResult:
        """Show a call, ask, carry it out, and show its result.

        Raises:
            KeyboardInterrupt: the person ended it.
        """
        from ..chat.tool_results import CallError, call_tool, failed

        text = _call_text(call)
        if self._ask is None:
            note(f"→ {_shortened(text)}")
        else:
            _show_all(f"→ {text}")
        if call.error is None and not self._may(call.name):
            result = failed(call, CallError("the user refused this call"))
        else:
            result = call_tool(call, self._tools)
        note(f"← {_shortened(result.content)}")
        return result

    def _may(self, name: str) -> bool:
        if self._ask is None or name in self._always:
            return True
        while True:
            try:
                answer = self._ask(QUESTION).strip().lower()
            except EOFError:
                return False
            if answer in ("a", "always"):
                self._always.add(name)
            if answer in ("y", "yes", "a", "always"):
                return True
            if answer in ("n", "no"):
                return False


def ask_at_terminal(question: str) -> str:
    """A line that a person types; EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    return session.prompt(question)


def _call_text(call: ToolCall) -> str:
    """A call as Python would write it."""
    if call.error is not None and not call.arguments:
        return f"{call.name}({call.arguments_json}): {call.error}"
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})"


def _show_all(text: str) -> None:
    """Show a text in as many lines as it takes: whoever is asked sees all of it."""
    for at in range(0, len(text), LONGEST_LINE):
        note(text[at : at + LONGEST_LINE])


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _functions(path: str) -> Iterator[Callable[..., Any]]:
    """The public functions with docstrings that a file defines.

    Raises:
        SettingError: it cannot be run, or has none.
    """
    file = Path(path)
    if not file.exists():
        raise SettingError(f"{path} does not exist", expected="a Python file for --tools")
    if not file.is_file():
        raise SettingError(f"{path} is no file", expected="a Python file for --tools")
    name = f"llama4_tools_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SettingError(f"{path} is no Python file", expected="a file with the ending .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are looked up there
    with _beside(file):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            found = f"{type(error).__name__}: {error}"
            raise SettingError(f"{path} cannot be run", found=found[:300]) from error
    functions = [
        value
        for name_of, value in vars(module).items()
        if not name_of.startswith("_")
        and inspect.isfunction(value)
        and value.__module__ == name
        and value.__doc__
    ]
    if not functions:
        raise SettingError(f"{path} has no public functions with a docstring")
    for function in functions:
        if inspect.iscoroutinefunction(function):
            raise SettingError(
                f"{path}: {function.__name__} is async", expected="def without async"
            )
    yield from functions


@contextmanager
def _beside(file: Path) -> Iterator[None]:
    """A block in which modules beside a file can be imported."""
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
