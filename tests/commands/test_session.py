"""``--session``: a conversation that goes on where an earlier process left it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llama4_edge import Conversation, Model
from llama4_edge.chat.answer import Stream
from llama4_edge.commands.session import Ended, ended_by_signals, pictures_to_add
from llama4_edge.runtime.files.session_writer import SessionWriter
from tests.command_line import Command, the_error
from tests.tiny_model import never_ending

RUN = ("-n", 8, "--temp", 0, "-t", 1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.md").write_text("The narrator is a lighthouse. " * 10, encoding="utf-8")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The answers of all models, in order."""
    streams: list[Any] = []
    chat = Model.chat

    def recorded(model: Model, messages: object, **options: object) -> object:
        stream = chat(model, messages, **options)  # type: ignore[call-overload]
        streams.append(stream)
        return stream

    monkeypatch.setattr(Model, "chat", recorded)
    return streams


def said(path: str = "book.l4s") -> list[tuple[str, str]]:
    return [(one.role, one.text) for one in Conversation.load(path).messages]


def test_run_reads_a_book_the_first_time_only_and_goes_on(
    llama4: Command, tiny_path: Path, answers: list[Stream]
) -> None:
    book = ("--session", "book.l4s", "--file", "book.md")
    first = llama4("run", tiny_path, *book, "Who?", *RUN)
    assert (first.exit_code, first.stderr) == (0, "")
    second = llama4("run", tiny_path, *book, "Why?", *RUN)
    third = llama4("run", tiny_path, "--session", "book.l4s", "And?", *RUN)
    assert (second.stderr, third.stderr) == ("", "")
    read = [one.completion.prompt_tokens - one.completion.reused_tokens for one in answers]
    assert read[0] > 250
    assert max(read[1:]) < 100
    roles, texts = zip(*said(), strict=True)
    assert roles == ("user", "assistant") * 3
    assert texts[0].endswith("</document>\n\nWho?")
    assert (texts[2], texts[4]) == ("Why?", "And?")
    assert texts[1].rstrip("\n") + "\n" == first.stdout


def test_answers_are_those_of_one_process(llama4: Command, tiny_path: Path) -> None:
    for question in ("Who?", "Why?", "When?"):
        llama4("run", tiny_path, "--session", "a.l4s", question, *RUN)
    llama4("chat", tiny_path, "--session", "b.l4s", *RUN, stdin="Who?\nWhy?\nWhen?\n")
    assert said("a.l4s") == said("b.l4s")
    with Model(tiny_path, n_threads=1) as model:
        talk = Conversation()
        for question in ("Who?", "Why?", "When?"):
            talk = talk.user(question)
            talk = talk.assistant(model.chat(talk, max_tokens=8, temperature=0.0))
    assert said("a.l4s") == [(one.role, one.text) for one in talk.messages]


def test_a_document_that_changed_or_is_new_is_put_in(llama4: Command, tiny_path: Path) -> None:
    ask = ("run", tiny_path, "--session", "book.l4s", "--file", "book.md", "Who?", *RUN)
    llama4(*ask)
    Path("book.md").rename("moved.md")
    llama4(*("moved.md" if word == "book.md" else word for word in ask))
    Path("book.md").write_text("Another.", encoding="utf-8")
    llama4(*ask)
    questions = [text for role, text in said() if role == "user"]
    assert [text.count("<document") for text in questions] == [1, 0, 1]


def test_pictures_are_shown_the_first_time_only_and_a_video_is_shown_whole() -> None:
    one, other, *frames = [
        dict[str, Any](type="image_url", image_url={"url": f"data:,{name}"}) for name in "abcd"
    ]
    times = [dict[str, Any](type="text", text=f"0:0{second}.0\n") for second in range(2)]
    video = [times[0], frames[0], times[1], frames[1]]
    seen = Conversation().user((one, *video, {"type": "text", "text": "What?"})).messages
    assert pictures_to_add([one, one, *video], ()) == [one, one, *video]
    assert pictures_to_add([one, other, *video], seen) == [other]
    longer = [*video, {"type": "text", "text": "0:02.0\n"}, other]
    assert pictures_to_add([one, *longer], seen) == longer


def test_a_chat_that_goes_on_takes_documents_with_its_first_message(
    llama4: Command, tiny_path: Path
) -> None:
    llama4("chat", tiny_path, "--session", "a.l4s", *RUN, stdin="Hello\n")
    llama4("chat", tiny_path, "--session", "a.l4s", "--file", "book.md", *RUN, stdin="1\n2\n")
    llama4("chat", tiny_path, "--session", "a.l4s", "--file", "book.md", *RUN, stdin="3\n")
    questions = [text for role, text in said("a.l4s") if role == "user"]
    assert [text.count("<document") for text in questions] == [0, 1, 0, 0]


def test_commands_of_the_chat_change_the_session(llama4: Command, tiny_path: Path) -> None:
    lines = "/system Be brief.\nHello\nAgain\n/undo\n"
    assert llama4("chat", tiny_path, "--session", "a.l4s", *RUN, stdin=lines).exit_code == 0
    assert [role for role, _ in said("a.l4s")] == ["system", "user", "assistant"]
    llama4("chat", tiny_path, "--session", "a.l4s", *RUN, stdin="/reset\n")
    assert said("a.l4s") == [("system", "Be brief.")]


def test_a_system_message_takes_the_place_of_the_one_that_is_there(
    llama4: Command, tiny_path: Path
) -> None:
    for words in ("Be brief.", "Be kind."):
        llama4("run", tiny_path, "--session", "a.l4s", "--system", words, "Hello", *RUN)
    assert [text for role, text in said("a.l4s") if role == "system"] == ["Be kind."]
    assert len(said("a.l4s")) == 5


def test_load_opens_a_session_and_save_does_not_replace_one(
    llama4: Command, tiny_path: Path
) -> None:
    llama4("run", tiny_path, "--session", "a.l4s", "Hello", *RUN)
    before = Path("a.l4s").read_bytes()
    lines = "/load a.l4s\n/save talk.json\n/save a.l4s\n/save new.l4s\n"
    result = llama4("chat", tiny_path, *RUN, stdin=lines)
    assert result.stderr.count("error: ") == 2
    assert "--session FILE` keeps a session" in result.stderr
    assert Path("a.l4s").read_bytes() == before
    assert not Path("new.l4s").exists()
    assert said("talk.json") == said("a.l4s")


def test_other_settings_warn_and_the_text_is_read_anew(
    llama4: Command, tiny_path: Path, answers: list[Stream]
) -> None:
    llama4("run", tiny_path, "--session", "a.l4s", "Hello", *RUN)
    result = llama4("run", tiny_path, "--session", "a.l4s", "-ctk", "bf16", "More", *RUN)
    assert result.exit_code == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: a.l4s: the session does not go with this model's settings")
    assert "Give kv_type=f16 (-ctk f16 -ctv f16)" in warning
    assert warning.endswith("What was said is kept, and read anew.")
    assert answers[-1].completion.reused_tokens == 0
    assert len(said("a.l4s")) == 4
    again = llama4("run", tiny_path, "--session", "a.l4s", "-ctk", "bf16", "And?", *RUN)
    assert (again.exit_code, again.stderr) == (0, "")


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_session_goes_on_with_its_text(
    llama4: Command, tiny_path: Path, cut: int
) -> None:
    llama4("run", tiny_path, "--session", "a.l4s", "Hello", *RUN)
    path = Path("a.l4s")
    os.truncate(path, path.stat().st_size - cut)
    result = llama4("run", tiny_path, "--session", "a.l4s", "More", *RUN)
    assert "warning: a.l4s: the session is truncated, found" in result.stderr
    assert [role for role, _ in said("a.l4s")] == ["user", "assistant"] * 2
    assert llama4("inspect", "a.l4s", "--check").exit_code == 0


def test_a_damaged_session_stays_beside_the_one_that_goes_on(
    llama4: Command, tiny_path: Path
) -> None:
    llama4("run", tiny_path, "--session", "book.l4s", "Who?", *RUN)
    whole = Path("book.l4s").read_bytes()
    at = whole.index(b"TEXT") - 1  # where the changes begin
    damaged = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for count, name in enumerate(("book.l4s.damaged", "book.l4s.damaged2"), start=1):
        Path("book.l4s").write_bytes(damaged)
        result = llama4("run", tiny_path, "--session", "book.l4s", f"And {count}?", *RUN)
        assert result.exit_code == 0
        assert f"stays as {name}" in result.stderr
        assert Path(name).read_bytes() == damaged
        assert [text for role, text in said() if role == "user"] == ["Who?", f"And {count}?"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("talk.json", "is not a session, found JSON"),
        (".", "Is a directory"),
        ("no/a.l4s", "No such"),
    ],
)
def test_what_cannot_be_a_session_is_refused_before_the_model_is_loaded(
    llama4: Command, name: str, problem: str
) -> None:
    Conversation().save("talk.json")
    for command in (("run", "absent.gguf", "Hello"), ("chat", "absent.gguf")):
        assert problem in the_error(llama4(*command, "--session", name))


def test_a_session_that_another_process_has_is_refused(llama4: Command, tiny_path: Path) -> None:
    llama4("run", tiny_path, "--session", "a.l4s", "Hello", *RUN)
    with SessionWriter("a.l4s"):
        error = the_error(llama4("run", tiny_path, "--session", "a.l4s", "More", *RUN))
    assert "a.l4s: another process has this session open" in error


def test_a_chat_in_which_nothing_was_said_leaves_no_file(llama4: Command, tiny_path: Path) -> None:
    llama4("chat", tiny_path, "--session", "a.l4s", *RUN, stdin="")
    assert [path.name for path in Path().iterdir()] == ["book.md"]


def test_raw_has_no_place_for_a_session(llama4: Command) -> None:
    result = llama4("run", "absent.gguf", "--raw", "--session", "a.l4s", "Once")
    assert result.exit_code == 2
    assert "--raw has no place for --session" in result.stderr


def test_inspect_shows_a_session(llama4: Command, tiny_path: Path) -> None:
    llama4("run", tiny_path, "--session", "a.l4s", "Hello\nthere", *RUN)
    text = llama4("inspect", "a.l4s", "--check")
    assert text.exit_code == 0
    assert "K f16, V f16; rotated: none" in text.stdout
    assert "user       Hello⏎there" in text.stdout
    assert text.stdout.splitlines()[-1].endswith("all of it was read, and is whole")
    record = json.loads(llama4("inspect", "a.l4s", "--json").stdout)
    assert (record["kind"], record["fingerprint"]["type_k"]) == ("session", "f16")
    assert record["tokens"] > 0
    data = bytearray(Path("a.l4s").read_bytes())
    data[-100] ^= 1
    Path("a.l4s").write_bytes(data)
    damaged = llama4("inspect", "a.l4s", "--check", "--json")
    assert damaged.exit_code == 1
    (fault,) = json.loads(damaged.stdout)["damage"]
    assert "found its state that does not fit its checksum" in fault["what"]
    assert llama4("inspect", "a.l4s").exit_code == 0


# --- the end of processes


def started(model: Path, *arguments: object, **settings: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llama4_edge", "chat", model, "--session", "a.l4s", *arguments]
    pipe = subprocess.PIPE
    words = list(map(str, command))
    # It waits for its reader as soon as it is 4 KiB ahead.
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, pipesize=4096, **settings)


def wait_for_answer(process: subprocess.Popen[bytes]) -> None:
    """Until its first piece is there."""
    assert process.stdout is not None
    assert process.stdout.read(1)
    time.sleep(0.2)


def test_a_signal_whose_exception_python_drops_still_ends_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Freed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with pytest.raises(Ended) as caught, ended_by_signals():
        Freed()
    assert caught.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_however_a_chat_ends_what_was_said_is_there(
    tmp_path: Path, tiny_path: Path, llama4: Command, number: int
) -> None:
    """In the middle of an answer without end."""
    endless = never_ending().write(tmp_path / "endless.gguf")
    llama4("chat", endless, "--session", "a.l4s", *RUN, stdin="First\n")
    assert len(said("a.l4s")) == 2
    n_first = json.loads(llama4("inspect", "a.l4s", "--json").stdout)["tokens"]
    process = started(endless, "-t", 1, "-c", 32768)
    assert process.stdin is not None
    process.stdin.write(b"Second\n")
    process.stdin.flush()
    wait_for_answer(process)
    process.send_signal(number)
    process.communicate()
    texts = [text for _, text in said("a.l4s")]
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert len(texts) == 2
    else:
        assert process.returncode == 128 + number
        assert texts[2] == "Second"
        assert texts[3].endswith(" …")
    record = json.loads(llama4("inspect", "a.l4s", "--check", "--json").stdout)
    assert record["damage"] == []
    assert (record["tokens"] > n_first) is (number != signal.SIGKILL)
    again = llama4("chat", endless, "--session", "a.l4s", *RUN, stdin="Third\n")
    assert (again.exit_code, again.stderr) == (0, "")
    assert len(said("a.l4s")) == len(texts) + 2


def test_a_full_disk_is_an_error_a_message_and_the_chat_goes_on(
    tiny_path: Path, llama4: Command
) -> None:
    llama4("chat", tiny_path, "--session", "a.l4s", *RUN, stdin="First\n")
    before = Path("a.l4s").read_bytes()
    limit = len(before) + 10
    process = started(
        tiny_path, *RUN,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    out, err = process.communicate(b"Second\nThird\n")
    assert process.returncode == 1
    assert len(out.splitlines()) >= 2
    errors = err.decode().splitlines()
    assert all("a.l4s: the session cannot be saved, found File too large" in one for one in errors)
    assert len(errors) == 3  # after each answer, and at the end
    assert Path("a.l4s").read_bytes() == before
