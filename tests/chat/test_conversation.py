from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama4_edge.chat import conversation as module
from llama4_edge.chat.answer import Completion
from llama4_edge.chat.conversation import Conversation, Message
from llama4_edge.errors import SessionError, SettingError
from llama4_edge.runtime.sampling import Sampling

CONVERSATION = Conversation(
    messages=(
        Message("system", "Be brief."),
        Message("user", '日本語, naïve\n\t"quotes" and <|eot|>'),
        Message("assistant", "👍"),
    ),
    model="Scout",
    sampling=Sampling(temperature=0.2, seed=5),
)


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    CONVERSATION.save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json") == CONVERSATION


def test_the_file_can_be_read_by_people(tmp_path: Path) -> None:
    CONVERSATION.save(tmp_path / "talk.json")
    data = json.loads((tmp_path / "talk.json").read_text())
    assert data == {
        "format": "llama4-edge conversation",
        "version": 1,
        "model": "Scout",
        "sampling": {"temperature": 0.2, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "seed": 5},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": '日本語, naïve\n\t"quotes" and <|eot|>'},
            {"role": "assistant", "content": "👍"},
        ],
    }
    assert "日本語" in (tmp_path / "talk.json").read_text()


def test_bytes_that_were_no_text_come_back(tmp_path: Path) -> None:
    conversation = Conversation((Message("user", "odd \udcff byte"),))
    conversation.save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json") == conversation


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "talk.json"
    target.write_text("before")
    CONVERSATION.save(target)
    assert Conversation.load(target) == CONVERSATION
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "talk.json"
    target.write_text("before")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SessionError, match="cannot be saved, found No space left on device"):
        CONVERSATION.save(target)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_saving_into_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="found No such file or directory"):
        CONVERSATION.save(tmp_path / "absent" / "talk.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="does not exist"):
        Conversation.load(tmp_path / "absent.json")


def damaged(path: Path, **changes: object) -> Path:
    CONVERSATION.save(path)
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    path.write_text(json.dumps(data))
    return path


SAMPLING = {"temperature": 1, "top_k": 1, "top_p": 1, "min_p": 0, "seed": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "found something else, expected an object"),
        ({"version": 3}, "a version that this release does not read, found 3, expected 1 to 2"),
        ({"version": 10**4000}, "is not JSON, found an integer of 4001 digits"),
        ({"messages": None}, "expected format, messages, model, sampling, version"),
        ({"extra": 1}, "the conversation with 'extra, format"),
        ({"x" * 10**6: 1}, "the conversation with 'format"),
        ({"model": 3}, "has an invalid model, found 3, expected a string"),
        (
            {"messages": {}},
            "has an invalid messages, found an object of 0 entries, expected a list",
        ),
        (
            {"messages": ["hi"]},
            "has an invalid messages, found a list of 1, expected a list of obj",
        ),
        ({"messages": [{"role": "user"}]}, "a message with 'role', expected content, role"),
        (
            {"messages": [{"role": "user", "content": 1}]},
            "messages[0] has an invalid content, found 1",
        ),
        ({"sampling": []}, "has an invalid sampling, found a list of 0, expected an object"),
        ({"sampling": {"top_z": 1}}, "\"sampling\" with 'top_z', expected temperature, top_k"),
        ({"sampling": {"logit_bias": 3}}, "has an invalid logit_bias, found 3, expected a list"),
        (
            {"sampling": {**SAMPLING, "temperature": -1}},
            "temperature is outside its range, found -1.0, expected a number from 0.0 up",
        ),
        (
            {"sampling": {**SAMPLING, "temperature": "x"}},
            "sampling has an invalid temperature, found 'x', expected a number",
        ),
        ({"sampling": {**SAMPLING, "temperature": 10**400}}, "found an integer of 401 digits"),
        ({"sampling": {**SAMPLING, "top_p": None}}, "sampling has no top_p, expected a number"),
        ({"sampling": {**SAMPLING, "top_k": 1.5}}, "invalid top_k, found 1.5, expected a whole"),
        ({"sampling": {**SAMPLING, "top_k": True}}, "invalid top_k, found True, expected a whole"),
        ({"sampling": {**SAMPLING, "seed": 2**32}}, "seed is outside its range"),
    ],
)
def test_a_damaged_file_is_refused_with_what_was_found(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SessionError) as caught:
        Conversation.load(damaged(tmp_path / "talk.json", **changes))
    assert message in str(caught.value)
    assert "talk.json" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"version": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[]", "is damaged, found a list of 0, expected a JSON object"),
        (b"null", "is damaged, found None, expected a JSON object"),
        (b"{}", "this is not a saved conversation"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_a_file_that_is_something_else_is_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "talk.json").write_bytes(data)
    with pytest.raises(SessionError, match=message) as caught:
        Conversation.load(tmp_path / "talk.json")
    assert "talk.json" in str(caught.value)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    CONVERSATION.save(tmp_path / "talk.json")
    data = (tmp_path / "talk.json").read_bytes()
    (tmp_path / "talk.json").write_bytes(b"\xef\xbb\xbf" + data)
    assert Conversation.load(tmp_path / "talk.json") == CONVERSATION


def test_a_conversation_grows_by_what_is_said() -> None:
    talk = Conversation(model="Scout").user("Hello").system("Be brief.")
    answer = Completion("Hi!", (1, 2), "stop", None, 10, 0, 0, 0.1, 0.1)
    grown = talk.assistant(answer).user("Bye").assistant("Goodbye!")
    assert grown.messages == (
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("assistant", "Hi!"),
        Message("user", "Bye"),
        Message("assistant", "Goodbye!"),
    )
    assert grown.model == "Scout"
    assert grown.system("Be long.").messages[:2] == (
        Message("system", "Be long."),
        Message("user", "Hello"),
    )
    # The earlier ones are values of their own.
    assert len(talk.messages) == 2


def test_messages_are_taken_as_mappings_and_in_any_sequence() -> None:
    mappings: Any = [{"role": "user", "content": "Hello"}, Message("assistant", "Hi!")]
    assert Conversation(mappings).messages == (
        Message("user", "Hello"),
        Message("assistant", "Hi!"),
    )


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ("Hello", "messages are of the wrong type, found 'Hello'"),
        (None, "messages are of the wrong type, found None"),
        (
            {"role": "user", "content": "x"},
            "messages are of the wrong type, found an object of 2 entries",
        ),
        (["Hello"], "a message is of the wrong type, found 'Hello', expected a Message"),
        ([{"role": "user"}], "a message is of the wrong type, found 'role', expected"),
        ([{"role": "user", "content": 5}], "the content of a message is not a string, found 5"),
        ([{"role": None, "content": "x"}], "the role of a message is not a string, found None"),
    ],
)
def test_what_is_no_message_is_refused(
    messages: Any,
    found: str,
) -> None:
    with pytest.raises(SettingError) as caught:
        Conversation(messages)
    assert str(caught.value).startswith(found)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (
            lambda wrong: Conversation(model=wrong),
            "the model of a conversation is of the wrong type",
        ),
        (lambda wrong: Conversation(sampling=wrong), "the sampling of a conversation is of the wr"),
        (lambda wrong: Conversation().user(wrong), "the content of a message is not a string"),
        (lambda wrong: Conversation().system(wrong), "the content of a message is not a string"),
        (lambda wrong: Conversation().assistant(wrong), "the content of a message is not a string"),
        (lambda wrong: Message(wrong, "x"), "the role of a message is not a string"),
    ],
)
@pytest.mark.parametrize(
    "wrong", [None, 5, b"x", {"text": "x"}, ["x"], 10**4000], ids=lambda it: type(it).__name__
)
def test_values_of_the_wrong_type_are_one_error(
    make: Callable[[Any], object], found: str, wrong: Any
) -> None:
    with pytest.raises(SettingError, match=found) as caught:
        make(wrong)
    assert len(str(caught.value)) < 200


def test_a_message_is_written_without_the_bytes_of_its_pictures() -> None:
    url = {"url": f"data:image/png;base64,{'A' * 10_000}"}
    parts = ({"type": "image_url", "image_url": url}, {"type": "text", "text": "What?"})
    talk = Conversation().user(parts)
    assert repr(talk.messages) == "(Message(role='user', content='[picture] What?'),)"
    assert "AAAA" not in repr(talk)


def test_saving_through_a_symbolic_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "talk.json")
    CONVERSATION.save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert Conversation.load(tmp_path / "talk.json") == CONVERSATION


def test_what_is_no_regular_file_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(SessionError, match=r"not a regular file|Is a directory"):
            Conversation.load(path)
        with pytest.raises(SessionError, match="cannot be saved, found Not a regular file"):
            CONVERSATION.save(path)
    assert fifo.is_fifo()


def test_a_file_too_large_for_a_conversation_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CONVERSATION.save(tmp_path / "talk.json")
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(SessionError, match=r"is too large, found .* expected at most 100 B"):
        Conversation.load(tmp_path / "talk.json")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_name_that_no_file_can_have_is_one_error(tmp_path: Path, name: str) -> None:
    for use in (CONVERSATION.save, Conversation.load):
        with pytest.raises(SessionError):
            use(tmp_path / name)


def test_settings_that_are_not_named_are_as_by_default(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    Conversation(sampling=Sampling(top_k=3)).save(file)
    saved = json.loads(file.read_text())
    assert list(saved["sampling"]) == ["temperature", "top_k", "top_p", "min_p", "seed"]
    saved["sampling"] = {"top_k": 3}
    file.write_text(json.dumps(saved))
    assert Conversation.load(file).sampling == Sampling(top_k=3)


def test_every_setting_comes_back(tmp_path: Path) -> None:
    sampling = Sampling(
        xtc_probability=0.5,
        mirostat=2,
        logit_bias={7: -float("inf"), 8: 1.5},  # type: ignore[arg-type]
        dry_sequence_breakers=("a", "\n"),
    )
    Conversation(sampling=sampling).save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json").sampling == sampling
