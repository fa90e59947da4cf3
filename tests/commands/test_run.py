"""`llama4 run`: the prompt, the answer, and what is said beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from llama4_edge.runtime.cache import Cache
from llama4_edge.runtime.sequence import CachedSequence
from tests.command_line import RUN, Command, greedy, the_error


def test_run_prints_the_answer_and_nothing_else(llama4: Command, model: Path) -> None:
    result = llama4("run", model, "Hello", *RUN)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == greedy(model, "Hello", 8).rstrip("\n") + "\n"


def test_a_model_that_is_not_mapped_answers_the_same(llama4: Command, model: Path) -> None:
    result = llama4("run", model, "Hello", *RUN, "--no-mmap")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == greedy(model, "Hello", 8).rstrip("\n") + "\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["Hello"], b"\n", "Hello"),
        ([], b"Hello\n", "Hello"),
        (["-"], b"Hello", "Hello"),
        (["Hello", "-"], b"a document\n", "Hello\n\na document"),
        (["Hello"], b"the lines of a loop\n", "Hello"),
    ],
)
def test_the_prompt_is_the_argument_and_what_is_piped(
    llama4: Command, model: Path, arguments: list[str], stdin: bytes, prompt: str
) -> None:
    result = llama4("run", model, *arguments, *RUN, stdin=stdin)
    assert result.stdout == greedy(model, prompt, 8).rstrip("\n") + "\n"


def test_raw_continues_the_text_and_system_comes_first(llama4: Command, model: Path) -> None:
    raw = llama4("run", model, "Once upon", "--raw", *RUN)
    assert raw.stdout == greedy(model, "Once upon", 8, raw=True).rstrip("\n") + "\n"
    system = llama4("run", model, "Hello", "-sys", "Be brief.", *RUN)
    assert system.stdout == greedy(model, "Hello", 8, system="Be brief.").rstrip("\n") + "\n"


def test_the_same_seed_says_the_same_and_another_does_not(llama4: Command, model: Path) -> None:
    first, again, other = (
        llama4("run", model, "Hello", "-n", 12, "-s", seed).stdout for seed in (7, 7, 8)
    )
    assert first == again != other


def test_an_answer_ends_before_a_stop_string(llama4: Command, model: Path) -> None:
    whole = greedy(model, "Hello", 8)
    stop = whole[3:5]
    result = llama4("run", model, "Hello", *RUN, "--stop", "never said", "--stop", stop)
    assert result.stdout == whole[: whole.index(stop)].rstrip("\n") + "\n"


def test_verbose_adds_the_log_and_timings_on_stderr_only(llama4: Command, model: Path) -> None:
    quiet = llama4("run", model, "Hello", *RUN)
    for arguments in (["run", model, "Hello", *RUN, "-v"], ["-v", "run", model, "Hello", *RUN]):
        loud = llama4(*arguments)
        assert loud.stdout == quiet.stdout
        assert "llama_model_loader" in loud.stderr
        assert loud.stderr.splitlines()[-1].endswith("tokens/s")


def test_drafts_give_the_same_answer_and_are_counted(llama4: Command, model: Path) -> None:
    same = ("--temp", 0, "-n", 60, "-l", "70+1000", "-c", 256)
    quiet = llama4("run", model, "Hello", *same)
    loud = llama4("run", model, "Hello", *same, "--drafts", "-v")
    assert loud.stdout == quiet.stdout
    counts = re.search(r"; (\d+) of (\d+) drafted tokens accepted$", loud.stderr.strip())
    assert counts is None or int(counts[1]) == int(counts[2])  # none, where they are slower here


def test_a_prompt_that_does_not_fit_names_the_option_that_helps(
    llama4: Command, model: Path
) -> None:
    error = the_error(llama4("run", model, "Hello " * 50, "-c", 32))
    assert "do not fit into the context" in error
    assert "-c" in error


def test_an_answer_that_the_context_cuts_off_says_so(llama4: Command, model: Path) -> None:
    result = llama4("run", model, "Hello", "--temp", 0, "-c", 32)
    assert result.exit_code == 0
    assert result.stdout == greedy(model, "Hello", 100)[: len(result.stdout) - 1] + "\n"
    assert "the context is full" in result.stderr


def test_a_prompt_that_is_not_utf8_is_one_line_of_error(llama4: Command, model: Path) -> None:
    error = the_error(llama4("run", model, stdin=b"caf\xe9"))
    assert "standard input is not UTF-8, found byte 0xe9 at offset 3" in error


@pytest.mark.parametrize(
    ("arguments", "budget"),
    [((), None), (("--cache-ram", 3), 3 << 20), (("-cram", 0), 0), (("-cram", -1), 2**62)],
)
def test_the_budget_for_states_is_in_mib_as_llama_cpps(
    llama4: Command,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str | int, ...],
    budget: int | None,
) -> None:
    budgets = []
    made = Cache.__init__

    def making(self: Cache, sequences: Sequence[CachedSequence], most: int) -> None:
        budgets.append(most)
        made(self, sequences, most)

    monkeypatch.setattr(Cache, "__init__", making)
    assert llama4("run", model, "Hello", *RUN, *arguments).exit_code == 0
    (found,) = budgets
    assert 0 < found <= 8 << 30 if budget is None else found == budget


def test_a_budget_that_is_no_number_is_refused(llama4: Command, model: Path) -> None:
    result = llama4("run", model, "Hello", *RUN, "--cache-ram", "8G")
    assert result.exit_code == 2
    assert "'8G' is not a whole number from -1" in result.stderr


def test_a_video_from_standard_input_is_refused(llama4: Command, model: Path) -> None:
    result = llama4("run", model, "Hello", *RUN, "--video", "-")
    assert result.exit_code == 2
    assert "--video takes a file" in result.stderr


def test_a_session_goes_on_without_its_oldest_exchanges_where_that_is_asked_for(
    llama4: Command, model: Path
) -> None:
    small = ("run", model, *RUN, "-c", 128, "--session", "talk.l4s")
    results = [llama4(*small, f"Question {number} of many") for number in range(8)]
    full = next(result for result in results if result.exit_code)
    assert "or give a larger -c, or --when-full drop." in full.stderr
    result = llama4(*small, "--when-full", "drop", "And now?")
    assert result.exit_code == 0
    assert "oldest messages are dropped, because the context is full" in result.stderr
