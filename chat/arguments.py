"""Whether values are as a JSON Schema says.

Promises that a check ends: nothing is fetched, and a pattern that Python could try without end on a
text that a model wrote is left out. Knows nothing of tools.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from .regex import parsed

MAX_ERROR = 300
"""Characters of what is wrong with values."""

_MAX_MATCHED = 2000  # characters of a text that is compared with a pattern


def problem_with(
    value: Any, schema: Mapping[str, Any], values: str = "the arguments"
) -> str | None:
    """What is wrong with a value by a schema; None where nothing is.

    Args:
        values: what they are called where they cannot be compared.
    """
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # An empty registry: references to elsewhere stay unresolved.
    validator = _validator_class()(dict(schema), registry=Registry())
    try:
        error = next(iter(validator.iter_errors(value)), None)
    except (Unresolvable, RecursionError, ValueError, OverflowError, re.error) as fault:
        return f"{values} cannot be compared with the schema: {fault}"[:MAX_ERROR]
    if error is None:
        return None
    where = "".join(f"[{part!r}]" for part in error.absolute_path)
    text = f"{where}: {error.message}" if where else str(error.message)
    return text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}..."


def schema_problem(schema: Mapping[str, Any]) -> str | None:
    """Why it is no JSON Schema; None where it is."""
    from jsonschema.exceptions import SchemaError

    try:
        _validator_class().check_schema(dict(schema))
    except SchemaError as error:
        where = ".".join(map(str, error.absolute_path))
        return f"{where}: {error.message}"[:MAX_ERROR] if where else str(error.message)[:MAX_ERROR]
    except RecursionError:
        return "it is nested too deeply"
    return None


@lru_cache(maxsize=1)
def _validator_class() -> Any:
    """jsonschema's validator, with patterns that end."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def pattern(_validator: Any, wanted: str, instance: Any, _schema: Any) -> Iterator[Any]:
        if isinstance(instance, str) and not _may_match(wanted, instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    def pattern_properties(
        validator: Any, wanted: Mapping[str, Any], instance: Any, _schema: Any
    ) -> Iterator[Any]:
        if not isinstance(instance, dict):
            return
        for one, schema in wanted.items():
            for name, value in instance.items():
                if _ends(one) and len(name) <= _MAX_MATCHED and re.search(one, name):
                    yield from validator.descend(value, schema, path=name, schema_path=one)

    return extend(
        Draft202012Validator, {"pattern": pattern, "patternProperties": pattern_properties}
    )


def _may_match(pattern: str, text: str) -> bool:
    """Whether a text matches, or cannot be compared."""
    if not _ends(pattern) or len(text) > _MAX_MATCHED:
        return True
    return re.search(pattern, text) is not None


@lru_cache(maxsize=256)
def _ends(pattern: str) -> bool:
    """Whether a pattern repeats nothing that itself repeats or has alternatives."""
    try:
        return not _repeats(parsed(pattern), inside=False)
    except RecursionError:
        return False


def _repeats(node: Any, *, inside: bool) -> bool:
    """Whether a repetition that may go on stands in another one."""
    for operator, value in node:
        name = str(operator)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, most, inner = value
            goes_on = int(most) > 1
            if (goes_on and inside) or _repeats(inner, inside=inside or int(most) > _FEW):
                return True
        elif name == "BRANCH":
            if inside or any(_repeats(one, inside=inside) for one in value[1]):
                return True
        elif name in ("SUBPATTERN", "ATOMIC_GROUP", "ASSERT", "ASSERT_NOT"):
            inner = value if name == "ATOMIC_GROUP" else value[-1]
            if _repeats(inner, inside=inside):
                return True
        elif name in ("GROUPREF", "GROUPREF_EXISTS"):
            return True
    return False


_FEW = 10  # repetitions of something that repeats itself
