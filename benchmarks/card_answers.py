"""What an answer in words says, and whether it is right.

Answers of models end as they please: "The best answer is C.", "**Answer: (c)**", "\\boxed{C}", the
option's own words. Rules find what is meant; where they find nothing, the answer is wrong. For
MathVista's published scores another model extracts the answers: rules are stricter than that.
Knows no model and no file.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_SAYS = r"(?:answer|option|choice|solution)(?:\s+(?:letter|to\s+\w+(?:\s+\w+){0,4}))?"
_IS = r"\s*(?:is|are|was|would\s+be|should\s+be|must\s+be|:|=|-|–)+\s*"  # noqa: RUF001
# Emphasis, brackets and quotation marks around what is meant.
_AROUND = r"[\s(\[{\"'“‘:]*"  # noqa: RUF001
_CHOSEN = re.compile(
    rf"{_SAYS}{_IS}(?:(?:option|choice|letter)\b)?{_AROUND}([A-Za-z])(?!\w|['’]\w)([)\]}}.,:;\"'”]?)(\s*\w)?",  # noqa: RUF001
    re.IGNORECASE,
)
_MEANT = re.compile(rf"(?:final\s+)?{_SAYS}{_IS}", re.IGNORECASE)
_BARE = re.compile(r"[\s(\[\"']*([A-Za-z])[\s)\].:\"']*")
_BEGINNING = re.compile(r"\s*[(\[]?([A-Z])[)\].:]\s+\S")
_BRACKETED = re.compile(r"[(\[]([A-Za-z])[)\]]")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_MACRO = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_POWER = re.compile(r"\s*(?:×|\\times|\*|x)\s*10\s*\^\s*\{?\s*([+-]?\d+)\s*\}?")  # noqa: RUF001
_NUMBER = re.compile(
    r"(?<![\w.])[+-]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
    r"(?:\s*/\s*\d+(?:\.\d+)?)?(?![\d])",
    re.IGNORECASE,
)
_LIST = re.compile(r"\[[^\[\]]*\]")
_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12,
}  # fmt: skip
_MAX_LITERAL = 1 << 16


@dataclass(frozen=True)
class Judged:
    """What was found in an answer, None where nothing was, and whether that is right."""

    found: str | None
    right: bool


def judged_choice(text: str, options: Sequence[str], letter: str) -> Judged:
    """Of a question with options, of which `letter` is the right one."""
    found = letter_in(text, options)
    return Judged(found, found == letter)


def letter_in(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer means; None where it means none, or several."""
    text = _plain(text)
    letters = LETTERS[: len(options)]
    for candidate in (_said_letter(text), _bare_letter(text), _beginning_letter(text)):
        if candidate is not None and candidate in letters:
            return candidate
    return _by_words(text, options)


def _plain(text: str) -> str:
    """Without emphasis and TeX around words, what is boxed as an answer of its own."""
    text = _MACRO.sub(r"\1", text.replace("\\(", " ").replace("\\)", " ").replace("$", ""))
    text = _BOXED.sub(r" the answer is \1 . ", text)
    return re.sub(r"\*+|`+|(?<!\w)_+|_+(?!\w)", "", text).strip()


def _said_letter(text: str) -> str | None:
    """After the last "answer is"."""
    found = None
    for match in _CHOSEN.finditer(text):
        letter, closing, word = match[1], match[2], match[3]
        # "The answer is a matter of taste": an article, and no letter.
        if letter.islower() and word and not closing:
            continue
        found = letter.upper()
    return found


def _bare_letter(text: str) -> str | None:
    """An answer, or its last line, that is a letter."""
    for part in (text, text.splitlines()[-1] if text else ""):
        if match := _BARE.fullmatch(part):
            return match[1].upper()
    return None


def _beginning_letter(text: str) -> str | None:
    """An answer, or its last line, that is an option with its letter: "B) a cat", or "so (B)"."""
    lines = text.splitlines() or [""]
    for part in (lines[-1], lines[0] if len(lines) == 1 else ""):
        if match := _BEGINNING.match(part):
            return match[1]
    letters = {one.upper() for one in _BRACKETED.findall(lines[-1])}
    return letters.pop() if len(letters) == 1 else None


def _by_words(text: str, options: Sequence[str]) -> str | None:
    """The only option whose words the end of an answer has, or else all of it."""
    wanted = [_words(option) for option in options]
    said = _MEANT.split(text)
    last_line = text.splitlines()[-1] if text else ""
    for part in (said[-1] if len(said) > 1 else "", last_line, text):
        words = _words(part)
        equal = [place for place, one in enumerate(wanted) if one and one == words]
        within = [place for place, one in enumerate(wanted) if one and _has(words, one)]
        # "four" is within "twenty four": only the longest of those that lie within each other.
        within = [
            place
            for place in within
            if not any(
                other != place and wanted[other] != wanted[place]
                and _has(wanted[other], wanted[place])
                for other in within
            )
        ]  # fmt: skip
        for places in (equal, within):
            if len(places) == 1:
                return LETTERS[places[0]]
    return None


def _words(text: str) -> tuple[str, ...]:
    return tuple(
        re.findall(r"[^\W_]+(?:[.,]\d+)*|[+-]?\d+(?:[.,]\d+)*|[^\s\w.,;:!?'\"()]", text.lower())
    )


def _has(words: tuple[str, ...], part: tuple[str, ...]) -> bool:
    count = len(part)
    return any(words[at : at + count] == part for at in range(len(words) - count + 1))


def judged_open(text: str, answers: Sequence[str]) -> Judged:
    """Of MMMU's questions without options: the number to two decimals, or the words.

    Args:
        answers: each of them is right.
    """
    ending = _ending(text)
    numbers = numbers_in(ending)
    for answer in answers:
        gold = _only_number(answer)
        if gold is None:
            if _has(_words(ending), _words(answer)):
                return Judged(answer, True)
        elif any(round(one, 2) == round(gold, 2) for one in numbers):
            return Judged(answer, True)
    return Judged(ending[-80:] or None, False)


def judged_value(
    text: str, answer: str, kind: str, precision: int | None = None, unit: str | None = None
) -> Judged:
    """Of MathVista's questions without choices.

    Args:
        kind: "integer", "float", "list" or "text".
        precision: decimals to which a float is compared.
        unit: stands behind the number, and is left out.
    """
    ending = _ending(text)
    if kind == "text":
        return Judged(ending[-80:] or None, _has(_words(ending), _words(answer)))
    if kind == "list":
        found = _last_list(text)
        gold = _as_list(answer)
        same = found is not None and gold is not None and len(found) == len(gold)
        right = same and all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(found, gold))  # type: ignore[arg-type]  # noqa: B905
        return Judged(None if found is None else str(found), right)
    if unit:
        ending = ending.replace(unit, " ")
    numbers = numbers_in(ending)
    gold_number = _only_number(answer)
    if not numbers or gold_number is None:
        return Judged(None, False)
    # "3 + 4 = 7" ends with its result; "7 of the 9" begins with it.
    number = numbers[-1] if "=" in ending else numbers[0]
    if kind == "integer":
        return Judged(f"{number:g}", int(number) == int(gold_number))
    decimals = 1 if precision is None else precision
    return Judged(f"{number:g}", round(number, decimals) == round(gold_number, decimals))


def _ending(text: str) -> str:
    """What stands behind the last "the answer is", or else in the last line."""
    text = _plain(text)
    said = _MEANT.split(text)
    if len(said) > 1 and said[-1].strip(" .\n"):
        # To the end of the sentence, or of the line; a point between digits is none.
        return re.split(r"\n|\.(?=\s|$)", said[-1].strip(), maxsplit=1)[0].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(". ") if lines else ""


def numbers_in(text: str) -> list[float]:
    """The numbers of a text in order: digits, fractions, powers of ten, and words to twelve."""
    text = _FRACTION.sub(r" \1/\2 ", text)
    text = re.sub(r"[\u2212\u2013](?=\d)", "-", text)
    text = _POWER.sub(r"e\1", text)
    found: list[tuple[int, float]] = []
    for match in _NUMBER.finditer(text):
        above, _, below = match[0].replace(",", "").partition("/")
        value = float(above)
        if below and float(below):
            value /= float(below)
        if math.isfinite(value):
            found.append((match.start(), value))
    words = re.finditer(r"[a-z]+", text.lower())
    found += [(one.start(), float(_WORDS[one[0]])) for one in words if one[0] in _WORDS]
    return [value for _, value in sorted(found)]


def _only_number(text: str) -> float | None:
    numbers = numbers_in(text)
    bare = re.fullmatch(r"[\s$€£%°]*[+-]?[\d.,/e+-]+[\s$€£%°]*", text.strip(), re.IGNORECASE)
    return numbers[0] if bare and len(numbers) == 1 else None


def _last_list(text: str) -> list[float] | None:
    for part in reversed(_LIST.findall(_plain(text))):
        if (numbers := _as_list(part)) is not None:
            return numbers
    return None


def _as_list(text: str) -> list[float] | None:
    values = literal(text)
    if not isinstance(values, list | tuple):
        return None
    numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    return list(map(float, numbers)) if numbers and len(numbers) == len(values) else None


def literal(text: str) -> object:
    """The value that a text of Python stands for, as MMMU writes its options; None for another."""
    if len(text) > _MAX_LITERAL:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
