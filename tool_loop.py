"""A conversation between a model and Python functions, until the model has its answer.

Promises that it ends, that each round is reported, and that an error of a function is something the
model is told. Knows nothing of how calls are written or carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, cast, overload

from .async_model import AsyncModel
from .chat.answer import Completion
from .chat.conversation import Conversation
from .chat.options import AnswerOptions
from .chat.prompt import Messages
from .chat.session import as_conversation
from .chat.tool_calls import ToolCall
from .chat.tool_results import CallError, ToolResult, call_tool, call_tool_async, failed, runnable
from .chat.tools import Tool, ToolInput, as_tools
from .errors import SettingError
from .model import Model
from .ranges import check_callback, check_whole, wrong_type

MAX_ROUNDS = 1000
"""The most rounds that may be asked for."""


@dataclass(frozen=True)
class ToolRound:
    """An answer that calls tools, and what came of its calls, in their order."""

    completion: Completion
    results: tuple[ToolResult, ...]


@dataclass(frozen=True)
class ToolRun:
    """What `run_tools` came to.

    Args:
        completion: the last answer.
        conversation: all that was said, with the calls, their results and the last answer.
        rounds: each answer with calls that were carried out.
    """

    completion: Completion
    conversation: Conversation
    rounds: tuple[ToolRound, ...] = ()

    @property
    def text(self) -> str:
        """What the last answer says."""
        return self.completion.text

    @property
    def is_finished(self) -> bool:
        """Whether the last answer calls nothing any more; else there were too many rounds."""
        return not self.completion.tool_calls


@overload
def run_tools(
    model: Model,
    messages: Messages,
    tools: Iterable[ToolInput],
    *,
    max_rounds: int = ...,
    on_round: Callable[[ToolRound], object] | None = ...,
    approve: Callable[[ToolCall], object] | None = ...,
    **options: Any,
) -> ToolRun: ...


@overload
def run_tools(
    model: AsyncModel,
    messages: Messages,
    tools: Iterable[ToolInput],
    *,
    max_rounds: int = ...,
    on_round: Callable[[ToolRound], object] | None = ...,
    approve: Callable[[ToolCall], object] | None = ...,
    **options: Any,
) -> Coroutine[Any, Any, ToolRun]: ...


def run_tools(
    model: Model | AsyncModel,
    messages: Messages,
    tools: Iterable[ToolInput],
    *,
    max_rounds: int = 8,
    on_round: Callable[[ToolRound], object] | None = None,
    approve: Callable[[ToolCall], object] | None = None,
    **options: Any,
) -> ToolRun | Coroutine[Any, Any, ToolRun]:
    """Answer messages, calling functions as the model asks, until it calls none.

        >>> run = run_tools(model, "What is the weather in Köln?", [get_weather])
        >>> print(run.text)

    With an `AsyncModel` it is awaited; functions may be async then, and those of one round run at
    the same time. A ``tool_choice`` that forces a call holds for the first round.

    Args:
        tools: Python functions.
        max_rounds: how many answers with calls are carried out. The one after them stays with its
            calls: `ToolRun.is_finished` says so.
        on_round: called with each `ToolRound`.
        approve: called before each call; where it returns a false value, nothing is called, and the
            model is told that it was refused.
        options: those of ``Model.chat``.

    What a function raises is the result that the model is told, in a line. KeyboardInterrupt and
    other exceptions that are no errors end it.

    Raises:
        SettingError: a tool has no function, or an argument is of the wrong type.
        Llama4EdgeError: as ``Model.chat``.
    """
    if not isinstance(model, Model | AsyncModel):
        raise wrong_type("model", model, "a Model or an AsyncModel")
    check_whole("max_rounds", max_rounds, 0, MAX_ROUNDS)
    check_callback("on_round", on_round)
    check_callback("approve", approve)
    taken = as_tools(tools)
    runnable(taken)
    is_async = isinstance(model, AsyncModel)
    if not is_async and (
        slow := [one.name for one in taken if one.function and one.function.is_async]
    ):
        raise SettingError(
            f"the tool {slow[0]} is an async function", expected="an AsyncModel, for such tools"
        )
    asked = cast("AnswerOptions", options)
    name = model.model.info.name if isinstance(model, AsyncModel) else model.info.name
    run = _Run(as_conversation(messages, name), taken, max_rounds, on_round, approve, asked)
    return _run_async(model, run) if isinstance(model, AsyncModel) else _run(model, run)


class _Run:
    """Where a run is: what was said so far, and what is asked next."""

    def __init__(
        self,
        conversation: Conversation,
        tools: tuple[Tool, ...],
        max_rounds: int,
        on_round: Callable[[ToolRound], object] | None,
        approve: Callable[[ToolCall], object] | None,
        options: AnswerOptions,
    ) -> None:
        self.conversation, self.tools = conversation, tools
        self._max_rounds, self._on_round, self._approve = max_rounds, on_round, approve
        self._options = options
        self._rounds: list[ToolRound] = []

    def asking(self) -> AnswerOptions:
        """The options of the next answer."""
        options: AnswerOptions = {**self._options, "tools": self.tools}
        if self._rounds and options.get("tool_choice") != "none":
            options["tool_choice"] = "auto"
        return options

    def calls_of(self, completion: Completion) -> tuple[ToolCall, ...]:
        """The calls to carry out after an answer; none where it is the last."""
        self.conversation = self.conversation.assistant(completion)
        return completion.tool_calls if len(self._rounds) < self._max_rounds else ()

    def refusal(self, call: ToolCall) -> ToolResult | None:
        """The result of a call that is not to be carried out."""
        if self._approve is None or self._approve(call):
            return None
        return failed(call, CallError("the user refused this call"))

    def take(self, completion: Completion, results: Iterable[ToolResult]) -> None:
        """The results of an answer's calls."""
        one = ToolRound(completion, tuple(results))
        for result in one.results:
            self.conversation = self.conversation.tool(result.call, result.content)
        self._rounds.append(one)
        if self._on_round is not None:
            self._on_round(one)

    def ended(self, completion: Completion) -> ToolRun:
        """What it came to."""
        return ToolRun(completion, self.conversation, tuple(self._rounds))


def _run(model: Model, run: _Run) -> ToolRun:
    while True:
        completion = model.chat(run.conversation, **run.asking())
        calls = run.calls_of(completion)
        if not calls:
            return run.ended(completion)
        run.take(completion, [run.refusal(call) or call_tool(call, run.tools) for call in calls])


async def _run_async(model: AsyncModel, run: _Run) -> ToolRun:
    while True:
        completion = await model.chat(run.conversation, **run.asking())
        calls = run.calls_of(completion)
        if not calls:
            return run.ended(completion)

        async def result_of(call: ToolCall) -> ToolResult:
            return run.refusal(call) or await call_tool_async(call, run.tools)

        run.take(completion, await asyncio.gather(*map(result_of, calls)))
