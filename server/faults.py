"""What is wrong with a body, told by its field in our words.

Promises that of several faults the clearest is told, and that no sentence is pydantic's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from ..errors import did_you_mean
from ..untrusted import shown
from .errors import ApiError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MOST_FAULTS = 1000  # of which the clearest is told

_QUOTES = "'"

Path = tuple[()] | tuple["Path", int | str]
"""Where something is: where what it is in is, and its place in that."""


def unfolded(path: Path) -> list[int | str]:
    """A path from its beginning."""
    steps: list[int | str] = []
    while path:
        path, step = path
        steps.append(step)
    return steps[::-1]


def field_error(
    error: ValidationError, body: Mapping[str, Any], schema: type[BaseModel]
) -> ApiError:
    """The error about the field that is most clearly at fault."""
    if (count := error.error_count()) > _MOST_FAULTS:
        text = f"the body has {count:,} faults: entries that are not known here, or of another type"
        return ApiError(400, text, code="invalid_value")
    found = error.errors(include_url=False, include_context=True)
    fault = max(found, key=lambda one: (len(_path(one["loc"], body)), one["type"] != "missing"))
    path = _path(fault["loc"], body)
    name = written(path) or "the body"
    kind = fault["type"]
    if kind == "extra_forbidden":
        known = schema.model_fields if len(path) == 1 else ()
        hint = did_you_mean(str(path[-1]), known)
        text = f"{name} is not a field that is known here."
        return ApiError(400, f"{text} {hint}" if hint else text, name, "unknown_parameter")
    if kind == "missing":
        name = written([*path, *fault["loc"][-1:]])
        return ApiError(400, f"{name} is missing.", name, "missing_required_parameter")
    if kind == "none_required":
        about = schema.model_fields[str(path[-1])].description if len(path) == 1 else None
        text = f"{name} is not supported here. {about or ''}".rstrip()
        return ApiError(400, text, name, "unsupported_parameter")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = fault["ctx"]
        name = f"{name}.{str(context['discriminator']).strip(_QUOTES)}"
        if kind == "union_tag_not_found":
            return ApiError(400, f"{name} is missing.", name, "missing_required_parameter")
        tags = " or ".join(str(context["expected_tags"]).rsplit(", ", 1))
        text = f"{name}: found {shown(context['tag'])}, expected {tags}."
        return ApiError(400, text, name, "invalid_value")
    problem = fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        word = problem.partition(" ")[0]
        if not path:  # about several fields, the first of which is named first
            param = word if word in schema.model_fields else None
            return ApiError(400, f"{problem}.", param, "invalid_value")
        return ApiError(400, f"{name}: {problem}.", name, "invalid_value")
    same = [one for one in found if _path(one["loc"], body) == path]
    return _wrong_value(name, fault, same)


# What was expected, by pydantic's word for the fault; with what it knows of the limit.
_EXPECTED = {
    "string_type": "a string",
    "string_unicode": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    "string_too_short": "a length of at least {min_length}",
    "string_too_long": "a length of at most {max_length}",
}


def _wrong_value(name: str, fault: ErrorDetails, same: Sequence[ErrorDetails]) -> ApiError:
    """The error about a value of another type, or outside its range.

    Args:
        same: all that was said about this value, which may be of several types.
    """
    kinds = [one for one in same if one["type"] in _EXPECTED]
    expected = dict.fromkeys(
        _EXPECTED[one["type"]].format_map(one.get("ctx") or {}) for one in kinds
    )
    if "False" in expected:  # of a literal
        expected = {"false": None}
    value = fault["input"]
    found = json_shown(value)
    if fault["type"] in ("too_short", "too_long"):
        found = f"{len(value):,} {'entry' if len(value) == 1 else 'entries'}"
    text = f"{name}: found {found}"
    if expected:
        text += f", expected {' or '.join(expected)}"
    is_type = fault["type"].endswith("_type") or fault["type"] == "int_from_float"
    return ApiError(400, f"{text}.", name, "invalid_type" if is_type else "invalid_value")


def json_shown(value: object) -> str:
    """A value in few characters, and in JSON's words where Python has others."""
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    return shown(value)


def neither_text_nor_list(value: object) -> ValueError:
    """What a validator raises about a value that should be a string or a list."""
    return ValueError(f"found {json_shown(value)}, expected a string or a list")


def _path(location: Sequence[int | str], body: object) -> list[int | str]:
    """Where a fault is in the body; pydantic also names the alternatives of a union."""
    path: list[int | str] = []
    value: Any = body
    for step in location:
        is_entry = isinstance(value, Mapping) and step in value
        if is_entry or (isinstance(value, list) and step in range(len(value))):
            value = value[step]
        else:
            continue
        path.append(step)
    return path


def written(path: Sequence[int | str]) -> str:
    """A path as programs write it: ``messages[0].content``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text if len(text) <= 200 else f"{text[:200]}..."
