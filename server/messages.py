"""Messages as OpenAI writes them, as the library takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .schema.openai import (
    AssistantMessage,
    ImagePart,
    MessageField,
    RefusalPart,
    TextPart,
    ToolMessage,
    UserPart,
)


def messages_of(messages: Sequence[MessageField]) -> list[dict[str, Any]]:
    """The messages, oldest first, as ``Model.chat`` takes them."""
    return [_message(message) for message in messages]


def _message(message: MessageField) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    taken: dict[str, Any] = {"role": role, "content": _content(message.content)}
    if isinstance(message, AssistantMessage):
        if message.refusal and not message.content:
            taken["content"] = message.refusal
        if message.tool_calls:
            taken["tool_calls"] = [
                call.model_dump(exclude={"index"}) for call in message.tool_calls
            ]
    if isinstance(message, ToolMessage):
        taken["tool_call_id"] = message.tool_call_id
    return taken


def _content(content: str | Sequence[UserPart | RefusalPart] | None) -> str | list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return content or ""
    parts = [_part(part) for part in content]
    if all(part["type"] == "text" for part in parts):
        # One text, which every template takes.
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: TextPart | ImagePart | RefusalPart) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": part.image_url.url}}
    return {"type": "text", "text": part.text if isinstance(part, TextPart) else part.refusal}
