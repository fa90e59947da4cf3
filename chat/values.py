"""The types of JSON values, and of those that a JSON Schema allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

TYPES = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))


def types_of(value: object) -> set[str]:
    """The types in JSON Schema's words that a value has; a whole number has two."""
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"integer", "number"} if value == int(value) else {"number"}
    if isinstance(value, str):
        return {"string"}
    return {"object"} if isinstance(value, Mapping) else {"array"}


def all_types(parts: Iterable[Mapping[str, Any]]) -> set[str]:
    """The types that a value may have which meets all of these schemas."""
    types = set(TYPES)
    for part in parts:
        allowed = part.get("type")
        if isinstance(allowed, str):
            allowed = [allowed]
        if isinstance(allowed, list):
            types &= {*allowed, "integer"} if "number" in allowed else set(allowed)
        if "const" in part or isinstance(part.get("enum"), list):
            values = [part["const"]] if "const" in part else part["enum"]
            types &= {name for value in values for name in types_of(value)}
    return types


def same(first: object, second: object) -> bool:
    """Whether two values are one in JSON, where true is not 1 and 1 is 1.0."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    return first == second
