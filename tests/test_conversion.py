"""What `convert` writes opens: the planned file is opened before a byte of it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llama4_edge
from llama4_edge.convert import job, text_model
from llama4_edge.convert.config import parse_config
from llama4_edge.convert.tokenizer import Vocabulary, read_vocabulary
from llama4_edge.errors import OutputError, UnsupportedError, VocabularyError


def converted(monkeypatch: pytest.MonkeyPatch, change: Callable[[Vocabulary], Vocabulary]) -> None:
    """Let the converter read another vocabulary than the checkpoint's."""

    def changed(*arguments: Any) -> Vocabulary:
        return change(read_vocabulary(*arguments))

    monkeypatch.setattr(job, "read_vocabulary", changed)


@pytest.mark.parametrize("settings", [{}, {"dry_run": True}, {"split_size": 400_000}])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bos": 5000}, r"tokenizer.*tokenizer\.ggml\.bos_token_id: 5000"),
        ({"eos": 5000}, r"tokenizer.*tokenizer\.ggml\.eos_token_id: 5000"),
        ({"merges": ["a b c"]}, "tokenizer.*merge 0: 'a b c'"),
        (
            {"chat_templates": {"default": "{% if %}"}},
            r"chat_template\.jinja cannot be used: the chat template is not valid.*line 1",
        ),
    ],
)
def test_what_would_not_open_is_refused_before_it_is_written(
    scout_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    change: dict[str, Any],
    said: str,
) -> None:
    converted(monkeypatch, lambda vocabulary: dataclasses.replace(vocabulary, **change))
    with pytest.raises(VocabularyError, match=said) as refused:
        llama4_edge.convert(scout_checkpoint, tmp_path / "out.gguf", **settings)
    assert refused.value.problem.startswith(str(scout_checkpoint))
    assert "/fd/" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_llama_cpp_cannot_run_is_refused_before_it_is_written(
    scout_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        text_model, "parse_config", lambda it: dataclasses.replace(parse_config(it), rms_eps=0.0)
    )
    with pytest.raises(UnsupportedError, match=r"layer_norm_rms_epsilon: 0\.0") as refused:
        llama4_edge.convert(scout_checkpoint, tmp_path / "out.gguf")
    assert refused.value.problem.startswith(f"{scout_checkpoint} would become")
    assert list(tmp_path.iterdir()) == []


def test_checking_leaves_no_temporary_file(
    scout_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    report = llama4_edge.convert(
        scout_checkpoint, tmp_path / "out.gguf", split_size=400_000, dry_run=True
    )
    assert len(report.outputs) > 1
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("split_size", [None, 400_000])
def test_without_a_place_for_temporary_files_nothing_is_written(
    scout_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    split_size: int | None,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OutputError, match=r"no temporary file can be made.*Set TMPDIR to a direc"):
        llama4_edge.convert(scout_checkpoint, tmp_path / "out.gguf", split_size=split_size)
    assert list(tmp_path.iterdir()) == []
