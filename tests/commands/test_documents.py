"""``--file`` puts documents before the prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama4_edge import Model
from tests.command_line import Command, the_error


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.md").write_text("first", encoding="utf-8")
    Path("b.md").write_text("second", encoding="utf-8")


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The last message of each chat."""
    asked: list[str] = []
    chat = Model.chat

    def recorded(model: Model, messages: object, **options: object) -> object:
        asked.append(list(messages)[-1].content)  # type: ignore[call-overload]
        return chat(model, messages, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Model, "chat", recorded)
    return asked


A = '<document name="a.md">\nfirst\n</document>\n'
B = '<document name="b.md">\nsecond\n</document>\n'


def test_run_reads_files_and_patterns_in_their_order(
    llama4: Command, tiny_path: Path, prompts: list[str]
) -> None:
    llama4("run", tiny_path, "--file", "b.md", "--file", "*.md", "Who?", "-n", 1)
    assert prompts == [f"{B}\n{A}\nWho?"]


def test_a_dash_is_standard_input(llama4: Command, tiny_path: Path, prompts: list[str]) -> None:
    llama4("run", tiny_path, "--file", "-", "Who?", "-n", 1, stdin="typed\n")
    assert prompts == ['<document name="standard input">\ntyped\n</document>\n\nWho?']


def test_chat_has_them_before_the_first_message_alone(
    llama4: Command, tiny_path: Path, prompts: list[str]
) -> None:
    llama4("chat", tiny_path, "--file", "a.md", "-n", 1, stdin="Who?\nWhy?\n")
    assert prompts == [f"{A}\nWho?", "Why?"]


def test_a_document_that_does_not_fit_is_refused_with_how_many_tokens_it_has(
    llama4: Command, tiny_path: Path
) -> None:
    Path("long.md").write_text("a b " * 100_000, encoding="utf-8")
    error = the_error(llama4("run", tiny_path, "--file", "long.md", "Who?", "-c", 256))
    assert "tokens, expected at most 256" in error


def test_a_file_that_is_missing_is_one_error_before_the_model_is_loaded(llama4: Command) -> None:
    error = the_error(llama4("run", "missing.gguf", "--file", "missing.md", "Who?"))
    assert error.startswith("error: missing.md does not exist")


def test_what_is_too_long_is_refused_with_by_how_much_and_what_to_do(
    llama4: Command, tiny_path: Path
) -> None:
    Path("long.md").write_text("a b " * 500, encoding="utf-8")
    for command in ("run", "chat"):
        error = the_error(llama4(command, tiny_path, "--file", "long.md", "-c", 256, stdin="Who?"))
        assert error.startswith("error: long.md: too long for the context by 1,")
        assert "expected at most 256, with the question and the answer" in error
        assert error.endswith("Give less text, or a larger context: -c 3k.")


def test_what_is_far_too_long_is_not_counted_to_its_end(
    llama4: Command, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama4_edge.commands.documents._COUNTED", 100)
    Path("long.md").write_text("a b " * 500_000, encoding="utf-8")
    error = the_error(llama4("run", tiny_path, "--file", "long.md", "-c", 256, "Who?"))
    assert "too long for the context by at least " in error
    assert error.endswith("Give less text.")


def test_a_document_is_taken_once_under_whichever_name(
    llama4: Command, tiny_path: Path, prompts: list[str]
) -> None:
    Path("link.md").symlink_to("a.md")
    paths = (
        "--file",
        "./a.md",
        "--file",
        "link.md",
        "--file",
        ".",
        "--file",
        Path("a.md").resolve(),
    )
    llama4("run", tiny_path, *paths, "Who?", "-n", 1)
    assert prompts == [f"{A.replace('a.md', './a.md')}\n{B}\nWho?"]
