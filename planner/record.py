"""Reads JSON objects entry by entry, each as the type that it should have.

Promises that what is missing or of another type is one error that names the entry. Knows nothing of
plans but what to do about a damaged one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SettingError

_HINT = "Make the plan again."


def entry(record: Mapping[str, Any], name: str, *types: type | None) -> Any:
    """The entry of that name; of one of these types, None standing for null, or of any.

    Raises:
        SettingError: there is none, or it is of another type.
    """
    if name not in record:
        raise SettingError(f"the plan is damaged: it has no {name}", hint=_HINT)
    value = record[name]
    # Not isinstance: True is an int.
    if types and type(value) not in [type(None) if kind is None else kind for kind in types]:
        raise SettingError(
            f"the plan is damaged: {name} is of the wrong type",
            found=repr(value),
            expected=" or ".join("null" if kind is None else kind.__name__ for kind in types),
            hint=_HINT,
        )
    return value


def entries(record: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    """The list of that name, each element of one type.

    Raises:
        SettingError: there is none, or an element is of another type.
    """
    values = entry(record, name, list)
    for value in values:
        if type(value) is not kind:
            raise SettingError(
                f"the plan is damaged: {name} has an element of the wrong type",
                found=repr(value),
                expected=kind.__name__,
                hint=_HINT,
            )
    return list(values)


def texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The list of strings of that name."""
    return tuple(entries(record, name, str))


def as_json(value: Any) -> Any:
    """The value with tuples as lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value
