"""Between how many ways to go on a JSON Schema leaves the choice at one place of an answer.

Promises an estimate that takes no compiling. Knows nothing of how llguidance counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .disjoint import parts_of

MAX_OPTIONAL = 490
"""The most properties that may be left out and follow each other. What a token costs grows with
their square: 2 ms for so many, with the vocabulary of Llama 4."""

MAX_ALTERNATIVES = 8 * MAX_OPTIONAL
"""The most ways to go on, of which a property that may be left out counts as `_A_PROPERTY`."""

_A_PROPERTY = 8


class Alternatives:
    """Counts for the schemas of one document.

    Args:
        resolve: the schema that a reference names.
    """

    def __init__(self, resolve: Callable[[str], Any]) -> None:
        self._resolve = resolve
        self._known: dict[int, int] = {}

    def of(self, schema: Any) -> int:
        """The ways to go on at the place of a schema where there are most of them."""
        if not isinstance(schema, Mapping):
            return 1
        if id(schema) not in self._known:
            parts = parts_of(schema, self._resolve) or []
            options = {
                id(one): one
                for part in parts
                for keyword in ("anyOf", "oneOf")
                for one in map(self._target, part.get(keyword, ()))
            }
            own = max(1, _A_PROPERTY * optional_run(parts))
            self._known[id(schema)] = own + sum(map(self.of, options.values()))
        return self._known[id(schema)]

    def _target(self, schema: Any) -> Any:
        """What a schema that is a reference alone refers to, so that it counts once."""
        while isinstance(schema, Mapping) and set(schema) == {"$ref"}:
            schema = self._resolve(schema["$ref"])
        return schema


def optional_run(parts: list[Mapping[str, Any]]) -> int:
    """The most properties in a row of which none has to be there.

    Args:
        parts: schemas that are for the same value.
    """
    required = {name for part in parts for name in part.get("required", ())}
    most = run = 0
    for name in dict.fromkeys(name for part in parts for name in part.get("properties", ())):
        run = 0 if name in required else run + 1
        most = max(most, run)
    return most
