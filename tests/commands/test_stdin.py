"""The prompt of a single answer: the argument, and standard input where it is meant."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama4_edge.commands.stdin import read_prompt
from llama4_edge.errors import Llama4EdgeError


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def piped(data: bytes, wrapper: type[io.TextIOWrapper] = io.TextIOWrapper) -> io.TextIOWrapper:
    return wrapper(io.BytesIO(data), encoding="utf-8")


@pytest.mark.parametrize(
    ("argument", "stdin", "prompt"),
    [
        ("question", b"", "question"),
        (None, b"piped\n", "piped"),
        (None, b"two\nlines\n\n", "two\nlines\n"),
        ("-", b"piped", "piped"),
        ("question", b"of a pipe\n", "question"),
        (None, b"", ""),
        (None, "né🦙".encode(), "né🦙"),
    ],
)
def test_a_prompt_is_the_argument_then_what_is_piped(
    monkeypatch: pytest.MonkeyPatch, argument: str | None, stdin: bytes, prompt: str
) -> None:
    monkeypatch.setattr(sys, "stdin", piped(stdin))
    assert read_prompt(argument) == prompt


def test_a_terminal_is_read_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", piped(b"typed\n", Terminal))
    assert read_prompt("question") == "question"
    assert read_prompt(None) == ""
    assert read_prompt("-") == "typed"


def test_a_closed_stdin_is_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert read_prompt("question") == "question"
    assert read_prompt(None) == ""


def test_an_argument_that_is_not_utf8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(Llama4EdgeError, match="the prompt is not UTF-8"):
        read_prompt(os.fsdecode(b"caf\xe9"))


# Prints what is read, once for each prompt that is given.
READ = (
    "import sys; from llama4_edge.commands.stdin import read_prompt as r; print(r(*sys.argv[1:]))"
)


def shell(script: str, folder: Path) -> str:
    """What `script` prints, in which ``read_prompt`` stands for a command that reads its prompt."""
    (folder / "lines").write_text("one\ntwo\n")
    command = f'read_prompt() {{ "{sys.executable}" -c "{READ}" "$@"; }}\n'
    return subprocess.check_output(["sh", "-c", command + script], cwd=folder, text=True)


@pytest.mark.parametrize(
    ("script", "prompts"),
    [
        # A file is a document.
        ("read_prompt question < lines", "question\n\none\ntwo"),
        ("read_prompt < lines", "one\ntwo"),
        # Lines of a loop belong to the loop, from a file or a pipe.
        ('while read line; do read_prompt "$line"; done < lines', "one\ntwo"),
        ('cat lines | while read line; do read_prompt "$line"; done', "one\ntwo"),
        # A pipe is read where there is no prompt, or where it is asked for.
        ("cat lines | read_prompt", "one\ntwo"),
        ("cat lines | read_prompt -", "one\ntwo"),
        ("cat lines | read_prompt question", "question"),
        ("read_prompt question < /dev/null", "question"),
    ],
)
def test_a_shell_decides_what_is_read(tmp_path: Path, script: str, prompts: str) -> None:
    assert shell(script, tmp_path) == prompts + "\n"


def test_with_a_prompt_an_open_pipe_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    try:
        command = [sys.executable, "-c", READ, "question"]
        assert subprocess.check_output(command, stdin=reader, timeout=60) == b"question\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_endless_input_is_refused() -> None:
    with Path("/dev/zero").open("rb") as zeros:
        done = subprocess.run([sys.executable, "-c", READ], stdin=zeros, capture_output=True)
    assert b"standard input is too long, found more than 64.0 MiB" in done.stderr
