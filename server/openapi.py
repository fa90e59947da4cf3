"""The document of all routes, in OpenAPI's form: ``/openapi.json``.

Promises that every route of the application is in it but those that say that they are not to be,
with what it reads and writes, from the schemas themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .._version import __version__
from .body import Schema
from .endpoint import Endpoint
from .schema import anthropic, conversations, models, openai, responses, utilities

_SCHEMAS = "#/components/schemas/{model}"
# How pydantic tells names apart that stand in several modules.
_MODULE = re.compile(rf"{__name__.rpartition('.')[0].replace('.', '__')}__schema__(\w+?)__")
_PLAIN = {"openai", "answers", "models"}

# What the routes answer that do not ask the model, and what else they are asked.
_ANSWERS: Mapping[str, Any] = {
    "GET /health": models.Health,
    "GET /v1/models": models.ModelList,
    "GET /v1/models/{name:path}": models.Model,
    "GET /v1/responses/{name}": responses.ResponseAnswer,
    "DELETE /v1/responses/{name}": responses.Deleted,
    "GET /v1/responses/{name}/input_items": responses.ItemList,
    "GET /props": utilities.Properties,
    "GET /tokenizer_info": utilities.TokenizerFacts,
    "GET /slots": list[utilities.Slot],
    "GET /lora-adapters": list[utilities.ServedAdapter],
    "POST /lora-adapters": utilities.Done,
    "GET /conversations": conversations.ConversationList,
    "POST /conversations": conversations.KeptConversation,
    "GET /conversations/{name}": conversations.ReadConversation,
    "PUT /conversations/{name}": conversations.KeptConversation,
    "PATCH /conversations/{name}": conversations.RenamedConversation,
    "DELETE /conversations/{name}": conversations.DeletedConversation,
    "POST /conversations/{name}/resume": conversations.ResumedConversation,
}
# What routes read that do not ask the model.
_BODIES: Mapping[str, Any] = {
    "POST /lora-adapters": list[openai.AdapterScale],
    "POST /conversations": conversations.NewConversation,
    "PUT /conversations/{name}": conversations.ChangedConversation,
    "PATCH /conversations/{name}": conversations.NewName,
    "POST /conversations/{name}/resume": conversations.Nothing,
}
_QUERIES: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "GET /v1/responses/{name}/input_items": {
        "order": {"enum": ["asc", "desc"], "default": "desc"},
        "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        "after": {"type": "string"},
    }
}
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
_TEXTS = {"GET /metrics": "text/plain", "GET /docs": "text/html"}


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The document of some routes."""
    operations = list(_operations(routes))
    wanted: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = []
    for operation in operations:
        wanted += operation.schemas()
    written, shared = TypeAdapter.json_schemas(wanted, ref_template=_SCHEMAS)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        method = operation.method.lower()
        paths.setdefault(operation.shown_path, {})[method] = operation.written(written)
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "llama4-edge",
            "version": __version__,
            "description": "One Llama 4, in the protocols of OpenAI, Anthropic and llama.cpp.",
        },
        "paths": paths,
        "components": {
            "schemas": shared.get("$defs", {}),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }
    named: dict[str, Any] = json.loads(_MODULE.sub(_protocol_of, json.dumps(whole)))
    return named


def _protocol_of(module: re.Match[str]) -> str:
    """What a name begins with that several protocols have; those of OpenAI's first have nothing."""
    return "" if module[1] in _PLAIN else module[1].capitalize()


class _Operation:
    """One method of one path."""

    def __init__(self, route: Route, method: str) -> None:
        self._route, self.method = route, method
        self._name = f"{method} {route.path}"
        endpoint = route.endpoint
        self._endpoint = endpoint if isinstance(endpoint, Endpoint) else None

    @property
    def shown_path(self) -> str:
        """The path as OpenAPI writes it."""
        return self._route.path.replace(":path}", "}")

    def schemas(self) -> Iterator[tuple[str, JsonSchemaMode, TypeAdapter[Any]]]:
        """What is read and written, each with a key of its own."""
        if (body := self._body) is not None:
            yield f"{self._name} in", "validation", TypeAdapter(body)
        if (answer := self._answer) is not None:
            yield f"{self._name} out", "serialization", TypeAdapter(answer)
        yield f"{self._name} error", "serialization", TypeAdapter(self._error)

    def written(self, schemas: Mapping[Any, Any]) -> dict[str, Any]:
        """The operation, given the schemas of all of them."""

        def schema(kind: str, mode: str) -> dict[str, Any]:
            found: dict[str, Any] = schemas.get((f"{self._name} {kind}", mode), {})
            return found

        content: dict[str, Any] = {
            _TEXTS.get(self._name, "application/json"): {
                "schema": schema("out", "serialization")
                or {"type": "string" if self._name in _TEXTS else "object"}
            }
        }
        operation: dict[str, Any] = {"summary": self._summary, "operationId": self._name}
        if (fields := self._body) is not None:
            body = {"application/json": {"schema": schema("in", "validation")}}
            operation["requestBody"] = {"required": True, "content": body}
            if "stream" in getattr(fields, "model_fields", ()):
                content["text/event-stream"] = {"schema": _EVENT}
        if parameters := list(self._parameters()):
            operation["parameters"] = parameters
        error = {"application/json": {"schema": schema("error", "serialization")}}
        operation["responses"] = {
            "200": {"description": "The answer.", "content": content},
            "default": {"description": "An error.", "content": error},
        }
        return operation

    @property
    def _body(self) -> type[Schema] | None:
        return _BODIES.get(self._name) if self._endpoint is None else self._endpoint.schema

    @property
    def _answer(self) -> Any:
        if self._endpoint is not None:
            return self._endpoint.answer
        return _ANSWERS.get(self._name)

    @property
    def _error(self) -> Any:
        is_anthropics = self._route.path.startswith("/v1/messages")
        return anthropic.ErrorAnswer if is_anthropics else models.ErrorAnswer

    @property
    def _summary(self) -> str:
        if self._endpoint is not None:
            return self._endpoint.summary
        return (self._route.endpoint.__doc__ or "").partition("\n")[0]

    def _parameters(self) -> Iterator[dict[str, Any]]:
        for name in self._route.param_convertors:
            yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name, schema in _QUERIES.get(self._name, {}).items():
            yield {"name": name, "in": "query", "schema": schema}


def _operations(routes: Iterable[BaseRoute]) -> Iterator[_Operation]:
    for route in routes:
        if isinstance(route, Route) and route.include_in_schema:
            for method in sorted((route.methods or set()) - {"HEAD"}):
                yield _Operation(route, method)


async def _document(request: Request) -> Response:
    """This document."""
    return JSONResponse(document(request.app.routes))


routes = [Route("/openapi.json", _document)]
