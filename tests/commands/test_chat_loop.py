"""The chat's behaviour, with answers that the test makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama4_edge.chat.answer import Completion
from llama4_edge.chat.conversation import Conversation, Message
from llama4_edge.chat.options import WhenFull
from llama4_edge.commands.chat_loop import COMMANDS, STOPPED, Chat
from llama4_edge.errors import ContextFullError, EngineError, ImageError, SessionError
from llama4_edge.runtime.sampling import Sampling

Messages = tuple[Message, ...]


class Script:
    """A source of messages that a test wrote; an exception in it is raised."""

    def __init__(self, *messages: str | BaseException) -> None:
        self._messages = iter(messages)
        self.fullness: list[float | None] = []

    def listening(self) -> AbstractContextManager[None]:
        return nullcontext()

    def read(self, fullness: float | None) -> str:
        self.fullness.append(fullness)
        message = next(self._messages, None)
        if message is None:
            raise EOFError
        if isinstance(message, BaseException):
            raise message
        return message


class Said(list[str]):
    """A complete answer."""

    dropped_messages = 0
    prompt_progress = (10, 10)

    @property
    def completion(self) -> Completion:
        return completed("".join(self))


def completed(text: str, **changes: Any) -> Completion:
    whole = Completion(
        text=text,
        tokens=(1, 2, 3),
        finish_reason="stop",
        stop_string=None,
        prompt_tokens=10,
        reused_tokens=4,
        seed=1,
        prefill_seconds=2.0,
        decode_seconds=0.5,
    )
    return replace(whole, **changes)


class Echo:
    """Answers with the number of messages and the last one; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []

    def __call__(self, messages: Messages) -> Said:
        self.asked.append([(one.role, str(one)) for one in messages])
        return Said([f"{len(messages)}:", str(messages[-1])])


def chat(
    *messages: str | BaseException,
    reply: Callable[[Messages], Any] | None = None,
    conversation: Conversation | None = None,
    interactive: bool = True,
    max_tokens: int | None = None,
) -> Chat:
    """A chat that has taken `messages` and ended."""
    one = Chat(
        reply or Echo(),
        Script(*messages),
        conversation or Conversation(),
        interactive=interactive,
        max_tokens=max_tokens,
        fullness=lambda messages: len(messages) / 8,
        look_at=look_at,
    )
    one.run()
    return one


def look_at(path: str) -> tuple[dict[str, Any], str]:
    """A picture, for a chat without a model."""
    if not Path(path).is_file():
        raise ImageError(f"{path}: no such file")
    part = {"type": "image_url", "image_url": {"url": f"data:,{Path(path).name}"}}
    return part, f"{Path(path).name}: a picture."


def said(one: Chat) -> list[tuple[str, str]]:
    return [(message.role, str(message)) for message in one.conversation.messages]


def breaking(error: BaseException, *pieces: str) -> Callable[[Messages], Said]:
    """An answer that says `pieces` and then fails."""

    class Broken(Said):
        def __iter__(self) -> Iterator[str]:
            yield from pieces
            raise error

    return lambda _messages: Broken()


def test_answers_go_to_stdout_and_build_the_conversation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = chat("hello", "again")
    assert capsys.readouterr().out == "1:hello\n3:again\n"
    assert said(one) == [
        ("user", "hello"),
        ("assistant", "1:hello"),
        ("user", "again"),
        ("assistant", "3:again"),
    ]


def test_a_person_is_shown_how_full_the_context_is() -> None:
    for interactive, fullness in ((True, [0.0, 0.25, 0.25, 0.0]), (False, [None] * 4)):
        source = Script("hello", "", "/reset")
        one = Chat(
            Echo(),
            source,
            Conversation(),
            interactive=interactive,
            max_tokens=None,
            fullness=lambda messages: len(messages) / 8,
            look_at=look_at,
        )
        one.run()
        assert source.fullness == fullness


def test_empty_messages_are_not_sent() -> None:
    echo = Echo()
    chat("", "  \n ", reply=echo)
    assert echo.asked == []


def test_two_slashes_send_one_and_an_unknown_command_is_not_sent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    echo = Echo()
    one = chat("//etc/hosts", "/etc/hosts\nis what?", "//", reply=echo)
    assert [asked[-1][1] for asked in echo.asked] == ["/etc/hosts", "/"]
    assert "no command /etc/hosts" in capsys.readouterr().err
    assert one.failures == 1


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    chat("/help")
    out, err = capsys.readouterr()
    assert out == ""
    for name, command in COMMANDS.items():
        assert f"{name} {command.argument}".strip() in err
        assert command.help in err
    assert "//" in err


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/save", "/save needs a FILE"),
        ("/load  ", "/load needs a FILE"),
        ("/undo twice", "/undo takes nothing after it"),
        ("/undo", "there is nothing to undo"),
        ("/retry", "there is nothing to retry"),
        ("/Help", "no command /Help"),
        ("/ help", "no command /"),
    ],
)
def test_a_command_that_cannot_be_obeyed_is_one_line_of_error(
    capsys: pytest.CaptureFixture[str], line: str, complaint: str
) -> None:
    chat(line, "still here", interactive=False)
    out, err = capsys.readouterr()
    assert [one for one in err.splitlines() if one.startswith("error: ")] == err.splitlines()
    assert complaint in err
    assert out == "1:still here\n"


def test_the_system_message_is_shown_set_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    chat("/system", "/system Be\nbrief.", "a", "/system", "/system -", "b", reply=echo)
    assert echo.asked[0] == [("system", "Be\nbrief."), ("user", "a")]
    assert echo.asked[1][0] == ("user", "a")
    err = capsys.readouterr().err
    assert "There is no system message." in err
    assert "The system message is set.\n" in err
    assert "Be\nbrief." in err
    assert "There is no system message now.\n" in err


def test_reset_forgets_the_exchanges_and_keeps_the_system_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = chat("a", "/reset", conversation=Conversation((Message("system", "Be brief."),)))
    assert said(one) == [("system", "Be brief.")]
    assert "Forgot 1 exchange.\n" in capsys.readouterr().err


def test_undo_drops_one_exchange_and_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    one = chat("first", "second\nline", "/undo")
    assert said(one) == [("user", "first"), ("assistant", "1:first")]
    assert "Dropped: second" in capsys.readouterr().err


def test_retry_asks_the_same_messages_again_and_replaces_the_answer() -> None:
    answers = iter(["one", "two"])
    asked = []

    def reply(messages: Messages) -> Said:
        asked.append(messages)
        return Said([next(answers)])

    one = chat("question", "/retry", reply=reply)
    assert asked[0] == asked[1]
    assert said(one) == [("user", "question"), ("assistant", "two")]


@pytest.mark.parametrize(
    ("sampling", "repeatable"),
    [(Sampling(), False), (Sampling(seed=1), True), (Sampling(temperature=0.0), True)],
)
def test_retry_says_when_the_answer_cannot_change(
    capsys: pytest.CaptureFixture[str], sampling: Sampling, repeatable: bool
) -> None:
    chat("question", "/retry", conversation=Conversation(sampling=sampling))
    assert ("get the same answer" in capsys.readouterr().err) is repeatable


@pytest.mark.parametrize("interactive", [True, False])
def test_a_person_sees_the_speed_of_an_answer_and_a_script_does_not(
    capsys: pytest.CaptureFixture[str], interactive: bool
) -> None:
    chat("question", interactive=interactive)
    assert capsys.readouterr().err == ("3 tokens, 6.0 tokens/s\n" if interactive else "")


@pytest.mark.parametrize(("max_tokens", "cut_by_context"), [(3, False), (None, True), (4, True)])
def test_an_answer_that_the_context_cut_off_says_so(
    capsys: pytest.CaptureFixture[str], max_tokens: int | None, cut_by_context: bool
) -> None:
    class CutOff(Said):
        @property
        def completion(self) -> Completion:
            return completed("and so", finish_reason="length")

    chat("go", reply=lambda _: CutOff(["and so"]), interactive=False, max_tokens=max_tokens)
    assert ("context is full" in capsys.readouterr().err) is cut_by_context


def test_a_failed_retry_leaves_the_first_answer() -> None:
    calls: Iterator[Callable[[Messages], Any]] = iter([Echo(), breaking(EngineError("no"))])
    one = chat("question", "/retry", reply=lambda messages: next(calls)(messages))
    assert said(one) == [("user", "question"), ("assistant", "1:question")]


def test_ctrl_c_stops_the_answer_and_keeps_it_marked(capsys: pytest.CaptureFixture[str]) -> None:
    calls: Iterator[Callable[[Messages], Any]] = iter(
        [breaking(KeyboardInterrupt(), "so ", "far"), Echo()]
    )
    one = chat("question", "next", reply=lambda messages: next(calls)(messages))
    out, err = capsys.readouterr()
    assert out == f"so far{STOPPED}\n3:next\n"
    assert said(one)[1] == ("assistant", f"so far{STOPPED}")
    assert "Stopped. The answer so far is kept" in err


def test_ctrl_c_before_the_first_word_keeps_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    one = chat("question", reply=breaking(KeyboardInterrupt()))
    assert said(one) == []
    assert "Stopped before the answer began" in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_says_how_to_leave_and_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat(KeyboardInterrupt(), "hello")
    out, err = capsys.readouterr()
    assert "Ctrl-D or /quit" in err
    assert out == "1:hello\n"


def test_ctrl_c_ends_a_chat_that_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        chat("question", reply=breaking(KeyboardInterrupt(), "so far"), interactive=False)
    assert capsys.readouterr().out == f"so far{STOPPED}\n"


def test_a_full_context_says_what_to_do_and_leaves_the_conversation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    full = ContextFullError("the tokens do not fit into the context", hint="Open another model.")
    calls: Iterator[Callable[[Messages], Any]] = iter([Echo(), breaking(full, "partial"), Echo()])
    one = chat("a", "b", "c", reply=lambda messages: next(calls)(messages))
    out, err = capsys.readouterr()
    assert out == "1:a\npartial\n3:c\n"
    assert "error: the tokens do not fit into the context" in err
    assert "/reset" in err
    assert "-c" in err
    assert "Open another model" not in err
    assert [content for _, content in said(one)] == ["a", "1:a", "c", "3:c"]


def test_any_other_error_is_one_line_and_the_chat_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: Iterator[Callable[[Messages], Any]] = iter([breaking(EngineError("two\nlines")), Echo()])
    one = chat("a", "b", reply=lambda messages: next(calls)(messages), interactive=False)
    out, err = capsys.readouterr()
    assert err == "error: two lines\n"
    assert out == "1:b\n"
    assert one.failures == 1


def test_an_error_of_the_source_does_not_end_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    chat(SessionError("a line that cannot be read"), "b", interactive=False)
    assert capsys.readouterr() == ("1:b\n", "error: a line that cannot be read\n")


def test_quit_ends_the_chat() -> None:
    echo = Echo()
    chat("a", "/quit", "b", reply=echo)
    assert len(echo.asked) == 1


def test_a_saved_conversation_is_loaded_whole(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    before = chat("/system Be brief.", "hello 🦙", f"/save {file}", f"/save {file}")
    after = chat("forgotten", f"/load {file}")
    assert after.conversation.messages == before.conversation.messages
    err = capsys.readouterr().err
    assert f"Saved 1 exchange to {file}." in err
    assert f"Loaded 1 exchange from {file}." in err


def test_saving_replaces_no_other_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    chat("hello", f"/save {file}")
    assert file.read_text() == "years of work"
    assert "is not a saved conversation" in capsys.readouterr().err


def test_a_conversation_without_its_last_answer_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    Conversation((Message("user", "unanswered"),)).save(file)
    one = chat("hello", f"/load {file}")
    assert said(one)[0] == ("user", "hello")
    assert "ends in a message without an answer" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "not JSON", json.dumps({"format": "something else"})])
def test_a_file_that_cannot_be_loaded_leaves_the_conversation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "talk.json"
    if content is not None:
        file.write_text(content)
    one = chat("hello", f"/load {file}")
    assert said(one) == [("user", "hello"), ("assistant", "1:hello")]
    assert f"error: {file}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["/save", "/load"])
@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-that-name/talk", "a\0b"])
def test_a_file_name_that_cannot_be_ends_no_chat(command: str, name: str) -> None:
    one = chat("hello", f"{command} {name}", "again")
    assert said(one)[-1] == ("assistant", "3:again")
    assert one.failures == 1


class Dropping(Said):
    """An answer that some messages were dropped for."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(["yes"])
        self.dropped_messages, self._after = before, after

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        self.dropped_messages = self._after


def test_it_is_said_once_when_messages_are_dropped_and_the_conversation_keeps_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drops = iter([(0, 0), (1, 1), (1, 1), (2, 4), (4, 4), (0, 0), (2, 2)])
    one = chat(*"abcdefg", "/save talk.json", reply=lambda _: Dropping(*next(drops)))
    said = [line for line in capsys.readouterr().err.splitlines() if "context is full" in line]
    assert said == [
        "The oldest message is dropped, because the context is full. What is saved keeps all.",
        *(
            f"The {count} oldest messages are dropped, because the context is full. What is saved "
            "keeps all."
            for count in (2, 4, 2)
        ),
    ]
    assert len(one.conversation.messages) == len(Conversation.load("talk.json").messages) == 14


def test_what_to_do_about_a_full_context_depends_on_what_happens_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = ContextFullError("the tokens do not fit", hint="Open with a larger n_ctx.")
    hints: dict[WhenFull, str] = {"stop": "--when-full drop goes on", "drop": "Nothing older is"}
    for when_full, hint in hints.items():
        talk = Conversation(when_full=when_full)
        chat("question", reply=breaking(error), conversation=talk)
        assert hint in capsys.readouterr().err


def test_documents_that_are_dropped_are_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    document = '<document name="a.md">\nfirst\n</document>\n\n'
    for asked, said in ((["a", f"{document}b"], True), ([f"{document}a", "b"], False)):
        chat(*asked, "c", reply=lambda messages: Dropping(*[len(messages) - 1] * 2))
        assert ("and so are documents in them" in capsys.readouterr().err) is said


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.png", tmp_path / "my photo.JPG", tmp_path / "it's.webp"]
    for path in paths:
        path.write_bytes(b"")
    return paths


def test_a_picture_goes_with_the_next_message_alone(photos: list[Path]) -> None:
    one = chat(f"/image {photos[0]}", f"/image {photos[1]}", "What is it?", "And now?")
    assert said(one) == [
        ("user", "[picture] [picture] What is it?"),
        ("assistant", "1:[picture] [picture] What is it?"),
        ("user", "And now?"),
        ("assistant", "3:And now?"),
    ]


def test_a_file_that_is_dropped_into_the_terminal_is_a_picture(
    photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, spaced, quoted = map(str, photos)
    for typed in (
        f"{plain} What is it?",
        f"What is it? '{spaced}'",
        "What is it? " + spaced.replace(" ", "\\ "),
        f'What is it? "{quoted}" ',
        f"{photos[1].as_uri()} What is it?",
    ):
        assert said(chat(typed))[0] == ("user", "[picture] What is it?")
    assert said(chat(f"{plain} {plain}", "What?"))[0] == ("user", "[picture] [picture] What?")
    for kind in ("tif", "TIFF", "heif"):
        scan = photos[0].with_suffix(f".{kind}")
        scan.write_bytes(b"")
        assert said(chat(f"{scan} What?"))[0] == ("user", "[picture] What?")
    assert "It goes with the next message." in capsys.readouterr().err


def test_other_paths_are_text(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for typed in (f"Read {tmp_path}/a.txt", f"Is {tmp_path}/none.png there?", f"x{photos[0]}"):
        assert said(chat(typed))[0] == ("user", typed)
    typed = f"What is in {photos[0]}?"
    assert said(chat(typed))[0] == ("user", typed)
    assert said(chat(f"Look: {photos[0]}", interactive=False))[0][1] == f"Look: {photos[0]}"


def test_a_picture_waits_for_a_message_that_is_answered(photos: list[Path]) -> None:
    def reply(messages: Messages) -> Said:
        if str(messages[-1]).endswith("fail"):
            raise EngineError("no")
        return Said(["yes"])

    one = chat(f"/image {photos[0]}", "fail", "go on", reply=reply)
    assert said(one) == [("user", "[picture] go on"), ("assistant", "yes")]


def test_what_cannot_be_shown_is_said_and_the_message_is_not_sent(tmp_path: Path) -> None:
    one = chat(f"/image {tmp_path}/none.png", "/image")
    assert one.failures == 2
    assert said(one) == []


def test_image_takes_a_file_as_terminals_write_it(photos: list[Path]) -> None:
    spaced = str(photos[1])
    for named in (spaced, f"'{spaced}'", f'"{spaced}"', spaced.replace(" ", "\\ "),
                  photos[1].as_uri()):  # fmt: skip
        assert said(chat(f"/image {named}", "What?"))[0] == ("user", "[picture] What?"), named


def test_image_takes_several_files(
    photos: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, spaced, quoted = map(str, photos)
    for named in (f"{plain} '{spaced}'", f'"{quoted}" ' + spaced.replace(" ", "\\ ")):
        assert said(chat(f"/image {named}", "What?"))[0] == ("user", "[picture] [picture] What?")
    assert capsys.readouterr().err.count("It goes with the next message.") == 4
    # One that is missing is named, and the others do not stay.
    one = chat(f"/image {plain} none.png", "What?")
    assert "none.png" in capsys.readouterr().err
    assert said(one)[0] == ("user", "What?")
    monkeypatch.chdir(photos[0].parent)
    (photos[0].parent / "a.png b.png").write_bytes(b"")
    assert said(chat("/image a.png b.png", "What?"))[0] == ("user", "[picture] What?")
    assert said(chat("/image 'a.png", "What?"))[0] == ("user", "What?")
    assert "'a.png" in capsys.readouterr().err


def test_undo_drops_pictures_that_wait_before_an_exchange(
    photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    one = chat("Hello", f"/image {photos[0]}", "/undo", "And now?", "/undo")
    assert said(one)[0] == ("user", "Hello")
    assert len(said(one)) == 2
    assert "Dropped: [picture]\n" in capsys.readouterr().err
    assert said(chat("Hello", f"/image {photos[0]}", "/reset", "Hi"))[0] == ("user", "Hi")


def test_retry_shows_the_picture_again(photos: list[Path]) -> None:
    one = chat(f"/image {photos[0]}", "What?", "/retry")
    assert said(one) == [("user", "[picture] What?"), ("assistant", "1:[picture] What?")]


def test_a_saved_conversation_has_its_pictures(photos: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    chat(f"/image {photos[0]}", "What?", f"/save {file}")
    one = chat(f"/load {file}", "And?")
    assert said(one)[0] == ("user", "[picture] What?")
    assert len(said(one)) == 4
