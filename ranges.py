"""What a setting may be: the checks that all settings share, and the words of their errors.

Promises that NaN, booleans given as numbers and values of other types are refused like any other
value outside the range. Knows no setting by name.
"""

from __future__ import annotations

import os
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
    """Whether it is a real number that a float can hold, and neither a boolean nor NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        number = float(value)
    except OverflowError:
        return False
    return number == number


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise SettingError if ``value`` is none of the choices; a near one is suggested."""
    if not isinstance(value, str) or value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else None
        raise SettingError(
            f"{name} is unknown", found=value_text(value), expected=", ".join(choices), hint=hint
        )


def as_tuple(name: str, value: object, elements: str) -> tuple[Any, ...]:
    """The elements of a list, a tuple or another collection; a string or a mapping is none.

    Args:
        elements: what they should be, for the error.

    Raises:
        SettingError: it is something else.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise wrong_type(name, value, f"a list of {elements}")
    return tuple(value)


def as_path(name: str, value: object) -> str:
    """The path in a string or a path-like object, as a string.

    Raises:
        SettingError: it is something else.
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise wrong_type(name, value, "a path")
    return path


def check_text(name: str, value: object, *, or_none: bool = False) -> None:
    """Raise SettingError if ``value`` is not a string, or None where that is a value too."""
    if not isinstance(value, str) and not (or_none and value is None):
        raise wrong_type(name, value, "None or a string" if or_none else "a string")


def check_flag(name: str, value: object) -> None:
    """Raise SettingError if ``value`` is neither True nor False: ``"no"`` would count as True."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, "True or False")


def check_callback(name: str, value: object) -> None:
    """Raise SettingError if ``value`` is neither None nor a function."""
    if value is not None and not callable(value):
        raise wrong_type(name, value, "None or a function")


def wrong_type(name: str, value: object, expected: str) -> SettingError:
    """The error for a value of another type."""
    return SettingError(f"{name} is of the wrong type", found=value_text(value), expected=expected)


def outside(name: str, value: object, expected: str) -> SettingError:
    """The error for a value outside its range."""
    return SettingError(f"{name} is outside its range", found=value_text(value), expected=expected)


def value_text(value: object) -> str:
    """A value as Python writes it, in few characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
