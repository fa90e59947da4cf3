"""No command line at all is a traceback: any words after any flags, in any number and order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import click
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from llama4_edge.cli import COMMANDS, main
from llama4_edge.commands.llama_cpp import FOREIGN
from llama4_edge.errors import EngineError
from llama4_edge.terminal.visible import one_line
from tests.command_line import Command
from tests.fuzzing import efforts, fuzz

_WORDS = (
    *("", " ", "-", "--", "=", ",", ",,", "a,b", "a=b", "=CPU", "(=CPU", "x=", "*=q4_k", "~nobody"),
    *("absent", "absent.gguf", "../absent", "org/name:Q4_K_M", "https://example.org/x.gguf", "/"),
    *("on", "onn", "max", "all", "auto", "none", "cpu", "CUDA0", "int4", "q8o", "f16", "mean"),
    *("host:1", "host:", ":1", "h:99999", "[::1]:5", "24G", "24", "0G", "1e999G", "500M", "1,2"),
    *(
        "0",
        "1",
        "-1",
        "-0",
        "007",
        "1_000",
        "²",
        "\u0661",
        "1e3",
        "0x10",
        "nan",
        "-nan",
        "inf",
        "1.5",
    ),
    *(str(2**31), str(2**32), str(-(2**63)), str(2**64), "9" * 5000, "1." + "9" * 400, "1e400"),
    *("\x9b31m", "a\x1b[2Jb", "\u202ecod", "two\nlines", "\r", "\u2028", "\udcff", "é", "\x7f"),
    "x" * 20_000,
)


def words_of(command: str) -> st.SearchStrategy[str]:
    """A flag of the command, one of llama.cpp's, either with a value, or a value alone."""
    found = main.get_command(click.Context(main), command)
    assert found is not None
    own = [name for param in found.params for name in param.opts if name.startswith("-")]
    flags = st.sampled_from([*own, *own, *own, *FOREIGN, "-zz", "--bogus", "---", "-fa", "--json"])
    # What a process is started with has no zero bytes, and surrogates for bytes only.
    texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
    values = st.one_of(st.sampled_from(_WORDS), texts, st.integers().map(str), st.floats().map(str))
    return st.one_of(flags, values, st.tuples(flags, values).map("=".join))


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(list(COMMANDS)))
    words = draw(st.lists(words_of(command), max_size=6))
    # A model that is not there ends what was understood. `plan --table` takes seconds without one.
    names = ["absent.gguf"] if command == "plan" else draw(st.sampled_from([["absent.gguf"], []]))
    return [command, *names, *words]


def _not_done(*_: object, **__: object) -> NoReturn:
    raise EngineError("not done here")


@efforts
def test_no_command_line_is_a_traceback(
    effort: settings, llama4: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama4_edge.runtime.workers.worker.running_worker", _not_done)
    monkeypatch.setattr("llama4_edge.runtime.doctor.doctor", _not_done)

    def check(words: list[str]) -> None:
        result = llama4(*words)
        if result.exit_code == 0:
            assert result.stdout.startswith("Usage: ")
            return
        assert result.exit_code in (1, 2)
        if result.stdout:
            assert "--json" in words
            assert (json.loads(result.stdout)["error"], result.stderr) != ("", "")
            return
        *usage, error = result.stderr.split("\n")[:-1]
        assert error.startswith("error: ")
        assert not any(line.startswith("error: ") for line in usage)
        assert one_line(error) == error

    fuzz(check, command_lines(), effort)
    assert list(Path().iterdir()) == []
