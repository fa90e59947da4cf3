"""Makes every string visible that comes from a file, the hub, a worker or a model.

Promises that no such text can move the cursor, set a title, turn the direction of a line, begin a
line of its own, or look like another name because part of it has no width. `visible` does it for
all strings of a value at once, so that no view has to think of it.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any, TypeVar, cast

T = TypeVar("T")

LONGEST_LINE = 4000
"""Characters of a line that is shown; it may quote a name of megabytes."""
LONGEST_NAME = 120
"""Characters of a name, or of a text among names, that is shown."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_NEWLINE = "\N{RETURN SYMBOL}"
# A control character is shown as the picture that Unicode has for it.
_PICTURES = {**{chr(code): chr(0x2400 + code) for code in range(0x20)}, "\x7f": "\u2421"}

# In text of several lines, such as an answer, joiners and marks of direction have their place.
_STEERING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# In a name they only hide something: controls, what breaks lines, and all that has no shape.
_HIDDEN = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Text of any number of lines in which what would steer a terminal is visible."""
    return _STEERING.sub(lambda match: _PICTURES.get(match[0], _REPLACEMENT), text)


def one_line(text: str) -> str:
    """A name, or another text of one line, in which every character is visible."""
    return _HIDDEN.sub(_shown, text)


def visible(value: T) -> T:
    """The value with all its strings as `one_line` has them: of its fields, entries and keys."""
    changed: Any = value
    if isinstance(value, str):
        changed = one_line(value)
    elif isinstance(value, PurePath):
        changed = type(value)(one_line(str(value)))
    elif isinstance(value, Mapping):
        changed = {visible(key): visible(entry) for key, entry in value.items()}
    elif isinstance(value, list | tuple):
        changed = type(value)(map(visible, value))
    elif is_dataclass(value) and not isinstance(value, type):
        changed = copy.copy(value)
        for field in fields(value):
            # Not `replace`: what a name looks like is no reason to check the value again.
            object.__setattr__(changed, field.name, visible(getattr(value, field.name)))
    return cast(T, changed)


def shortened(text: str, longest: int, *, end: int = 0) -> str:
    """Text of up to `longest` characters; of more, the beginning and their number.

    Args:
        end: characters of the end of a longer text that are shown too.
    """
    if len(text) <= longest:
        return text
    tail = f" …{text[-end:]}" if end else ""
    return f"{text[: longest // 2]}… ({len(text):,} characters){tail}"


def visible_json(text: str) -> str:
    """JSON with escapes for all that could hide in it, which are the same JSON."""
    # A newline stands between entries; in a string it is escaped already.
    return _HIDDEN.sub(
        lambda match: match[0] if match[0] == "\n" else json.dumps(match[0])[1:-1], text
    )


def _shown(match: re.Match[str]) -> str:
    character = match[0]
    if "\ud800" <= character <= "\udfff":  # of a file name that is not UTF-8: which byte it was
        return f"\\u{ord(character):04x}"
    return _NEWLINE if character in "\n\u2028\u2029" else _PICTURES.get(character, _REPLACEMENT)
