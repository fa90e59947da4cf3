"""What goes wrong over HTTP: a status, and an object that says what, in the protocol's own form.

Promises that every error of the library becomes one, with the field at fault where it is known.
Knows no routes but the beginnings of their paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ..errors import (
    AllocationError,
    BusyError,
    ContextFullError,
    FormError,
    ImageError,
    Llama4EdgeError,
    SettingError,
    TemplateError,
    VocabularyError,
)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}

CONTEXT_FULL = "context_length_exceeded"
"""The code of a prompt that is too long; clients shorten it when they see this."""


@dataclass
class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what is wrong, found, expected and to do.
        param: the field of the request that is at fault, as in ``messages[0].content``.
        code: a word for programs.
        headers: of the answer.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        return _TYPES.get(self.status, usual)


def openai_body(error: ApiError) -> dict[str, Any]:
    """The error as OpenAI writes it."""
    fields = {"message": error.message, "type": error.type, "param": error.param}
    return {"error": {**fields, "code": error.code}}


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """The error as Anthropic writes it, which names the field in its text."""
    usual = "invalid_request_error" if error.status < 500 else "api_error"
    message, field = error.message, error.param
    if field is not None and field not in message:
        message = f"{field}: {message}"
    detail = {"type": _ANTHROPIC_TYPES.get(error.status, usual), "message": message}
    return {"type": "error", "error": detail, "request_id": None}


_Body = Callable[[ApiError], dict[str, Any]]

# The forms of other protocols than OpenAI's, by how their paths begin.
_BODIES: dict[str, _Body] = {"/v1/messages": anthropic_body}


def body_of(error: ApiError, path: str) -> dict[str, Any]:
    """The error in the form of the protocol that a path belongs to."""
    for start, body in _BODIES.items():
        if path.startswith(start):
            return body(error)
    return openai_body(error)


def error_response(error: ApiError, path: str) -> JSONResponse:
    """The answer that is this error."""
    headers = dict(error.headers)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(error, path), error.status, headers)


def api_error(error: Exception, prompt_field: str | None = None) -> ApiError:
    """What an exception is over HTTP.

    Args:
        prompt_field: the field of the request that the prompt was made of.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, _sentence(error), headers=dict(error.headers or {}))
    if isinstance(error, ContextFullError):
        return ApiError(400, str(error), prompt_field, CONTEXT_FULL)
    if isinstance(error, BusyError):
        return ApiError(503, str(error), code="busy", headers={"Retry-After": "5"})
    if isinstance(error, FormError):
        return ApiError(400, str(error), error.field, "invalid_value")
    if isinstance(error, SettingError):
        return ApiError(400, str(error), None, "invalid_value")
    if isinstance(error, TemplateError | ImageError | VocabularyError):
        return ApiError(400, str(error), prompt_field, "invalid_value")
    if isinstance(error, AllocationError | Llama4EdgeError):
        return ApiError(500, str(error))
    return ApiError(500, f"The server failed: {type(error).__name__}. Its log says where.")


def request_error(
    error: Exception, prompt_field: str | None = None, fields: Collection[str] = ()
) -> ApiError:
    """The same for what was raised before an answer was sent.

    Args:
        fields: of the request, by one of which an error about a setting may begin.
    """
    failure = api_error(error, prompt_field)
    if isinstance(error, SettingError):
        place = re.match(r"[\w.]*", error.problem)
        name = "" if place is None else _FIELDS.get(place[0], place[0])
        if name.partition(".")[0] in fields:
            failure.param = name
    return failure


# Fields that have other names than the library's settings.
_FIELDS = {"adapters": "lora"}


def _sentence(error: HTTPException) -> str:
    if error.status_code == 404:
        return "There is nothing at this path. GET /docs lists what there is."
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return f"This path does not know this method, expected {allowed}."
    return str(error.detail)
