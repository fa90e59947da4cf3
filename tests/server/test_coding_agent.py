"""What coding agents send: long system prompts, many tools, and fields that none else sends."""

from __future__ import annotations

import json
from typing import Any

import httpx

TOOLS = [
    {
        "name": f"{name}",
        "description": f"{name} does one thing with a file, and says what it did.",
        "input_schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "file_path": {"type": "string", "description": "The file."},
                "limit": {"type": "integer", "exclusiveMinimum": 0},
            },
            "required": ["file_path"],
            "additionalProperties": False,
        },
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
    }
    for name in ("Read", "Write", "Edit", "Glob", "Grep", "mcp__files__list")
]
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQ"
    "DwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
PROMPT = "You are an agent that changes programs. Read a file before you change it. " * 12


def body(turns: list[dict[str, Any]], cch: str) -> dict[str, Any]:
    """A request as Claude Code makes it."""
    header = f"x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch={cch};"
    return {
        "model": "claude-sonnet-4-5-20250929",
        "max_tokens": 24,
        "stream": True,
        "temperature": 0,
        "system": [
            {"type": "text", "text": header},
            {
                "type": "text",
                "text": "You are Claude Code.",
                "cache_control": {"type": "ephemeral"},
            },
            {
                "type": "text",
                "text": PROMPT,
                "cache_control": {"type": "ephemeral", "scope": "org"},
            },
        ],
        "tools": TOOLS,
        "messages": turns,
        "metadata": {"user_id": "user_1_account__session_2"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "diagnostics": {"previous_message_id": None},
        "speed": "standard",
    }


def sent(client: httpx.Client, turns: list[dict[str, Any]], cch: str) -> tuple[str, dict[str, Any]]:
    """The text of a streamed answer, and its usage."""
    answer = client.post(
        "/v1/messages?beta=true",
        json=body(turns, cch),
        headers={
            "anthropic-version": "2023-06-01",
            "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
            "x-app": "cli",
            "x-stainless-timeout": "600",
        },
    )
    assert answer.status_code == 200, answer.text
    events = [
        json.loads(line.removeprefix("data: "))
        for line in answer.text.splitlines()
        if line.startswith("data: ")
    ]
    assert events[0]["type"] == "message_start"
    texts = [
        event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta"
    ]
    return "".join(texts), events[0]["message"]["usage"]


def test_an_agents_requests_are_answered_and_read_once(demo: httpx.Client) -> None:
    reminder = {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>"}
    question = {"type": "text", "text": "List the files.", "cache_control": {"type": "ephemeral"}}
    agents = {"role": "system", "content": "Available agent types for the Agent tool: none"}
    turns: list[dict[str, Any]] = [{"role": "user", "content": [reminder, question]}, agents]
    said, first = sent(demo, turns, "36ee5")
    n_first = first["input_tokens"] + first["cache_read_input_tokens"]
    assert n_first > 250
    call = {"type": "tool_use", "id": "toolu_1", "name": "Glob", "input": {"file_path": "*"}}
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": [{"type": "text", "text": "a.py\nb.py"}],
        "cache_control": {"type": "ephemeral"},
    }
    thinking = {"type": "thinking", "thinking": "…", "signature": "EqQB"}
    texts = [{"type": "text", "text": said}] if said else []
    turns += [
        {"role": "assistant", "content": [thinking, *texts, call]},
        {"role": "user", "content": [result]},
    ]
    _, second = sent(demo, turns, "0aaa9")
    # But for the header of the answer, all of the first prompt was there.
    assert second["cache_read_input_tokens"] >= n_first - 5


def test_an_agent_counts_tokens(demo: httpx.Client) -> None:
    turns = [{"role": "user", "content": "List the files."}]
    _, usage = sent(demo, turns, "abcde")
    path = "/v1/messages/count_tokens?beta=true"
    counted = demo.post(path, json=body(turns, "edcba")).json()
    assert counted["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_a_search_on_the_web_is_refused_by_its_name(demo: httpx.Client) -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    turns = [{"role": "user", "content": "Search."}]
    answer = demo.post("/v1/messages", json={**body(turns, "abcde"), "tools": [search]})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "web_search_20250305" in answer.json()["error"]["message"]


CODEX_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "name": "exec_command",
        "description": "Runs a command.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {"cmd": {"type": "string"}, "yield_time_ms": {"type": "number"}},
            "required": ["cmd"],
            "additionalProperties": False,
        },
    },
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Changes files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "***" /.+/'},
    },
    {
        "type": "namespace",
        "name": "multi_agent_v1",
        "description": "Tools for agents.",
        "tools": [
            {
                "type": "function",
                "name": "close_agent",
                "strict": False,
                "parameters": {
                    "type": "object",
                    "properties": {"target": {"enum": ["a", "b"]}},
                    "required": ["target"],
                    "additionalProperties": False,
                },
            }
        ],
    },
    {"type": "web_search", "external_web_access": False},
]


def codex_body(items: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """A request as Codex makes it."""
    return {
        "model": "any",
        "input": items,
        "tools": CODEX_TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "01a2183d",
        "client_metadata": {"x-codex-turn-metadata": "{}"},
        "temperature": 0,
        "max_output_tokens": 64,
        **fields,
    }


def codex_message(role: str, text: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "id": f"msg_{role}", "role": role, "content": content}


def codex_sent(
    client: httpx.Client, items: list[dict[str, Any]], **fields: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The items of a streamed response, and its usage."""
    answer = client.post(
        "/v1/responses",
        json=codex_body(items, **fields),
        headers={"originator": "codex_exec", "x-codex-beta-features": "remote_compaction_v2"},
    )
    assert answer.status_code == 200, answer.text
    events = [
        json.loads(line.removeprefix("data: "))
        for line in answer.text.splitlines()
        if line.startswith("data: ")
    ]
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    response = events[-1]["response"]
    return response["output"], response["usage"]


def test_codex_goes_on_after_calls_of_all_its_tools(demo: httpx.Client) -> None:
    items = [
        codex_message("developer", PROMPT),
        codex_message("user", "<environment_context></environment_context>"),
        codex_message("user", "List the files."),
    ]
    said, first = codex_sent(demo, items)
    picture = f"data:image/png;base64,{PNG}"
    items += [
        *said,
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}},
        {"type": "function_call", "call_id": "c1", "name": "exec_command",
         "arguments": '{"cmd": "ls"}'},
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** x"},
        {"type": "function_call", "call_id": "c3", "namespace": "multi_agent_v1",
         "name": "close_agent", "arguments": '{"target": "a"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "\u001b[31mred<|eot|>"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "unsupported call"},
        {"type": "function_call_output", "call_id": "c3",
         "output": [{"type": "input_image", "image_url": picture}]},
    ]  # fmt: skip
    _, second = codex_sent(demo, items)
    cached = second["input_tokens_details"]["cached_tokens"]
    assert cached >= first["input_tokens"] - 5


def test_codex_is_told_which_tool_of_which_namespace_is_called(demo: httpx.Client) -> None:
    chosen = {"type": "function", "name": "close_agent"}
    items = [codex_message("user", "Close agent a.")]
    (call,), _ = codex_sent(demo, items, tool_choice=chosen, parallel_tool_calls=False)
    assert (call["type"], call["namespace"], call["name"]) == (
        "function_call", "multi_agent_v1", "close_agent",
    )  # fmt: skip
    assert json.loads(call["arguments"])["target"] in ("a", "b")
