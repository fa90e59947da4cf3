"""What `server_load` asks for: a tool, a schema, and what is wrong in many ways."""

from __future__ import annotations

from typing import Any

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "light",
        "description": "Switches a light.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"enum": ["kitchen", "garage"]}, "on": {"type": "boolean"}},
            "required": ["room", "on"],
            "additionalProperties": False,
        },
    },
}
"""A tool that the model may call."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["count"],
    "additionalProperties": False,
}
"""What an answer is to be."""

WRONG: tuple[tuple[str, bytes, int], ...] = (
    ("/v1/chat/completions", b"{", 400),
    ("/v1/chat/completions", b"[]", 400),
    ("/v1/chat/completions", b"\xff\xfe", 400),
    ("/v1/chat/completions", b"{}", 400),
    ("/v1/chat/completions", b'{"messages": []}', 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "king", "content": "x"}]}', 400),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "x"}], "n": 0}', 400),
    ("/v1/completions", b'{"prompt": [-1]}', 400),
    ("/v1/completions", b'{"prompt": "x", "temperature": "hot"}', 400),
    ("/v1/messages", b'{"messages": [], "max_tokens": 1}', 400),
    ("/v1/responses", b'{"input": 7}', 400),
    ("/v1/nothing", b"{}", 404),
)
"""What is wrong with a request, and the status that it gets: a path, a body and a status."""
