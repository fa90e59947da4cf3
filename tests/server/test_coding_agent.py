"""What a coding agent sends: a long system prompt, many tools, and fields that none else sends."""

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
    turns: list[dict[str, Any]] = [{"role": "user", "content": [reminder, question]}]
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
