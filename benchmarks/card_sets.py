"""The sets of questions behind the models' cards, read as they are downloaded from the Hub.

    hf download TIGER-Lab/MMLU-Pro --repo-type dataset --local-dir DIR/mmlu-pro
    hf download Idavidrein/gpqa    --repo-type dataset --local-dir DIR/gpqa
    hf download MMMU/MMMU          --repo-type dataset --local-dir DIR/mmmu
    hf download MMMU/MMMU_Pro      --repo-type dataset --local-dir DIR/mmmu-pro
    hf download AI4Math/MathVista  --repo-type dataset --local-dir DIR/mathvista

Of each, the split that cards speak of: MMLU-Pro's test, GPQA's diamond, MMMU's validation,
MMMU-Pro's standard questions with ten options and its vision questions, MathVista's testmini.
Parquet needs pyarrow; the same rows may stand in files of JSON Lines, JSON or CSV of the same
names, pictures as files beside them, data URLs or base64. A folder may be called as its repository
is, and a file ``DIR/mmlu-pro.jsonl`` is a whole set.

Prompts ask, as Meta's evaluations of Llama 3 say and those of Llama 4 do not, without examples, for
steps and then a line with the best answer; MathVista's questions come with its own hint. The words
are ours. Promises that a row which is none is one error that names it, and that pictures are read
when they are asked for. Knows no model.
"""

from __future__ import annotations

import base64
import binascii
import csv
import importlib
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.card_answers import (
    LETTERS,
    Judged,
    judged_choice,
    judged_open,
    judged_value,
    literal,
)
from llama4_edge.errors import Llama4EdgeError, SettingError
from llama4_edge.untrusted import Reader, Record

_READER = Reader(SettingError, 1 << 32, "Download it again.")
_PLACE = re.compile(r"<image (\d)>")
_MAX_PICTURES = 7
_MAX_FIELD = 1 << 24  # characters of a field of CSV


@dataclass(frozen=True)
class Item:
    """A question, and how an answer is judged.

    Args:
        id: tells it from the others of its task.
        group: whose share of right answers is averaged with those of other groups.
        question: ``<image 1>`` stands for a picture, here and in options.
        options: none where the answer is free.
        kind: "choice", "open" (MMMU's), or MathVista's "integer", "float", "list" and "text".
        answers: the letter of the right option; or what is right, each.
        precision, unit: see `judged_value`.
        pictures: their files' bytes, by number.
        hint: the question as its set would have it asked, None for a set that does not say.
    """

    id: str
    group: str
    question: str
    options: tuple[str, ...]
    kind: str
    answers: tuple[str, ...]
    precision: int | None = None
    unit: str | None = None
    pictures: Mapping[int, bytes] = field(default_factory=dict)
    hint: str | None = None

    def judged(self, text: str) -> Judged:
        """Whether an answer is right."""
        if self.kind == "choice":
            return judged_choice(text, self.options, self.answers[0])
        if self.kind == "open":
            return judged_open(text, self.answers)
        return judged_value(text, self.answers[0], self.kind, self.precision, self.unit)

    def prompt(self, *, plain: bool = False) -> str:
        """What is asked; `plain`, the question alone, for models that were taught no more."""
        if plain:
            return self.question or _PLAIN_VISION
        if self.hint is not None:
            return self.hint
        if not self.question:
            return _SHOWN_QUESTION.format(letters=self.letters)
        options = "\n".join(
            f"({letter}) {option}" for letter, option in zip(LETTERS, self.options, strict=False)
        )
        look = "Look at what is shown, then answer." if self.pictures else ""
        form = _CHOICE if self.options else _FREE
        return form.format(
            look=look, question=self.question.strip(), options=options, letters=self.letters
        ).strip()

    @property
    def letters(self) -> str:
        """``A, B or C``."""
        *first, last = list(LETTERS[: max(len(self.options), 1)])
        return f"{', '.join(first)} or {last}" if first else last

    def content(self, *, plain: bool = False) -> Any:
        """A message's content: the prompt, its pictures where they belong."""
        prompt = self.prompt(plain=plain)
        if not self.pictures:
            return prompt
        shown: set[int] = set()
        parts: list[dict[str, Any]] = []
        for place, piece in enumerate(_PLACE.split(prompt)):
            number = int(piece) if place % 2 else 0
            if number in self.pictures and number not in shown:
                parts.append({"type": "image", "image": self.pictures[number]})
                shown.add(number)
            elif text := (f"(picture {number})" if number else piece.strip() if plain else piece):
                parts.append({"type": "text", "text": text})
        unplaced = [one for number, one in self.pictures.items() if number not in shown]
        return [*({"type": "image", "image": one} for one in unplaced), *parts]


_CHOICE = """{look}
Which option answers the question best?

Question: {question}
{options}

Answer a simple question shortly. Solve any other in steps, one short paragraph each. In both \
cases let the last line be this, with {letters} for X:
The best answer is X."""

_FREE = """{look}
Answer the question with a number or a few words.

Question: {question}

Solve it in steps, one short paragraph each. Let the last line be this, with your answer for X:
The answer is X."""

_SHOWN_QUESTION = """The picture shows a question and its options.
1. Write down the question, and each option with its letter.
2. Look closely at what else is shown, and assume nothing that is not.
3. Solve the question in steps.
Let the last line be this, with {letters} for X:
The best answer is X."""

_PLAIN_VISION = "What is in the picture?"


_ReadRow = Callable[[Record, Path], Item]


@dataclass(frozen=True)
class Part:
    """Some files of a task: those whose path matches, from its end, and what a row is."""

    files: str
    read: _ReadRow


@dataclass(frozen=True)
class Task:
    """A set of questions: its name, where it is from, and its parts."""

    name: str
    title: str
    source: str
    parts: tuple[Part, ...]
    shows_pictures: bool = False

    def items(self, directory: Path, limit: int | None = None) -> Iterator[Item]:
        """The questions in a directory; of many only some, evenly from all over it.

        Raises:
            SettingError: there are none; a file cannot be read, or a row is none.
        """
        parts = self._parts(directory)
        for read, files in parts:
            count = sum(map(_count, files))
            if not count:
                raise SettingError(f"{files[0]} has no rows", hint="Download it again.")
            places = set(_places(count, limit, len(parts)))
            for number, (row, path) in enumerate(_records(files)):
                if number in places:
                    yield read(row, path)

    def count(self, directory: Path, limit: int | None = None) -> int:
        """How many `items` has."""
        parts = self._parts(directory)
        return sum(len(_places(sum(map(_count, files)), limit, len(parts))) for _, files in parts)

    def place(self, directory: Path) -> Path | None:
        """Its folder, or the file that is all of it; None where there is neither."""
        names = (self.name, self.source.partition("/")[2].lower().replace("_", "-"))
        try:
            found = [
                path
                for path in sorted(directory.iterdir())
                if (path.name if path.is_dir() else path.stem).lower().replace("_", "-") in names
                and (path.is_dir() or path.suffix in _READERS)
            ]
        except OSError as error:
            raise SettingError(f"{directory} cannot be read", found=error.strerror) from error
        return found[0] if found else None

    def _parts(self, directory: Path) -> list[tuple[_ReadRow, list[Path]]]:
        place = self.place(directory)
        if place is not None and place.is_file():
            return [(self.parts[0].read, [place])]
        return [
            (part.read, self._files(place or directory / self.name, part)) for part in self.parts
        ]

    def _files(self, folder: Path, part: Part) -> list[Path]:
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.match(part.files)
            and not any(name.startswith(".") for name in path.relative_to(folder).parts)
        )
        for suffix in _READERS:
            if found := [path for path in files if path.suffix == suffix]:
                return found
        raise SettingError(
            f"{folder} has no questions of {self.title}",
            expected=f"{part.files}, as {' or '.join(_READERS)}",
            hint=f"`hf download {self.source} --repo-type dataset --local-dir {folder}`",
        )


def _places(count: int, limit: int | None, parts: int) -> list[int]:
    """Which of `count` rows are taken."""
    if limit is None or count <= (wanted := -(-limit // parts)):
        return list(range(count))
    return [number * count // wanted for number in range(wanted)]


def _records(files: list[Path]) -> Iterator[tuple[Record, Path]]:
    for path in files:
        for number, row in enumerate(_rows(path), 1):
            yield _READER.as_record(row, f"{path}, row {number}"), path


def _count(path: Path) -> int:
    if path.suffix == ".parquet":
        with _reading(path):
            return int(_parquet().ParquetFile(path).metadata.num_rows)
    return sum(1 for _ in _rows(path))


def _rows(path: Path) -> Iterator[Any]:
    """The rows of a file."""
    with _reading(path):
        yield from _READERS[path.suffix](path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A block whose errors are SettingErrors that name the file."""
    try:
        yield
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's own are kinds of these
        if isinstance(error, Llama4EdgeError):
            raise
        raise SettingError(
            f"{path} cannot be read", found=str(error), hint="Download it again."
        ) from error


def _of_parquet(path: Path) -> Iterator[Any]:
    for batch in _parquet().ParquetFile(path).iter_batches(batch_size=16):
        yield from batch.to_pylist()


def _of_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _READER.parse(line, f"{path}, line {number}")


def _of_json(path: Path) -> Iterator[Any]:
    value = _READER.json(path)
    if isinstance(value, Mapping):  # annot_testmini.json of MathVista: rows by their ids
        value = [{"pid": key, **one} for key, one in value.items() if isinstance(one, dict)]
    if not isinstance(value, list):
        raise SettingError(f"{path} has no rows", expected="a list of them")
    yield from value


def _of_csv(path: Path) -> Iterator[Any]:
    csv.field_size_limit(_MAX_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".parquet": _of_parquet, ".jsonl": _of_lines, ".json": _of_json, ".csv": _of_csv,
}  # fmt: skip
"""In the order in which they are looked for."""


def _parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise SettingError(
            "files of Parquet need pyarrow, which is not installed",
            hint="`pip install pyarrow`, or give the rows as .jsonl files",
        ) from None


def _mmlu_pro(row: Record, _: Path) -> Item:
    options = tuple(option.strip() for option in row.texts("options"))
    while options and options[-1] == "N/A":  # rows with fewer than ten are filled up with these
        options = options[:-1]
    if row.fields.get("answer_index") is not None:
        answer = LETTERS[row.integer("answer_index", 0, max(len(options) - 1, 0))]
    else:
        answer = row.text("answer").strip()
    return _choice(row, f"{row.fields.get('question_id')}", row.text("category"), options, answer)


def _gpqa(row: Record, _: Path) -> Item:
    question = row.text("Question")
    right = row.text("Correct Answer").strip()
    options = [right, *(row.text(f"Incorrect Answer {number}").strip() for number in (1, 2, 3))]
    name = row.text("Record ID", default=question)
    # The same order for the same question, whichever others are asked.
    random.Random(f"gpqa {name}").shuffle(options)
    return _choice(row, name, "", tuple(options), LETTERS[options.index(right)], question.strip())


def _mmmu(row: Record, path: Path) -> Item:
    pictures = _numbered(row, path)
    options = _options(row)
    name = row.text("id")
    if options:
        answer = row.text("answer").strip()
        return _choice(row, name, "", options, answer, pictures=pictures)
    several = literal(row.text("answer"))
    answers = several if isinstance(several, list | tuple) else [row.text("answer")]
    return Item(
        name, "", row.text("question"), (), "open", tuple(map(str, answers)), pictures=pictures
    )


def _mmmu_pro(row: Record, path: Path) -> Item:
    """Of the standard questions, or one that is in its picture."""
    options, answer, name = _options(row), row.text("answer").strip(), row.text("id")
    if row.fields.get("question"):
        pictures = _numbered(row, path)
        return _choice(row, name, "standard", options, answer, pictures=pictures)
    picture = _picture(row.fields.get("image"), path)
    if picture is None:
        raise row.fault("image", "a picture")
    return _choice(row, name, "vision", options, answer, question="", pictures={1: picture})


def _mathvista(row: Record, path: Path) -> Item:
    picture = _picture(row.fields.get("decoded_image") or row.fields.get("image"), path)
    given = row.fields.get("choices")
    choices = row.texts("choices") if given else ()
    answer = row.text("answer").strip()
    kind = row.text("answer_type")
    precision = None if row.fields.get("precision") is None else round(row.number("precision"))
    unit = row.fields.get("unit")
    if choices:
        if answer not in choices:
            raise row.fault("answer", "one of the choices")
        kind, answer = "choice", LETTERS[choices.index(answer)]
    elif kind not in ("integer", "float", "list", "text"):
        raise row.fault("answer_type", "text, integer, float or list")
    return Item(
        row.text("pid"),
        "",
        row.text("question"),
        choices,
        kind,
        (answer,),
        precision,
        unit if isinstance(unit, str) and unit else None,
        {} if picture is None else {1: picture},
        row.text("query", default="") or None,
    )


def _choice(
    row: Record,
    name: str,
    group: str,
    options: tuple[str, ...],
    answer: str,
    question: str | None = None,
    pictures: Mapping[int, bytes] | None = None,
) -> Item:
    """A question with options."""
    if not 2 <= len(options) <= len(LETTERS):
        raise row.fault("options", f"2 to {len(LETTERS)} texts")
    if len(answer) != 1 or answer not in LETTERS[: len(options)]:
        raise row.fault("answer", f"a letter up to {LETTERS[len(options) - 1]}")
    asked = row.text("question") if question is None else question
    return Item(name, group, asked, options, "choice", (answer,), pictures=pictures or {})


def _options(row: Record) -> tuple[str, ...]:
    """A list, or MMMU's text of one."""
    given = row.fields.get("options")
    values = literal(given) if isinstance(given, str) else given
    if not isinstance(values, list | tuple):
        raise row.fault("options", "a list, or the text of one")
    return tuple(str(value).strip() for value in values)


def _numbered(row: Record, path: Path) -> dict[int, bytes]:
    """``image_1`` to ``image_7``, those that are there."""
    pictures = {
        number: _picture(row.fields.get(f"image_{number}"), path)
        for number in range(1, _MAX_PICTURES + 1)
    }
    return {number: one for number, one in pictures.items() if one is not None}


def _picture(value: object, path: Path) -> bytes | None:
    """A picture's file: as the Hub has it in Parquet, its bytes; or base64, or a file's name."""
    if isinstance(value, Mapping):
        data = value.get("bytes")
        value = value.get("path") if data is None else data
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise SettingError(f"a row of {path} has no picture", found=type(value).__name__)
    for folder in (path.parent, path.parent.parent):
        name = folder / value[:255]
        if len(value) < 256 and name.is_file() and name.resolve().is_relative_to(folder.resolve()):
            return _READER.data(name)
    try:
        return base64.b64decode(value.partition(";base64,")[2] or value, validate=True)
    except binascii.Error:
        raise SettingError(
            f"a row of {path} has no picture",
            found=value[:80],
            expected="base64, or a file beside it",
        ) from None


TASKS = {
    task.name: task
    for task in (
        Task("mmlu-pro", "MMLU-Pro", "TIGER-Lab/MMLU-Pro", (Part("test*", _mmlu_pro),)),
        Task("gpqa", "GPQA Diamond", "Idavidrein/gpqa", (Part("gpqa_diamond*", _gpqa),)),
        Task(
            "mmmu", "MMMU", "MMMU/MMMU", (Part("validation*", _mmmu),), shows_pictures=True,
        ),
        Task(
            "mmmu-pro", "MMMU-Pro", "MMMU/MMMU_Pro",
            (
                Part("standard (10 options)/test*", _mmmu_pro),
                Part("vision/test*", _mmmu_pro),
            ),
            shows_pictures=True,
        ),
        Task(
            "mathvista", "MathVista", "AI4Math/MathVista", (Part("*testmini*", _mathvista),),
            shows_pictures=True,
        ),
    )
}  # fmt: skip
"""By the names of their folders, in the cards' order."""
