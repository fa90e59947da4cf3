"""The body of a request: read within bounds of size, time and depth, and checked by a schema.

Promises that what is not as it should be is one `ApiError` that names the field.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from starlette.requests import ClientDisconnect, Request

from ..errors import Llama4EdgeError, did_you_mean
from ..units import bytes_text
from ..untrusted import Reader, shown
from .errors import ApiError
from .state import record_of, server_of

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

MAX_DEPTH = 100
"""Levels of lists and objects in a body."""

_SLOWEST = 1 << 14  # bytes a second
_IN_LOOP = 1 << 16  # bytes that are parsed without another thread
_MOST_FAULTS = 1000  # of which the clearest is told

_QUOTES = "'"

T = TypeVar("T", bound="Schema")


def _end_at_first_fault(schema: Any) -> None:
    """Have lists checked up to their first fault: a million would hold up everybody."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for name, part in schema.items():
            if name != "metadata":
                _end_at_first_fault(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _end_at_first_fault(part)


class Schema(BaseModel):
    """What is read from a body: no field but these, and each of its own type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    list_field: ClassVar[str | None] = None
    """The field that a body is which is a list."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler(source)
        _end_at_first_fault(handler.resolve_ref_schema(schema))
        return schema


class _BodyError(Llama4EdgeError):
    """A body that is not JSON."""


async def read_body(request: Request, schema: type[T]) -> T:
    """The body of a request.

    Raises:
        ApiError: it is no JSON, too large, too slow, too deep, or not as the schema says.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and "+json" in kind):
        raise ApiError(
            415,
            f"The body does not come as JSON, found Content-Type {shown(kind)}, expected "
            "application/json. With curl: -H 'Content-Type: application/json'.",
        )
    data = await _bytes_of(request)
    if len(data) <= _IN_LOOP:
        return parsed(data, schema)
    return await asyncio.to_thread(parsed, data, schema)


def parsed(data: bytes, schema: type[T]) -> T:
    """What a body says.

    Raises:
        ApiError: as `read_body`.
    """
    try:
        value = Reader(_BodyError, len(data)).parse(data, "the body")
    except _BodyError as error:
        raise ApiError(400, str(error), code="invalid_json") from None
    if isinstance(value, list) and schema.list_field is not None:
        value = {schema.list_field: value}
    if not isinstance(value, Mapping):
        found = shown(value)
        raise ApiError(400, f"the body is not an object, found {found}", code="invalid_json")
    _check_depth(value)
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise _field_error(error, value, schema) from None


async def _bytes_of(request: Request) -> bytes:
    """All bytes of a body.

    Raises:
        ApiError: there are too many, or they come too slowly.
        ClientDisconnect: the client hung up.
    """
    server, record = server_of(request), record_of(request)
    settings = server.settings
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > settings.max_body:
        raise _too_large(int(length[:20]), settings.max_body)
    pieces, size = [], 0
    begun = time.monotonic()
    while True:
        left = begun + settings.body_seconds + size / _SLOWEST - time.monotonic()
        try:
            message = await asyncio.wait_for(request.receive(), max(left, 0.0))
        except asyncio.TimeoutError:
            raise ApiError(
                408, "The body came too slowly.", headers={"Connection": "close"}
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        pieces.append(piece)
        size += len(piece)
        if size > settings.max_body:
            raise _too_large(size, settings.max_body)
        server.take_body(record, len(piece))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _too_large(size: int, limit: int) -> ApiError:
    return ApiError(
        413,
        f"The body is too large, found at least {bytes_text(size)}, expected at most "
        f"{bytes_text(limit)}.",
        headers={"Connection": "close"},
    )


def _check_depth(value: object) -> None:
    """Refuse a value that is nested too deeply."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            children = item.values() if isinstance(item, Mapping) else item
            inner += [child for child in children if isinstance(child, dict | list)]
        if not inner:
            return
        level = inner
    raise ApiError(
        400,
        f"the body is nested too deeply, expected at most {MAX_DEPTH} levels",
        code="invalid_json",
    )


def _field_error(error: ValidationError, body: Mapping[str, Any], schema: type[Schema]) -> ApiError:
    """The error about the field that is most clearly at fault."""
    if (count := error.error_count()) > _MOST_FAULTS:
        text = f"the body has {count:,} faults: entries that are not known here, or of another type"
        return ApiError(400, text, code="invalid_value")
    found = error.errors(include_url=False, include_context=True)
    fault = max(found, key=lambda one: (len(_path(one["loc"], body)), one["type"] != "missing"))
    path = _path(fault["loc"], body)
    name = _written(path) or "the body"
    kind = fault["type"]
    if kind == "extra_forbidden":
        known = schema.model_fields if len(path) == 1 else ()
        hint = did_you_mean(str(path[-1]), known)
        text = f"{name} is not a field that is known here."
        return ApiError(400, f"{text} {hint}" if hint else text, name, "unknown_parameter")
    if kind == "missing":
        name = _written([*path, *fault["loc"][-1:]])
        return ApiError(400, f"{name} is missing.", name, "missing_required_parameter")
    if kind == "none_required":
        about = schema.model_fields[str(path[-1])].description if len(path) == 1 else None
        text = f"{name} is not supported here. {about or ''}".rstrip()
        return ApiError(400, text, name, "unsupported_parameter")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = fault["ctx"]
        name = f"{name}.{str(context['discriminator']).strip(_QUOTES)}"
        if kind == "union_tag_not_found":
            return ApiError(400, f"{name} is missing.", name, "missing_required_parameter")
        text = f"{name}: found {shown(context['tag'])}, expected {context['expected_tags']}."
        return ApiError(400, text, name, "invalid_value")
    problem = fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        word = problem.partition(" ")[0]
        if not path:  # about several fields, the first of which is named first
            param = word if word in schema.model_fields else None
            return ApiError(400, f"{problem}.", param, "invalid_value")
        return ApiError(400, f"{name}: {problem}.", name, "invalid_value")
    text = f"{name}: {problem}, found {shown(fault['input'])}."
    return ApiError(400, text, name, "invalid_type" if kind.endswith("_type") else "invalid_value")


def _path(location: tuple[int | str, ...], body: object) -> list[int | str]:
    """Where a fault is in the body; pydantic also names the alternatives of a union."""
    path: list[int | str] = []
    value: Any = body
    for step in location:
        is_entry = isinstance(value, Mapping) and step in value
        if is_entry or (isinstance(value, list) and step in range(len(value))):
            value = value[step]
        else:
            continue
        path.append(step)
    return path


def _written(path: list[int | str]) -> str:
    """A path as programs write it: ``messages[0].content``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text if len(text) <= 200 else f"{text[:200]}..."
