"""How many values the smallest JSON value has that meets a schema.

Promises never more than it has: what is infinite here is met by no value that ends. Knows nothing
of what else a schema asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .disjoint import parts_of
from .values import all_types

_LETTERS = 100  # characters that count as one value more


def least_values(schema: Any, resolve: Callable[[str], Any]) -> float:
    """The number of values in the smallest one that meets a schema; infinity for none."""
    return _Least(resolve).of(schema)


class _Least:
    """The least solution of the equations that the schemas are for each other, from above.

    Each schema begins as one that nothing meets, and gets smaller for as long as something changes.
    """

    def __init__(self, resolve: Callable[[str], Any]) -> None:
        self._resolve = resolve
        self._known: dict[int, float] = {}
        self._nodes: dict[int, Mapping[str, Any]] = {}

    def of(self, schema: Any) -> float:
        if not isinstance(schema, Mapping):
            return math.inf if schema is False else 1.0
        self._value(schema)
        changed = True
        while changed:
            changed = False
            for key, node in list(self._nodes.items()):
                value = self._computed(node)
                if value < self._known[key]:
                    self._known[key], changed = value, True
        return self._known[id(schema)]

    def _value(self, node: Any) -> float:
        """What is known of a schema; those that are asked for are looked at next time."""
        if not isinstance(node, Mapping):
            return math.inf if node is False else 1.0
        if id(node) not in self._known:
            self._known[id(node)], self._nodes[id(node)] = math.inf, node
            self._known[id(node)] = self._computed(node)
        return self._known[id(node)]

    def _computed(self, node: Mapping[str, Any]) -> float:
        parts = parts_of(node, self._resolve)
        if parts is None:
            return math.inf
        least = min((self._of_type(name, parts) for name in all_types(parts)), default=math.inf)
        for part in parts:
            for keyword in ("anyOf", "oneOf"):
                if isinstance(options := part.get(keyword), list):
                    least = max(least, min(map(self._value, options), default=math.inf))
        return least

    def _of_type(self, name: str, parts: list[Mapping[str, Any]]) -> float:
        if name == "string":
            return 1.0 + max((part.get("minLength", 0) for part in parts), default=0) // _LETTERS
        if name == "array":
            return self._array(parts)
        return self._object(parts) if name == "object" else 1.0

    def _array(self, parts: list[Mapping[str, Any]]) -> float:
        least = 1.0
        for part in parts:
            count = part.get("minItems", 0)
            items = part.get("items", True)
            first = items if isinstance(items, list) else part.get("prefixItems", [])
            rest = part.get("additionalItems", True) if isinstance(items, list) else items
            needed = sum(map(self._value, first[:count]))
            others = max(count - len(first), 0)
            least = max(least, 1 + needed + (others * self._value(rest) if others else 0))
        return least

    def _object(self, parts: list[Mapping[str, Any]]) -> float:
        total = 1.0
        for name in {name for part in parts for name in part.get("required", ())}:
            schemas = (part.get("properties", {}).get(name, True) for part in parts)
            total += max(map(self._value, schemas))
        return total
