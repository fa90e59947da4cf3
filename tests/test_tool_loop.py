"""Answers call tools, functions are called, and the model is told what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama4_edge import (
    AnswerEnded,
    AsyncModel,
    Conversation,
    Message,
    Model,
    SettingError,
    ToolCall,
    ToolCallBegun,
    ToolCallEnded,
    ToolCallPiece,
    run_tools,
)
from llama4_edge.tool_loop import ToolRound


def flip(on: bool) -> str:
    """Flip a switch.

    Args:
        on: its new state
    """
    return f"It is {'on' if on else 'off'}."


def fail(on: bool) -> str:
    """Fail."""
    raise RuntimeError("no\nway")


async def later(on: bool) -> dict[str, bool]:
    """Flip it later."""
    await asyncio.sleep(0)
    return {"on": on}


DEFINITION = {
    "type": "function",
    "function": {
        "name": "flip",
        "parameters": {
            "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Iterator[Model]:
    with Model(tiny_path, n_ctx=4096, n_threads=1) as opened:
        yield opened


def asked(model: Model, **options: Any) -> Any:
    return model.chat(
        "Flip it.", **{"tools": [flip, fail], "max_tokens": 200, "seed": 1, **options}
    )


@pytest.mark.parametrize("choice", ["flip", {"type": "function", "function": {"name": "fail"}}])
def test_a_named_tool_is_called_once_with_arguments_of_its_schema(
    model: Model, choice: Any
) -> None:
    name = choice if isinstance(choice, str) else choice["function"]["name"]
    for seed in range(5):
        completion = asked(model, tool_choice=choice, seed=seed)
        (call,) = completion.tool_calls
        assert (completion.text, completion.finish_reason) == ("", "tool_calls")
        assert (call.name, call.error) == (name, None)
        assert set(call.arguments) == {"on"}
        assert isinstance(call.arguments["on"], bool)
        assert json.loads(call.arguments_json) == call.arguments
        assert completion.message == Message("assistant", "", (call,))


def test_some_tool_is_called_where_that_is_required(model: Model) -> None:
    names = set()
    for seed in range(20):
        completion = asked(
            model, tool_choice="required", parallel_tool_calls=False, seed=seed, temperature=2.0
        )
        (call,) = completion.tool_calls
        assert call.error is None
        names.add(call.name)
    assert names == {"flip", "fail"}


def test_a_definition_is_called_as_a_function_is(model: Model) -> None:
    completion = asked(model, tools=[DEFINITION], tool_choice="required", parallel_tool_calls=False)
    assert [call.name for call in completion.tool_calls] == ["flip"]


def test_no_tools_are_shown_where_none_is_to_be_called(model: Model) -> None:
    plain = model.chat_prompt("Flip it.").token_ids
    assert model.chat_prompt("Flip it.", tools=[flip], tool_choice="none").token_ids == plain
    assert len(model.chat_prompt("Flip it.", tools=[flip]).token_ids) > len(plain)


def test_the_events_of_a_call_are_its_answer(model: Model) -> None:
    with asked(model, tool_choice="flip", stream=True) as stream:
        begun, *pieces, ended, last = stream.events()
    assert isinstance(begun, ToolCallBegun)
    assert all(isinstance(piece, ToolCallPiece) for piece in pieces)
    assert isinstance(ended, ToolCallEnded)
    assert isinstance(last, AnswerEnded)
    assert (begun.index, begun.id, begun.name) == (0, ended.call.id, "flip")
    assert "".join(piece.arguments for piece in pieces) == ended.call.arguments_json
    assert last.completion.tool_calls == (ended.call,)


def test_a_stream_read_as_text_has_no_text_of_a_call(model: Model) -> None:
    with asked(model, tool_choice="flip", stream=True) as stream:
        assert list(stream) == []
        assert [call.name for call in stream.completion.tool_calls] == ["flip"]


def test_a_call_that_is_cut_off_says_so(model: Model) -> None:
    completion = asked(model, tool_choice="flip", max_tokens=35)
    (call,) = completion.tool_calls
    assert completion.finish_reason == "length"
    assert call.error == "the arguments are cut off"


def test_an_answer_has_one_form(model: Model) -> None:
    with pytest.raises(SettingError, match=r"response_format.* and tool_choice"):
        asked(model, tool_choice="flip", response_format={"type": "json_object"})
    with pytest.raises(SettingError, match="tools are for messages"):
        model.generate("x", tools=[flip])


def test_a_strict_tools_schema_that_cannot_be_held_to_is_refused(model: Model) -> None:
    tool = {"name": "f", "strict": True, "parameters": {"type": "object", "not": {}}}
    with pytest.raises(SettingError, match="the parameters of the tool f"):
        asked(model, tools=[tool])


def test_functions_are_called_until_the_model_has_its_answer(model: Model) -> None:
    rounds: list[ToolRound] = []
    run = run_tools(
        model, "Flip it.", [flip, fail], tool_choice="flip", seed=1, max_tokens=60,
        on_round=rounds.append,
    )  # fmt: skip
    (one,) = run.rounds
    (result,) = one.results
    assert rounds == [one]
    assert run.is_finished
    assert result.content == f"It is {'on' if result.call.arguments['on'] else 'off'}."
    assert run.conversation.messages == (
        Message("user", "Flip it."),
        Message("assistant", "", (result.call,)),
        Message("tool", result.content, tool_call_id=result.call.id),
        Message("assistant", run.text),
    )


def test_the_model_is_told_what_a_function_raises_and_what_was_refused(model: Model) -> None:
    options: dict[str, Any] = {"tool_choice": "fail", "seed": 1, "max_tokens": 60, "max_rounds": 1}
    run = run_tools(model, "Flip it.", [fail], **options)
    assert run.conversation.messages[2].content == "Error: RuntimeError: no way"
    assert isinstance(run.rounds[0].results[0].error, RuntimeError)
    run = run_tools(model, "Flip it.", [fail], approve=lambda call: False, **options)
    assert run.conversation.messages[2].content == "Error: the user refused this call"


def test_rounds_are_bounded(model: Model) -> None:
    run = run_tools(
        model, "Flip it.", [flip], tool_choice="flip", max_rounds=0, seed=1, max_tokens=60
    )
    assert not run.is_finished
    assert run.rounds == ()
    assert [message.role for message in run.conversation.messages] == ["user", "assistant"]


def test_ctrl_c_in_a_function_ends_the_run(model: Model) -> None:
    def flip(on: bool) -> str:
        raise KeyboardInterrupt

    flip.__annotations__ = {"on": bool}
    with pytest.raises(KeyboardInterrupt):
        run_tools(model, "Flip it.", [flip], tool_choice="flip", seed=1, max_tokens=60)


def test_async_functions_are_awaited_by_an_async_model(model: Model) -> None:
    run = asyncio.run(
        run_tools(
            AsyncModel(model), "Flip it.", [later, flip], tool_choice="later", seed=1, max_tokens=60
        )
    )
    (result,) = run.rounds[0].results
    assert json.loads(result.content) == {"on": result.call.arguments["on"]}
    with pytest.raises(SettingError, match="later is an async function"):
        run_tools(model, "Flip it.", [later])


def test_a_definition_cannot_be_run(model: Model) -> None:
    with pytest.raises(SettingError, match="the tool flip has nothing to call"):
        run_tools(model, "Flip it.", [DEFINITION])


def test_calls_and_results_are_saved_and_loaded(tmp_path: Path) -> None:
    broken = ToolCall.of("2", "flip", '{"on": ')
    talk = (
        Conversation()
        .user("Flip it.")
        .assistant("text")
    )  # fmt: skip
    calls = (ToolCall("1", "flip", {"on": True}), broken)
    messages = (*talk.messages, Message("assistant", "", calls))
    talk = Conversation(messages).tool("1", "It is on.").tool(broken, "Error")
    talk.save(tmp_path / "talk.json")
    loaded = Conversation.load(tmp_path / "talk.json")
    assert [str(one) for one in loaded.messages] == [str(one) for one in talk.messages]
    assert loaded.messages[2].tool_calls[1] == broken
    assert [one.tool_call_id for one in loaded.messages] == [None, None, None, "1", "2"]
    assert json.loads((tmp_path / "talk.json").read_text())["version"] == 2


def test_messages_are_taken_in_openais_form() -> None:
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "flip", "arguments": '{"on": true}'},
    }
    talk = Conversation(
        [  # type: ignore[arg-type]
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "It is on.", "tool_call_id": "1"},
        ]
    )
    (taken,) = talk.messages[0].tool_calls
    assert (taken.id, taken.name, taken.arguments) == ("1", "flip", {"on": True})
    assert taken.as_openai() == call
