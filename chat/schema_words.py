"""What of a JSON Schema llguidance has no word for, said in words that it has.

Promises that the result lets nothing pass that the schema would not. Knows nothing of which
schemas are sound.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

from .disjoint import are_disjoint, are_told_apart
from .making import go_on
from .regex import searched
from .schema_document import Document


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Those of llguidance.
FORMATS = _words("date-time time date duration email hostname ipv4 ipv6 uuid uri")
"""The formats that are enforced."""

_ENFORCED = _words(
    "anyOf oneOf allOf $ref const enum type items additionalItems prefixItems minItems maxItems "
    "properties additionalProperties patternProperties required minProperties maxProperties "
    "minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum "
    "multipleOf"
)
_TRANSLATED = _words(
    "dependentRequired dependentSchemas dependencies propertyNames unevaluatedProperties "
    "unevaluatedItems discriminator uniqueItems minContains maxContains nullable"
)
REFUSED = _words("not if then else contains $dynamicRef $recursiveRef")
ANNOTATIONS = _words(
    "$anchor $defs definitions $schema $id id $comment $vocabulary $dynamicAnchor title "
    "description default readOnly writeOnly deprecated example examples contentMediaType "
    "contentEncoding contentSchema externalDocs x-guidance"
)
KNOWN = _ENFORCED | _TRANSLATED | REFUSED | ANNOTATIONS

# llguidance's have the 29th of February in any year, and a 60th second in any minute.
_DATE = (
    r"(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
)
_HOUR = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_HOUR})"
_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
_LONGEST = {"hostname": 253, "email": 254}

# Of strings, they say nothing that can be checked; of numbers, how they are kept.
UNCHECKED_FORMATS = _words("password binary byte path file-path directory-path float double")
INTEGER_FORMATS = {
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
}
EXACT = 2**53  # up to which every integer is a float64, as which llguidance reads bounds
_APPLICATORS = ("allOf", "anyOf", "oneOf", "$ref", "if")


def translate(document: Document, pointer: str, node: dict[str, Any]) -> None:
    """Say in llguidance's words what it has no word for; the schema is changed in its place."""
    for keyword in ("minContains", "maxContains", "uniqueItems", "nullable"):
        node.pop(keyword, None)
    if isinstance(pattern := node.get("pattern"), str):
        node["pattern"] = _as_meant(document, pattern)
    _multiples(node)
    _formats(node)
    if isinstance(node.get("discriminator"), dict):
        _discriminator(node)
    _unevaluated(document, pointer, node)
    _dependencies(node)
    if "propertyNames" in node:
        _property_names(document, pointer, node)
    if isinstance(options := node.get("oneOf"), list):
        _one_of(document, pointer, node, options)


def name_patterns(document: Document, node: dict[str, Any]) -> None:
    """Patterns of names whose words llguidance reads otherwise, in its words.

    Those of names are not narrowed: what one of them matches, its schema is for.
    """
    if isinstance(patterns := node.get("patternProperties"), dict):
        node["patternProperties"] = {
            (searched(one, document.where, narrow=False) or one) if _OTHERWISE.search(one) else one
            : schema for one, schema in patterns.items()
        }  # fmt: skip


def _as_meant(document: Document, pattern: str) -> str:
    return searched(pattern, document.where, narrow=True) or pattern


# What llguidance's regular expressions mean otherwise than Python's: classes, sets of sets.
_OTHERWISE = re.compile(r"\\[wWsS]|&&|--|~~|\[[^\]]*\[|[+*?}]\+|\(\?")


def _multiples(node: dict[str, Any]) -> None:
    """Multiples of a fraction where float64 has them all."""
    if isinstance(node.get("multipleOf"), float):
        most = 2**40
        node.setdefault("allOf", []).append({"minimum": -most, "maximum": most})


def _formats(node: dict[str, Any]) -> None:
    name = node.get("format")
    if name in _LONGEST:
        node["maxLength"] = min(node.get("maxLength", _LONGEST[name]), _LONGEST[name])
    if name is None or (name in FORMATS and name not in _PATTERNS):
        return
    del node["format"]
    if name in _PATTERNS:
        if "pattern" in node:
            node.setdefault("allOf", []).append({"pattern": _PATTERNS[name]})
        else:
            node["pattern"] = _PATTERNS[name]
    elif name in INTEGER_FORMATS and node.get("type") == "integer":
        least, most = INTEGER_FORMATS[name]
        bounds = {"minimum": max(least, -EXACT), "maximum": min(most, EXACT)}
        node.setdefault("allOf", []).append({"type": "integer", **bounds})


def _discriminator(node: dict[str, Any]) -> None:
    """OpenAPI's: the property that tells the options apart is there."""
    name = node["discriminator"].get("propertyName")
    if isinstance(name, str):
        required = node.setdefault("required", [])
        if name not in required:
            required.append(name)


def _unevaluated(document: Document, pointer: str, node: dict[str, Any]) -> None:
    for keyword, plain in (
        ("unevaluatedProperties", "additionalProperties"),
        ("unevaluatedItems", "items"),
    ):
        if keyword not in node:
            continue
        value = node.pop(keyword)
        if value is True or plain in node:
            continue
        if any(applicator in node for applicator in _APPLICATORS):
            problem = "a keyword cannot be enforced beside allOf, anyOf, oneOf or $ref"
            raise document.refused(pointer, problem, keyword)
        node[plain] = value


def _dependencies(node: dict[str, Any]) -> None:
    """Properties that ask for others: either the one is absent, or the others are as asked."""
    needs: list[tuple[str, Any]] = []
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        if isinstance(value := node.pop(keyword, None), dict):
            needs += value.items()
    for name, need in needs:
        present = {"required": [name, *(need if isinstance(need, list) else ())]}
        asked = present if isinstance(need, list) else {"allOf": [present, need]}
        absent = {"properties": {name: False}}
        node.setdefault("allOf", []).append({"anyOf": [absent, asked]})


def _property_names(document: Document, pointer: str, node: dict[str, Any]) -> None:
    """Names of properties that are as a schema says."""
    names = node.pop("propertyNames")
    while isinstance(names, dict) and set(names) - ANNOTATIONS == {"$ref"}:
        names = document.at(document.target(names["$ref"], pointer))
    rule = {} if names is True else names
    if isinstance(rule, dict):
        rule = {key: value for key, value in rule.items() if key not in ANNOTATIONS}
        if rule.get("type") == "string":
            del rule["type"]
    others = node.get("additionalProperties", True)
    declared = node.setdefault("properties", {})
    if rule == {}:
        return
    if rule is False or "patternProperties" in node or len(rule) > 1:
        pass
    elif "enum" in rule or "const" in rule:
        allowed = [name for name in rule.get("enum", [rule.get("const")]) if isinstance(name, str)]
        for name in declared:
            if name not in allowed:
                declared[name] = False
        if others is not False:
            for name in allowed:
                declared.setdefault(name, others)
        node["additionalProperties"] = False
        return
    elif "pattern" in rule:
        for name in declared:
            if not re.search(rule["pattern"], name):
                declared[name] = False
        if others is not False:
            pattern = _as_meant(document, rule["pattern"])
            node["patternProperties"] = {pattern: others}
        node["additionalProperties"] = False
        return
    raise document.refused(
        f"{pointer}/propertyNames", "names of properties cannot be enforced so",
        expected="one pattern, or an enum, and no patternProperties beside it",
    )  # fmt: skip


def _one_of(document: Document, pointer: str, node: dict[str, Any], options: list[Any]) -> None:
    """Say ``anyOf`` where no value meets two of the options."""
    resolve: Callable[[str], Any] = lambda ref: document.at(document.target(ref, pointer))  # noqa: E731
    shared = node.get("required", [])
    asked = options
    if "type" in node:
        asked = [{"type": node["type"], "allOf": [option]} for option in options]
    n_compared = 0 if are_told_apart(asked, resolve, shared) else len(asked)
    for first, second in combinations(range(n_compared), 2):
        go_on()
        if not are_disjoint(asked[first], asked[second], resolve, shared):
            raise document.refused(
                f"{pointer}/oneOf",
                "a value may meet two options, which cannot be prevented",
                found=f"options {first} and {second}",
                hint="Use anyOf, or tell them apart by a required property with a const.",
            )
    del node["oneOf"]
    if "anyOf" in node:
        node.setdefault("allOf", []).append({"anyOf": options})
    else:
        node["anyOf"] = options
