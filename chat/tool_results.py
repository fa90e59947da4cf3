"""Calls carried out: a tool's function is called, and what it gives is what the model is told.

Promises that whatever a function raises becomes a short result without a traceback, and that what a
person does (Ctrl-C) is not taken for one. Knows no model.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import inspect
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SettingError
from .conversation import Message
from .functions import Function
from .tool_calls import ToolCall
from .tools import Tool

_MAX_ERROR = 500  # characters of an error that the model is told


@dataclass(frozen=True)
class ToolResult:
    """What came of a call.

    Args:
        call: the call.
        content: what the model is told.
        error: what went wrong, None where nothing did.
        seconds: that it took.
    """

    call: ToolCall
    content: str
    error: Exception | None = None
    seconds: float = 0.0

    @property
    def message(self) -> Message:
        """The result as a message."""
        return Message("tool", self.content, tool_call_id=self.call.id)


def call_tool(call: ToolCall, tools: Sequence[Tool]) -> ToolResult:
    """Call the function of a tool, unless something is wrong with the call."""
    begun = time.monotonic()
    try:
        value = _function(call, tools)(call.arguments)
        if inspect.iscoroutine(value):
            value.close()
            raise SettingError(f"{call.name} is an async function", expected="an AsyncModel")
        return ToolResult(call, result_text(value), seconds=time.monotonic() - begun)
    except Exception as error:
        return failed(call, error, time.monotonic() - begun)


async def call_tool_async(call: ToolCall, tools: Sequence[Tool]) -> ToolResult:
    """The same, awaited; a function that is not async runs in another thread."""
    begun = time.monotonic()
    try:
        function = _function(call, tools)
        if function.is_async:
            value = await function(call.arguments)
        else:
            value = await asyncio.to_thread(function, call.arguments)
            if inspect.iscoroutine(value):
                value = await value
        return ToolResult(call, result_text(value), seconds=time.monotonic() - begun)
    except Exception as error:
        return failed(call, error, time.monotonic() - begun)


def failed(call: ToolCall, error: Exception, seconds: float = 0.0) -> ToolResult:
    """The result of a call that went wrong, as the model is told it."""
    name = "" if isinstance(error, CallError) else f"{type(error).__name__}: "
    try:
        text = " ".join(str(error).split())
    except Exception:  # of a stranger's class
        text = ""
    whole = f"Error: {name}{text}".rstrip(": ")
    return ToolResult(call, _sound(whole[:_MAX_ERROR]), error, seconds)


class CallError(ValueError):
    """Something is wrong with a call, and nothing was called."""


def result_text(value: Any) -> str:
    """What a function gave back, as the model is told it: text as it is, the rest as JSON."""
    if isinstance(value, str):
        return _sound(value)
    return _sound(json.dumps(value, ensure_ascii=False, default=_plain))


def runnable(tools: Sequence[Tool]) -> None:
    """Refuse tools that have no function.

    Raises:
        SettingError: one of them has none.
    """
    for tool in tools:
        if tool.function is None:
            raise SettingError(
                f"the tool {tool.name} has nothing to call",
                found="a definition",
                expected="a Python function",
            )


def _function(call: ToolCall, tools: Sequence[Tool]) -> Function:
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if call.error is not None:
        raise CallError(call.error)
    if tool is None or tool.function is None:
        raise CallError(f"there is no tool {call.name[:128]}")
    if problem := tool.problem_of(call.arguments):
        raise CallError(problem)
    return tool.function


def _sound(text: str) -> str:
    """A text without lone surrogates, which have no bytes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain(value: Any) -> Any:
    """What JSON has in place of a value of Python."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "replace")
    if callable(listed := getattr(value, "tolist", None)):  # NumPy's
        return listed()
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, Iterator | AsyncIterator):
        raise TypeError(f"the function gave a {type(value).__name__}, expected a value or a list")
    return str(value)
