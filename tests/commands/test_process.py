"""The command as a process: signals, pipes, closed and full streams."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pseudo_terminal import ENDLESS, LLAMA4, PATIENCE


def piped(*arguments: object) -> subprocess.Popen[bytes]:
    """The command, which waits for its reader as soon as it is 4 KiB ahead."""
    return subprocess.Popen(
        [sys.executable, "-c", LLAMA4, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pipesize=4096,
    )


def test_ctrl_c_ends_run_with_130_and_keeps_what_was_printed(scout_bf16: Path) -> None:
    with piped("run", scout_bf16, "Hello", *ENDLESS) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err == b"interrupted\n"
    answer = (first + rest).decode()
    assert answer.strip()
    assert answer.endswith("\n")


def test_ctrl_c_while_modules_are_imported_is_one_line() -> None:
    code = (
        "import os, signal, sys\n"
        "from llama4_edge.__main__ import main\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'click':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"interrupted\n")


AT_THE_MODULE = """
import os, signal, sys
from llama4_edge.__main__ import main
class Interrupt:
    left = int(sys.argv.pop(1))
    def find_spec(self, name, *_):
        Interrupt.left -= 1
        if Interrupt.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
main()
"""


def interrupted_at(module: int, *arguments: object) -> tuple[int, str]:
    """The exit code of a command that Ctrl-C reached at its n-th module, and what it wrote."""
    command = [sys.executable, "-c", AT_THE_MODULE, str(module), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "modules",
    [range(2, 402, 60), pytest.param(range(1, 700, 5), marks=pytest.mark.heavy)],
    ids=["ordinary", "heavy"],
)
def test_ctrl_c_at_any_module_is_one_line(modules: range, scout_checkpoint: Path) -> None:
    for module in modules:
        exit_code, text = interrupted_at(module, "convert", scout_checkpoint, "--dry-run")
        if exit_code == 0:
            break  # it has no more modules
        assert (exit_code, text.splitlines()[-1]) == (130, "interrupted"), module
        assert "Traceback" not in text


@pytest.mark.parametrize(
    ("prompt", "note"),
    [(["Hello"], b"Standard input was not read: a - after the prompt adds it.\n"),
     (["Hello", "-"], b""), ([], b"")],
)  # fmt: skip
def test_a_pipe_that_was_left_alone_is_mentioned(
    scout_bf16: Path, prompt: list[str], note: bytes
) -> None:
    command = [sys.executable, "-c", LLAMA4, "run", str(scout_bf16), *prompt, "-n", "1"]
    reader, writer = os.pipe()
    os.write(writer, b"a document")
    os.close(writer)
    with os.fdopen(reader) as document:
        done = subprocess.run(command, stdin=document, capture_output=True)
    assert (done.returncode, done.stderr) == (0, note)


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "llama4_edge", "--version"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"llama4, version ")


def test_a_reader_that_leaves_ends_run_quietly(scout_bf16: Path) -> None:
    with piped("run", scout_bf16, "Hello", *ENDLESS) as process:
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
    environment = {**os.environ, "_LLAMA4_COMPLETE": "bash_complete", "COMP_WORDS": "llama4 in"}
    done = subprocess.run(
        [sys.executable, "-c", LLAMA4],
        env={**environment, "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "plain,inspect\n"


def test_a_terminal_sees_no_trace_of_the_progress_bar_in_a_pipe(
    scout_checkpoint: Path, tmp_path: Path
) -> None:
    with piped("convert", scout_checkpoint, "-o", tmp_path / "model.gguf") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert err == b""
    assert b"\x1b" not in out
