"""Questions of multiple choice, a JSON object a line.

    {"question": "…", "choices": ["…", "…"], "answer": 1}

The answer is the number of the right choice, from 0, or its letter. Knows no model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import SettingError
from ..ranges import as_path, as_tuple, check_text, check_whole
from ..untrusted import Reader, Record, shown

_MAX_BYTES = 1 << 28
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A question, its choices, and the number of the right one.

    Raises:
        SettingError: there are less than two choices, one is empty or there twice, or the answer is
            none of them.
    """

    text: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        check_text("text", self.text)
        choices = as_tuple("choices", self.choices, "texts")
        for choice in choices:
            check_text("choices", choice)
        object.__setattr__(self, "choices", choices)
        if len(choices) < 2:
            raise SettingError(
                "choices are too few", found=len(choices), expected="two texts, or more"
            )
        for place, choice in enumerate(choices):
            if not choice or choice in choices[:place]:
                kind = "there twice" if choice else "empty"
                raise SettingError(f"choices[{place}] is {kind}", found=shown(choice))
        check_whole("answer", self.answer, 0, len(choices) - 1)


def read_questions(path: str | os.PathLike[str]) -> list[Question]:
    """The questions in a file.

    Raises:
        SettingError: it cannot be read, or a line is none.
    """
    reader = Reader(SettingError, _MAX_BYTES)
    name = as_path("path", path)
    questions = []
    # JSON's strings may have other ends of lines in them, as U+2028.
    for number, line in enumerate(reader.text(name).split("\n"), 1):
        if line.strip():
            where = f"{name}, line {number}"
            questions.append(_question(reader.as_record(reader.parse(line, where), where)))
    if not questions:
        raise SettingError(f"{name} has no questions", expected='{"question": …} on each line')
    return questions


def _question(record: Record) -> Question:
    text, choices = record.text("question"), record.texts("choices")
    given = record.fields.get("answer")
    if isinstance(given, str) and len(given) == 1 and given in _LETTERS[: len(choices)]:
        answer = _LETTERS.index(given)
    else:
        answer = record.integer("answer", 0, max(len(choices) - 1, 0))
    try:
        return Question(text, choices, answer)
    except SettingError as error:
        raise SettingError(f"{record.name}: {error}") from None
