"""The form of an answer, as it is asked for: a JSON Schema, a grammar or a regular expression.

Promises that at most one is asked for, and that it has the right type. Knows nothing of what is in
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SettingError
from ..ranges import check_text, value_text, wrong_type

MAX_TEXT = 2**20
"""The most characters of a grammar or a regular expression."""

ResponseFormat = Mapping[str, Any] | type
"""OpenAI's forms, a JSON Schema, or a class of pydantic's."""

_FORMATS = (
    '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": ...}'
)


@dataclass(frozen=True)
class Form:
    """The form of an answer that was asked for.

    Args:
        kind: "schema", "grammar" or "regex"; or "calls", of tools.
        value: the JSON Schema, or the text; or what `calls_form` makes.
        where: the setting, and the place in it, for errors.
    """

    kind: str
    value: Any
    where: str


def form_of(response_format: object, grammar: object, regex: object) -> Form | None:
    """The form that settings ask for, None for any text.

    Args:
        response_format: as OpenAI has it, or a JSON Schema, or a class of pydantic's.
        grammar: in llama.cpp's GBNF.
        regex: as Python's ``re`` has it, for the whole answer.

    Raises:
        SettingError: they are of the wrong types, or more than one was given.
    """
    given = {"response_format": response_format, "grammar": grammar, "regex": regex}
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) > 1:
        raise SettingError(
            "an answer has one form",
            found=" and ".join(asked),
            expected="at most one of response_format, grammar and regex",
        )
    for name in ("grammar", "regex"):
        text = given[name]
        check_text(name, text, or_none=True)
        if isinstance(text, str):
            if len(text) > MAX_TEXT:
                found, most = f"{len(text):,} characters", f"at most {MAX_TEXT:,}"
                raise SettingError(f"{name} is too long", found=found, expected=most)
            return Form(name, text, name)
    return None if response_format is None else _of_format(response_format)


def _of_format(value: object) -> Form | None:
    name = "response_format"
    if isinstance(value, type) and callable(make := getattr(value, "model_json_schema", None)):
        return Form("schema", make(), name)
    if not isinstance(value, Mapping):
        raise wrong_type(name, value, f"{_FORMATS}, or a JSON Schema")
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Form("schema", value.get("schema", {"type": "object"}), f"{name}.schema")
    if kind != "json_schema":
        return Form("schema", value, name)
    inner, where = value, name
    if "json_schema" in value:
        inner, where = value["json_schema"], f"{name}.json_schema"
    if not isinstance(inner, Mapping) or inner.get("schema") is None:
        raise SettingError(f"{where} has no schema", found=value_text(inner), expected=_FORMATS)
    return Form("schema", inner["schema"], f"{where}.schema")
