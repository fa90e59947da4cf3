"""The page in Chromium: pictures, keys, a screen reader's view, light, dark and narrow."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from llama4_edge import Model
from tests.server.page.script import Script, scripted_server
from tests.server.page.shown import Shown, show

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("browser")]


def png(colour: str = "red", size: int = 40) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def seeing(demo_model: Model) -> Iterator[tuple[Any, Script]]:
    """A server whose model has a projector."""
    with scripted_server(demo_model) as server:
        yield server


@pytest.fixture
def pictured(browser: Any, seeing: tuple[Any, Script]) -> Iterator[Shown]:
    server, script = seeing
    for one in show(browser, server.url, script):
        one.open()
        yield one


# ---- pictures

GIVE = """([how, data, type, name]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const target = document.querySelector("#text");
  const event = how === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent(how, { dataTransfer: transfer, bubbles: true, cancelable: true });
  target.dispatchEvent(event);
}"""


def give(shown: Shown, how: str, data: bytes, kind: str = "image/png", name: str = "a.png") -> None:
    """Paste or drop a file."""
    shown.page.evaluate(GIVE, [how, base64.b64encode(data).decode(), kind, name])


@pytest.mark.parametrize("how", ["drop", "paste", "choose"])
def test_a_picture_goes_with_the_message(pictured: Shown, how: str) -> None:
    picture = png()
    if how == "choose":
        file = {"name": "a.png", "mimeType": "image/png", "buffer": picture}
        pictured.page.set_input_files("#files", file)
    else:
        give(pictured, how, picture)
    pictured.page.wait_for_selector("#thumbnails img")
    request = pictured.ask("What is it?")
    assert request["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": data_url(picture)}},
        {"type": "text", "text": "What is it?"},
    ]
    assert pictured.find(".user .pictures img").count() == 1
    assert not pictured.find("#thumbnails").is_visible()


def test_pictures_are_removed_before_they_are_sent(pictured: Shown) -> None:
    for colour in ("red", "green", "blue"):
        give(pictured, "paste", png(colour))
    pictured.until(lambda: bool(pictured.find("#thumbnails img").count() == 3))
    pictured.page.click("[aria-label='Remove picture 2']")
    request = pictured.ask("")
    urls = [part["image_url"]["url"] for part in request["messages"][0]["content"][:2]]
    assert set(urls) <= {data_url(png(colour)) for colour in ("red", "green", "blue")}
    assert len(urls) == 2


def test_dragging_shows_where_to_drop(pictured: Shown) -> None:
    give(pictured, "dragover", png())
    assert pictured.find("#drop").is_visible()
    give(pictured, "drop", png())
    assert not pictured.find("#drop").is_visible()


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"text", "text/plain"), (b"no picture", "image/png"), (b"<svg/>", "image/svg+xml")],
)
def test_what_is_no_picture_is_refused(pictured: Shown, data: bytes, kind: str) -> None:
    pictured.page.fill("#text", "a draft")
    give(pictured, "drop", data, kind, "<b>file</b>")
    pictured.find("#notice:not([hidden])").wait_for()
    text = pictured.find("#notice").inner_text()
    assert "Not a picture that can be read: <b>file</b>. Choose PNG, JPEG" in text
    assert pictured.find("#thumbnails img").count() == 0
    assert pictured.page.input_value("#text") == "a draft"


def test_a_model_without_a_projector_says_so(shown: Shown) -> None:
    give(shown, "paste", png())
    shown.find("#notice:not([hidden])").wait_for()
    assert "sees no pictures" in shown.find("#notice").inner_text()


def test_a_picture_is_edited_with_its_message(pictured: Shown) -> None:
    give(pictured, "paste", png())
    pictured.page.wait_for_selector("#thumbnails img")
    pictured.ask("What is it?")
    pictured.page.click(".user .edit")
    pictured.page.click("form.edit [aria-label='Remove picture 1']")
    pictured.page.fill("form.edit textarea", "And without?")
    pictured.page.press("form.edit textarea", "Enter")
    assert pictured.script.request()["messages"][0]["content"] == "And without?"
    pictured.script.answer("Nothing")
    pictured.wait_for_end()


# ---- keys


def test_enter_sends_and_shift_enter_begins_a_line(shown: Shown) -> None:
    keyboard = shown.page.keyboard
    keyboard.type("one")
    keyboard.press("Shift+Enter")
    keyboard.type("two")
    keyboard.press("Enter")
    assert shown.script.request()["messages"][0]["content"] == "one\ntwo"
    shown.script.answer("Yes")
    shown.wait_for_end()
    keyboard.press("Enter")  # nothing is written
    assert shown.script.requests.empty()


def test_up_edits_the_last_message(shown: Shown) -> None:
    shown.ask("One?")
    shown.page.keyboard.press("ArrowUp")
    assert shown.page.input_value("form.edit textarea") == "One?"
    shown.page.keyboard.press("Escape")
    shown.page.fill("#text", "a draft")
    shown.page.keyboard.press("ArrowUp")
    assert shown.find("form.edit").count() == 0


def test_what_is_typed_during_an_answer_stays(shown: Shown) -> None:
    shown.write("One?")
    shown.script.request()
    shown.page.keyboard.type("Two?")
    shown.page.keyboard.press("Enter")
    assert shown.script.requests.empty()
    shown.script.answer("Yes")
    shown.wait_for_end()
    assert shown.page.input_value("#text") == "Two?"


def test_everything_is_reached_with_the_keyboard(shown: Shown) -> None:
    shown.ask("One?", "```py\nx = 1\n```")
    shown.page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        shown.page.keyboard.press("Tab")
        reached.add(
            shown.page.evaluate(
                "() => { const one = document.activeElement;"
                " return one.id || one.getAttribute('aria-label') || one.className; }"
            )
        )
    wanted = {"new", "theme", "settings-open", "text", "attach", "send", "skip", "Copy the code"}
    wanted |= {"Copy the message", "Edit the message and ask again", "Retry: have another answer"}
    assert wanted <= reached


def test_a_dialog_holds_the_focus_and_gives_it_back(shown: Shown) -> None:
    shown.page.focus("#settings-open")
    shown.page.keyboard.press("Enter")
    assert shown.focused() == "system"
    for _ in range(12):
        shown.page.keyboard.press("Tab")
        inside = (
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
        assert shown.page.evaluate(inside)
    shown.page.keyboard.press("Escape")
    assert shown.focused() == "settings-open"


# ---- what a screen reader is told

OPERATED = {"button", "textbox", "link", "spinbutton", "meter", "dialog", "region", "img", "list"}


def nameless(shown: Shown) -> list[dict[str, Any]]:
    """What the browser tells a screen reader to be operated, without a name for it."""
    session = shown.page.context.new_cdp_session(shown.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    return [
        node
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in OPERATED - {"list"}
        and not node.get("name", {}).get("value", "").strip()
    ]


def test_all_that_is_operated_has_a_name(keeping: Shown) -> None:
    keeping.ask(
        "One?", "A [link](https://a.example), a table:\n\n|a|\n|-|\n|b|\n\n```py\nx\n```\n- [x] c"
    )
    keeping.until(lambda: bool(keeping.find("#conversations .open").count() == 1))
    assert nameless(keeping) == []
    keeping.page.keyboard.press("ArrowUp")
    assert nameless(keeping) == []
    keeping.page.keyboard.press("Escape")
    keeping.page.click("#settings-open")
    assert nameless(keeping) == []


def test_a_finished_answer_is_announced_once(shown: Shown) -> None:
    assert shown.find("#announcer").get_attribute("aria-live") == "polite"
    shown.write("One?")
    shown.script.request()
    shown.script.say("It is ")
    shown.page.wait_for_selector(".assistant p")
    assert shown.find("#log").get_attribute("aria-busy") == "true"
    assert shown.find("#announcer").inner_text() == ""
    shown.script.answer("**one**.")
    shown.wait_for_end()
    assert shown.find("#announcer").inner_text() == "Answer: It is one."
    assert shown.find("#log").get_attribute("aria-busy") == "false"


# ---- light, dark and narrow

GROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(20, 23, 27)"


def test_it_is_light_or_dark_as_the_system_or_as_chosen(shown: Shown) -> None:
    page = shown.page
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(GROUND) == DARK
    page.emulate_media(color_scheme="light")
    assert page.evaluate(GROUND) == LIGHT
    for label, ground in (("light", LIGHT), ("dark", DARK)):
        page.click("#theme")
        assert page.get_attribute("#theme", "aria-label") == f"Theme: {label}"
        assert page.evaluate(GROUND) == ground
    shown.open()
    assert page.evaluate(GROUND) == DARK
    page.click("#theme")
    assert page.get_attribute("#theme", "aria-label") == "Theme: as the system"
    assert page.evaluate(GROUND) == LIGHT


def test_on_a_narrow_screen_the_list_comes_when_it_is_asked_for(keeping: Shown) -> None:
    page = keeping.page
    page.set_viewport_size({"width": 360, "height": 640})
    keeping.ask("One?")
    keeping.until(lambda: bool(keeping.find("#title").inner_text() == "One"))
    assert not keeping.find("#sidebar").is_visible()
    page.click("#menu")
    assert keeping.find("#sidebar").is_visible()
    assert page.get_attribute("#menu", "aria-expanded") == "true"
    page.keyboard.press("Escape")
    assert not keeping.find("#sidebar").is_visible()
    page.click("#menu")
    page.click("#new")
    assert not keeping.find("#sidebar").is_visible()
    assert keeping.messages() == []
    for selector in ("#text", "#send", "#attach", "#settings-open", "#theme", "#context"):
        box = keeping.find(selector).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
