"""The whole of `benchmarks.cards` on small sets, with the model in the box."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cards
from benchmarks.card_demo import write_sets
from benchmarks.card_sets import TASKS, Item
from benchmarks.cards import Score, main, table
from demo.training import MODEL
from llama4_edge.measure.divergence import wilson
from tests.fixtures import MakeGGUF, MakeProjector, Once

Run = Callable[..., int]


@pytest.fixture(scope="module")
def sets(once: Once) -> Path:
    return once("card-sets", lambda directory: write_sets(directory, 3))


@pytest.fixture(scope="module")
def models(make_gguf: MakeGGUF) -> tuple[Path, Path]:
    return make_gguf(MODEL, "bf16"), make_gguf(MODEL, "int4")


@pytest.fixture
def run(sets: Path, tmp_path: Path) -> Run:
    def command(*words: object) -> int:
        usual = ("--data", sets, "--json", tmp_path / "out.json", "--plain", "-t", 1)
        shape = ("--max-tokens", 48, "-c", 1024, "--parallel", 3)
        return main([str(word) for word in (*words, *usual, *shape)])

    return command


def answers(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in (directory / "out.answers.jsonl").read_text().splitlines()]


def test_every_task_is_asked_and_scored(
    run: Run, models: tuple[Path, Path], make_projector: MakeProjector, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    projector = make_projector(MODEL)
    assert run(models[1], "--mmproj", projector) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == f"| | questions | card | {models[1].name} |"
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:-2]] == [
        task.title for task in TASKS.values()
    ]
    assert lines[-1].startswith("Asked without examples, greedily, for at most ")
    assert "MMMU: 3 of 3, 100.0% right" in printed.err and "questions/s" in printed.err
    record = json.loads((tmp_path / "out.json").read_text())
    assert set(record) == set(TASKS)
    found = {name: one["models"][0] for name, one in record.items()}
    assert {name: one["questions"] for name, one in found.items()} == {
        "mmlu-pro": 3, "gpqa": 3, "mmmu": 3, "mmmu-pro": 6, "mathvista": 3,
    }  # fmt: skip
    # It knows what it was taught, pictures too; 1 of 18 may be wrong.
    assert sum(one["right"] for one in found.values()) >= 17
    assert found["mmmu-pro"]["groups"].keys() == {"standard", "vision"}
    assert found["gpqa"]["interval"] == list(wilson(found["gpqa"]["right"], 3))
    assert len(answers(tmp_path)) == 18


def test_files_stand_beside_each_other_and_nothing_is_asked_twice(
    run: Run, models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert run(*models, "--tasks", "mmlu-pro,gpqa") == 0
    first = capsys.readouterr().out
    assert f"| {models[1].name}, difference |" in first and "± " in first
    assert len(answers(tmp_path)) == 12

    def nobody(*_: object, **__: object) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(cards, "Model", nobody)
    assert run(*models, "--tasks", "mmlu-pro,gpqa") == 0
    assert capsys.readouterr().out == first
    assert run(models[0], "--tasks", "gpqa", "--limit", "1") == 0
    assert "| GPQA Diamond | 1 |" in capsys.readouterr().out


def test_the_same_command_goes_on_after_ctrl_c(
    run: Run, models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    add = cards.Answers.add
    added: list[str] = []

    def add_two(self: cards.Answers, record: dict[str, Any]) -> None:
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(record["key"])
        add(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(cards.Answers, "add", add_two)
        assert run(models[1], "--tasks", "mmlu-pro,gpqa") == 130
    assert "the same command goes on" in capsys.readouterr().err
    kept = answers(tmp_path)
    assert len(kept) == 2 and not (tmp_path / "out.json").exists()
    # A process that is killed leaves half a line.
    with (tmp_path / "out.answers.jsonl").open("a") as file:
        file.write('{"key": "mmlu')
    assert run(models[1], "--tasks", "mmlu-pro,gpqa") == 0
    assert "MMLU-Pro: 3 of 3" in capsys.readouterr().err
    assert answers(tmp_path)[:2] == kept and len(answers(tmp_path)) == 6


def test_a_question_that_does_not_fit_counts_as_wrong(
    models: tuple[Path, Path], sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [models[1], "--data", sets, "--tasks", "gpqa", "--json", tmp_path / "o.json", "-t", 1]
    words += ["--max-tokens", 48, "--plain"]
    assert main([str(word) for word in (*words, "-c", 8)]) == 0
    assert "| 0.0% (0.0% to 56.2%), 3 not asked |" in capsys.readouterr().out
    assert json.loads((tmp_path / "o.json").read_text())["gpqa"]["models"][0]["not_asked"] == 3
    assert main([str(word) for word in (*words, "-c", 512)]) == 0  # they are asked again
    (found,) = json.loads((tmp_path / "o.json").read_text())["gpqa"]["models"]
    assert found["not_asked"] == 0 and found["right"] >= 2


def test_mistakes_are_one_line(
    models: tuple[Path, Path], sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (("--tasks", "mmlu"), "tasks has an unknown one, found mmlu"),
        (("--tasks", "mmmu"), "has no vision tower, found the task mmmu"),
        (("--data", tmp_path), "has no folder of a task"),
        (("--data", tmp_path, "--tasks", "gpqa"), "has no questions of GPQA Diamond"),
        (("--json", tmp_path / "no" / "x.json", "--tasks", "gpqa"), "is not a directory"),
        (("--answers", models[0], "--tasks", "gpqa"), "is not a file of answers"),
    ):
        size = models[0].stat().st_size
        usual = (models[0], "--data", sets, "--answers", tmp_path / "answers.jsonl")
        assert main([str(word) for word in (*usual, *words)]) == 1
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert not (tmp_path / "answers.jsonl").exists()
        assert line.startswith("error: ") and said in line and not printed.out
        assert models[0].stat().st_size == size
    assert main([str(models[0].with_name("absent.gguf")), "--data", str(sets)]) == 1
    with pytest.raises(SystemExit) as ended:
        main([str(models[0]), "--data", str(sets), "--limit", "0"])
    assert ended.value.code == 2


def _score(**groups: str) -> Score:
    """Of groups of answers, 1 for right."""
    score = Score()
    for group, marks in groups.items():
        for number, mark in enumerate(marks):
            score.add(Item(str(number), group, "?", (), "text", ("",)), mark == "1")
    return score


def test_intervals_are_wilsons_and_of_several_groups_combined() -> None:
    one = _score(a="1110")
    assert one.value == 0.75 and one.interval == pytest.approx(wilson(3, 4))
    assert wilson(3, 4) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    two = _score(a="1110", b="10")
    assert two.value == (0.75 + 0.5) / 2 and (two.right, two.count) == (4, 6)
    low = (0.75 - wilson(3, 4)[0], 0.5 - wilson(1, 2)[0])
    assert two.interval[0] == pytest.approx(0.625 - (low[0] ** 2 + low[1] ** 2) ** 0.5 / 2)
    assert 0 <= two.interval[0] < two.value < two.interval[1] <= 1


def test_differences_are_counted_question_by_question() -> None:
    first, same, other = _score(a="1100"), _score(a="1100"), _score(a="1001")
    mean, half = same.difference(first)
    assert mean == 0 and half == pytest.approx(1.96 / 6)  # not 0: they are four questions
    mean, half = other.difference(first)
    assert mean == 0 and half == pytest.approx(1.96 * 3**0.5 / 6)
    worse, _ = _score(a="1000").difference(first)
    assert worse == -0.25


def test_the_published_scores_stand_beside_ours() -> None:
    tasks = list(TASKS.values())
    scores = [{task.name: _score(a="10") for task in tasks}] * 2
    lines = table(["bf16", "int4"], tasks, scores, cards.PUBLISHED["scout"]).splitlines()
    assert lines[0] == "| | questions | card | bf16 | int4 | int4, difference |"
    assert lines[2] == (
        "| MMLU-Pro | 2 | 74.3% | 50.0% (9.5% to 90.5%) | 50.0% (9.5% to 90.5%) | +0.0% ± 49.0% |"
    )
    short = replace(scores[0]["mmlu-pro"], unanswered=1, cut=2)
    assert "(9.5% to 90.5%), 1 not asked, 2 cut off |" in table(
        ["bf16"], tasks[:1], [{"mmlu-pro": short}], {}
    )
    assert [line.split(" | ")[2] for line in lines[2:]] == [
        "74.3%", "57.2%", "69.4%", "52.2%", "70.7%"
    ]  # fmt: skip
    assert cards.PUBLISHED["maverick"]["mathvista"] == 0.737
