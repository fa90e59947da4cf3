"""`python -m benchmarks.quality`: its mistakes are one line, before anything is converted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import quality


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("absent",), "absent does not exist"),
        (("--recipes", "int4,int9"), "unknown recipe, found 'int9'"),
        (("--plot", "absent/kl.png"), "the plot cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: tuple[str, ...],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["quality", "--directory", "out", *words])
    assert quality.main() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and error in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
