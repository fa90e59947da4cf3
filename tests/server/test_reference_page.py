"""The page of all routes: it holds what the document says, and asks nobody for anything."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import httpx

from llama4_edge.server.reference_page import page


class Reader(HTMLParser):
    """The elements of a page, its texts, the anchors that there are, and where links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.texts: list[str] = []
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif name == "href" and tag == "a":
                self.links.add(value or "")
            elif name in ("src", "href", "style") or name.startswith("on"):
                self.loaded.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_every_route_is_shown_and_every_link_leads_somewhere(tiny: httpx.Client) -> None:
    whole = tiny.get("/openapi.json").json()
    reader = Reader(tiny.get("/docs").text)
    for path in whole["paths"]:
        assert path in reader.texts
    for name in whole["components"]["schemas"]:
        assert name in reader.anchors
    inner = {link.removeprefix("#") for link in reader.links if link.startswith("#")}
    assert inner <= reader.anchors
    assert len(inner) > 50
    assert {link for link in reader.links if not link.startswith("#")} == {"/", "/openapi.json"}


def test_nothing_is_fetched_and_nothing_runs(tiny: httpx.Client) -> None:
    answer = tiny.get("/docs")
    reader = Reader(answer.text)
    assert reader.loaded == []
    assert not {"script", "link", "img", "iframe"} & set(reader.elements)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    (style,) = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


def test_texts_are_text() -> None:
    hostile = "<script>alert(1)</script>"
    schema = {"description": hostile, "properties": {hostile: {"const": hostile}}}
    operation: dict[str, Any] = {
        "summary": hostile,
        "responses": {
            "200": {"content": {hostile: {"schema": {"type": hostile}}}},
            "default": {"content": {"application/json": {"schema": {"enum": [hostile]}}}},
        },
    }
    text = page(
        {
            "info": {"title": hostile, "version": hostile, "description": hostile},
            "paths": {hostile: {"get": operation}},
            "components": {"schemas": {'"><script>': schema}},
        }
    )
    assert "script" not in Reader(text).elements
