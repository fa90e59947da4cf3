"""Rows of each real set's layout, written here: what is asked, and what is right."""

from __future__ import annotations

import base64
import csv
import importlib
import io
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.card_sets import TASKS, Item
from llama4_edge.errors import SettingError


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png("red"), png("blue")


def encoded(picture: bytes) -> dict[str, Any]:
    return {"bytes": base64.b64encode(picture).decode(), "path": "1.png"}


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def items(task: str, directory: Path, limit: int | None = None) -> list[Item]:
    found = list(TASKS[task].items(directory, limit))
    assert TASKS[task].count(directory, limit) == len(found)
    return found


MMLU_PRO = {
    "question_id": 70,
    "question": "Which of these is a prime?\n",
    "options": ["4", "6", "7", "9", "N/A"],
    "answer": "C",
    "answer_index": 2,
    "cot_content": "",
    "category": "math",
    "src": "ori_mmlu-primes",
}


def test_mmlu_pro(tmp_path: Path) -> None:
    # The few questions with worked answers are in another split.
    lines(tmp_path / "mmlu-pro" / "data" / "validation-00000-of-00001.jsonl", [{}])
    lines(tmp_path / "mmlu-pro" / "data" / "test-00000-of-00001.jsonl", [MMLU_PRO])
    (item,) = items("mmlu-pro", tmp_path)
    assert (item.id, item.group, item.answers) == ("70", "math", ("C",))
    assert item.options == ("4", "6", "7", "9")
    prompt = item.prompt()
    assert "Question: Which of these is a prime?\n(A) 4\n(B) 6\n(C) 7\n(D) 9\n" in prompt
    assert prompt.endswith("with A, B, C or D for X:\nThe best answer is X.")
    assert item.judged("The best answer is C.").right
    assert item.content() == prompt


GPQA = {
    "Pre-Revision Question": "older",
    "Question": "Which particle is heaviest?\n",
    "Correct Answer": "the proton\n",
    "Incorrect Answer 1": "the electron",
    "Incorrect Answer 2": "the muon",
    "Incorrect Answer 3": "the neutrino",
    "Explanation": "several lines,\nwith a comma",
    "Record ID": "rec1",
}


def test_gpqa(tmp_path: Path) -> None:
    folder = tmp_path / "gpqa"
    folder.mkdir()
    for name, records in (("gpqa_diamond.csv", (1, 2)), ("gpqa_extended.csv", (1, 2, 3, 4))):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, GPQA)
            writer.writeheader()
            writer.writerows({**GPQA, "Record ID": f"rec{number}"} for number in records)
    first, second = items("gpqa", tmp_path)
    assert first.options != second.options  # by their ids
    assert sorted(first.options) == ["the electron", "the muon", "the neutrino", "the proton"]
    assert first.options["ABCD".index(first.answers[0])] == "the proton"
    assert items("gpqa", tmp_path)[0] == first  # the same each time
    assert items("gpqa", tmp_path, 1) == [first]


MMMU = {
    "id": "validation_Art_12",
    "question": "Compare <image 1> with <image 2>: in <image 1>, what is shown?",
    "options": "['a \\'red\\' square', '<image 3>']",
    "explanation": "",
    "image_1": encoded(RED),
    "image_2": encoded(BLUE),
    "image_3": encoded(RED),
    **{f"image_{number}": None for number in range(4, 8)},
    "img_type": "['Icons and Symbols']",
    "answer": "A",
    "topic_difficulty": "Easy",
    "question_type": "multiple-choice",
    "subfield": "Drawing",
}


def test_mmmu(tmp_path: Path) -> None:
    is_open = {**MMMU, "options": "[]", "question_type": "open", "id": "validation_Art_13"}
    rows = [MMMU, {**is_open, "answer": "['3.5', 'three and a half']"}, {**is_open, "answer": "4"}]
    lines(tmp_path / "mmmu" / "Art" / "validation-00000-of-00001.jsonl", rows)
    lines(tmp_path / "mmmu" / "Art" / "test-00000-of-00001.jsonl", [{}])
    choice, several, one = items("mmmu", tmp_path)
    assert choice.options == ("a 'red' square", "<image 3>")
    parts = choice.content()
    assert [part.get("image") for part in parts if part["type"] == "image"] == [RED, BLUE, RED]
    assert "(picture 1)" in [part.get("text") for part in parts]  # the same is shown once
    assert parts[0]["text"].endswith("Question: Compare ")
    assert (several.kind, several.answers, one.answers) == (
        "open",
        ("3.5", "three and a half"),
        ("4",),
    )
    assert several.judged("The answer is 3.50").right
    assert several.prompt().endswith("The answer is X.")


def test_mmmu_pro(tmp_path: Path) -> None:
    options = repr([f"option {number}" for number in range(10)])
    row = {"id": "test_Art_1", "options": options, "answer": "J", "subject": "Art"}
    folder = tmp_path / "mmmu-pro"
    standard = {**row, "question": "<image 1> Which?", "image_1": encoded(RED), "image_2": None}
    name = "test-00000-of-00001.jsonl"
    lines(folder / "standard (10 options)" / name, [standard] * 3)
    lines(folder / "standard (4 options)" / name, [{}])
    lines(folder / "vision" / name, [{**row, "image": encoded(BLUE)}] * 3)
    found = items("mmmu-pro", tmp_path)
    assert [item.group for item in found] == ["standard"] * 3 + ["vision"] * 3
    picture, text = found[3].content()
    assert picture == {"type": "image", "image": BLUE}
    assert "A, B, C, D, E, F, G, H, I or J" in text["text"]
    assert [item.group for item in items("mmmu-pro", tmp_path, 2)] == ["standard", "vision"]


MATHVISTA = {
    "pid": "1",
    "question": "How long is it?",
    "image": "images/1.jpg",
    "decoded_image": encoded(RED),
    "choices": None,
    "unit": "m",
    "precision": 1.0,
    "answer": "1.2",
    "question_type": "free_form",
    "answer_type": "float",
    "metadata": {"category": "general-vqa", "split": "testmini"},
    "query": "Hint: give one decimal place at the end.\nQuestion: How long is it? (Unit: m)",
}
MATHVISTA_CHOICE = {
    **MATHVISTA, "pid": "2", "choices": ["145°", "35°"], "answer": "35°", "answer_type": "text",
    "question_type": "multi_choice", "precision": None, "unit": None, "query": None,
}  # fmt: skip


def test_mathvista(tmp_path: Path) -> None:
    data = tmp_path / "mathvista" / "data"
    lines(data / "testmini-00000-of-00001.jsonl", [MATHVISTA, MATHVISTA_CHOICE])
    lines(data / "test-00000-of-00002.jsonl", [{}])
    value, choice = items("mathvista", tmp_path)
    assert (value.kind, value.precision, value.unit) == ("float", 1, "m")
    assert value.prompt() == MATHVISTA["query"]
    assert value.content()[0] == {"type": "image", "image": RED}
    assert value.judged("It is 1.23 m long.").right
    assert (choice.kind, choice.answers) == ("choice", ("B",))
    assert choice.judged("(B) 35°").right and choice.judged("The answer is 35°.").right


def test_mathvista_as_json_with_files_of_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "mathvista"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "1.jpg").write_bytes(BLUE)
    row = {key: value for key, value in MATHVISTA.items() if key not in ("pid", "decoded_image")}
    (folder / "annot_testmini.json").write_text(json.dumps({"1": row}))
    (item,) = items("mathvista", tmp_path)
    assert (item.id, item.pictures) == ("1", {1: BLUE})
    (folder / "annot_testmini.json").write_text(json.dumps({"1": {**row, "image": "../../x"}}))
    with pytest.raises(SettingError, match=r"has no picture, found \.\./\.\./x"):
        items("mathvista", tmp_path)


def test_a_set_may_be_one_file_or_be_called_as_its_repository(tmp_path: Path) -> None:
    lines(tmp_path / "mmlu_pro.jsonl", [MMLU_PRO])
    assert len(items("mmlu-pro", tmp_path)) == 1
    lines(tmp_path / "MMMU_Pro" / "vision" / "test.jsonl", [{}])
    with pytest.raises(
        SettingError, match=r"standard \(10 options\)/test\*, as .parquet or .jsonl"
    ):
        items("mmmu-pro", tmp_path)
    row = {**MMMU, "answer": "B"}
    lines(
        tmp_path / "flat" / "mmmu-pro.jsonl",
        [row, {**row, "question": None, "image": encoded(RED)}],
    )
    assert [one.group for one in items("mmmu-pro", tmp_path / "flat")] == ["standard", "vision"]
    with pytest.raises(SettingError, match="cannot be read, found No such file"):
        items("mmmu-pro", tmp_path / "absent")


def test_some_of_many_are_from_all_over(tmp_path: Path) -> None:
    rows = [{**MMLU_PRO, "question_id": number} for number in range(100)]
    lines(tmp_path / "mmlu-pro" / "test.jsonl", rows)
    assert [item.id for item in items("mmlu-pro", tmp_path, 4)] == ["0", "25", "50", "75"]
    assert len(items("mmlu-pro", tmp_path, 1000)) == 100


def test_parquet_is_read_as_the_hub_has_it(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path / "mmmu" / "Art"
    folder.mkdir(parents=True)
    row = {**MMMU, "image_1": {"bytes": RED, "path": "1.png"}, "image_2": None, "image_3": None}
    parquet.write_table(pyarrow.Table.from_pylist([row] * 20), folder / "validation-0.parquet")
    lines(folder / "validation-0.jsonl", [{}])  # parquet wins
    found = items("mmmu", tmp_path)
    assert len(found) == 20 and found[0].pictures == {1: RED}
    (folder / "validation-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SettingError, match=r"validation-0.parquet cannot be read"):
        items("mmmu", tmp_path)


def test_what_parquet_needs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    (tmp_path / "mmmu").mkdir()
    (tmp_path / "mmmu" / "validation-0.parquet").touch()
    with pytest.raises(SettingError, match="need pyarrow"):
        items("mmmu", tmp_path)


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("mmlu-pro", [], "a JSON object"),
        ("mmlu-pro", {}, "no options"),
        (
            "mmlu-pro",
            {**MMLU_PRO, "options": ["4"], "answer_index": 0},
            "an invalid options.*2 to 26",
        ),
        ("mmlu-pro", {**MMLU_PRO, "answer_index": 4}, "an invalid answer_index"),
        ("mmlu-pro", {**MMLU_PRO, "answer_index": None, "answer": "E"}, "a letter up to D"),
        ("mmlu-pro", {**MMLU_PRO, "question": None}, "no question"),
        ("mmmu", {**MMMU, "options": "nonsense("}, "a list, or the text of one"),
        ("mmmu", {**MMMU, "image_1": "not base64"}, "has no picture"),
        ("mmmu", {**MMMU, "image_1": 3}, "has no picture"),
        ("mathvista", {**MATHVISTA, "answer_type": "colour"}, "text, integer, float or list"),
        ("mathvista", {**MATHVISTA_CHOICE, "answer": "90°"}, "one of the choices"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, task: str, row: Any, reason: str) -> None:
    name = {"mmlu-pro": "test", "mmmu": "validation", "mathvista": "testmini"}[task]
    lines(tmp_path / task / f"{name}.jsonl", [row])
    with pytest.raises(SettingError, match=reason) as caught:
        items(task, tmp_path)
    assert f"{name}.jsonl" in str(caught.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "mmlu-pro"
    folder.mkdir()
    for name, data in (("test.jsonl", b"\xff\xfe"), ("test.json", b"3"), ("test.csv", b"\0")):
        path = folder / name
        path.write_bytes(data)
        with pytest.raises(SettingError, match=f"{name}"):
            items("mmlu-pro", tmp_path)
        path.unlink()
    with pytest.raises(SettingError, match=r"no questions of MMLU-Pro.*hf download TIGER-Lab"):
        items("mmlu-pro", tmp_path)


def test_the_small_sets_are_in_these_layouts(tmp_path: Path) -> None:
    from benchmarks.card_demo import write_sets

    write_sets(tmp_path, 6)
    counts = {task: len(items(task, tmp_path)) for task in TASKS}
    assert counts == {"mmlu-pro": 6, "gpqa": 6, "mmmu": 6, "mmmu-pro": 12, "mathvista": 6}
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 60_000
    kinds = {item.kind for task in TASKS for item in items(task, tmp_path)}
    assert kinds == {"choice", "open", "integer"}
    other = tmp_path / "again"
    random.seed(7)
    write_sets(other, 6)
    for path in tmp_path.glob("m*/**/*.jsonl"):
        assert path.read_bytes() == (other / path.relative_to(tmp_path)).read_bytes()
