"""The document of all routes as a page: ``/docs``.

Promises that it is whole without a script, and that a browser which shows it asks nobody for
anything. Knows no route: it shows what `openapi` says.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from .openapi import document
from .page.files import HEADERS

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 20%, Canvas); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
code, .type { font: 0.875em ui-monospace, monospace; overflow-wrap: anywhere; }
.method { display: inline-block; min-width: 4.5em; font-weight: 700; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.75rem 0.25rem 0; }
td { border-top: 1px solid var(--line); }
summary { cursor: pointer; padding: 0.25rem 0; }
details > :not(summary) { margin-left: 5.5em; }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

_MOST_CHOICES = 12  # of an enumeration that are listed


def page(whole: Mapping[str, Any]) -> str:
    """The page of a document."""
    info, schemas = whole["info"], whole["components"]["schemas"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}: the routes</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info['description'])} The same for programs: ",
        '<a href="/openapi.json">/openapi.json</a>. <a href="/">Chat</a>.</p>',
        "<h2>Routes</h2>",
    ]
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            parts += _operation(path, method, operation)
    parts.append("<h2>Objects</h2>")
    for name in sorted(schemas):
        parts.append(f'<section id="{escape(name)}"><h3><code>{escape(name)}</code></h3>')
        parts += _object(schemas[name])
        parts.append("</section>")
    return "".join([*parts, "</body></html>"])


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f'<details><summary><span class="method">{method.upper()}</span>'
    yield f"<code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
    if parameters := operation.get("parameters"):
        rows = [
            (one["name"], one["schema"], one.get("required", False), f"In the {one['in']}.")
            for one in parameters
        ]
        yield from _table(rows)
    if body := operation.get("requestBody"):
        yield f"<p>Takes {_type(body['content']['application/json']['schema'])}.</p>"
    (kind, answer), *others = operation["responses"]["200"]["content"].items()
    stream = " With <code>stream</code>, server-sent events." if others else ""
    yield f"<p>Answers {_type(answer['schema'])}, {escape(kind)}.{stream}</p>"
    error = operation["responses"]["default"]["content"]["application/json"]["schema"]
    yield f"<p>What is wrong: {_type(error)}.</p></details>"


def _object(schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{escape(schema.get('description', ''))}</p>"
    required = schema.get("required", ())
    fields = schema.get("properties", {})
    if fields:
        yield from _table(
            (name, field, name in required, field.get("description", ""))
            for name, field in fields.items()
        )
    else:
        yield f"<p>{_type(schema)}</p>"


def _table(rows: Iterable[tuple[str, Mapping[str, Any], bool, str]]) -> Iterator[str]:
    yield "<table><thead><tr><th>Field</th><th>Value</th><th></th></tr></thead><tbody>"
    for name, schema, is_required, about in rows:
        needed = "Required. " if is_required else ""
        default = schema.get("default")
        usual = "" if default is None else f" Default: {json.dumps(default)}."
        yield f'<tr><td><code>{escape(name)}</code></td><td class="type">{_type(schema)}</td>'
        yield f"<td>{escape(needed + about + usual)}</td></tr>"
    yield "</tbody></table>"


def _type(schema: Mapping[str, Any]) -> str:
    """What a schema allows, in a few words, with links to objects."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}"><code>{name}</code></a>'
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            kinds = dict.fromkeys(map(_type, schema[word]))
            return " or ".join(kinds)
    if "const" in schema:
        return escape(json.dumps(schema["const"]))
    if "enum" in schema:
        choices = [escape(json.dumps(one)) for one in schema["enum"]]
        return " or ".join(choices[:_MOST_CHOICES])
    kind = schema.get("type", "anything")
    if kind == "array":
        items = schema.get("items")
        return f"list of {_type(items)}" if items else "list"
    return escape(str(kind)) + _limits(schema)


def _limits(schema: Mapping[str, Any]) -> str:
    """The range of a number."""
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is None and most is None:
        return ""
    return f" from {least}" * (least is not None) + f" to {most}" * (most is not None)


async def _docs(request: Request) -> Response:
    """This document as a page."""
    headers = {**HEADERS, "Content-Security-Policy": _POLICY}
    return HTMLResponse(page(document(request.app.routes)), headers=headers)


routes = [Route("/docs", _docs)]
