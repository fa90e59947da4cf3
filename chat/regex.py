"""A regular expression in Python's words, in those of llguidance.

Promises that the result matches the same whole texts as ``re.fullmatch``, or as ``re.search`` finds
something in: Python reads the pattern, and says which characters a class has. What no automaton can
do, looking around and back, is refused. Knows nothing of tokens.
"""

from __future__ import annotations

import re
import sys
import threading
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from ..errors import SettingError

if sys.version_info >= (3, 11):
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
else:
    import sre_constants as sre
    import sre_parse as parser

Ranges = tuple[tuple[int, int], ...]
"""Code points, in ranges that include their ends, ascending and apart."""

MAX_REPEATS = 100_000
"""How often a part may be repeated, where there is a limit."""

_ALL: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))  # without surrogates, which are no characters


_reading = threading.Lock()


def parsed(pattern: str, flags: int = 0) -> Any:
    """The tree that Python's own parser makes of a pattern."""
    # Which warns of what classes may mean in a later Python.
    with _reading, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return parser.parse(pattern, flags)


def translated(pattern: str, where: str) -> str:
    """The pattern as llguidance takes it, for the whole text.

    Raises:
        SettingError: it is not valid, or it looks around or back.
    """
    try:
        tree = parsed(pattern)
    except (re.error, OverflowError) as error:
        raise SettingError(
            f"{where} is no regular expression", found=str(error), expected="one of Python's re"
        ) from error
    except RecursionError:
        raise SettingError(f"{where} is nested too deep") from None
    return _Writer(where).sequence(list(tree.data), tree.state.flags, first=True, last=True)


def searched(pattern: str, where: str, *, narrow: bool) -> str | None:
    r"""The pattern as llguidance takes it, for texts in which ``re.search`` finds it.

    Args:
        narrow: whether each class has only what it has in Python and in JavaScript too, where
            ``\\w`` and ``\\d`` are of ASCII.

    Returns:
        None where Python cannot read it; JavaScript may.

    Raises:
        SettingError: it looks around or back.
    """
    try:
        tree = parsed(pattern)
    except (re.error, OverflowError, RecursionError):
        return None
    writer = _SearchWriter(where, narrow=narrow)
    return writer.sequence(list(tree.data), tree.state.flags, first=True, last=True)


class _Writer:
    """Writes what Python's parser read."""

    def __init__(self, where: str, *, narrow: bool = False) -> None:
        self._where, self._narrow = where, narrow

    def sequence(self, nodes: list[Any], flags: int, *, first: bool, last: bool) -> str:
        """Nodes one after the other.

        Args:
            first, last: whether nothing comes before, or after, them.
        """
        parts = []
        for index, node in enumerate(nodes):
            before = first and all(_is_anchor(earlier) for earlier in nodes[:index])
            after = last and all(_is_anchor(later) for later in nodes[index + 1 :])
            parts.append(self._node(node, flags, before, after))
        return "".join(parts)

    def _node(self, node: Any, flags: int, first: bool, last: bool) -> str:
        kind, value = node
        if kind in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
            return _class(_characters(kind, value, flags, narrow=self._narrow))
        if kind is sre.AT:
            return self._anchor(value, flags, first, last)
        if kind is sre.BRANCH:
            options = (self.sequence(list(o), flags, first=first, last=last) for o in value[1])
            return f"(?:{'|'.join(options)})"
        if kind is sre.SUBPATTERN:
            _group, added, removed, inner = value
            inside = (flags | added) & ~removed
            return f"(?:{self.sequence(list(inner), inside, first=first, last=last)})"
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):  # which match the same whole texts
            return self._repeated(value, flags, first, last)
        raise self._refused(str(kind).lower().replace("_", " "))

    def _repeated(self, value: Any, flags: int, first: bool, last: bool) -> str:
        least, most, inner = value
        once = most == 1
        part = self.sequence(list(inner), flags, first=first and once, last=last and once)
        if (most is not sre.MAXREPEAT and most > MAX_REPEATS) or least > MAX_REPEATS:
            raise SettingError(
                f"{self._where} repeats a part too often", expected=f"at most {MAX_REPEATS:,} times"
            )
        if not part:
            return ""
        return f"(?:{part}){{{least},{'' if most is sre.MAXREPEAT else most}}}"

    def _anchor(self, value: Any, flags: int, first: bool, last: bool) -> str:
        """Where an anchor says what is true of the whole text, it says nothing."""
        begins = value in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING) and first
        ends = value in (sre.AT_END, sre.AT_END_STRING) and last
        if begins or ends:
            return ""
        name = "a word boundary" if "BOUNDARY" in str(value) else "an anchor in the middle"
        raise self._refused(name)

    def _refused(self, found: str) -> SettingError:
        names = {
            "assert": "looking ahead or behind",
            "assert not": "looking ahead or behind",
            "groupref": "a backreference",
            "groupref exists": "a condition on a group",
            "atomic group": "an atomic group",
            "possessive repeat": "a possessive repetition",
        }
        return SettingError(
            f"{self._where} has what cannot be enforced",
            found=names.get(found, found),
            expected="a regular expression without looking around, backreferences and boundaries",
        )


class _SearchWriter(_Writer):
    """The same, for a part of a text: anchors stay, for llguidance to place."""

    def _anchor(self, value: Any, flags: int, first: bool, last: bool) -> str:
        if flags & re.MULTILINE or "BOUNDARY" in str(value):
            return super()._anchor(value, flags, False, False)
        return "^" if value in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING) else "$"


def _is_anchor(node: Any) -> bool:
    return node[0] is sre.AT


def _characters(kind: Any, value: Any, flags: int, *, narrow: bool = False) -> Ranges:
    """The characters that a node matches one of; what is left out of few may have many."""
    if kind is sre.ANY:
        ends = _LINE_ENDS if narrow else ((10, 10),)
        return _ALL if flags & re.DOTALL else _without(_ALL, ends)
    negated = kind is sre.NOT_LITERAL or (kind is sre.IN and value[0][0] is sre.NEGATE)
    members = value if kind is sre.IN else [(sre.LITERAL, value)]
    few, ascii_only = narrow and not negated, bool(flags & re.ASCII)
    ranges: list[tuple[int, int]] = []
    for name, part in members:
        if name is sre.LITERAL:
            ranges.append((part, part))
        elif name is sre.RANGE:
            ranges.append(part)
        elif name is not sre.NEGATE:
            is_few = few != ("_NOT_" in str(part))
            ranges += _category(str(part), ascii_only or (narrow and is_few))
    found = _joined(ranges)
    if flags & re.IGNORECASE:
        found = _any_case(found, ascii_only or few)
    return _without(_ALL, found) if negated else _without(_ALL, _without(_ALL, found))


# Of JavaScript, for which "." is none of them.
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))


@lru_cache(maxsize=1)
def _every_character() -> str:
    return "".join(chr(code) for low, high in _ALL for code in range(low, high + 1))


_CATEGORIES = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}


@lru_cache(maxsize=16)
def _category(name: str, ascii_only: bool) -> Ranges:
    """The characters of ``\\d``, ``\\s``, ``\\w`` and what they are not."""
    *negation, kind = name.removeprefix("CATEGORY_").split("_")
    found = _matched(f"{_CATEGORIES[kind]}+", re.ASCII if ascii_only else 0)
    return _without(_ALL, found) if negation else found


@lru_cache(maxsize=256)
def _any_case(ranges: Ranges, ascii_only: bool) -> Ranges:
    """What a class matches where case is ignored."""
    inside = "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)
    return _matched(f"[{inside}]+", re.IGNORECASE | (re.ASCII if ascii_only else 0))


def _matched(pattern: str, flags: int) -> Ranges:
    """All characters that are in runs which a pattern matches, asked of Python itself."""
    every = _every_character()
    runs = (match.span() for match in re.finditer(pattern, every, flags))
    return _joined((ord(every[begin]), ord(every[end - 1])) for begin, end in runs)


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    result: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if result and low <= result[-1][1] + 1:
            result[-1] = result[-1][0], max(high, result[-1][1])
        else:
            result.append((low, high))
    return tuple(result)


def _without(ranges: Ranges, others: Ranges) -> Ranges:
    """What is in the first ranges and not in the others; both ascending and apart."""
    result = []
    for low, high in ranges:
        for begin, end in others:
            if end < low or begin > high:
                continue
            if begin > low:
                result.append((low, begin - 1))
            low = end + 1
        if low <= high:
            result.append((low, high))
    return tuple(result)


def _class(ranges: Ranges) -> str:
    """A class as Rust's regex has it; of no character, one that matches none."""
    if not ranges:
        return r"[^\x{0}-\x{10FFFF}]"
    inside = (
        f"\\x{{{low:X}}}" if low == high else f"\\x{{{low:X}}}-\\x{{{high:X}}}"
        for low, high in ranges
    )
    return f"[{''.join(inside)}]"
