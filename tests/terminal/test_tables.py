"""Tables: the numbers they show, how they fold, and what a file's text can do to them."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from llama4_edge.quant.summary import FileSummary, summarize
from llama4_edge.runtime.doctor import Finding, doctor
from llama4_edge.terminal.console import show
from llama4_edge.terminal.tables import diagnosis_view, metadata_text, summary_view
from llama4_edge.terminal.visible import visible


def shown(view: RenderableType, width: int) -> list[str]:
    """The lines of `view` on a screen of `width` columns, without colours."""
    out = io.StringIO()
    Console(file=out, width=width, markup=False, emoji=False, highlight=False).print(view)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (500000.0, "500000"),
        (9.999999747378752e-06, "1e-05"),
        (0.8999999761581421, "0.9"),
        (True, "true"),
        ([1, 2, 3], "[1, 2, 3]"),
        (("a", "b"), "[a, b]"),
        (["token"] * 202_048, "202,048 values"),
        ("one\ntwo", "one⏎two"),
        ("\x1b[2Jcleared", "␛[2Jcleared"),
        ("x" * 3000, "x" * 60 + "… (3,000 characters)"),
    ],
)
def test_a_metadata_value_is_one_short_harmless_line(value: object, text: str) -> None:
    assert metadata_text(visible(value)) == text


@pytest.fixture
def summary() -> FileSummary:
    return summarize(
        "models/[bold]scout.gguf",
        "gguf",
        {"general.name": "[red]Scout[/red]", "tokenizer.ggml.tokens": ["a"] * 1000},
        [
            ("blk.0.ffn_down_exps.weight", (16, 256, 512), "Q4_K", 16 * 256 * 512 // 256 * 144),
            ("blk.1.ffn_down_exps.weight", (16, 256, 512), "Q6_K", 16 * 256 * 512 // 256 * 210),
            ("blk.0.attn_q.weight", (256, 256), "Q8_0", 256 * 256 // 32 * 34),
            ("output_norm.weight", (256,), "F32", 1024),
        ],
    )


def test_a_summary_shows_each_role_with_its_bits(summary: FileSummary) -> None:
    lines = shown(summary_view(summary, tensors=False), 120)
    text = "\n".join(lines)
    assert lines[0] == "models/[bold]scout.gguf"
    assert "parameters       4.3M in 4 tensors" in lines
    experts = next(line.split() for line in lines if line.startswith("expert "))
    # Q4_K is 144 bytes for 256 numbers (4.5 bits), Q6_K 210 (6.5625): halves of each are 5.53.
    assert experts == ["expert", "2", "4.2M", "2.8", "MiB", "5.53", "Q4_K", "x1,", "Q6_K", "x1"]
    attention = next(line.split() for line in lines if line.startswith("attention"))
    assert attention == ["attention", "1", "65.5K", "68.0", "KiB", "8.50", "Q8_0"]
    assert "[red]Scout[/red]" in text
    assert "1,000 values" in text
    assert "blk.0" not in text


def test_tensors_are_listed_when_asked_for(summary: FileSummary) -> None:
    lines = shown(summary_view(summary, tensors=True), 120)
    row = next(line.split() for line in lines if line.startswith("blk.0.ffn_down_exps"))
    assert row == ["blk.0.ffn_down_exps.weight", "Q4_K", "16x256x512", "1.1", "MiB"]


def test_a_narrow_terminal_folds_the_types_and_cuts_no_number(summary: FileSummary) -> None:
    wide, narrow = (shown(summary_view(summary, tensors=True), width) for width in (200, 60))
    assert max(map(len, narrow)) <= 60
    assert "…" not in "".join(narrow)
    assert sorted("".join("".join(wide).replace("─", "").split())) == sorted(
        "".join("".join(narrow).replace("─", "").split())
    )


@pytest.mark.parametrize("width", [1, 2, 5, 20, 59])
def test_a_terminal_too_narrow_for_a_table_folds_it_itself(
    summary: FileSummary, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    def lines(columns: int) -> list[str]:
        screen = Screen()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setenv("COLUMNS", str(columns))
        show(summary_view(summary, tensors=True))
        return screen.getvalue().splitlines()

    assert lines(width) == lines(60)
    assert "…" not in "".join(lines(width))


class Screen(io.StringIO):
    """A terminal in memory."""

    def isatty(self) -> bool:
        return True


def test_a_command_to_copy_is_neither_folded_nor_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "CMAKE_ARGS=-DGGML_CUDA=ON python -m pip install " + "--a-long-option " * 8 + "x"
    finding = Finding("problem", "llama.cpp was built without what this machine has", command)
    diagnosis = replace(doctor(), findings=(finding,))
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, without styles
    monkeypatch.delenv("COLUMNS", raising=False)
    show(diagnosis_view(diagnosis))
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert f"  {command}" in lines
    assert lines[-2] == "problem llama.cpp was built without what this machine has"
    assert max(map(len, lines[:-1])) <= 80


def test_a_checkpoint_without_experts_says_so() -> None:
    dense = summarize("dir", "checkpoint", {}, [("token_embd.weight", (8, 4), "BF16", 64)])
    lines = shown(summary_view(dense, tensors=False), 80)
    assert "of the experts   no experts" in lines
    assert "kind             checkpoint" in lines
