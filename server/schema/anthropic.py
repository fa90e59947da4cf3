"""Anthropic's Messages API as it travels: what a request may hold, and what is answered.

Promises that a name which does not stand here is ignored, as ``cache_control``, ``metadata``,
``service_tier`` and ``context_management`` are: coding agents send many. What would change the
answer and cannot be done is refused by name: tools of Anthropic's own, MCP servers, containers, PDF
files, and files in Anthropic's storage. Knows nothing of models.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from ..body import Schema
from ..faults import neither_text_nor_list
from .openai import MOST_STOPS, DataUrl, LoraField

_HOSTED = r"^(web_search|web_fetch|code_execution|tool_search_tool_[a-z0-9]+)_\d{8}$"


class Wire(Schema):
    """What this protocol sends: names that are not known here are passed over."""

    model_config = ConfigDict(extra="ignore")


def _as_blocks(content: object) -> object:
    """A string is one block of text, "" none."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        raise neither_text_nor_list(content)
    return content


class TextBlock(Wire):
    """A text."""

    type: Literal["text"]
    text: str


class Base64Source(Wire):
    """A picture's file in base64."""

    type: Literal["base64"]
    media_type: str
    data: str


class UrlSource(Wire):
    """A picture's ``data:`` URL. Others are refused, because the server fetches nothing."""

    type: Literal["url"]
    url: DataUrl


class ImageBlock(Wire):
    """A picture."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]


_Shown = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]


class TextSource(Wire):
    """A document's text."""

    type: Literal["text"]
    data: str


class ContentSource(Wire):
    """A document's text and pictures, as blocks."""

    type: Literal["content"]
    content: Annotated[
        list[_Shown], BeforeValidator(_as_blocks, json_schema_input_type=str | list[_Shown])
    ]


class DocumentBlock(Wire):
    """A document that is text; a PDF is refused."""

    type: Literal["document"]
    source: Annotated[TextSource | ContentSource, Field(discriminator="type")]
    title: str | None = None
    context: str | None = None


class SearchResultBlock(Wire):
    """What a search found."""

    type: Literal["search_result"]
    title: str
    source: str
    content: list[TextBlock]


class ToolReferenceBlock(Wire):
    """The name of a tool that a search for tools found; all tools are shown anyway."""

    type: Literal["tool_reference"]
    tool_name: str


class ThinkingBlock(Wire):
    """What another model thought; it is not shown to this one."""

    type: Literal["thinking", "redacted_thinking"]


class ToolUseBlock(Wire):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


_Result = Annotated[
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock,
    Field(discriminator="type"),
]


class ToolResultBlock(Wire):
    """What a tool gave back. The text of an error is shown after "Error: "."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[
        list[_Result], BeforeValidator(_as_blocks, json_schema_input_type=str | list[_Result])
    ] = Field(default_factory=list)
    is_error: bool | None = None


Block = Annotated[
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | ToolUseBlock
    | ToolResultBlock,
    Field(discriminator="type"),
]


class Message(Wire):
    """What somebody said. Messages of the same role that follow one another are one message."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block], BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block])
    ]


class Tool(Wire):
    """A tool that the client runs."""

    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    input_schema: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _is_the_clients(cls, tool: object) -> object:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "custom":
            raise ValueError(
                f"the tool {kind[:80]} is Anthropic's own; give a tool with a name and an "
                "input_schema"
            )
        return tool


class HostedTool(Wire):
    """A tool that Anthropic runs. It is left out where the client has tools of its own."""

    type: Annotated[str, Field(pattern=_HOSTED)]
    name: str


def _kind_of(tool: object) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "hosted" if isinstance(kind, str) and re.match(_HOSTED, kind) else "own"


class AutoChoice(Wire):
    """The model decides whether it calls a tool."""

    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = None


class AnyChoice(Wire):
    """The model calls a tool."""

    type: Literal["any"]
    disable_parallel_tool_use: bool | None = None


class ToolChoice(Wire):
    """The model calls this tool."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(Wire):
    """The model calls none."""

    type: Literal["none"]


Choice = AutoChoice | AnyChoice | ToolChoice | NoChoice


class OutputFormat(Wire):
    """The JSON schema that the answer's text meets."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Wire):
    """What the answer looks like; ``effort`` is ignored."""

    format: OutputFormat | None = None


class CountRequest(Wire):
    """The body of ``/v1/messages/count_tokens``."""

    model: str
    messages: list[Message] = Field(min_length=1)
    system: Annotated[
        list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])
    ] = Field(default_factory=list)
    tools: (
        list[
            Annotated[
                Annotated[Tool, Tag("own")] | Annotated[HostedTool, Tag("hosted")],
                Discriminator(_kind_of),
            ]
        ]
        | None
    ) = None
    tool_choice: Annotated[Choice, Field(discriminator="type")] | None = None
    output_config: OutputConfig | None = None
    thinking: Any = Field(None, description="Ignored: the model does not think apart.")
    mcp_servers: list[Any] | None = Field(None, max_length=0)
    container: None = Field(None, description="Nothing runs here.")


class MessagesRequest(CountRequest):
    """The body of ``/v1/messages``."""

    max_tokens: int = Field(ge=0, description="0 reads the prompt into the cache.")
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MOST_STOPS)] | None
    ) = None
    lora: LoraField = None


class TokenCount(Wire):
    """How many tokens a request's prompt has."""

    input_tokens: int


class Usage(Wire):
    """Tokens of the prompt that were decoded, those that were still there, and the answer's."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class TextAnswer(TextBlock):
    """A text of the answer."""

    citations: None = None


class MessageAnswer(Wire):
    """The model's answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Annotated[TextAnswer | ToolUseBlock, Field(discriminator="type")]]
    stop_reason: (
        Literal["end_turn", "max_tokens", "stop_sequence", "tool_use",
                "model_context_window_exceeded"]
        | None
    )  # fmt: skip
    stop_sequence: str | None
    usage: Usage


class ErrorDetail(Wire):
    """What was wrong."""

    type: str
    message: str


class ErrorAnswer(Wire):
    """What is answered instead."""

    type: Literal["error"] = "error"
    error: ErrorDetail
    request_id: str | None = None
