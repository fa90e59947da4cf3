"""A JSON Schema as a document: copied, with the places in it and what refers to them.

Promises that a document which exists is JSON, neither too large nor too deep; and that references
lead to places inside it alone. Knows nothing of what keywords ask for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from ..errors import SettingError
from ..untrusted import brief, shown

MAX_NODES = 100_000
"""The most values, those inside others counted, that a schema may consist of."""

MAX_DEPTH = 100
"""How deep a schema may be nested."""
_ONE = ("additionalItems", "additionalProperties", "items")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties")


@dataclass
class Document:
    """A schema as it was given, copied, with the places that references in it name.

    Args:
        root: the schema.
        where: the setting that it came in, for errors.
    """

    root: Any
    where: str
    anchors: dict[str, str] = field(default_factory=dict)

    def refused(
        self, pointer: str, problem: str, found: object = None, expected: object = None, **more: Any
    ) -> SettingError:
        """The error about what stands at a place of the schema."""
        place = f" at {brief(pointer)}" if pointer else ""
        return SettingError(
            f"{self.where}: {problem}{place}",
            found=found,
            expected=expected,
            hint=more.get("hint"),
        )

    def target(self, reference: str, pointer: str) -> str:
        """The place that a reference names, as a JSON pointer.

        Raises:
            SettingError: it is outside the schema, or nothing is there.
        """
        root_id = self.root.get("$id", "") if isinstance(self.root, dict) else ""
        rest = reference.removeprefix(root_id) if isinstance(root_id, str) else reference
        if rest and not rest.startswith("#"):
            raise self.refused(
                pointer, "a $ref names another document", shown(reference), '"#/..."'
            )
        name = unquote(rest[1:])
        place = name if not name or name.startswith("/") else self.anchors.get(name)
        if place is None or self.at(place) is MISSING:
            raise self.refused(pointer, "a $ref names nothing in the schema", shown(reference))
        return place

    def at(self, pointer: str) -> Any:
        """What stands at a place; `MISSING` where nothing does."""
        value = self.root
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isascii() and key.isdigit():
                if int(key) >= len(value):
                    return MISSING
                value = value[int(key)]
            else:
                return MISSING
        return value


MISSING = object()
"""What stands at a place where nothing does."""


def subschemas(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas that a schema consists of, each with its place in it; references are none."""
    for keyword in _ONE:
        if isinstance(value := node.get(keyword), dict):
            yield f"/{keyword}", value
    for keyword in (*_SEVERAL, "items"):
        if isinstance(value := node.get(keyword), list):
            for index, part in enumerate(value):
                yield f"/{keyword}/{index}", part
    for keyword in (*_NAMED, "dependentSchemas", "dependencies"):
        if isinstance(value := node.get(keyword), dict):
            for name, part in value.items():
                yield f"/{keyword}/{escaped(name)}", part
    for keyword in ("propertyNames", "unevaluatedProperties", "unevaluatedItems"):
        if isinstance(value := node.get(keyword), dict):
            yield f"/{keyword}", value


def escaped(name: str) -> str:
    """A name as it stands in a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


class Copy:
    """Copies a value that should be JSON, and refuses what is not."""

    def __init__(self, where: str) -> None:
        self._where, self._count = where, 0

    def of(self, value: object, depth: int = 0, pointer: str = "") -> Any:
        """The copy of a value at some depth and place; SettingError where it is not JSON."""
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH:
            problem = "is nested too deep" if depth > MAX_DEPTH else "is too large"
            most = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_NODES:,} values"
            raise SettingError(f"{self._where}: the schema {problem}", expected=f"at most {most}")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str) and _is_unicode(value):
            return str(value)
        if isinstance(value, int) and abs(value) < 10**300:
            return int(value)
        if isinstance(value, float) and math.isfinite(value):
            return int(value) if value.is_integer() else float(value)
        if isinstance(value, list | tuple):
            parts = enumerate(value)
            return [self.of(part, depth + 1, f"{pointer}/{index}") for index, part in parts]
        if isinstance(value, Mapping) and all(
            isinstance(key, str) and _is_unicode(key) for key in value
        ):
            return {
                key: self.of(part, depth + 1, f"{pointer}/{escaped(key)}")
                for key, part in value.items()
            }
        place = f" at {brief(pointer)}" if pointer else ""
        raise SettingError(
            f"{self._where}: the schema is not JSON{place}",
            found=f"{type(value).__name__} {shown(value)}",
        )


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def find_anchors(document: Document) -> None:
    """Note the places that have a name of their own."""
    pending = [("", document.root)]
    while pending:
        pointer, node = pending.pop()
        if not isinstance(node, dict):
            continue
        for keyword in ("$anchor", "$dynamicAnchor", "$id", "id"):
            name = node.get(keyword)
            if isinstance(name, str) and (not keyword.endswith("id") or name.startswith("#")):
                name = name.removeprefix("#")
                if name in document.anchors and document.anchors[name] != pointer:
                    raise document.refused(pointer, "two schemas have one anchor", shown(name))
                document.anchors[name] = pointer
        pending += [(pointer + place, part) for place, part in subschemas(node)]
        for keyword in ("$defs", "definitions"):
            if isinstance(parts := node.get(keyword), dict):
                pending += [
                    (f"{pointer}/{keyword}/{escaped(name)}", part) for name, part in parts.items()
                ]
