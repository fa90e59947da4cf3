"""Whether no value can meet two JSON Schemas.

Promises that two schemas which are called disjoint are. Not all that are, are called so. Knows
nothing of where the schemas come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .values import all_types, same, types_of

Resolve = Callable[[str], Any]
"""The schema that a reference names."""

_MAX_DEPTH = 8  # of properties in properties that are looked at


def are_disjoint(
    first: Any, second: Any, resolve: Resolve, required: Iterable[str] = (), depth: int = 0
) -> bool:
    """Whether no value meets both.

    Args:
        required: properties that are required beside them.
    """
    if first is False or second is False:
        return True
    ours, theirs = parts_of(first, resolve), parts_of(second, resolve)
    if ours is None or theirs is None:  # met by nothing, as they refer to themselves
        return True
    types, others = all_types(ours), all_types(theirs)
    if not _types_meet(types, others):
        return True
    if _values_apart(ours, theirs) or _values_apart(theirs, ours):
        return True
    if _ranges_apart(ours, theirs):
        return True
    branches = [
        (branch, rest)
        for parts, rest in ((ours, second), (theirs, first))
        for part in parts
        for keyword in ("anyOf", "oneOf")
        if depth < _MAX_DEPTH and isinstance(branch := part.get(keyword), list)
    ]
    for options, rest in branches:
        if all(are_disjoint(option, rest, resolve, required, depth + 1) for option in options):
            return True
    if types == others == {"object"} and depth < _MAX_DEPTH:
        return _properties_apart(ours, theirs, resolve, required, depth)
    return False


def are_told_apart(options: Sequence[Any], resolve: Resolve, required: Iterable[str] = ()) -> bool:
    """Whether a property that is always there has other values in each of some schemas.

    That is how they are mostly disjoint, and takes no comparing of each with each.
    """
    all_parts = [parts_of(option, resolve) for option in options]
    known = [parts for parts in all_parts if parts is not None]
    if len(known) < len(options) or any(all_types(parts) != {"object"} for parts in known):
        return False
    needed = [{name for part in parts for name in part.get("required", ())} for parts in known]
    return any(_are_distinct(name, known) for name in {*required, *set.intersection(*needed)})


def _are_distinct(name: str, options: Iterable[list[Mapping[str, Any]]]) -> bool:
    """Whether a property's values are listed in each of some schemas, and each in one alone."""
    seen: set[str] = set()
    for parts in options:
        schemas = [part.get("properties", {}).get(name) for part in parts]
        listed = [one for one in schemas if isinstance(one, Mapping) and {"const", "enum"} & {*one}]
        if not listed:
            return False
        values = [listed[0]["const"]] if "const" in listed[0] else listed[0]["enum"]
        texts = {json.dumps(value, sort_keys=True) for value in values}
        if texts & seen:
            return False
        seen |= texts
    return True


def parts_of(schema: Any, resolve: Resolve) -> list[Mapping[str, Any]] | None:
    """A schema and what it refers to or holds in ``allOf``, all of which a value has to meet.

    None where that is itself, or False.
    """
    parts: list[Mapping[str, Any]] = []
    gathered: set[int] = set()

    def gather(node: Any, above: tuple[int, ...]) -> bool:
        if node is False or id(node) in above:
            return False
        if not isinstance(node, Mapping) or id(node) in gathered:
            return True
        gathered.add(id(node))
        parts.append(node)
        inner = list(node.get("allOf", ()))
        if isinstance(reference := node.get("$ref"), str):
            inner.append(resolve(reference))
        return all(gather(part, (*above, id(node))) for part in inner)

    return parts if gather(schema, ()) else None


def _types_meet(first: set[str], second: set[str]) -> bool:
    if first & second:
        return True
    numbers = {"integer", "number"}
    return bool(first & numbers) and bool(second & numbers)


def _values_apart(ours: list[Mapping[str, Any]], theirs: list[Mapping[str, Any]]) -> bool:
    """Whether some value is listed in ours, and none of the list is possible in theirs."""
    for part in ours:
        values = [part["const"]] if "const" in part else part.get("enum")
        if values is None:
            continue
        for other in theirs:
            listed = [other["const"]] if "const" in other else other.get("enum")
            if listed is not None and not any(same(v, o) for v in values for o in listed):
                return True
        if not any(types_of(value) & all_types(theirs) for value in values):
            return True
    return False


def _ranges_apart(ours: list[Mapping[str, Any]], theirs: list[Mapping[str, Any]]) -> bool:
    numbers = {"integer", "number"}
    lengths = (
        (numbers, "minimum", "maximum"),
        ({"string"}, "minLength", "maxLength"),
        ({"array"}, "minItems", "maxItems"),
    )
    for types, least, most in lengths:
        if not all_types(ours) | all_types(theirs) <= types:
            continue
        for first, second in ((ours, theirs), (theirs, ours)):
            low = max((part[least] for part in first if least in part), default=None)
            high = min((part[most] for part in second if most in part), default=None)
            if low is not None and high is not None and low > high:
                return True
    return False


def _properties_apart(
    ours: list[Mapping[str, Any]],
    theirs: list[Mapping[str, Any]],
    resolve: Resolve,
    required: Iterable[str],
    depth: int,
) -> bool:
    """Whether a property that one of them requires is never as both say."""
    names = {name for part in (*ours, *theirs) for name in part.get("required", ())}
    for name in {*names, *required}:
        first = [_property(part, name) for part in ours]
        second = [_property(part, name) for part in theirs]
        if any(are_disjoint(a, b, resolve, (), depth + 1) for a in first for b in second):
            return True
    return False


def _property(part: Mapping[str, Any], name: str) -> Any:
    properties = part.get("properties", {})
    if name in properties:
        return properties[name]
    return not (part.get("additionalProperties") is False and not part.get("patternProperties"))
