"""One object of a config.json, read field by field; its faults are collected.

Knows no field by name, and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from ..untrusted import shown

MAX_WIDTH = 1 << 21
"""The widest axis that is read, about a hundred times those of the published models."""


class Fields:
    """Reads one config object field by field, and remembers the faults and what was read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._read: set[str] = set()
        self.faults: list[str] = []

    def get(self, name: str, default: object = None) -> Any:
        """A field's value, or where it is absent or null the default."""
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int) -> int:
        """A whole number; one within the range where the field has no such."""
        value = self.get(name, default)
        if type(value) is not int or not low <= value <= high:
            self.fault(name, value, f"a whole number from {low} to {high}")
            return low
        return value

    def number(self, name: str, default: float | None = None, *, low: float, high: float) -> float:
        """A number; one within the range where the field has no such."""
        value = self.get(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            self.fault(name, value, f"a number from {low:g} to {high:g}")
            return low
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false; the default where the field has neither."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.fault(name, value, "true or false")
            return default
        return value

    def must_be(self, name: str, expected: object, default: object) -> None:
        """A field with just one value that llama.cpp can represent."""
        value = self.get(name, default)
        if value != expected:
            self.fault(name, value, repr(expected))

    def fault(self, name: str, value: object, expected: str) -> None:
        """Remember what is wrong with a field."""
        found = "nothing" if value is None else shown(value)
        self.faults.append(f"{name}: {found} (llama.cpp: {expected})")

    def unknown(self, ignored: Set[str]) -> list[str]:
        """Fields that nobody read, but for the `ignored` ones."""
        return sorted(self._values.keys() - self._read - ignored)
