"""What is told of the model, of the server's health, and of errors."""

from __future__ import annotations

from typing import Literal

from ..body import Schema


class Health(Schema):
    """Whether the server answers, and what the model is doing."""

    status: Literal["ok"]
    model: Literal["loading", "ready", "unloaded", "failed"]


class ModelDetails(Schema):
    """The numbers of a model, in llama.cpp's words."""

    name: str
    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    n_embd: int
    n_params: int
    size: int
    n_parallel: int
    vision: bool


class Model(Schema):
    """The model, in OpenAI's words, Anthropic's and vLLM's."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["model"]
    display_name: str
    created_at: str
    max_model_len: int
    meta: ModelDetails


class ModelList(Schema):
    """All models, of which there is one, or none while it is loaded."""

    object: Literal["list"]
    data: list[Model]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ErrorFields(Schema):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Schema):
    """What is answered in place of an answer."""

    error: ErrorFields
