"""LangChain's and LlamaIndex's classes for OpenAI's protocol: an answer, a stream, a tool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.server.clients.openai_clients import EXPERTS, EXPERTS_ANSWER
from tests.server.clients.others import needs_others, run_other
from tests.server.running import RunningServer

pytestmark = [pytest.mark.heavy, needs_others]

_LANGCHAIN = """
import json, sys
from typing import Literal
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

url, question = sys.argv[1:]

@tool
def switch(room: Literal["kitchen", "garage"], on: bool) -> str:
    "Switches a light."
    return "done"

model = ChatOpenAI(base_url=url, api_key="none", model="any", temperature=0, max_retries=0)
forced = model.bind_tools([switch], tool_choice="switch")
calls = forced.invoke("Light in the kitchen, please.").tool_calls
streamed = None
for chunk in forced.stream("Light in the kitchen, please."):
    streamed = chunk if streamed is None else streamed + chunk
print(json.dumps({
    "text": model.invoke(question).content,
    "pieces": [chunk.content for chunk in model.stream(question)],
    "calls": calls,
    "streamed": streamed.tool_calls,
}))
"""

_LLAMA_INDEX = """
import json, sys
from typing import Literal
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

url, question = sys.argv[1:]

def switch(room: Literal["kitchen", "garage"], on: bool) -> str:
    "Switches a light."
    return "done"

model = OpenAILike(
    model="any", api_base=url, api_key="none", is_chat_model=True, temperature=0, max_retries=0,
    is_function_calling_model=True, context_window=4096,
)
messages = [ChatMessage(role="user", content=question)]
light = [ChatMessage(role="user", content="Light in the kitchen, please.")]
tools = [FunctionTool.from_defaults(switch)]
answer = model.chat_with_tools(tools, chat_history=light, tool_required=True)
calls = model.get_tool_calls_from_response(answer)
last = None
for last in model.stream_chat_with_tools(tools, chat_history=light, tool_required=True):
    pass
streamed = model.get_tool_calls_from_response(last)
print(json.dumps({
    "text": model.chat(messages).message.content,
    "pieces": [chunk.delta for chunk in model.stream_chat(messages)],
    "calls": [{"name": call.tool_name, "args": call.tool_kwargs} for call in calls],
    "streamed": [{"name": call.tool_name, "args": call.tool_kwargs} for call in streamed],
}))
"""


@pytest.mark.parametrize("program", [_LANGCHAIN, _LLAMA_INDEX], ids=["langchain", "llama-index"])
def test_its_class_for_openai_answers_streams_and_calls_tools(
    program: str, demo_server: RunningServer, tmp_path: Path
) -> None:
    output = run_other(
        "-W", "ignore", "-c", program, f"{demo_server.url}/v1", EXPERTS, directory=tmp_path
    )
    said = json.loads(output.splitlines()[-1])
    assert said["text"] == EXPERTS_ANSWER
    assert "".join(said["pieces"]) == EXPERTS_ANSWER
    (call,), (streamed,) = said["calls"], said["streamed"]
    assert call["name"] == "switch"
    assert call["args"]["room"] in ("kitchen", "garage")
    assert isinstance(call["args"]["on"], bool)
    assert (streamed["name"], streamed["args"]) == (call["name"], call["args"])
