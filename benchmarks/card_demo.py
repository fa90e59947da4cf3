"""Small sets of questions in the shapes of those behind the cards, about what the demo model knows.

    python -m benchmarks.card_demo DIR

Writes to DIR what `benchmarks.cards --data DIR` reads: a few questions of each task in the layout
of the real set, made of the examination of demo/Llama-4-Tiny, pictures as PNG. Nothing of the real
sets is in them. That model was taught plain questions and their answers: ask it with ``--plain``.
Promises the same files every time.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from demo.training.lessons.mixture import examination
from demo.training.lessons.picture import COLOURS, COUNTS, SHAPES, Picture, draw_picture

_OPTIONS = 10


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=20, help="questions of each part of a task")
    arguments = parser.parse_args()
    write_sets(arguments.directory, arguments.count)


def write_sets(directory: Path, count: int) -> None:
    """The five sets."""
    rng = random.Random("cards")
    _write_lines(directory / "mmlu-pro" / "data" / "test.jsonl", _mmlu_pro(rng, count))
    _write_csv(directory / "gpqa" / "gpqa_diamond.csv", _gpqa(rng, count))
    pictures = [draw_picture(rng, 2 * rng.randrange(1 << 40) + 1) for _ in range(3 * count)]
    first, second, third = (pictures[part * count : (part + 1) * count] for part in range(3))
    _write_lines(directory / "mmmu" / "Shapes" / "validation.jsonl", _mmmu(rng, first))
    standard, vision = _mmmu_pro(rng, second)
    folder = directory / "mmmu-pro"
    _write_lines(folder / "standard (10 options)" / "test.jsonl", standard)
    _write_lines(folder / "vision" / "test.jsonl", vision)
    _write_lines(directory / "mathvista" / "data" / "testmini.jsonl", _mathvista(rng, third))


def _facts(rng: random.Random, count: int) -> list[tuple[str, str, str]]:
    """Kinds, questions and answers, of kinds with many different answers."""
    found = [
        (talk.kind, talk.turns[0].question, talk.turns[0].answer)
        for talk in examination()
        if len(talk.turns) == 1 and talk.kind in ("knowledge", "arithmetic", "copying")
    ]
    return rng.sample(found, count)


def _with_wrong(
    rng: random.Random,
    facts: Sequence[tuple[str, str, str]],
    fact: tuple[str, str, str],
    count: int,
) -> list[str]:
    """The right answer and others of its kind, which come first, in random order."""
    kind, _, right = fact
    others = sorted({answer for _, _, answer in facts} - {right})
    alike = sorted({answer for one, _, answer in facts if one == kind} - {right})
    wrong = list(dict.fromkeys([*rng.sample(alike, len(alike)), *rng.sample(others, len(others))]))
    wrong = wrong[: count - 1]
    return rng.sample([right, *wrong], len(wrong) + 1)


def _mmlu_pro(rng: random.Random, count: int) -> Iterable[Mapping[str, Any]]:
    facts = _facts(rng, max(count, _OPTIONS + 1))
    for number, fact in enumerate(facts[:count]):
        options = _with_wrong(rng, facts, fact, _OPTIONS)
        place = options.index(fact[2])
        yield {
            "question_id": number,
            "question": fact[1],
            "options": options,
            "answer": "ABCDEFGHIJ"[place],
            "answer_index": place,
            "cot_content": "",
            "category": fact[0],
            "src": "demo",
        }


def _gpqa(rng: random.Random, count: int) -> Iterable[Mapping[str, Any]]:
    facts = _facts(rng, max(count, 5))
    for number, fact in enumerate(facts[:count]):
        wrong = [one for one in _with_wrong(rng, facts, fact, 4) if one != fact[2]]
        yield {
            "Record ID": f"demo{number}",
            "Question": fact[1],
            "Correct Answer": fact[2],
            **{f"Incorrect Answer {place}": one for place, one in enumerate(wrong, 1)},
        }


def _mmmu(rng: random.Random, pictures: Sequence[Picture]) -> Iterable[Mapping[str, Any]]:
    for number, picture in enumerate(pictures, 1):
        is_open = number % 3 == 0
        options = rng.sample(sorted(SHAPES), 4)
        if picture.shape not in options:
            options[0] = picture.shape
        yield {
            "id": f"validation_Shapes_{number}",
            "question": "<image 1> How many shapes are there?"
            if is_open
            else "<image 1> What shape do you see?",
            "options": "[]" if is_open else repr(options),
            "image_1": {"bytes": _png(picture), "path": f"{number}.png"},
            **{f"image_{other}": None for other in range(2, 8)},
            "answer": COUNTS[picture.count - 1]
            if is_open
            else "ABCD"[options.index(picture.shape)],
            "question_type": "open" if is_open else "multiple-choice",
            "subfield": "Shapes",
        }


def _mmmu_pro(
    rng: random.Random, pictures: Sequence[Picture]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    standard: list[Mapping[str, Any]] = []
    vision: list[Mapping[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        others = {
            Picture(rng.choice(sorted(COLOURS)), rng.choice(SHAPES), rng.randint(1, 5), 0).words
            for _ in range(30)
        }
        wrong = rng.sample(sorted(others - {picture.words}), _OPTIONS - 1)
        options = rng.sample([picture.words, *wrong], _OPTIONS)
        row = {
            "id": f"test_Shapes_{number}",
            "options": repr(options),
            "answer": "ABCDEFGHIJ"[options.index(picture.words)],
            "subject": "Shapes",
        }
        shown = {"bytes": _png(picture), "path": f"{number}.png"}
        question = "<image 1> What is in the picture?"
        standard.append({**row, "question": question, "image_1": shown})
        vision.append({**row, "image": shown})
    return standard, vision


def _mathvista(rng: random.Random, pictures: Sequence[Picture]) -> Iterable[Mapping[str, Any]]:
    for number, picture in enumerate(pictures, 1):
        choices = rng.sample(sorted(COLOURS), 4) if number % 2 else None
        if choices and picture.colour not in choices:
            choices[0] = picture.colour
        yield {
            "pid": str(number),
            "question": "What colour is it?" if choices else "How many shapes do you see?",
            "image": f"images/{number}.jpg",
            "decoded_image": {"bytes": _png(picture), "path": None},
            "choices": choices,
            "unit": None,
            "precision": None,
            "answer": picture.colour if choices else str(picture.count),
            "question_type": "multi_choice" if choices else "free_form",
            "answer_type": "text" if choices else "integer",
            "query": None,
        }


def _png(picture: Picture) -> str:
    """As base64, in eight colours: a kilobyte."""
    file = io.BytesIO()
    image = Image.fromarray(picture.pixels()).quantize(8)
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, listed[0])
        writer.writeheader()
        writer.writerows(listed)


if __name__ == "__main__":
    main()
