"""`llama4 calibrate`: its table, its JSON, its errors, and Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llama4_edge.cli import main
from llama4_edge.quant.importance import Activations, Importance
from llama4_edge.quant.importance_file import importance_bytes, read_importance
from tests.command_line import the_error

TEXT = "What is said twice is heard once, and what is said once is not. " * 20


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def calibrate(*words: object, stdin: str | None = None) -> Result:
    arguments = ["calibrate", *(str(word) for word in words), "-t", "1"]
    return CliRunner().invoke(main, arguments, input=stdin, catch_exceptions=False)


def test_the_table_has_a_line_for_each_layer_with_experts(
    scout_bf16: Path, text: Path, tmp_path: Path
) -> None:
    output = tmp_path / "i.gguf"
    done = calibrate(scout_bf16, "--text", text, "-c", 64, "-o", output)
    assert done.exit_code == 0, done.output
    facts, table = done.stdout.split("\n\n")
    lines = dict(line.split(maxsplit=1) for line in facts.splitlines())
    found = read_importance(output)
    assert lines["read"] == f"{64 * found.n_chunks:,} tokens, {found.n_chunks} chunks of 64"
    assert lines["statistics"] == f"of {len(found.tensors)} tensors"
    assert lines["wrote"] == str(output) and "±" in lines["perplexity"]
    header, *rows = table.splitlines()
    assert "starved experts (tokens)" in header
    for row in rows:
        layer, fewest, _, most, *_ = row.split()
        one = found.tensors[f"blk.{layer}.ffn_up_exps.weight"]
        counts = one.measured().counts
        assert (int(fewest), int(most)) == (counts.min(), counts.max())
        assert one.starved is not None
        assert row.endswith(", ".join(f"{n} ({counts[n]})" for n in one.starved.experts))
    assert found.datasets == (str(text),)


def test_json_has_what_each_expert_saw(tiny_path: Path, tmp_path: Path) -> None:
    done = calibrate(
        tiny_path, "-f", "-", "-c", 64, "--chunks", 2, "--no-ppl", "--json",
        "-o", tmp_path / "i.gguf", stdin=TEXT,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert (record["n_tokens"], record["n_chunks"], record["perplexity"]) == (128, 2, None)
    assert [sum(layer["experts"]) for layer in record["layers"]] == [128] * 4
    assert record["output"] == str(tmp_path / "i.gguf")


def test_files_are_merged_without_a_text(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    one, both = tmp_path / "one.gguf", tmp_path / "both.gguf"
    assert calibrate(tiny_path, "-f", text, "-c", 64, "-o", one).exit_code == 0
    done = calibrate(tiny_path, "--in-file", one, "--in-file", one, "-c", 64, "-o", both)
    assert done.exit_code == 0, done.output
    assert read_importance(both).n_chunks == 2 * read_importance(one).n_chunks


def test_experts_of_which_nothing_is_known_are_not_said_to_have_seen_enough(
    tiny_path: Path, text: Path, tmp_path: Path
) -> None:
    one, none = tmp_path / "one.gguf", tmp_path / "none.gguf"
    assert calibrate(tiny_path, "-f", text, "-c", 64, "-o", one).exit_code == 0
    known = read_importance(one)
    empty = {name: Activations(0 * it.sums, 0 * it.counts) for name, it in known.tensors.items()}
    none.write_bytes(importance_bytes(Importance(empty)))
    done = calibrate(tiny_path, "--in-file", none, "-o", tmp_path / "out.gguf")
    assert "those of 4 layers saw no token, and have no statistics" in done.stdout
    record = calibrate(tiny_path, "--in-file", none, "-o", tmp_path / "b.gguf", "--json").stdout
    assert json.loads(record)["coverage"] == 0


def test_conversations_are_read_in_the_chat_format(tiny_path: Path, tmp_path: Path) -> None:
    talks = tmp_path / "talks.jsonl"
    talks.write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n' * 3)
    done = calibrate(tiny_path, "--chat", talks, "-o", tmp_path / "i.gguf")
    assert done.exit_code == 0, done.output
    assert "3 conversations" in done.stdout


def test_what_cannot_be_done_is_one_error(
    tiny_path: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("imatrix.gguf").write_text("x")
    short = tmp_path / "short.txt"
    short.write_text("short")
    for words, reason in (
        ((tiny_path, "-f", text), "imatrix.gguf exists"),
        ((tiny_path, "-o", "i.gguf"), "nothing to calibrate with"),
        ((tiny_path, "-f", short, "-o", "i.gguf"), "or a smaller n_ctx (-c)"),
        ((tiny_path, "-f", tiny_path, "-o", "i.gguf"), "is not UTF-8 text"),
        ((tiny_path, "-f", tmp_path / "none", "-o", "i.gguf"), "does not exist"),
        ((text, "-f", text, "-o", "i.gguf"), "is not a GGUF file"),
        ((tiny_path, "--in-file", tiny_path, "-o", "i.gguf"), "has no activation statistics"),
        ((tiny_path, "--chat", text, "-o", "i.gguf"), "line 1 is not JSON"),
    ):
        assert reason in the_error(calibrate(*words))
    assert not Path("i.gguf").exists() and not Path("i.gguf.partial").exists()
