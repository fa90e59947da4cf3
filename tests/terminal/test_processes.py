"""The command as a process: signals, broken pipes and a person at a terminal."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama4_edge import convert

# They wait for another process to draw, one at a time.
pytestmark = pytest.mark.xdist_group("terminal")

# A terminal's Ctrl-C reaches the processes whose controlling terminal it is.
AT_A_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
LLAMA4 = "from llama4_edge.cli import main; main(prog_name='llama4')"

# Far more than any step takes; only a step that never ends reaches it.
PATIENCE = 120.0

# prompt_toolkit asks for bracketed pastes when it is ready for keys, and ends that when it has
# taken a message. All other control sequences are left out of what a test reads.
READY, TAKEN = "<ready>", "<taken>"
MEANINGS = {"\x1b[?2004h": READY, "\x1b[?2004l": TAKEN}
CONTROL_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[^\[])")


class Terminal:
    """A pseudo-terminal of 100 columns with the command on it."""

    def __init__(self, *arguments: object, term: str, state: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        # Nobody answers the question where the cursor is.
        environment = {
            **os.environ,
            "TERM": term,
            "XDG_STATE_HOME": str(state),
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", AT_A_TERMINAL + LLAMA4, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self._unread = self._begun = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until `pattern` is there; what came up to its end."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self._unread, re.DOTALL)):
            if time.monotonic() > deadline or not self._read():
                pytest.fail(f"no {pattern!r} in {self._unread!r}")
        text, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return text

    def wait_for_end(self) -> tuple[int, str]:
        """The exit code, and what came until then."""
        while self._read():
            pass
        return self._process.wait(PATIENCE), self._unread

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        if not select.select([self._master], [], [], PATIENCE)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            return False
        text = self._begun + self._decoder.decode(data)
        # A sequence may be cut in two where the reading stopped.
        whole = re.sub(r"\x1b(\[[0-9;?]*)?$", "", text)
        self._begun = text[len(whole) :]
        self._unread += CONTROL_SEQUENCE.sub(lambda one: MEANINGS.get(one[0], ""), whole)
        return bool(data)


OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[OpenTerminal]:
    opened: list[Terminal] = []

    def start(*arguments: object, term: str = "xterm") -> Terminal:
        opened.append(Terminal(*arguments, term=term, state=tmp_path / "state"))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def piped(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", LLAMA4, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# Fixed, because a random model may end any answer: this one goes on for thousands of tokens.
LONG = ("--seed", 1)


def test_ctrl_c_ends_run_with_130_and_keeps_what_was_printed(scout_bf16: Path) -> None:
    with piped("run", scout_bf16, "Hello", *LONG) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err == b"interrupted\n"
    answer = (first + rest).decode()
    assert answer.strip()
    assert answer.endswith("\n")


def test_a_reader_that_leaves_ends_run_quietly(scout_bf16: Path) -> None:
    with piped("run", scout_bf16, "Hello", *LONG) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_answers_are_utf8_whatever_the_locale_says(scout_bf16: Path) -> None:
    answers = []
    for encoding in ("ascii", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        command = [
            sys.executable,
            "-c",
            LLAMA4,
            "run",
            str(scout_bf16),
            "Hello",
            "-s",
            "1",
            "-n",
            "40",
        ]
        answers.append(subprocess.check_output(command, stdin=subprocess.DEVNULL, env=environment))
    assert answers[0] == answers[1]
    assert not answers[0].isascii()
    answers[0].decode("utf-8")


@pytest.mark.parametrize(("command", "exit_code"), [("run", 2), ("chat", 0)])
def test_a_closed_stdin_is_an_empty_one(scout_bf16: Path, command: str, exit_code: int) -> None:
    python = [sys.executable, "-c", LLAMA4, command, str(scout_bf16)]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *python], capture_output=True)
    assert (done.returncode, done.stdout) == (exit_code, b"")
    assert b"Traceback" not in done.stderr


def redirected(how: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command with one of the shell's redirections, and stdout buffered as it is for people."""
    python = [sys.executable, "-c", LLAMA4, *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {how}', "sh", *python],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "arguments", [["doctor"], ["doctor", "--json"], ["--help"], ["run", "absent", "Hello"]]
)
def test_a_closed_stdout_is_one_line_of_error_before_any_work(arguments: list[str]) -> None:
    done = redirected(">&-", *arguments)
    assert done.returncode == 1
    assert done.stderr == "error: standard output is closed; for no output, send it to /dev/null\n"


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"], ["--help"], ["--version"]])
def test_a_full_stdout_is_one_line_of_error(arguments: list[str]) -> None:
    done = redirected(">/dev/full", *arguments)
    assert (done.returncode, done.stderr) == (1, "error: no space left on the disk of the output\n")


def test_a_closed_stderr_takes_nothing_from_the_answer(scout_bf16: Path, tmp_path: Path) -> None:
    answer = ("run", scout_bf16, "Hello", "-n", 5, "--temp", 0)
    done = redirected("2>&-", *answer)
    assert (done.returncode, done.stdout) == (0, redirected("", *answer).stdout)
    # What libraries print with printf goes to no file that happened to be opened as number 2.
    opened = (
        "import os; from llama4_edge.terminal.console import fill_closed_streams as fill; fill(); "
    )
    code = opened + f"print(os.open({str(tmp_path / 'new')!r}, os.O_CREAT))"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&- <&-', "sh", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert int(done.stdout) > 2


def test_ggml_gives_up_with_one_line_and_starts_no_debugger() -> None:
    code = (
        "import ctypes, resource\n"
        "from llama4_edge.cli import main\n"
        "main(['--version'], standalone_mode=False)\n"
        "from llama4_edge.runtime.bindings.library import native_function\n"
        "text, number = ctypes.c_char_p, ctypes.c_int\n"
        "abort = native_function('ggml_abort', None, text, number, text)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "abort(b'file.c', 7, b'no way')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "GGML_NO_BACKTRACE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (-signal.SIGABRT, b"file.c:7: no way\n")


def test_shells_get_their_completion() -> None:
    environment = {**os.environ, "_LLAMA4_COMPLETE": "bash_complete", "COMP_WORDS": "llama4 co"}
    done = subprocess.run(
        [sys.executable, "-c", LLAMA4],
        env={**environment, "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "plain,convert\n"


def test_ctrl_c_leaves_a_conversion_to_be_gone_on_with(
    terminal: OpenTerminal, scout_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    one = terminal(
        "convert", scout_checkpoint, "-o", out / "model.gguf", "--recipe", "q4_k_m", "-t", 1
    )
    one.wait_for("0%")
    one.press("\x03")
    exit_code, text = one.wait_for_end()
    assert (exit_code, (out / "model.gguf").exists()) == (130, False)
    assert text.splitlines()[-2:] == [
        "The same command goes on where this one stopped.",
        "interrupted",
    ]
    assert "Traceback" not in text
    convert(scout_checkpoint, out / "model.gguf", recipe="q4_k_m")
    assert [path.name for path in out.iterdir()] == ["model.gguf"]


def test_a_terminal_sees_no_trace_of_the_progress_bar_in_a_pipe(
    scout_checkpoint: Path, tmp_path: Path
) -> None:
    with piped("convert", scout_checkpoint, "-o", tmp_path / "model.gguf") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert err == b""
    assert b"\x1b" not in out


def test_a_chat_at_a_terminal(terminal: OpenTerminal, scout_bf16: Path, tmp_path: Path) -> None:
    chat = terminal("chat", scout_bf16, *LONG)
    chat.wait_for("32,768 tokens of context")

    # 1. Ctrl-C stops the answer, and the chat goes on.
    chat.wait_for(READY)
    chat.press("Hello\r")
    chat.wait_for(TAKEN)
    chat.wait_for(r"\w")
    chat.press("\x03")
    chat.wait_for("Stopped. What was said is kept")
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
