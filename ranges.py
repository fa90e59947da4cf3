"""What a setting may be: the checks that all settings share, and the words of their errors.

Promises that NaN, booleans given as numbers and values of other types are refused like any other
value outside the range. Knows no setting by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from .errors import SettingError, did_you_mean

MAX_INT32 = 2**31 - 1
"""The largest ``int32_t``, as which llama.cpp takes most counts."""

_SHOWN = 200  # characters of a value that an error shows


def check_whole(
    name: str, value: object, least: int, most: int | None = None, *, or_none: bool = False
) -> None:
    """Raise SettingError if ``value`` is not an int from ``least`` to ``most``.

    Args:
        most: None is no limit.
        or_none: whether None is a value too.
    """
    if value is None and or_none:
        return
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not (is_whole and least <= value and (most is None or value <= most)):  # type: ignore[operator]
        numbers = f"from {least} up" if most is None else f"from {least} to {most}"
        raise outside(name, value, f"{'None or ' if or_none else ''}a whole number {numbers}")


def is_number(value: object) -> bool:
    """Whether it is a real number, and neither a boolean nor NaN."""
    return not isinstance(value, bool) and isinstance(value, Real) and value == value


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise SettingError if ``value`` is none of the choices; a near one is suggested."""
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else None
        raise SettingError(
            f"{name} is unknown", found=_text(value), expected=", ".join(choices), hint=hint
        )


def as_tuple(name: str, value: object, elements: str) -> tuple[Any, ...]:
    """The elements of a list, a tuple or another collection; a string or a mapping is none.

    Args:
        elements: what they should be, for the error.

    Raises:
        SettingError: it is something else.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise SettingError(
            f"{name} is of the wrong type", found=_text(value), expected=f"a list of {elements}"
        )
    return tuple(value)


def outside(name: str, value: object, expected: str) -> SettingError:
    """The error for a value outside its range."""
    return SettingError(f"{name} is outside its range", found=_text(value), expected=expected)


def _text(value: object) -> str:
    """A value as Python writes it, in few characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
