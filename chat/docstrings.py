"""What a docstring says of a function and of its parameters, in the forms that people write.

Promises that what is in none of the forms stays in the description. Knows no function.
"""

from __future__ import annotations

import inspect
import re

_SECTIONS = (
    "Args|Arguments|Parameters|Params|Other Parameters|Returns?|Yields?|Raises|Examples?|Notes?|"
    "Attributes|Warnings?|Warns|See Also|References|Todo"
)
_OF_PARAMETERS = ("Args", "Arguments", "Parameters", "Params", "Other Parameters")

# Google's and NumPy's headings, and the first of Sphinx's fields.
_SECTION = re.compile(rf"({_SECTIONS})\s*:\s*")
_UNDERLINED = re.compile(rf"({_SECTIONS})\s*")
_FIELD = re.compile(r":(?P<kind>\w+)(?:\s+(?P<names>[^:]*))?:\s*(?P<text>.*)")
_FIELDS = (
    "param", "parameter", "arg", "argument", "key", "keyword", "type", "return", "returns", "rtype",
    "raise", "raises", "except", "exception", "yield", "yields", "meta", "var", "ivar", "cvar",
)  # fmt: skip

_NAMES = r"(?P<names>[*\w]+(?:\s*,\s*[*\w]+)*)\s*"
# A name, perhaps a type in brackets, and a colon; or a name, a colon, and perhaps a type.
_ARGUMENT = re.compile(_NAMES + r"(?:\([^)]*\))?\s*:\s*(?P<text>.*)")
_DECLARED = re.compile(_NAMES + r"(?::.*)?(?P<text>)")


def docstring_parts(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of its function, and of each parameter by name.

    The description ends where the first section begins: Google's ``Args:``, NumPy's ``Parameters``
    with a line under it, Sphinx's ``:param name:``.
    """
    lines = inspect.cleandoc(text).split("\n")
    starts = [at for at in range(len(lines)) if _begins_section(lines, at)]
    description = "\n".join(lines[: starts[0]] if starts else lines).strip()
    texts: dict[str, str] = {}
    for at, end in zip(starts, [*starts, len(lines)][1:], strict=True):
        if field := _FIELD.fullmatch(lines[at]):
            if _FIELDS.index(field["kind"]) < _FIELDS.index("type") and field["names"]:
                whole = [field["text"], *lines[at + 1 : end]]
                texts[field["names"].split()[-1].strip("*")] = " ".join(" ".join(whole).split())
        elif lines[at].strip(" :") in _OF_PARAMETERS:
            is_numpy = _UNDERLINED.fullmatch(lines[at]) is not None
            inside = lines[at + 2 : end] if is_numpy else lines[at + 1 : end]
            texts.update(_argument_texts(inside, _DECLARED if is_numpy else _ARGUMENT))
    return description, texts


def _begins_section(lines: list[str], at: int) -> bool:
    field = _FIELD.fullmatch(lines[at])
    if _SECTION.fullmatch(lines[at]) or (field is not None and field["kind"] in _FIELDS):
        return True
    following = lines[at + 1].strip() if at + 1 < len(lines) else ""
    return (
        _UNDERLINED.fullmatch(lines[at]) is not None
        and re.fullmatch("-{3,}", following) is not None
    )


def _argument_texts(lines: list[str], form: re.Pattern[str]) -> dict[str, str]:
    """What a section says of each name; further lines of one are indented more."""
    texts: dict[str, str] = {}
    indents = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    names: list[str] = []
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and not indent and form is _ARGUMENT:
            break
        match = form.fullmatch(line.strip())
        if match and indent == min(indents):
            names = [name.strip(" *") for name in match["names"].split(",")]
            texts.update(dict.fromkeys(names, match["text"].strip()))
        elif names and line.strip():
            for name in names:
                texts[name] = f"{texts[name]} {line.strip()}".strip()
    return {name: text for name, text in texts.items() if text}
