"""The body of a request: read within bounds of size, time and depth, and checked by a schema.

Promises that what is not as it should be is one `ApiError` that names the field.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from starlette.requests import ClientDisconnect, Request

from ..errors import Llama4EdgeError
from ..units import bytes_text
from ..untrusted import Reader, shown
from .errors import ApiError
from .faults import Path, field_error, json_shown, unfolded, written
from .sizes import Counter, Limits
from .state import record_of, server_of

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

MAX_DEPTH = 100
"""Levels of lists and objects in a body."""

IN_LOOP = 1 << 16
"""Bytes of a body that is read without another thread."""

_SLOWEST = 1 << 14  # bytes a second
_COUNTED = 1 << 14  # bytes that are counted before others have their turn


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


async def read_body(request: Request, schema: type[T], prompt_field: str | None = None) -> T:
    """The body of a request.

    Args:
        prompt_field: where it has the text or the tokens that the model is shown.

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
    facts = server_of(request).facts
    limits = Limits() if facts is None else Limits(facts.n_ctx, facts.n_vocab)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise ApiError(
            415,
            f"The body is encoded, found Content-Encoding {shown(coding)}, expected none.",
            headers={"Accept-Encoding": "identity"},
        )
    data = await _bytes_of(request, Counter(limits, prompt_field))
    if len(data) <= IN_LOOP:
        return parsed(data, schema, limits)
    return await asyncio.to_thread(parsed, data, schema, limits)


def parsed(data: bytes, schema: type[T], limits: Limits | None = None) -> T:
    """What a body says.

    Raises:
        ApiError: as `read_body`.
    """
    if not data.strip():
        raise ApiError(400, "the body is empty, expected a JSON object", code="invalid_json")
    reader = Reader(_BodyError, len(data))
    try:
        value = reader.parse(reader.decoded(data, "the body"), "the body", pairs=_entries)
    except _BodyError as error:
        raise ApiError(400, str(error), code="invalid_json") from None
    if isinstance(value, list) and schema.list_field is not None:
        value = {schema.list_field: value}
    if not isinstance(value, Mapping):
        found = json_shown(value)
        raise ApiError(400, f"the body is not an object, found {found}", code="invalid_json")
    _check_levels(value)
    if limits is not None:
        limits.check(value)
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise field_error(error, value, schema) from None


class _Ambiguous(dict[str, Any]):
    """An object that has something twice; which of them is meant is not for us to choose."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = collections.Counter(name for name, _ in pairs)
        self.name = counts.most_common(1)[0][0]


def _entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    return entries if len(entries) == len(pairs) else _Ambiguous(pairs)


async def _bytes_of(request: Request, counter: Counter) -> bytes:
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
        for begin in range(0, len(piece), _COUNTED):
            counter.add(piece[begin : begin + _COUNTED])
            await asyncio.sleep(0)
        if not message.get("more_body", False):
            return b"".join(pieces)


def _too_large(size: int, limit: int) -> ApiError:
    return ApiError(
        413,
        f"The body is too large, found at least {bytes_text(size)}, expected at most "
        f"{bytes_text(limit)}.",
        headers={"Connection": "close"},
    )


def _check_levels(value: Mapping[str, Any]) -> None:
    """Refuse a value that is nested too deeply, or has something twice."""
    level: list[tuple[Any, Path]] = [(value, ())]
    for _ in range(MAX_DEPTH + 1):
        inner: list[tuple[Any, Path]] = []
        for item, path in level:
            if isinstance(item, _Ambiguous):
                name = written([*unfolded(path), item.name])
                raise ApiError(
                    400, f"{name} is there twice, expected once.", name, "duplicate_parameter"
                )
            pairs = item.items() if isinstance(item, Mapping) else enumerate(item)
            inner += [(child, (path, at)) for at, child in pairs if isinstance(child, dict | list)]
        if not inner:
            return
        level = inner
    raise ApiError(
        400,
        f"the body is nested too deeply, expected at most {MAX_DEPTH} levels",
        code="invalid_json",
    )
