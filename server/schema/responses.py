"""OpenAI's Responses API as it travels: what a request may hold, and what is answered.

Promises that a name which does not stand here is ignored, because OpenAI adds many; but not one of
``/v1/chat/completions``, which would be missed. What would change the answer and cannot be done is
refused by name: OpenAI's own tools where there are no others, its stored conversations and prompts,
files, and answers that are made in the background. Knows nothing of models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from ..body import Schema
from ..faults import neither_text_nor_list
from .openai import DataUrl, LoraField, SamplingFields

_NO_EFFECT = "Accepted; it changes nothing here."


class Wire(Schema):
    """What this protocol sends: names that are not known here are passed over."""

    model_config = ConfigDict(extra="ignore")


class InputText(Wire):
    """A text."""

    type: Literal["input_text", "output_text"]
    text: str


class Refusal(Wire):
    """What a model said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


class InputImage(Wire):
    """A picture as a ``data:`` URL."""

    type: Literal["input_image"]
    image_url: DataUrl
    detail: Any = Field(None, description=_NO_EFFECT)


Part = Annotated[InputText | InputImage | Refusal, Field(discriminator="type")]
Shown = Annotated[InputText | InputImage, Field(discriminator="type")]


def _as_parts(content: object) -> object:
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    if not isinstance(content, list):
        raise neither_text_nor_list(content)
    return content


class Message(Wire):
    """What somebody said; ``developer`` is OpenAI's newer word for ``system``."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[
        list[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])
    ]
    id: str | None = None


class FunctionCall(Wire):
    """A call of a function that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str
    id: str | None = None


class CustomToolCall(Wire):
    """A call of a tool that takes a text."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    namespace: str | None = None
    input: str
    id: str | None = None


class CallOutput(Wire):
    """What a function or a custom tool gave back."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Annotated[
        list[Shown], BeforeValidator(_as_parts, json_schema_input_type=str | list[Shown])
    ]
    id: str | None = None


class Aside(Wire):
    """What another model thought, or had searched for it; it is not shown to this one."""

    type: Literal["reasoning", "web_search_call"]
    id: str | None = None


class ItemReference(Wire):
    """An item of a response that is stored."""

    type: Literal["item_reference"]
    id: str


Item = Annotated[
    Message | FunctionCall | CustomToolCall | CallOutput | Aside | ItemReference,
    Field(discriminator="type"),
]


def _as_items(value: object) -> object:
    """A string is one message of the user, and an item without a type a message."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        raise neither_text_nor_list(value)
    return [
        {"type": "message", **item} if isinstance(item, dict) and "role" in item else item
        for item in value
    ]


Items = Annotated[list[Item], BeforeValidator(_as_items, json_schema_input_type=str | list[Item])]


class FunctionTool(Wire):
    """A function that the client runs."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextInput(Wire):
    """Any text."""

    type: Literal["text"]


class GrammarInput(Wire):
    """A text of a grammar, which the model is shown and not held to."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class CustomTool(Wire):
    """A tool that the client runs, and that takes a text in place of arguments."""

    type: Literal["custom"]
    name: str
    description: str | None = None
    format: Annotated[TextInput | GrammarInput, Field(discriminator="type")] | None = None


class NamespaceTool(Wire):
    """Tools that belong together, as those of an MCP server."""

    type: Literal["namespace"]
    name: str
    description: str | None = None
    tools: list[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]]


class HostedTool(Wire):
    """A tool that OpenAI runs. It is left out where the client has tools of its own."""

    type: Literal[
        "web_search", "web_search_2025_08_26", "web_search_preview",
        "web_search_preview_2025_03_11", "file_search", "code_interpreter", "image_generation",
        "mcp", "tool_search", "programmatic_tool_calling",
    ]  # fmt: skip


Tool = Annotated[
    FunctionTool | CustomTool | NamespaceTool | HostedTool, Field(discriminator="type")
]


class NamedTool(Wire):
    """The model calls this tool."""

    type: Literal["function", "custom"]
    name: str


class AllowedTools(Wire):
    """The model may call these of the tools, or calls one of them."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class TextFormat(Wire):
    """Any text."""

    type: Literal["text"]


class JsonFormat(Wire):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Wire):
    """JSON that meets a schema."""

    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextConfig(Wire):
    """What the answer's text looks like."""

    format: (
        Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None
    ) = None
    verbosity: str | None = Field(None, description=_NO_EFFECT)


_Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class PromptFields(SamplingFields):
    """What a prompt is made of."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(
        None, description="Any name is accepted: there is one model, whose name is in the answer."
    )
    input: Items = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[Tool] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedTool | AllowedTools, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: None = Field(None, description="Give previous_response_id.")
    prompt: None = Field(None, description="Prompts are not stored here.")
    messages: None = Field(None, description="Give input.")
    max_tokens: None = Field(None, description="Give max_output_tokens.")
    max_completion_tokens: None = Field(None, description="Give max_output_tokens.")
    response_format: None = Field(None, description="Give text.format.")
    functions: None = Field(None, description="Give tools.")


class ResponsesRequest(PromptFields):
    """The body of ``/v1/responses``."""

    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    store: bool | None = Field(None, description="false forgets the response at once.")
    metadata: Annotated[_Metadata, Field(max_length=16)] | None = None
    include: list[str] | None = Field(
        None, description="message.output_text.logprobs; the others change nothing here."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    background: Literal[False] | None = None
    lora: LoraField = None
    user: str | None = Field(None, description=_NO_EFFECT)


class TokenCount(Wire):
    """How many tokens a request's prompt has."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class Deleted(Wire):
    """A response is forgotten."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(Wire):
    """Items that a response answered."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class CachedTokens(Wire):
    """Tokens of the prompt that were not decoded again."""

    cached_tokens: int
    cache_write_tokens: int


class ReasoningTokens(Wire):
    """There are none."""

    reasoning_tokens: int


class Usage(Wire):
    """Tokens of the prompt and of the answer."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseAnswer(Wire):
    """The model's answer, with what was asked for."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    model: str
    output: list[dict[str, Any]]
    usage: Usage | None
    previous_response_id: str | None
