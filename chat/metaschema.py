"""What is wrong with a JSON Schema by the draft that it names.

Promises that nothing is fetched, and that the check of a schema takes time that grows with its size
alone. Knows nothing of what can be enforced.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

DRAFTS = ("draft-04", "draft-06", "draft-07", "2019-09", "2020-12")
"""The drafts of JSON Schema whose keywords are known."""


def metaschema_error(schema: Any) -> ValidationError | None:
    """What is wrong with a schema by its draft, 2020-12 where it names none; None where nothing is.

    Raises:
        KeyError: it names a draft that is none of `DRAFTS`.
        RecursionError: it is nested too deep.
    """
    from jsonschema.exceptions import best_match

    name = schema.get("$schema") if isinstance(schema, dict) else None
    validator = _validator(name if isinstance(name, str) else None)
    error: ValidationError | None = best_match(validator.iter_errors(schema))
    return error


@lru_cache(maxsize=16)
def _validator(name: str | None) -> Any:
    """What checks schemas of the draft with this name."""
    from jsonschema import Draft3Validator, Draft202012Validator
    from jsonschema.validators import validator_for

    default = Draft202012Validator
    kind = default
    if name is not None:
        kind = validator_for({"$schema": name}, default=None)
        if kind is None or kind is Draft3Validator:
            raise KeyError(name)
    return default(_flat_metaschema()) if kind is default else kind(kind.META_SCHEMA)


def _flat_metaschema() -> dict[str, Any]:
    """The metaschema of 2020-12 as one document, which is compared in a sixth of the time.

    As it is published it consists of seven, which refer to each other for each schema in a schema.
    """
    from jsonschema import Draft202012Validator
    from jsonschema_specifications import REGISTRY

    whole: dict[str, Any] = dict(Draft202012Validator.META_SCHEMA)
    properties = dict(_at_root(whole["properties"]))
    definitions: dict[str, Any] = {}
    for part in whole.pop("allOf"):
        document: Any = REGISTRY.contents(f"https://json-schema.org/draft/2020-12/{part['$ref']}")
        properties |= _at_root(document["properties"])
        definitions |= _at_root(document.get("$defs", {}))
    return {"type": whole["type"], "properties": properties, "$defs": definitions}


def _at_root(value: Any) -> Any:
    """A part of the metaschema, in which schemas are as the root says."""
    if isinstance(value, list):
        return [_at_root(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value.get("$dynamicRef") == "#meta":
        return {"$ref": "#"}
    copy = {name: _at_root(part) for name, part in value.items()}
    reference = copy.get("$ref")
    if isinstance(reference, str):  # of one document into another
        copy["$ref"] = f"#{reference.partition('#')[2]}"
    return copy
