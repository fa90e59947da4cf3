"""The page in Chromium: asking, stopping, editing, errors, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from llama4_edge import Conversation, Model
from llama4_edge.server.session_folder import title_of
from llama4_edge.server.settings import ServerSettings
from tests.server.page.script import Script, scripted_server, server_aside
from tests.server.page.shown import Shown, show

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("browser")]

NOTICE = "#notice:not([hidden])"


def texts(request: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request["messages"]]


# ---- asking


def test_an_answer_arrives_piece_by_piece(shown: Shown) -> None:
    shown.write("Hello")
    assert texts(shown.script.request()) == [("user", "Hello")]
    answer = shown.find(".assistant .body")
    shown.script.say("Once")
    shown.page.wait_for_selector(".assistant p")
    assert answer.inner_text().strip() == "Once"
    shown.script.say(" upon")
    shown.until(lambda: answer.inner_text().strip() == "Once upon")
    assert shown.find("#stop").is_visible()
    assert not shown.find("#send").is_visible()
    first = answer.locator("p").first
    first.evaluate("node => { node.isTheSame = true }")
    shown.script.say("\n\na **time** there\n\nwas")
    shown.page.wait_for_selector(".assistant strong")
    # What is settled stays as it is.
    assert first.evaluate("node => node.isTheSame")
    shown.script.say(" a llama.")
    shown.script.end()
    shown.wait_for_end()
    assert answer.locator("p").all_inner_texts() == ["Once upon", "a time there", "was a llama."]
    assert "5 tokens · 12.3 tokens/s" in shown.find(".assistant .message-foot").inner_text()
    assert shown.find("#context-text").inner_text() == "25 of 256 tokens"
    assert shown.find("#context-meter").get_attribute("aria-valuenow") == "25"
    spoken = shown.find("#announcer").inner_text()
    assert spoken.startswith("Answer: Once upon")
    assert shown.focused() == "text"


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_an_answer_is_stopped(shown: Shown, how: str) -> None:
    shown.write("Go on for long")
    shown.script.request()
    shown.script.say("One, two")
    shown.page.wait_for_selector(".assistant p")
    if how == "Escape":
        shown.page.keyboard.press("Escape")
    else:
        shown.page.click("#stop")
    shown.wait_for_end()
    assert shown.script.hung_up.wait(600)
    assert shown.messages() == ["Go on for long", "One, two"]
    assert shown.find(".assistant .ending").inner_text() == "Stopped"
    assert shown.focused() == "text"
    # What there is of it counts when the next question is asked.
    shown.script.forget()
    request = shown.ask("And then?")
    assert texts(request)[1] == ("assistant", "One, two")


def test_a_stop_before_the_first_piece_leaves_the_question(shown: Shown) -> None:
    shown.write("Hello")
    shown.script.request()
    shown.page.keyboard.press("Escape")
    shown.wait_for_end()
    assert shown.messages() == ["Hello"]
    shown.script.forget()
    shown.page.click(".user .retry")
    assert texts(shown.script.request()) == [("user", "Hello")]
    shown.script.answer("Hi")
    shown.wait_for_end()
    assert shown.messages() == ["Hello", "Hi"]


def test_settings_go_with_the_request(shown: Shown) -> None:
    shown.page.click("#settings-open")
    shown.page.fill("#system", "Be brief.")
    shown.page.fill("#temperature", "0.5")
    shown.page.fill("#max-tokens", "7")
    shown.page.click("#settings .primary")
    request = shown.ask("Hello")
    assert texts(request) == [("system", "Be brief."), ("user", "Hello")]
    assert (request["temperature"], request["max_tokens"]) == (0.5, 7)
    assert request["stream_options"] == {"include_usage": True}
    # In an open conversation the prompt is changed in its place.
    shown.page.click("#settings-open")
    assert shown.page.input_value("#system") == "Be brief."
    shown.page.fill("#system", "")
    shown.page.fill("#temperature", "")
    shown.page.click("#settings .primary")
    request = shown.ask("And?")
    assert [role for role, _ in texts(request)] == ["user", "assistant", "user"]
    assert "temperature" not in request


def test_tool_calls_are_shown(shown: Shown) -> None:
    shown.write("Weather?")
    shown.script.request()
    name = {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": ""},
    }
    pieces = [
        name,
        *({"index": 0, "function": {"arguments": part}} for part in ('{"city": ', '"<b>Paris"}')),
    ]
    for piece in pieces:
        shown.script.send({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]})
    shown.script.end("tool_calls")
    shown.wait_for_end()
    assert shown.find(".call p").inner_text() == "Calls get_weather"
    assert shown.find(".call pre").inner_text() == '{\n  "city": "<b>Paris"\n}'


def test_an_answer_at_its_longest_says_so(shown: Shown) -> None:
    shown.write("Hello")
    shown.script.request()
    shown.script.say("a")
    shown.script.end("length")
    shown.wait_for_end()
    assert shown.find(".assistant .ending").inner_text() == "The context is full"


# ---- editing


def test_a_message_is_edited_and_asked_again(shown: Shown) -> None:
    for question in ("One?", "Two?", "Three?"):
        shown.ask(question)
    shown.find(".user .edit").nth(1).click()
    area = shown.find("form.edit textarea")
    assert area.input_value() == "Two?"
    area.fill("Two and a half?")
    area.press("Enter")
    request = shown.script.request()
    shown.script.answer("Yes")
    shown.wait_for_end()
    assert texts(request) == [
        ("user", "One?"),
        ("assistant", "Answer to One?"),
        ("user", "Two and a half?"),
    ]
    assert shown.messages() == ["One?", "Answer to One?", "Two and a half?", "Yes"]
    # What it replaced is not lost.
    assert "4 messages were replaced" in shown.find(NOTICE).inner_text()
    shown.page.click("#notice >> text=Undo")
    assert shown.messages()[2:] == ["Two?", "Answer to Two?", "Three?", "Answer to Three?"]


def test_an_edit_is_cancelled(shown: Shown) -> None:
    shown.ask("One?")
    shown.page.click(".user .edit")
    shown.page.fill("form.edit textarea", "Other")
    shown.page.keyboard.press("Escape")
    assert shown.messages() == ["One?", "Answer to One?"]
    assert shown.focused() == "text"


def test_another_answer_takes_the_place_of_the_last(shown: Shown) -> None:
    shown.ask("One?")
    shown.page.click(".assistant .retry")
    assert texts(shown.script.request()) == [("user", "One?")]
    shown.script.answer("Another")
    shown.wait_for_end()
    assert shown.messages() == ["One?", "Another"]


# ---- errors


def test_what_does_not_fit_can_be_edited(shown: Shown) -> None:
    shown.write("Too long")
    shown.script.refuse(400, "The prompt does not fit.", "context_length_exceeded")
    notice = shown.find(NOTICE)
    notice.wait_for()
    assert "The prompt does not fit. Shorten the message" in notice.inner_text()
    assert shown.messages() == ["Too long"]
    shown.page.click("#notice >> text=Edit the message")
    assert shown.page.input_value("form.edit textarea") == "Too long"


def test_a_busy_server_is_asked_again(shown: Shown) -> None:
    shown.write("Hello")
    shown.script.refuse(429, "Too many wait.", "queue_full", Retry_After="7")
    shown.find(NOTICE).wait_for()
    assert "Try again in 7 seconds." in shown.find(NOTICE).inner_text()
    shown.script.request()
    shown.page.click("#notice button >> text=Try again")
    assert texts(shown.script.request()) == [("user", "Hello")]
    shown.script.answer("Hi")
    shown.wait_for_end()
    assert shown.messages() == ["Hello", "Hi"]
    assert not shown.find(NOTICE).is_visible()


def test_a_server_that_is_gone_costs_nothing_that_was_typed(shown: Shown) -> None:
    shown.ask("One?")
    shown.page.route("**/v1/**", lambda route: route.abort())
    shown.write("Two?")
    shown.find(NOTICE).wait_for()
    assert (
        "cannot be reached. See whether llama4 serve still runs" in shown.find(NOTICE).inner_text()
    )
    assert shown.messages() == ["One?", "Answer to One?", "Two?"]
    shown.page.fill("#text", "a draft")
    shown.page.unroute("**/v1/**")
    shown.open()
    assert shown.messages() == ["One?", "Answer to One?", "Two?"]
    assert shown.page.input_value("#text") == "a draft"


def test_a_reload_in_the_middle_of_an_answer_keeps_what_there_is(shown: Shown) -> None:
    shown.write("Hello")
    shown.script.request()
    shown.script.say("Half of")
    shown.page.wait_for_selector(".assistant p")
    shown.open()
    assert shown.messages() == ["Hello", "Half of"]


def test_an_address_of_nothing_says_so(keeping: Shown) -> None:
    keeping.page.goto("about:blank")
    keeping.open("/#No%20such%20one")
    keeping.find(NOTICE).wait_for()
    assert "there is no conversation of this name" in keeping.find(NOTICE).inner_text()
    assert keeping.page.url == f"{keeping.url}/"
    keeping.ask("Hello")
    wait_for_name(keeping, "Hello")


def test_what_another_window_did_is_listed(keeping: Shown) -> None:
    other = keeping.page.context.new_page()
    other.goto(keeping.url)
    other.wait_for_selector("#model:not(:empty)")
    other.fill("#text", "Elsewhere")
    other.press("#text", "Enter")
    keeping.script.request()
    keeping.script.answer("Yes")
    other.wait_for_selector("#conversations .open")
    assert names(keeping) == []
    keeping.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    keeping.until(lambda: names(keeping) == ["Elsewhere"])


@pytest.mark.parametrize("how", ["error", "end"])
def test_an_answer_that_breaks_off_stays(shown: Shown, how: str) -> None:
    shown.write("Hello")
    shown.script.request()
    shown.script.say("Half of")
    if how == "error":
        shown.script.send({"error": {"message": "The model failed.", "code": None}})
    shown.script.break_off()
    shown.find(NOTICE).wait_for()
    problem = (
        "The model failed." if how == "error" else "The connection ended before the answer did."
    )
    assert problem in shown.find(NOTICE).inner_text()
    assert shown.messages() == ["Hello", "Half of"]
    assert shown.find(".assistant .ending").inner_text() == "Cut off"
    shown.page.click("#notice button >> text=Try again")
    assert texts(shown.script.request()) == [("user", "Hello")]
    shown.script.answer("All of it")
    shown.wait_for_end()
    assert shown.messages() == ["Hello", "All of it"]


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Any, tiny_model: Model) -> None:
    settings = ServerSettings(api_keys=("the key",))
    with scripted_server(tiny_model, settings) as (server, script):
        for shown in show(browser, server.url, script):
            shown.page.goto(shown.url)
            shown.page.wait_for_selector("#key[open]")
            assert not shown.find("#key-refused").is_visible()
            shown.page.fill("#key-text", "another")
            shown.page.keyboard.press("Enter")
            shown.page.wait_for_selector("#key-refused:not([hidden])")
            shown.page.fill("#key-text", "the key")
            shown.page.keyboard.press("Enter")
            shown.page.wait_for_selector("#model:not(:empty)")
            shown.ask("Hello")
            shown.open()  # a reload asks no more
            assert not shown.find("#key").is_visible()
            kept = shown.page.evaluate("[JSON.stringify(localStorage), document.cookie]")
            assert "the key" not in "".join(kept)
            shown.page.evaluate("sessionStorage.clear()")
            shown.page.goto(shown.url)
            shown.page.wait_for_selector("#key[open]")
            shown.page.click("#key [value=cancel]")
            shown.find(NOTICE).wait_for()
            assert "Reload the page to enter another key." in shown.find(NOTICE).inner_text()


# ---- what the server keeps


def names(shown: Shown) -> list[str]:
    listed: list[str] = shown.find("#conversations .open").all_inner_texts()
    return listed


def wait_for_name(shown: Shown, name: str) -> None:
    shown.until(lambda: bool(shown.find("#title").inner_text() == name))


def test_conversations_are_kept_listed_and_opened(keeping: Shown) -> None:
    keeping.ask("What is one?", "It is **one**.")
    wait_for_name(keeping, "What is one")
    keeping.page.click("#new")
    assert keeping.messages() == []
    assert keeping.focused() == "text"
    keeping.ask("What is two?")
    wait_for_name(keeping, "What is two")
    assert names(keeping) == ["What is two", "What is one"]
    keeping.page.click("text=What is one")
    wait_for_name(keeping, "What is one")
    assert keeping.messages() == ["What is one?", "It is one."]
    assert keeping.find("[aria-current]").inner_text() == "What is one"
    keeping.open("/#What%20is%20two")
    keeping.page.reload()
    wait_for_name(keeping, "What is two")
    assert keeping.messages() == ["What is two?", "Answer to What is two?"]
    keeping.page.go_back()
    wait_for_name(keeping, "What is one")
    request = keeping.ask("And?")
    assert texts(request)[:2] == [("user", "What is one?"), ("assistant", "It is **one**.")]


def test_what_is_said_is_on_the_disk_at_once(keeping: Shown, tmp_path: Path) -> None:
    keeping.write("Hello")
    keeping.script.request()
    path = tmp_path / "talks" / "Hello.l4s"
    wait_for_name(keeping, "Hello")
    assert [one.text for one in Conversation.load(path).messages] == ["Hello"]
    keeping.script.answer("Hi")
    keeping.wait_for_end()
    keeping.until(lambda: len(Conversation.load(path).messages) == 2)
    assert [one.text for one in Conversation.load(path).messages] == ["Hello", "Hi"]


def test_a_conversation_is_renamed_and_deleted(keeping: Shown, tmp_path: Path) -> None:
    keeping.ask("One?")
    wait_for_name(keeping, "One")
    keeping.find("#conversations li").hover()
    keeping.page.click("[aria-label='Rename One']")
    keeping.page.fill("#rename-text", "a/b")
    keeping.page.keyboard.press("Enter")
    keeping.page.wait_for_selector("#rename-error:not([hidden])")
    keeping.page.fill("#rename-text", "Another")
    keeping.page.keyboard.press("Enter")
    wait_for_name(keeping, "Another")
    keeping.until(lambda: names(keeping) == ["Another"])
    keeping.ask("Two?")  # it goes on under its new name
    keeping.find("#conversations li").hover()
    keeping.page.click("[aria-label='Delete Another']")
    keeping.page.click("#delete [value=cancel]")
    assert names(keeping) == ["Another"]
    keeping.find("#conversations li").hover()
    keeping.page.click("[aria-label='Delete Another']")
    keeping.page.click("#delete .danger")
    wait_for_name(keeping, "New conversation")
    keeping.until(lambda: names(keeping) == [])
    assert keeping.messages() == []
    assert list((tmp_path / "talks").iterdir()) == []


def test_a_change_in_another_window_is_not_overwritten(keeping: Shown, tmp_path: Path) -> None:
    keeping.ask("One?")
    wait_for_name(keeping, "One")
    path = tmp_path / "talks" / "One.l4s"
    keeping.until(lambda: len(Conversation.load(path).messages) == 2)
    other = keeping.page.context.new_page()
    other.goto(f"{keeping.url}/#One")
    other.wait_for_selector(".assistant")
    other.fill("#text", "From the other")
    other.press("#text", "Enter")
    keeping.script.request()
    keeping.script.answer("Yes")
    other.wait_for_selector("#send:not([hidden])")
    keeping.until(lambda: len(Conversation.load(path).messages) == 4)
    keeping.ask("From here")
    keeping.find(NOTICE).wait_for()
    assert "was changed meanwhile" in keeping.find(NOTICE).inner_text()
    keeping.page.click("#notice >> text=Save as another")
    wait_for_name(keeping, "One 2")
    kept = {
        path.stem: [one.text for one in Conversation.load(path).messages][2]
        for path in (tmp_path / "talks").glob("*.l4s")
    }
    assert kept == {"One": "From the other", "One 2": "From here"}


def test_the_browser_asks_before_it_leaves_what_could_not_be_saved(keeping: Shown) -> None:
    keeping.page.route("**/conversations", lambda route: route.abort())
    keeping.page.click("#text")
    keeping.page.keyboard.type("Hello")
    keeping.page.keyboard.press("Enter")
    keeping.script.request()
    keeping.script.answer("Hi")
    keeping.page.click("#notice >> text=Save again", trial=True)
    with keeping.page.expect_event("dialog") as asked:
        keeping.page.evaluate("setTimeout(() => location.reload())")
    assert asked.value.type == "beforeunload"
    assert keeping.faults == [""]  # it was told to stay
    keeping.faults.clear()
    keeping.page.unroute("**/conversations")
    keeping.page.click("#notice >> text=Save again")
    wait_for_name(keeping, "Hello")
    keeping.page.reload()
    keeping.until(lambda: keeping.messages() == ["Hello", "Hi"])
    assert keeping.faults == []


def test_after_a_restart_it_goes_on_where_it_was(
    browser: Any, demo_path: Path, tmp_path: Path
) -> None:
    """With the real model: an answer, the server's end, and another one's beginning."""
    settings = ServerSettings(sessions=tmp_path)
    question = "What is the capital of France? " * 12
    name = title_of(Conversation().user(question))

    def wait_for_answers(shown: Shown, count: int) -> None:
        shown.until(lambda: bool(shown.find(".assistant .retry").count() == count))

    with (
        Model(demo_path, n_ctx=2048, n_threads=1) as model,
        server_aside(model, settings) as server,
    ):
        for shown in show(browser, server.url, Script()):
            shown.open()
            shown.write(question)
            wait_for_answers(shown, 1)
            wait_for_name(shown, name)
            before = shown.messages()
            tokens = int(shown.find("#context-text").inner_text().split()[0])
    with (
        Model(demo_path, n_ctx=2048, n_threads=1) as model,
        server_aside(model, settings) as server,
    ):
        for shown in show(browser, server.url, Script()):
            shown.open(f"/#{quote(name)}")
            wait_for_answers(shown, 1)
            assert shown.messages() == before
            # Taken up from the file: nothing was asked yet.
            shown.until(
                lambda: max((len(one.tokens) for one in model.engine.held()), default=0) > 64
            )
            assert int(shown.find("#context-text").inner_text().split()[0]) >= tokens
            shown.write("And of Italy?")
            wait_for_answers(shown, 2)
            assert shown.messages()[3] != ""
