"""The document of all routes, and schemathesis, which asks what it allows and what it does not."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from llama4_edge.server.app import create_app
from llama4_edge.server.keeper import ModelKeeper
from llama4_edge.server.openapi import document
from tests.server.running import RunningServer

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MOST_TOKENS, MOST_PROMPTS = 4, 4


def _no_model(*_: object) -> NoReturn:
    raise NotImplementedError


ROUTES = create_app(ModelKeeper(_no_model)).routes
DOCUMENT = document(ROUTES)


def _schema(*, coverage: bool) -> schemathesis.BaseSchema:
    config = {"seed": 1, "phases": {"coverage": {"enabled": coverage}}}
    return schemathesis.openapi.from_dict(DOCUMENT, config=SchemathesisConfig.from_dict(config))


SOME, ALL = _schema(coverage=False), _schema(coverage=True)
QUIET: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


def check(case: schemathesis.Case[Any], server: RunningServer) -> None:
    """Send a request and look at its answer; what would be long is made short."""
    body: Any = case.body
    if isinstance(body, dict):
        name = "max_output_tokens" if "responses" in case.path else "max_tokens"
        given = body.get(name)
        if given is None or (isinstance(given, int) and given > MOST_TOKENS):
            body[name] = MOST_TOKENS
        if isinstance(body.get("prompt"), list):
            body["prompt"] = body["prompt"][:MOST_PROMPTS]
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=600)


@SOME.parametrize()
@settings(max_examples=10, **QUIET)
def test_some_requests_get_what_the_document_says(
    case: schemathesis.Case[Any], tiny_server: RunningServer
) -> None:
    check(case, tiny_server)


def test_schemas_have_names_for_readers_and_each_is_there(tiny: httpx.Client) -> None:
    text = tiny.get("/openapi.json").text
    names = set(json.loads(text)["components"]["schemas"])
    assert {"ErrorAnswer", "AnthropicErrorAnswer", "Usage", "ResponsesUsage"} <= names
    assert all(name.isalnum() for name in names)
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', text)) <= names


@pytest.mark.heavy
@ALL.parametrize()
@settings(max_examples=300, **QUIET)
def test_many_requests_get_what_the_document_says(
    case: schemathesis.Case[Any], tiny_server: RunningServer
) -> None:
    check(case, tiny_server)


def test_every_route_is_in_the_document() -> None:
    shown = {
        (route.path.replace(":path", ""), method.lower())
        for route in ROUTES
        if isinstance(route, Route) and route.include_in_schema
        for method in (route.methods or set()) - {"HEAD"}
    }
    written = {(path, method) for path, some in DOCUMENT["paths"].items() for method in some}
    assert written == shown
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/metrics"):
        assert path in DOCUMENT["paths"]


def test_every_operation_says_what_it_does_and_what_it_answers() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"].endswith("."), path
            (schema, *_) = operation["responses"]["200"]["content"].values()
            assert schema["schema"], path
            assert ("requestBody" in operation) == (method == "post"), path


def test_schemas_are_schemas() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert len(schemas) > 50
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema.get("description"), name
