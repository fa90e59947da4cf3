"""What OpenAI's older protocols read: ``/v1/chat/completions`` and ``/v1/completions``.

Beside OpenAI's fields there are those of llama.cpp's server that choose tokens. What is accepted
and has no effect here says so; what would have one that cannot be had is refused by its name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from ...runtime.sampling import MAX_SEED, MAX_WINDOW, Sampling
from ..body import Schema
from ..faults import json_shown

MOST_STOPS = 64
"""Stop strings of a request, each of which is looked for after every token."""

MOST_ANSWERS = 128
"""Answers to one prompt, as OpenAI has it."""

MOST_PROMPTS = 1024
"""Prompts of a request, each of which is answered as if it came alone."""

_USUAL_TOKENS = 16  # OpenAI's, where ``max_tokens`` is missing

_NO_EFFECT = "Accepted; it has no effect here."

Count = Annotated[int, Field(ge=-1, le=2**31 - 1)]


class SamplingFields(Schema):
    """How tokens are chosen; what is missing is as the server was started."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = Field(
        None, description="-1 chooses one; the others count modulo 2**32 - 1."
    )
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | list[tuple[int, float | Literal[False]]] | None = Field(
        None, description="Token ids and what is added; false in a pair forbids the token."
    )
    typical_p: float | None = None
    typ_p: float | None = Field(None, description="The same.")
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = Field(None, description="The same.")
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        # JSON has no tuples.
        if isinstance(value, list):
            return [tuple(pair) if isinstance(pair, list) else pair for pair in value]
        return value

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, value: dict[str, float] | list[Any] | None) -> Any:
        for token in value if isinstance(value, dict) else ():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise ValueError(f"{token[:40]!r} is not the id of a token")
        return value

    def sampling(self, usual: Sampling) -> Sampling:
        """How tokens are chosen.

        Args:
            usual: what holds where nothing was given.

        Raises:
            SettingError: a value outside its range.
        """
        return replace(usual, **self._settings())

    def _settings(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in SamplingFields.model_fields}
        settings = {name: value for name, value in given.items() if value is not None}
        for other, name in (("typ_p", "typical_p"), ("repetition_penalty", "repeat_penalty")):
            if other in settings:
                settings.setdefault(name, settings.pop(other))
                settings.pop(other, None)
        for name in ("repeat_last_n", "dry_penalty_last_n"):
            if settings.get(name) == -1:  # llama.cpp's word for all of them
                settings[name] = MAX_WINDOW
        if (seed := settings.get("seed")) is not None:
            settings["seed"] = None if seed == -1 else seed % (MAX_SEED + 1)
        if (bias := settings.get("logit_bias")) is not None:
            pairs = bias.items() if isinstance(bias, dict) else bias
            settings["logit_bias"] = {
                int(token): float("-inf") if added is False else added for token, added in pairs
            }
        return settings


class AdapterScale(Schema):
    """How much of an adapter of the server is added."""

    id: Annotated[int, Field(ge=0, lt=2**31)] = Field(description="As GET /lora-adapters has it.")
    scale: float


LoraField = Annotated[
    Annotated[list[AdapterScale], Field(max_length=64)] | None,
    Field(description="Of the server's adapters; those that are not listed have no part in it."),
]
"""The adapters of one request, in every protocol."""


def wanted_adapters(lora: LoraField) -> dict[str, Any]:
    """The same as keywords of ``Model.chat``."""
    # An empty list is as none, for llama.cpp's server too.
    return {"adapters": [(one.id, one.scale) for one in lora]} if lora else {}


class StreamOptions(Schema):
    """What else is in a stream."""

    include_usage: bool | None = Field(None, description="Count tokens in a last chunk.")
    include_obfuscation: bool | None = Field(None, description=_NO_EFFECT)


class JSONSchemaField(Schema):
    """The schema that an answer is to follow."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Schema):
    """What an answer is to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaField | None = None
    schema_: dict[str, Any] | bool | None = Field(
        None, alias="schema", description="Of a json_object, as llama.cpp has it."
    )


class AnswerFields(SamplingFields):
    """What both protocols have."""

    model: str | None = Field(
        None, description="Any name is accepted: there is one model, whose name is in the answer."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = Field(None, description=f"At most {MOST_STOPS}.")
    max_tokens: Count | None = Field(None, description="-1 is until the answer ends.")
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = Field(None, description="GBNF, as llama.cpp has it.")
    regex: str | None = Field(None, description="What the whole answer matches.")
    lora: LoraField = None
    user: str | None = Field(None, description=_NO_EFFECT)
    cache_prompt: bool | None = Field(None, description=_NO_EFFECT)

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if stop is not None and not all([stop] if isinstance(stop, str) else stop):
            raise ValueError("an empty string cannot end a text")
        if isinstance(stop, list) and len(stop) > MOST_STOPS:
            raise ValueError(f"found {len(stop)} strings, expected at most {MOST_STOPS}")
        return stop

    @model_validator(mode="after")
    def _streams(self) -> AnswerFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream=true alone")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def options(self) -> dict[str, Any]:
        """What else was asked for, as the library takes it."""
        options: dict[str, Any] = {"stop": self.stop} if self.stop else {}
        if self.response_format is not None and self.response_format.type != "text":
            # Not without what is null: that may be in a schema.
            options["response_format"] = self.response_format.model_dump(
                exclude_unset=True, by_alias=True
            )
        options |= wanted_adapters(self.lora)
        for name in ("grammar", "regex"):
            if (value := getattr(self, name)) is not None:
                options[name] = value
        return options


class TextPart(Schema):
    """Text of a message."""

    type: Literal["text"]
    text: str
    cache_control: Any = Field(None, description=_NO_EFFECT)


class RefusalPart(Schema):
    """What a model said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


def _data_url(url: str) -> str:
    if url[:5].lower() != "data:":
        raise ValueError(
            "a picture comes as a data URL (data:image/png;base64,...): this server fetches nothing"
        )
    return url


DataUrl = Annotated[str, AfterValidator(_data_url)]
"""A picture's URL, in every protocol."""


class ImageURL(Schema):
    """A picture as a data URL."""

    url: DataUrl
    detail: Literal["auto", "low", "high"] | None = Field(None, description=_NO_EFFECT)


class ImagePart(Schema):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageURL
    cache_control: Any = Field(None, description=_NO_EFFECT)

    @field_validator("image_url", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


UserPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class SystemMessage(Schema):
    """What the model is told before a conversation; ``developer`` is OpenAI's newer word."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: str | None = Field(None, description=_NO_EFFECT)


class UserMessage(Schema):
    """What a user says."""

    role: Literal["user"]
    content: str | list[UserPart]
    name: str | None = Field(None, description=_NO_EFFECT)


class CalledFunction(Schema):
    """The function of a call, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCallField(Schema):
    """A call that the model made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, description=_NO_EFFECT)


class AssistantMessage(Schema):
    """What the model said before."""

    role: Literal["assistant"]
    content: str | list[AssistantPart] | None = None
    tool_calls: list[ToolCallField] | None = None
    name: str | None = Field(None, description=_NO_EFFECT)
    refusal: str | None = None
    annotations: Any = Field(None, description=_NO_EFFECT)
    reasoning_content: Any = Field(None, description=_NO_EFFECT)
    audio: None = Field(None, description="There is no sound here.")
    function_call: None = Field(None, description="Use tool_calls.")


class ToolMessage(Schema):
    """What a tool gave back."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str
    name: str | None = None


MessageField = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class FunctionField(Schema):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON Schema of an object.")
    strict: bool | None = None


class ToolField(Schema):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionField


class NamedFunction(Schema):
    """The function that the model is to call."""

    name: str


class NamedTool(Schema):
    """The tool that the model is to call."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(AnswerFields):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[MessageField], Field(min_length=1)]
    max_completion_tokens: Count | None = Field(None, description="OpenAI's newer max_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[ToolField] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    metadata: Any = Field(None, description=_NO_EFFECT)
    store: bool | None = Field(None, description="Accepted; nothing is stored.")
    service_tier: str | None = Field(None, description=_NO_EFFECT)
    safety_identifier: str | None = Field(None, description=_NO_EFFECT)
    prompt_cache_key: str | None = Field(None, description=_NO_EFFECT)
    prompt_cache_retention: str | None = Field(None, description=_NO_EFFECT)
    prompt_cache_options: Any = Field(None, description=_NO_EFFECT)
    prediction: Any = Field(None, description=_NO_EFFECT)
    reasoning_effort: str | None = Field(None, description=_NO_EFFECT)
    verbosity: str | None = Field(None, description=_NO_EFFECT)
    modalities: list[Literal["text"]] | None = None
    audio: None = Field(None, description="There is no sound here.")
    web_search_options: None = Field(None, description="This server fetches nothing.")
    functions: None = Field(None, description="Use tools.")
    function_call: None = Field(None, description="Use tool_choice.")

    @model_validator(mode="after")
    def _counts(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs=true alone")
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        return self

    @property
    def tool_definitions(self) -> list[dict[str, Any]]:
        """The tools as they were given."""
        return [tool.model_dump(exclude_unset=True) for tool in self.tools or ()]

    def options(self) -> dict[str, Any]:
        """What else was asked for, as the library takes it."""
        options = super().options()
        if self.logprobs:
            options |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        if self.parallel_tool_calls is not None:
            options["parallel_tool_calls"] = self.parallel_tool_calls
        if isinstance(self.tool_choice, NamedTool):
            options["tool_choice"] = self.tool_choice.model_dump()
        elif self.tool_choice is not None:
            options["tool_choice"] = self.tool_choice
        return options

    @property
    def most_tokens(self) -> int | None:
        """How many tokens an answer may have; None is until it ends."""
        wanted = (
            self.max_tokens if self.max_completion_tokens is None else (self.max_completion_tokens)
        )
        return None if wanted == -1 else wanted


_PROMPT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_PROMPTS},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {
            "type": "array",
            "minItems": 1,
            "maxItems": MOST_PROMPTS,
            "items": {
                "type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1,
            },
        },
    ]
}  # fmt: skip

_PROMPTS = "a string, token ids (0 or more), or a list of either"

TextOrTokens = str | list[int]


class CompletionRequest(AnswerFields):
    """The body of ``/v1/completions``."""

    prompt: Annotated[Any, WithJsonSchema(_PROMPT)] = Field(
        description="A text, token ids, or several of either."
    )
    max_tokens: Count | None = Field(_USUAL_TOKENS, description="-1 is until the answer ends.")
    echo: bool | None = Field(None, description="Whether the prompt comes before the answer.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="How many of the likeliest tokens are listed at each place."
    )
    best_of: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = Field(
        None, description="How many answers are made, of which the n likeliest are given."
    )
    suffix: None = Field(None, description="Llama 4 was not trained to fill in.")

    @field_validator("prompt")
    @classmethod
    def _some(cls, prompt: Any) -> Any:
        if isinstance(prompt, str):
            return prompt
        if not isinstance(prompt, list) or not prompt:
            raise ValueError(f"found {json_shown(prompt)}, expected {_PROMPTS}")
        if _are_tokens(prompt):
            return prompt
        if len(prompt) > MOST_PROMPTS and not _is_token(prompt[0]):
            raise ValueError(f"found {len(prompt)} prompts, expected at most {MOST_PROMPTS}")
        is_tokens = any(map(_is_token, prompt))
        right, expected = (_is_token, "token ids alone") if is_tokens else (_is_prompt, _PROMPTS)
        if wrong := next((one for one in enumerate(prompt) if not right(one[1])), None):
            found = f"{json_shown(wrong[1])} as entry {wrong[0]}"
            raise ValueError(f"found {found}, expected {expected}")
        return prompt

    @model_validator(mode="after")
    def _choices(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("best_of is less than n")
        if self.stream and self.n_made > (self.n or 1):
            raise ValueError("best_of chooses from whole answers, and stream=true does not wait")
        return self

    @property
    def prompts(self) -> list[TextOrTokens]:
        """What is to be continued."""
        prompt = self.prompt
        return [prompt] if isinstance(prompt, str) or _are_tokens(prompt) else prompt

    @property
    def n_made(self) -> int:
        """How many answers are made for each prompt."""
        return self.best_of or self.n or 1

    @property
    def most_tokens(self) -> int | None:
        """How many tokens an answer may have; None is until it ends."""
        if self.max_tokens is None:
            return _USUAL_TOKENS
        return None if self.max_tokens == -1 else self.max_tokens

    def options(self) -> dict[str, Any]:
        """What else was asked for, as the library takes it."""
        options = super().options()
        if self.logprobs is not None:
            options |= {"logprobs": True, "top_logprobs": self.logprobs}
        elif self.n_made > (self.n or 1):
            options["logprobs"] = True
        return options


def _is_prompt(value: object) -> bool:
    return isinstance(value, str) or _are_tokens(value)


def _are_tokens(value: object) -> bool:
    """Whether it is a list of token ids; of which vocabulary is seen later."""
    return isinstance(value, list) and bool(value) and all(map(_is_token, value))


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31
