"""The page's files: whole, cached, and shut off from everywhere else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import httpx
import pytest

from llama4_edge.server.page.files import FOLDER, POLICY, names
from llama4_edge.server.settings import ServerSettings
from tests.server.running import RunningServer, running_server

PATHS = ["/", *(f"/page/{name}" for name in names() if name != "index.html")]
SOURCES = {name: (FOLDER / name).read_text(encoding="utf-8") for name in names()}


class Page(HTMLParser):
    """The elements of the page, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(SOURCES["index.html"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.mark.parametrize("path", PATHS)
def test_a_file_comes_with_a_policy_that_allows_nothing_else(tiny: httpx.Client, path: str) -> None:
    answer = tiny.get(path)
    assert answer.status_code == 200
    headers = answer.headers
    assert headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    kind = kinds.get(path.rpartition(".")[2], "text/html")
    assert headers["content-type"].split(";")[0] == kind
    name = path.rpartition("/")[2] or "index.html"
    assert answer.text == SOURCES[name]
    assert tiny.head(path).headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_has_not_changed_is_not_sent_again(tiny: httpx.Client, path: str) -> None:
    answer = tiny.get(path)
    tag = answer.headers["etag"]
    assert answer.headers["cache-control"] == "no-cache"
    for known in (tag, f'"other", {tag}', f"W/{tag}"):
        again = tiny.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert tiny.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


OTHERS = ["", "nothing.js", "index.html", "__init__.py", "files.py", "../app.py", "%2e%2e/app.py"]


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_is_sent(tiny: httpx.Client, name: str) -> None:
    assert tiny.get(f"/page/{name}").status_code == 404


def test_the_page_needs_no_key_and_what_it_asks_for_does(tiny_server: RunningServer) -> None:
    model = tiny_server.server.models._model
    assert model is not None
    settings = ServerSettings(api_keys=("secret",))
    with running_server(model.model, settings) as server, server.client() as client:
        assert {client.get(path).status_code for path in PATHS} == {200}
        assert client.get("/conversations").status_code == 401
        assert client.post("/conversations", json={}).status_code == 401


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    allowed = {word for value in POLICY.values() for word in value.split()}
    assert allowed == {"'none'", "'self'", "data:", "blob:"}


def test_the_page_names_no_other_place() -> None:
    # The SVG namespace is a name, and is not fetched.
    for name, source in SOURCES.items():
        addresses = set(re.findall(r"https?://[\w.]+", source)) - {"http://www.w3.org"}
        assert addresses == set(), name
    for attributes in Page().of("script", "link", "img", "a", "use"):
        for address in (attributes.get("src"), attributes.get("href")):
            assert address is None or address.startswith(("/page/", "#")), address


def test_nothing_reads_text_as_html_or_as_a_program() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc"
    )
    for name, source in SOURCES.items():
        if name.endswith(".js"):
            assert re.findall(forbidden, source) == [], name
    page = Page()
    assert [one for one in page.of("script") if "src" not in one] == []
    assert page.of("style") == []
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes)


def test_everything_that_is_operated_has_a_name() -> None:
    page = Page()
    labelled = {attributes.get("for") for attributes in page.of("label")}
    for attributes in page.of("input", "textarea"):
        assert attributes["id"] in labelled or "hidden" in attributes, attributes
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby", "aria-controls"):
            assert attributes.get(name) is None or attributes[name] in ids
    for attributes in page.of("dialog"):
        assert "aria-labelledby" in attributes
    icons = [one for one in page.of("button") if "icon" in (one.get("class") or "").split()]
    # The label of the switch of themes says which one is on.
    assert [one["id"] for one in icons if "aria-label" not in one] == ["theme"]


# ---- contrast, by the formula of WCAG 2


def colours(theme: int) -> dict[str, str]:
    """The colours of the style sheet: 0 is light, 1 is dark."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", SOURCES["style.css"])
    return {name: both[theme] for name, *both in pairs}


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


GROUNDS = ("ground", "side", "raised", "bubble", "code")
TEXTS = [(text, ground) for text in ("text", "quiet", "accent") for ground in GROUNDS]
TEXTS += [("text", "danger-ground"), ("quiet", "danger-ground"), ("text", "info-ground")]
TEXTS += [("quiet", "info-ground"), ("danger", "raised"), ("on-accent", "accent")]
EDGES = [(edge, ground) for edge in ("edge", "accent") for ground in GROUNDS[:3]]


@pytest.mark.parametrize("theme", [0, 1])
def test_contrasts_are_those_of_level_aa(theme: int) -> None:
    known = colours(theme)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for text, ground in TEXTS:
        assert contrast(known[text], known[ground]) >= 4.5, (text, ground)
    for edge, ground in EDGES:
        assert contrast(known[edge], known[ground]) >= 3, (edge, ground)
