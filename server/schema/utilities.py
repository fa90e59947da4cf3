"""What llama.cpp's server has beside the protocols of others: tokens, prompts, and its settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..body import Schema


class TokenizeRequest(Schema):
    """The body of ``/tokenize``."""

    content: str
    add_special: bool = Field(False, description="Whether BOS comes first.")
    parse_special: bool = Field(True, description="Whether control tokens are read by their names.")
    with_pieces: bool = Field(False, description="Whether each token comes with its text.")


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


class TemplateAnswer(Schema):
    """What the model reads of some messages, with the names of control tokens."""

    prompt: str


class Health(Schema):
    """Whether the server answers, and what the model is doing."""

    status: Literal["ok"]
    model: Literal["loading", "ready", "unloaded", "failed"]


class Slot(Schema):
    """One sequence of the context."""

    id: int
    n_ctx: int = Field(description="Tokens that it has room for.")
    n_tokens: int = Field(description="Tokens that it holds, of a conversation that goes on too.")
    is_processing: bool


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
