"""The page in Chromium: whatever an answer holds is shown as text, and does nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.page.shown import Shown

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("browser")]

SCRIPTS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<svg onload='window.hit = 1'>",
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "<a href='javascript:window.hit = 1'>click</a>",
    "<style>body { display: none }</style>",
    "<form action='https://evil.example'><input name=key></form>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "</li></ol><h1>gone</h1>",
]


def elements(shown: Shown, selector: str) -> int:
    count: int = shown.find(f"#log .content {selector}").count()
    return count


@pytest.mark.parametrize(
    "around", ["{}", "- {}", "> {}", "**{}**", "`{}`", "```html\n{}\n```", "|a|\n|-|\n|{}|"]
)
def test_html_is_text(shown: Shown, around: str) -> None:
    answer = "\n\n".join(around.format(script) for script in SCRIPTS)
    shown.ask("<b>Me</b> <script>window.hit = 1</script>", answer)
    assert shown.messages()[0] == "<b>Me</b> <script>window.hit = 1</script>"
    text = shown.find(".assistant .body").inner_text()
    for script in SCRIPTS:
        assert script in text
    assert elements(shown, ":is(script, img, svg, iframe, style, form, input, meta, link, h1)") == 0
    for link in shown.find(".assistant .body a").all():  # an address in the text
        assert link.get_attribute("href").startswith("https://evil.example")
    assert shown.page.evaluate("window.hit") is None
    assert shown.find("#log .message").count() == 2


def test_links_lead_to_the_web_alone_and_tell_it_nothing(shown: Shown) -> None:
    shown.ask(
        "Links",
        "[a](https://a.example/x) [b](javascript:window.hit=1) [c](data:text/html,x) [d](/v1/x) "
        "<https://e.example> https://f.example ![g](https://g.example/p.png) [h](file:///etc) "
        "[i](mailto:a@b.example)",
    )
    links = shown.find(".assistant a")
    hrefs = [link.get_attribute("href") for link in links.all()]
    assert hrefs == [
        "https://a.example/x",
        "https://e.example/",
        "https://f.example/",
        "https://g.example/p.png",
        "mailto:a@b.example",
    ]
    for link in links.all():
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert link.get_attribute("target") == "_blank"
    assert "[b](javascript:window.hit=1)" in shown.find(".assistant .body").inner_text()
    assert elements(shown, "img") == 0  # which would have been fetched


def test_characters_that_turn_text_around_are_named(shown: Shown) -> None:
    code = "access = 'user\u202e \u2066// admin\u2069'"
    shown.ask("Code", f"Look \u202ehere:\n\n```c\n{code}\n```\nand `\u2067x`")
    text = shown.find(".assistant .body").inner_text()
    assert "Look U+202Ehere:" in text
    assert "access = 'userU+202E U+2066// adminU+2069'" in text
    assert not set("\u202e\u2066\u2067\u2069") & set(text)
    # What is copied is what came.
    shown.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown.page.click(".copy-code")
    shown.until(lambda: bool(shown.find(".copy-code").inner_text() == "Copied"))
    assert shown.page.evaluate("navigator.clipboard.readText()") == code


def test_names_of_conversations_and_tools_are_text(keeping: Shown) -> None:
    keeping.write("<img src=x onerror='window.hit=1'> is it?")
    keeping.script.request()
    function = {"name": "<img src=x onerror='window.hit=1'>", "arguments": "<script>1</script>"}
    call = {"index": 0, "id": "c", "type": "function", "function": function}
    keeping.script.send({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    keeping.script.end("tool_calls")
    keeping.wait_for_end()
    keeping.until(lambda: bool(keeping.find("#conversations .open").count() == 1))
    assert (
        keeping.find("#conversations .open").inner_text()
        == "img src=x onerror='window.hit=1' is it"
    )
    assert keeping.find("#conversations img, .call img, .call script").count() == 0
    assert keeping.page.evaluate("window.hit") is None


def test_an_error_of_the_server_is_text(shown: Shown) -> None:
    shown.write("Hello")
    shown.script.refuse(400, "<img src=x onerror='window.hit=1'>")
    shown.find("#notice:not([hidden])").wait_for()
    assert "<img src=x" in shown.find("#notice p").inner_text()
    assert shown.find("#notice img").count() == 0


WIDE = [
    "a" * 20_000,
    "| " + "wide " * 300 + "|\n|-|",
    "```\n" + "x" * 20_000 + "\n```",
    "https://a.example/" + "y" * 1500,
]


@pytest.mark.parametrize("width", [1100, 340])
def test_no_word_is_wider_than_the_page(shown: Shown, width: int) -> None:
    shown.page.set_viewport_size({"width": width, "height": 700})
    for text in WIDE:
        shown.ask(text[:5000], text)
    sizes = shown.page.evaluate(
        "() => { const root = document.scrollingElement, log = document.querySelector('#scroll');"
        " return [root.scrollWidth - root.clientWidth, log.scrollWidth - log.clientWidth]; }"
    )
    assert sizes == [0, 0]


BOMBS = [
    "> " * 5000 + "a",
    "- " * 5000 + "a",
    "*a " * 20_000,
    "[" * 30_000,
    "|a" * 500 + "\n" + "|-" * 500,
    "\n".join("#" * (at % 6 + 1) + " a" for at in range(2000)),
    "\u202e" * 2000,
    "\u0301" * 20_000,
]


def test_bombs_leave_the_page_working(shown: Shown) -> None:
    for bomb in BOMBS:
        shown.ask("Bomb", bomb)
    assert shown.find("#log *").count() < 60_000
    shown.ask("Still there?", "Yes")
    assert shown.messages()[-1] == "Yes"


COUNT_ADDED = """() => {
  window.added = 0;
  const count = (node) => 1 + (node.querySelectorAll?.("*").length ?? 0);
  new MutationObserver((changes) => {
    const nodes = changes.flatMap(({ addedNodes }) => [...addedNodes]);
    for (const node of nodes) window.added += count(node);
  }).observe(document.querySelector("#log"), { childList: true, subtree: true });
}"""

LONG: dict[str, Any] = {
    "paragraphs": [f"Word and **word** {at}.\n\n" for at in range(2000)],
    "a list": [f"- item *{at}* of it\n" for at in range(2000)],
    "a table": ["|a|b|\n|-|-|\n", *(f"|{at}|`x`|\n" for at in range(2000))],
    "code": ["```py\n", *(f"x = {at}\n" for at in range(2000))],
}


@pytest.mark.parametrize("kind", LONG)
def test_what_a_long_answer_costs_is_what_is_new_of_it(shown: Shown, kind: str) -> None:
    """As elements that are made: each once, but for the last of each time that is drawn."""
    shown.page.evaluate(COUNT_ADDED)
    shown.write("Long")
    shown.script.request()
    pieces = LONG[kind]
    for begin in range(0, len(pieces), 50):
        shown.script.say("".join(pieces[begin : begin + 50]))
        shown.page.wait_for_timeout(10)
    shown.script.end()
    shown.wait_for_end()
    n_elements = shown.find(".assistant .body *").count()
    assert shown.page.evaluate("window.added") < 2 * n_elements + 1000
    assert "1999" in shown.find(".assistant .body").inner_text()
