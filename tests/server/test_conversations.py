"""``/conversations``: kept on the server's disk, and gone on with where they were left."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import httpx
import pytest

from llama4_edge import Conversation, Model, SessionError
from llama4_edge.chat.session import SessionSummary
from llama4_edge.runtime.files import session_writer
from llama4_edge.runtime.files.session_file import SessionFile
from llama4_edge.runtime.files.session_writer import SessionWriter
from llama4_edge.server.keeper import ModelKeeper
from llama4_edge.server.session_folder import SessionFolder, title_of
from llama4_edge.server.settings import ServerSettings
from tests.asking import until
from tests.server.running import running_server

RED = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAEElEQVR4nGP4z8AARwzEcQCukw/x"
    "0F8jngAAAABJRU5ErkJggg=="
)


def said(*texts: str) -> list[dict[str, Any]]:
    """Messages of the user and of the assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "talks"


@pytest.fixture
def kept(tiny_model: Model, folder: Path) -> Iterator[httpx.Client]:
    """A client of a server that keeps conversations."""
    settings = ServerSettings(sessions=folder)
    with running_server(tiny_model, settings) as server, server.client() as client:
        yield client


def create(client: httpx.Client, *texts: str) -> dict[str, Any]:
    answer = client.post("/conversations", json={"messages": said(*texts)})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def names(client: httpx.Client) -> list[str]:
    return [entry["name"] for entry in client.get("/conversations").json()["data"]]


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    fault: dict[str, Any] = answer.json()["error"]
    return fault


# ---- what is kept


def test_a_conversation_is_kept_changed_and_read_again(kept: httpx.Client, folder: Path) -> None:
    made = create(kept, "Hello there")
    assert made["name"] == "Hello there"
    assert made["tokens"] > 5
    path = folder / "Hello there.l4s"
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    messages = said("Hello there", "Hi", "And?")
    changed = kept.put(
        "/conversations/Hello there", json={"version": made["version"], "messages": messages}
    ).json()
    assert changed["version"] != made["version"]
    assert changed["tokens"] > made["tokens"]
    read = kept.get("/conversations/Hello there").json()
    assert read["messages"] == messages
    assert read["version"] == changed["version"]
    # The same file is a session of the command line and of Python.
    assert [one.text for one in Conversation.load(path).messages] == ["Hello there", "Hi", "And?"]


def test_pictures_and_system_prompts_are_kept(kept: httpx.Client) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": RED}},
        {"type": "text", "text": "What is it?"},
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    made = kept.post("/conversations", json={"messages": messages}).json()
    assert made["name"] == "What is it"
    assert kept.get(f"/conversations/{made['name']}").json()["messages"] == messages


def test_calls_of_tools_and_their_results_are_kept(kept: httpx.Client) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Sunny", "tool_call_id": "call_1"},
    ]
    kept.post("/conversations", json={"messages": messages}).raise_for_status()
    read = kept.get("/conversations/Weather").json()
    assert read["messages"] == messages
    more = [*messages, {"role": "assistant", "content": "It is sunny."}]
    body = {"version": read["version"], "messages": more}
    kept.put("/conversations/Weather", json=body).raise_for_status()
    assert kept.get("/conversations/Weather").json()["messages"] == more


def test_a_model_that_is_unloaded_leaves_what_it_read(tiny_path: Path, folder: Path) -> None:
    keeper = ModelKeeper(lambda _: Model(tiny_path, n_ctx=512, n_threads=1), idle_seconds=1)
    settings = ServerSettings(sessions=folder)
    with running_server(keeper, settings) as server, server.client() as client:
        until(lambda: keeper.phase == "ready")
        made = create(client, "q")
        messages = said("q", "a" * 150, "q")
        body = {"version": made["version"], "messages": messages}
        client.put("/conversations/q", json=body).raise_for_status()
        ask(client, messages)
        until(lambda: keeper.phase == "unloaded")
        with SessionFile(folder / "q.l4s") as file:
            assert SessionSummary.of(file).tokens > 64
        # What needs no model does not load it.
        assert client.get("/conversations/q").json()["tokens"] is None
        assert names(client) == ["q"]
        assert keeper.phase == "unloaded"


def test_the_list_begins_with_what_was_changed_last(kept: httpx.Client, folder: Path) -> None:
    assert kept.get("/conversations").json() == {"object": "list", "kept": True, "data": []}
    for text in ("one", "two", "three"):
        create(kept, text)
    for at, name in enumerate(("one", "three", "two")):
        os.utime(folder / f"{name}.l4s", (at, at))
    (folder / "notes.txt").write_text("no session")
    (folder / ".hidden.l4s").write_text("no name")
    (folder / "link.l4s").symlink_to(folder / "one.l4s")
    (folder / "directory.l4s").mkdir()
    assert names(kept) == ["two", "three", "one"]


def test_a_name_is_given_once(kept: httpx.Client) -> None:
    assert [create(kept, "same")["name"] for _ in range(3)] == ["same", "same 2", "same 3"]


def test_without_a_directory_nothing_is_kept(tiny: httpx.Client) -> None:
    assert tiny.get("/conversations").json() == {"object": "list", "kept": False, "data": []}
    fault = error(tiny.post("/conversations", json={"messages": said("a")}), 404)
    assert fault["code"] == "not_kept"
    assert "--sessions" in fault["message"]


# ---- renaming and removing


def test_a_conversation_is_renamed(kept: httpx.Client) -> None:
    create(kept, "old")
    create(kept, "other")
    answer = kept.patch("/conversations/old", json={"name": " Ünïcödé 🦙 "})
    assert answer.json() == {"name": "Ünïcödé 🦙"}
    assert sorted(names(kept)) == ["other", "Ünïcödé 🦙"]
    assert kept.get(f"/conversations/{quote('Ünïcödé 🦙')}").status_code == 200
    fault = error(kept.patch("/conversations/other", json={"name": "Ünïcödé 🦙"}), 409)
    assert "has this name already" in fault["message"]
    assert sorted(names(kept)) == ["other", "Ünïcödé 🦙"]


def test_a_conversation_is_removed(kept: httpx.Client, folder: Path) -> None:
    create(kept, "one")
    assert kept.delete("/conversations/one").json() == {"name": "one", "deleted": True}
    assert list(folder.iterdir()) == []
    assert error(kept.delete("/conversations/one"), 404)["code"] == "conversation_not_found"


BAD_NAMES = [
    "", " ", ".", "..", "../out", "a/b", "a\\b", "/etc/passwd", ".hidden", "a.", "a\0b", "a\nb",
    "a:b", "a*", "CON", "nul.txt", "x" * 81, "🦙" * 60, "\u202eabc", "\ud800",
]  # fmt: skip


def test_what_is_no_name_is_refused(kept: httpx.Client, folder: Path) -> None:
    create(kept, "one")
    for name in BAD_NAMES:
        body = json.dumps({"name": name}).encode()
        answer = kept.patch(
            "/conversations/one", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400, name
    assert [path.name for path in folder.iterdir()] == ["one.l4s"]
    assert [path.name for path in folder.parent.iterdir()] == ["talks"]


@pytest.mark.parametrize(
    "name",
    ["..%2Fsecret", "%2e%2e%2fsecret", "%2e%2e", "%00", "secret%00", "%ff", "%2Fetc%2Fpasswd"],
)
def test_no_name_leads_out_of_the_directory(
    kept: httpx.Client, folder: Path, tiny_model: Model, name: str
) -> None:
    secret = folder.parent / "secret.l4s"
    tiny_model.save_session(secret, said("secret"))
    (folder / "link.l4s").symlink_to(secret)
    for path in (f"/conversations/{name}", "/conversations/link"):
        assert kept.get(path).status_code == 404
        assert kept.delete(path).status_code in (404, 405)
        body = {"version": "", "messages": said("a")}
        assert kept.put(path, json=body).status_code in (404, 405)
        assert kept.post(f"{path}/resume", json={}).status_code == 404
    assert Conversation.load(secret).messages[0].text == "secret"


TITLES = {
    "What is 3/4 of 8?\nAnd why?": "What is 3 4 of 8 And why",
    "../../etc/passwd": "etc passwd",
    "a" * 200: "a" * 50,
    "word " * 40: " ".join(["word"] * 10),
    "\u202e\u200b": "Conversation",
    "con": "Conversation",
    "...": "Conversation",
    "": "Conversation",
}


@pytest.mark.parametrize("text", TITLES)
def test_a_title_is_the_beginning_of_the_first_question(text: str) -> None:
    assert title_of(Conversation().system("no").user(text)) == TITLES[text]


# ---- several at a time


def test_a_change_of_what_was_changed_meanwhile_is_refused(kept: httpx.Client) -> None:
    made = create(kept, "one")
    path, version = "/conversations/one", made["version"]
    first = kept.put(path, json={"version": version, "messages": said("one", "first")})
    assert first.status_code == 200
    second = kept.put(path, json={"version": version, "messages": said("one", "second")})
    assert error(second, 409)["code"] == "conversation_changed"
    assert kept.get(path).json()["messages"] == said("one", "first")


def test_another_process_keeps_its_session(kept: httpx.Client, folder: Path) -> None:
    made = create(kept, "one")
    path = "/conversations/one"
    with SessionWriter(folder / "one.l4s"):
        body = {"version": made["version"], "messages": said("one", "two")}
        for answer in (
            kept.put(path, json=body),
            kept.patch(path, json={"name": "two"}),
            kept.delete(path),
        ):
            assert "another process" in error(answer, 409)["message"]
    assert kept.get(path).json()["messages"] == said("one")


def test_many_may_ask_at_the_same_time(kept: httpx.Client) -> None:
    faults: list[BaseException] = []

    def use(at: int) -> None:
        try:
            made = create(kept, "same")
            messages = said("same", f"answer {at}")
            body = {"version": made["version"], "messages": messages}
            path = f"/conversations/{made['name']}"
            assert kept.put(path, json=body).status_code == 200
            assert kept.get(path).json()["messages"] == messages
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=use, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert len(names(kept)) == 8


# ---- damage


def test_a_damaged_file_is_told_and_left_alone(kept: httpx.Client, folder: Path) -> None:
    made = create(kept, "one")
    path = folder / "one.l4s"
    whole = path.read_bytes()
    for damaged in (b"", b"no session", whole[:20], whole[:-1] + b"?" * 40 + whole[-40:]):
        path.write_bytes(damaged)
        assert names(kept) == ["one"]
        read = kept.get("/conversations/one")
        assert read.status_code in (200, 500)
        body = {"version": made["version"], "messages": said("one", "two")}
        changed = kept.put("/conversations/one", json=body)
        assert changed.status_code in (200, 409, 500)
        if changed.status_code != 200:
            assert path.read_bytes() == damaged


BAD_BODIES: list[dict[str, Any]] = [
    {},
    {"messages": []},
    {"messages": said("a"), "more": 1},
    {"messages": [{"role": "nobody", "content": "a"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
]


def test_bodies_that_are_no_conversations_are_refused(kept: httpx.Client, folder: Path) -> None:
    for body in BAD_BODIES:
        error(kept.post("/conversations", json=body), 400)
    assert list(folder.iterdir()) == []


def test_a_directory_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionError, match="conversations cannot be kept there"):
        SessionFolder(tmp_path / "file")


# ---- what the model has read


def ask(client: httpx.Client, messages: list[dict[str, Any]]) -> tuple[str, int, int]:
    """An answer, and how many tokens of the prompt there are and were not read anew."""
    body = {"messages": messages, "max_tokens": 8, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=body).json()
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["message"]["content"], usage["prompt_tokens"], cached


@pytest.fixture
def opened(tiny_path: Path) -> Callable[[], Model]:
    return lambda: Model(tiny_path, n_ctx=512, n_threads=1)


def test_after_a_restart_a_conversation_goes_on_without_being_read_anew(
    opened: Callable[[], Model], folder: Path
) -> None:
    settings = ServerSettings(sessions=folder)
    question = "A question that is long enough. " * 8
    with opened() as model, running_server(model, settings) as server, server.client() as client:
        made = create(client, question)
        answer, _, _ = ask(client, said(question))
        messages = said(question, answer)
        body = {"version": made["version"], "messages": messages}
        client.put(f"/conversations/{made['name']}", json=body).raise_for_status()
    more = [*messages, *said("And then?")]
    with opened() as model, running_server(model, settings) as server, server.client() as client:
        path = f"/conversations/{made['name']}"
        assert client.get(path).json()["messages"] == messages
        resumed = client.post(f"{path}/resume", json={}).json()
        assert resumed["note"] is None
        assert resumed["tokens"] > 64
        goes_on, n_prompt, n_cached = ask(client, more)
        assert n_cached >= resumed["tokens"] - 8
        assert n_prompt - n_cached < 64
        # It is there now: nothing is loaded again.
        assert client.post(f"{path}/resume", json={}).json()["tokens"] >= resumed["tokens"]
    with opened() as model, running_server(model) as server, server.client() as client:
        assert ask(client, more)[0] == goes_on


def test_what_was_read_is_written_when_it_has_doubled_or_the_server_ends(
    opened: Callable[[], Model], folder: Path
) -> None:
    def n_kept() -> int:
        with SessionFile(folder / "q.l4s") as file:
            return SessionSummary.of(file).tokens

    with opened() as model:
        keeps = SessionFolder(folder)
        kept = keeps.create(model, Conversation().user("q"))
        assert not keeps.keep_state(model, "q")  # nothing was read
        talk = kept.conversation
        counts = []
        for text in ("a" * 100, "b" * 60, "c" * 60):
            talk = talk.assistant(text).user("q")
            kept = keeps.change("q", kept.version, talk.messages)
            model.chat(talk, max_tokens=1)
            counts.append((keeps.keep_state(model, "q"), n_kept()))
        assert [is_written for is_written, _ in counts] == [True, False, True]
        assert counts[0][1] == counts[1][1] < counts[2][1]
        talk = talk.assistant("d" * 100).user("q")
        keeps.change("q", kept.version, talk.messages)
        model.chat(talk, max_tokens=1)
        assert not keeps.keep_state(model, "q")
        keeps.keep_states(model)
        assert n_kept() > counts[2][1] + 64
        assert keeps.read("q").conversation.messages == talk.messages


def test_a_state_of_another_model_leaves_the_text(
    opened: Callable[[], Model], folder: Path, scout_int4: Path
) -> None:
    with opened() as model:
        model.chat("q" * 100, max_tokens=1)
        folder.mkdir()
        model.save_session(folder / "one.l4s", "q" * 100)
    with Model(scout_int4, n_ctx=512, n_threads=1) as model:
        resumed = SessionFolder(folder).resume(model, "one")
        assert resumed.tokens == 0
        assert resumed.note is not None
        assert resumed.note.endswith("What was said is here, and is read anew.")


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EROFS, 500)]
)
def test_what_cannot_be_written_is_told_without_where_the_server_keeps_it(
    kept: httpx.Client,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    status: int,
) -> None:
    name = create(kept, "a", "b")["name"]
    version = kept.get(f"/conversations/{name}").json()["version"]

    def refuse(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number), str(folder / "x"))

    monkeypatch.setattr(session_writer, "_write", refuse)
    monkeypatch.setattr(SessionWriter, "_begin", refuse)
    created = kept.post("/conversations", json={"messages": said("new")})
    assert created.status_code == status
    assert os.strerror(number) in created.json()["error"]["message"]
    assert str(folder) not in created.text
    assert str(folder) in caplog.text  # for whoever runs the server
    assert kept.get(f"/conversations/{name}").json()["version"] == version


def test_a_damaged_file_is_told_without_where_it_is(kept: httpx.Client, folder: Path) -> None:
    name = create(kept, "a", "b")["name"]
    (folder / f"{name}.l4s").write_bytes(b"LLAMA4 session " + bytes(100))
    for answer in (
        kept.get(f"/conversations/{name}"),
        kept.post(f"/conversations/{name}/resume", json={}),
    ):
        assert answer.status_code >= 400
        assert str(folder) not in answer.text
