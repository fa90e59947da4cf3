"""The command at a terminal: progress, the chat, and what is typed meanwhile."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama4_edge import convert
from tests.pseudo_terminal import ENDLESS, READY, TAKEN, OpenTerminal, Terminal

# So that a conversion does not end before Ctrl-C: only its first numbers are written until then.
SLOW_DISK = """
import os, signal, time
write, written, pressed = os.pwrite, [], []
def press(*_):
    pressed.append(True)
    raise KeyboardInterrupt
def slow(*what):
    written.append(what[2])
    while len(written) > 4 and not pressed:
        time.sleep(0.01)
    return write(*what)
signal.signal(signal.SIGINT, press)
os.pwrite = slow
"""

# So that the first word after a question is the answer's, however long the prompt takes.
NO_PROGRESS = "from llama4_edge.terminal import progress; progress._PATIENCE = 1e6\n"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[OpenTerminal]:
    opened: list[Terminal] = []

    def start(
        *arguments: object, term: str = "xterm", before: str = NO_PROGRESS, **settings: Any
    ) -> Terminal:
        state = tmp_path / "state"
        opened.append(Terminal(*arguments, term=term, state=state, before=before, **settings))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_ctrl_c_leaves_a_conversion_to_be_gone_on_with(
    terminal: OpenTerminal, scout_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    one = terminal(
        "convert", scout_checkpoint, "-o", out / "model.gguf", "--recipe", "q4_k_m", "-t", 1,
        before=SLOW_DISK,
    )  # fmt: skip
    one.wait_for("0%")
    one.press("\x03")
    exit_code, text = one.wait_for_end()
    assert (exit_code, (out / "model.gguf").exists()) == (130, False)
    assert text.splitlines()[-2:] == [
        "Give the same command again to resume.",
        "interrupted",
    ]
    assert "Traceback" not in text
    convert(scout_checkpoint, out / "model.gguf", recipe="q4_k_m")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["mmproj-model-f16.gguf", "model.gguf"]


def test_ctrl_c_leaves_a_calibration_to_be_gone_on_with(
    terminal: OpenTerminal, scout_bf16: Path, tmp_path: Path
) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "i.gguf"
    text.write_text("What is said twice is heard once, and what is said once is not. " * 20_000)
    words = ("calibrate", scout_bf16, "-f", text, "-o", output, "-c", 128, "-t", 1)
    one = terminal(*words)
    one.wait_for(r"perplexity [\d.]+ .*tokens/s")
    one.press("\x03")
    exit_code, shown = one.wait_for_end()
    assert (exit_code, output.exists()) == (130, False)
    assert shown.splitlines()[-2:] == ["Give the same command again to resume.", "interrupted"]
    assert (tmp_path / "i.gguf.partial").exists()


def test_a_chat_at_a_terminal(terminal: OpenTerminal, scout_bf16: Path, tmp_path: Path) -> None:
    chat = terminal("chat", scout_bf16, *ENDLESS)
    chat.wait_for("32,768 tokens of context")

    # 1. Ctrl-C stops the answer, and the chat goes on.
    chat.wait_for(READY)
    chat.press("Hello\r")
    chat.wait_for(TAKEN)
    chat.wait_for(r"\w")
    chat.press("\x03")
    chat.wait_for("Stopped. The answer so far is kept")
    chat.wait_for(READY)

    # 2. The stopped answer is part of the conversation, with its mark.
    chat.press(f"/save {tmp_path}/talk.json\r")
    chat.wait_for("Saved 1 exchange")
    assert " …" in (tmp_path / "talk.json").read_text()
    chat.wait_for(READY)
    chat.press("/undo\r")
    chat.wait_for("Dropped: Hello")
    chat.wait_for(READY)

    # 3. At the empty prompt Ctrl-C says how to leave.
    chat.press("\x03")
    chat.wait_for("Ctrl-D or /quit leaves")
    chat.wait_for(READY)

    # 4. What is pasted keeps its lines and is not sent before Enter.
    chat.press("\x1b[200~/system Be brief.\rBe kind.\x1b[201~\r")
    chat.wait_for(TAKEN)
    chat.wait_for(READY)
    chat.press("/system\r")
    chat.wait_for(TAKEN)
    chat.wait_for(r"Be brief\.\r\n.*Be kind\.\r\n")
    chat.wait_for(READY)

    # 5. Ctrl-D leaves, and the history is there for the next time.
    chat.press("\x04")
    assert chat.wait_for_end()[0] == 0
    history = tmp_path / "state" / "llama4-edge" / "history"
    assert "+Hello\n" in history.read_text()


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_an_answer_is_followed_by_its_speed(
    terminal: OpenTerminal, scout_bf16: Path, term: str
) -> None:
    chat = terminal("chat", scout_bf16, "-n", 3, "--temp", 0, term=term)
    chat.wait_for("32,768 tokens of context")
    chat.wait_for(">")
    chat.press("Hello\r")
    chat.wait_for(r"\n3 tokens, [\d.,]+ tokens/s")
    chat.wait_for(">")
    chat.press("/quit\r")
    exit_code, text = chat.wait_for_end()
    assert exit_code == 0
    assert "Traceback" not in text


def test_what_is_typed_during_an_answer_begins_the_next_message(
    terminal: OpenTerminal, scout_bf16: Path
) -> None:
    chat = terminal("chat", scout_bf16, *ENDLESS)
    chat.wait_for(READY)
    chat.press("Hello\r")
    chat.wait_for(TAKEN)
    chat.wait_for(r"\w")
    chat.press("and thenn\x7f\x1b[A?\r")
    chat.wait_for(r"\w")
    chat.press("\x03")
    answer = chat.wait_for("Stopped. The answer so far is kept")
    assert "and then" not in answer
    chat.wait_for("> and then[?]")
    # Enter did not send it.
    chat.press("\r")
    chat.wait_for(TAKEN)
    chat.wait_for(r"\w")
    chat.press("\x03")
    chat.wait_for("Stopped")
    chat.wait_for(READY)
    chat.press("/quit\r")
    assert chat.wait_for_end()[0] == 0


def test_the_prompt_shows_how_full_the_context_is(terminal: OpenTerminal, scout_bf16: Path) -> None:
    chat = terminal("chat", scout_bf16, "-c", 64, "-n", 8, "--temp", 0)
    chat.wait_for("0% >")
    chat.press("Hello\r")
    chat.wait_for("8 tokens, ")
    chat.wait_for("<ready>[1-9][0-9]% >")
    chat.press("/reset\r")
    chat.wait_for("0% >")


@pytest.mark.parametrize("end", ["/quit", "answer", "prompt", "loading"])
def test_the_terminal_is_left_as_it_was(terminal: OpenTerminal, scout_bf16: Path, end: str) -> None:
    model = scout_bf16.parent / "absent.gguf" if end == "loading" else scout_bf16
    chat = terminal("chat", model, *ENDLESS)
    before = chat.first_modes
    if end != "loading":
        chat.wait_for(READY)
        assert chat.modes != before
        chat.press("/quit\r" if end == "/quit" else "Hello\r" if end == "answer" else "Hel")
    if end == "answer":
        chat.wait_for(TAKEN)
        chat.wait_for(r"\w")
        assert chat.modes != before
    if end in ("answer", "prompt"):
        chat.send_signal(signal.SIGTERM)
    exit_code, _ = chat.wait_for_end()
    expected = {"/quit": 0, "loading": 1}
    assert exit_code == expected.get(end, -signal.SIGTERM)
    assert chat.modes == before


def test_three_rows_are_enough(terminal: OpenTerminal, scout_bf16: Path) -> None:
    chat = terminal("chat", scout_bf16, *ENDLESS, rows=3)
    chat.wait_for(READY)
    chat.press("/help\r")
    assert "too small" not in chat.wait_for("list the commands")


def test_a_chat_at_a_terminal_says_when_it_drops_the_oldest(
    terminal: OpenTerminal, scout_bf16: Path, tmp_path: Path
) -> None:
    # The same token again and again, so that the answers are the same whatever computes them.
    same = ("-l", "70+1000", "-n", 40)
    chat = terminal("chat", scout_bf16, *same, "-c", 256, "--when-full", "drop")
    text = ""
    for number in range(6):
        text += chat.wait_for(READY)
        chat.press(f"Question {number}\r")
        text += chat.wait_for(TAKEN)
    text += chat.wait_for(READY)
    assert "messages are dropped, because the context is full. What is saved keeps all." in text
    # What is left has room: the prompt never shows a context that is nearly full.
    shown = [int(percent) for percent in re.findall(r"(\d+)% >", text)]
    assert len(shown) > 6 and max(shown) < 90
    chat.press(f"/save {tmp_path}/talk.json\r")
    chat.wait_for("Saved 6 exchanges")


def test_a_long_prompt_shows_how_far_it_is_read_and_ctrl_c_keeps_what_was(
    terminal: OpenTerminal, scout_bf16: Path, tmp_path: Path
) -> None:
    (tmp_path / "long.md").write_text("The fox jumps. " * 4_000, encoding="utf-8")
    chat = terminal(
        *("chat", scout_bf16, *ENDLESS, "-c", 60_000, "-t", 1, "-b", 64),
        *("--file", tmp_path / "long.md"),
        before="",
    )
    chat.wait_for(r"long.md: [\d,]+ tokens of 60,000")

    def count() -> int:
        """The next number but zero of tokens that are read."""
        text = chat.wait_for(r"reading the prompt: [1-9][\d,]* of [\d,]+ tokens")
        return int(re.findall(r"prompt: ([\d,]+) of", text)[-1].replace(",", ""))

    def ask_and_stop(least: int) -> tuple[int, int]:
        """The first number, and the last one, which is at least so many times the first."""
        chat.wait_for(READY)
        chat.press("Who?\r")
        first = last = count()
        while last < least * first:
            last = count()
        chat.press("\x03")
        chat.wait_for("Stopped before the answer began. The message is not kept")
        return first, last

    _, read = ask_and_stop(3)
    assert read <= ask_and_stop(1)[0]
