"""What llama.cpp's server has beside the protocols of others: tokens, prompts, and its settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..body import Schema


class TokenizeRequest(Schema):
    """The body of ``/tokenize``, with llama.cpp's fields or vLLM's."""

    content: str | None = None
    prompt: str | None = Field(None, description="vLLM's word for content.")
    add_special: bool = Field(False, description="Whether BOS comes first.")
    add_special_tokens: bool | None = Field(None, description="vLLM's word for add_special.")
    parse_special: bool = Field(True, description="Whether control tokens are read by their names.")
    with_pieces: bool = Field(False, description="Whether each token comes with its text.")

    @model_validator(mode="after")
    def _one_text(self) -> TokenizeRequest:
        if (self.content is None) == (self.prompt is None):
            raise ValueError("content is missing, or there is prompt beside it: give one of them")
        return self

    @property
    def text(self) -> str:
        """What is to become tokens."""
        return self.prompt or "" if self.content is None else self.content

    @property
    def adds_bos(self) -> bool:
        """Whether BOS comes first."""
        return self.add_special if self.add_special_tokens is None else self.add_special_tokens


class TokenPiece(Schema):
    """A token and its text, or its bytes where these are no text."""

    id: int
    piece: str | list[int]


class TokenizeAnswer(Schema):
    """Tokens of a text."""

    tokens: list[int] | list[TokenPiece]


class DetokenizeRequest(Schema):
    """The body of ``/detokenize``."""

    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


class DetokenizeAnswer(Schema):
    """A text, with the names of control tokens."""

    content: str
    prompt: str = Field(description="The same, in vLLM's word.")


class TokenizerFacts(Schema):
    """What vLLM tells of a tokenizer, which evaluation harnesses ask for."""

    bos_token: str
    eos_token: str
    chat_template: str


class TemplateAnswer(Schema):
    """What the model reads of some messages, with the names of control tokens."""

    prompt: str


class Slot(Schema):
    """One sequence of the context."""

    id: int
    n_ctx: int = Field(description="Tokens that it has room for.")
    n_tokens: int = Field(description="Tokens that it holds, of a conversation that goes on too.")
    is_processing: bool


class ServedAdapter(Schema):
    """An adapter that a request can have."""

    id: int
    path: str
    scale: float = Field(description="Of a request that does not say.")
    task_name: str = Field(description="As its file has it.")
    prompt_prefix: str = Field(description="As its file has it.")


class Done(Schema):
    """That something was done."""

    success: Literal[True] = True


class Modalities(Schema):
    """What a message may have beside text."""

    vision: bool
    audio: Literal[False] = False
    video: Literal[False] = False


class DefaultSettings(Schema):
    """How a request is answered that does not say."""

    n_ctx: int
    params: dict[str, object]


class Properties(Schema):
    """The model, and how the server was started."""

    default_generation_settings: DefaultSettings
    total_slots: int
    model_alias: str
    model_path: str
    modalities: Modalities
    chat_template: str
    bos_token: str
    eos_token: str
    build_info: str
    is_sleeping: bool = Field(description="Whether the model is not loaded now.")
