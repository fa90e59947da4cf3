"""`llama4 chat` from a pipe."""

from __future__ import annotations

import json
from pathlib import Path

from llama4_edge import Model, Sampling
from tests.command_line import RUN, Command, greedy


def test_a_piped_chat_answers_each_line_and_obeys_commands(
    llama4: Command, model: Path, tmp_path: Path
) -> None:
    lines = f"Hello\n/undo\n//Hello\n/save {tmp_path}/talk.json\n/quit\nnever read\n"
    result = llama4("chat", model, *RUN, stdin=lines)
    assert result.exit_code == 0
    answers = [greedy(model, prompt, 8).rstrip("\n") for prompt in ("Hello", "/Hello")]
    assert result.stdout == "\n".join(answers) + "\n"
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [one["role"] for one in saved["messages"]] == ["user", "assistant"]
    assert saved["sampling"]["temperature"] == 0.0


def test_a_piped_chat_goes_on_after_an_error_and_ends_with_1(llama4: Command, model: Path) -> None:
    result = llama4("chat", model, *RUN, "-c", 64, stdin="/load absent\n" + "x " * 99 + "\nHello\n")
    assert result.exit_code == 1
    assert result.stdout == greedy(model, "Hello", 8).rstrip("\n") + "\n"
    absent, full = result.stderr.splitlines()
    assert absent.startswith("error: absent")
    assert "do not fit into the context" in full
    assert "/reset" in full


def test_a_chat_remembers_what_was_said(llama4: Command, model: Path) -> None:
    result = llama4("chat", model, *RUN, "--system", "Be brief.", stdin="Hello\nAgain\n")
    with Model(model) as loaded:
        messages = [{"role": "system", "content": "Be brief."}]
        answers = []
        for text in ("Hello", "Again"):
            messages.append({"role": "user", "content": text})
            answers.append(
                loaded.chat(messages, max_tokens=8, sampling=Sampling(temperature=0.0)).text
            )
            messages.append({"role": "assistant", "content": answers[-1]})
    assert result.stdout == "".join(answer.rstrip("\n") + "\n" for answer in answers)


def test_a_piped_chat_drops_the_oldest_exchanges_where_that_is_asked_for(
    llama4: Command, model: Path, tmp_path: Path
) -> None:
    lines = "".join(f"Question {number}\n" for number in range(9)) + f"/save {tmp_path}/talk.json\n"
    small = ("chat", model, *RUN, "-c", 128)
    stopped = llama4(*small, stdin=lines)
    assert stopped.exit_code == 1
    assert "--when-full drop goes on without the oldest" in stopped.stderr
    result = llama4(*small, "--when-full", "drop", stdin=lines)
    assert result.exit_code == 0
    assert "oldest messages are dropped, because the context is full" in result.stderr
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert len(saved["messages"]) == 18
    assert saved["when_full"] == "drop"


def test_yes_tools_without_tools_is_a_usage_error(llama4: Command, model: Path) -> None:
    result = llama4("chat", model, *RUN, "--yes-tools", stdin="Hello\n")
    assert result.exit_code == 2
    assert "--yes-tools goes with --tools" in result.output
