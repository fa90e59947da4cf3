"""A JSON Schema that answers can be held to: checked, and in the words that llguidance knows.

Promises that every answer which the result allows meets the schema as it was given; that a keyword
which cannot be enforced is refused, and not ignored; and that a schema which no value meets, or
which is too large, is refused. Knows nothing of tokens or of models.

What llguidance has no word for is said in others where that is possible (``dependentRequired`` as
``anyOf``, ``propertyNames`` as ``patternProperties``, and so on). An unknown keyword is an
annotation, as JSON Schema has it, unless it is nearly one that is known.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from ..errors import SettingError
from ..untrusted import brief, shown
from .disjoint import are_disjoint
from .least import least_values

# As people write it: a space, or a line's end and its indentation.
_WHITESPACE = r" |\n[ \t]{0,20}"

MAX_NODES = 100_000
"""The most values, those inside others counted, that a schema may consist of."""

MAX_DEPTH = 100
"""How deep a schema may be nested."""

MAX_LEAST = 100_000
"""The most values that the smallest answer to a schema may have."""

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions


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
_REFUSED = _words("not if then else contains $dynamicRef $recursiveRef")
_ANNOTATIONS = _words(
    "$anchor $defs definitions $schema $id id $comment $vocabulary $dynamicAnchor title "
    "description default readOnly writeOnly deprecated example examples contentMediaType "
    "contentEncoding contentSchema externalDocs x-guidance"
)
_KNOWN = _ENFORCED | _TRANSLATED | _REFUSED | _ANNOTATIONS
_ALIKE = 0.85  # from where on an unknown keyword is probably a known one that is misspelled

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
_UNCHECKED_FORMATS = _words("password binary byte path file-path directory-path float double")
_INTEGER_FORMATS = {
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
}
_EXACT = 2**53  # up to which every integer is a float64, as which llguidance reads bounds

_ONE = ("additionalItems", "additionalProperties", "items")
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties")
_APPLICATORS = ("allOf", "anyOf", "oneOf", "$ref", "if")


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
        if place is None or self.at(place) is _MISSING:
            raise self.refused(pointer, "a $ref names nothing in the schema", shown(reference))
        return place

    def at(self, pointer: str) -> Any:
        """What stands at a place; `_MISSING` where nothing does."""
        value = self.root
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isascii() and key.isdigit():
                if int(key) >= len(value):
                    return _MISSING
                value = value[int(key)]
            else:
                return _MISSING
        return value


_MISSING = object()


def prepared(schema: object, where: str) -> dict[str, Any]:
    """A schema in llguidance's words.

    Args:
        schema: a JSON Schema of any draft; 2020-12 where it does not say which.
        where: the setting that it came in, for errors.

    Returns:
        A copy of it, with the order of the properties kept.

    Raises:
        SettingError: it is not a schema, holds what cannot be enforced, is met by no value, or is
            too large.
    """
    document = Document(_Copy(where).of(schema), where)
    _check_metaschema(document)
    _find_anchors(document)
    if isinstance(document.root, bool):
        document.root = {} if document.root else {"enum": []}
    reachable = _reachable(document)
    for pointer, node in reachable.items():
        _check(document, pointer, node)
    _check_cycles(document, reachable)
    least = least_values(document.root, lambda ref: document.at(document.target(ref, "")))
    if not least <= MAX_LEAST:
        if least == math.inf:
            problem = "no value meets the schema"
            hint = "A part that is required holds itself, or two parts contradict each other."
            raise document.refused("", problem, hint=hint)
        problem = "the smallest value that meets the schema is too large"
        raise document.refused("", problem, f"{int(least):,} values", f"at most {MAX_LEAST:,}")
    for pointer, node in reachable.items():
        _translate(document, pointer, node)
    document.root.pop("x-guidance", None)  # llguidance's options, which are ours to set
    root: dict[str, Any] = document.root
    return root


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
                yield f"/{keyword}/{_escaped(name)}", part
    for keyword in ("propertyNames", "unevaluatedProperties", "unevaluatedItems"):
        if isinstance(value := node.get(keyword), dict):
            yield f"/{keyword}", value


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


class _Copy:
    """Copies a value that should be JSON, and refuses what is not."""

    def __init__(self, where: str) -> None:
        self._where, self._count = where, 0

    def of(self, value: object, depth: int = 0, pointer: str = "") -> Any:
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
            return int(value) if value.is_integer() and abs(value) < _EXACT else float(value)
        if isinstance(value, list | tuple):
            parts = enumerate(value)
            return [self.of(part, depth + 1, f"{pointer}/{index}") for index, part in parts]
        if isinstance(value, Mapping) and all(
            isinstance(key, str) and _is_unicode(key) for key in value
        ):
            return {
                key: self.of(part, depth + 1, f"{pointer}/{_escaped(key)}")
                for key, part in value.items()
            }
        place = f" at {brief(pointer)}" if pointer else ""
        raise SettingError(
            f"{self._where}: the schema is not JSON{place}",
            found=f"{type(value).__name__} {shown(value)}",
        )


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _check_metaschema(document: Document) -> None:
    """Refuse what is no JSON Schema of the draft that it names."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError, best_match
    from jsonschema.validators import validator_for

    if not isinstance(document.root, dict | bool):
        raise document.refused("", "a JSON Schema is an object", shown(document.root))
    kind = validator_for(document.root, default=Draft202012Validator)
    try:
        error = best_match(kind(kind.META_SCHEMA).iter_errors(document.root))
    except RecursionError:
        raise document.refused("", "the schema is nested too deep") from None
    except SchemaError as fault:  # pragma: no cover - the metaschemas are sound
        raise document.refused("", fault.message) from fault
    if error is not None:
        pointer = "".join(f"/{_escaped(str(part))}" for part in error.absolute_path)
        problem = "this is no valid JSON Schema"
        raise document.refused(pointer, problem, brief(error.message, 200))


def _find_anchors(document: Document) -> None:
    """Note the places that have a name of their own."""
    pending = [("", document.root)]
    while pending:
        pointer, node = pending.pop()
        if not isinstance(node, dict):
            continue
        for keyword in ("$anchor", "$dynamicAnchor", "$id", "id"):
            name = node.get(keyword)
            if isinstance(name, str) and (not keyword.endswith("id") or name.startswith("#")):
                document.anchors.setdefault(name.removeprefix("#"), pointer)
        pending += [(pointer + place, part) for place, part in subschemas(node)]
        for keyword in ("$defs", "definitions"):
            if isinstance(parts := node.get(keyword), dict):
                pending += [
                    (f"{pointer}/{keyword}/{_escaped(name)}", part) for name, part in parts.items()
                ]


def _reachable(document: Document) -> dict[str, dict[str, Any]]:
    """The schemas that are used, by their place; what is only defined is not looked at."""
    found: dict[str, dict[str, Any]] = {}
    pending = [""]
    while pending:
        pointer = pending.pop()
        node = document.at(pointer)
        if pointer in found or isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise document.refused(pointer, "a $ref names what is no schema", shown(node))
        found[pointer] = node
        if isinstance(reference := node.get("$ref"), str):
            pending.append(document.target(reference, pointer))
        pending += [
            pointer + place for place, part in subschemas(node) if isinstance(part, dict | bool)
        ]
    return found


def _check_cycles(document: Document, reachable: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a schema that is a part of itself for the same value, which has no meaning."""
    beside: dict[str, list[str]] = {}
    for pointer, node in reachable.items():
        beside[pointer] = [
            pointer + place
            for place, part in subschemas(node)
            if place.split("/")[1] in ("allOf", "anyOf", "oneOf") and isinstance(part, dict)
        ]
        if isinstance(reference := node.get("$ref"), str):
            beside[pointer].append(document.target(reference, pointer))
    done: set[str] = set()
    for start in beside:
        path = [(start, iter(beside[start]))]
        above = {start}
        while path and start not in done:
            pointer, rest = path[-1]
            following = next((place for place in rest if place in beside), None)
            if following is None:
                done.add(pointer)
                above.discard(pointer)
                path.pop()
            elif following in above:
                raise document.refused(following, "the schema refers to itself for the same value")
            elif following not in done:
                above.add(following)
                path.append((following, iter(beside[following])))


def _check(document: Document, pointer: str, node: dict[str, Any]) -> None:
    """Refuse what cannot be enforced in one schema."""
    for keyword in node:
        if keyword in _REFUSED:
            raise document.refused(pointer, "a keyword cannot be enforced", keyword)
        if keyword not in _KNOWN and (meant := _meant(keyword)):
            problem = "an unknown keyword"
            raise document.refused(pointer, problem, keyword, hint=f"Did you mean {meant}?")
    if node.get("uniqueItems") is True:
        raise document.refused(pointer, "a keyword cannot be enforced", "uniqueItems")
    if node.get("nullable") is True:
        hint = 'Say "null" among the types.'
        raise document.refused(pointer, "a keyword cannot be enforced", "nullable", hint=hint)
    if pointer and isinstance(node.get("$id"), str) and not node["$id"].startswith("#"):
        raise document.refused(pointer, "a document inside the schema cannot be used", "$id")
    name = node.get("format")
    known = FORMATS | _UNCHECKED_FORMATS | _INTEGER_FORMATS.keys()
    if name is not None and name not in known:
        expected = ", ".join(sorted(FORMATS))
        raise document.refused(pointer, "a format cannot be enforced", shown(name), expected)
    _check_patterns(document, pointer, node)
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        _bound(document, pointer, node, keyword)
    _check_counts(document, pointer, node)


@lru_cache(maxsize=1024)
def _meant(keyword: str) -> str | None:
    """The keyword that an unknown one is a misspelling of."""
    if len(keyword) > 40:
        return None
    for known in _KNOWN:
        if SequenceMatcher(None, keyword.lower(), known.lower()).ratio() >= _ALIKE:
            return known
    return None


def _check_patterns(document: Document, pointer: str, node: Mapping[str, Any]) -> None:
    from llguidance import LLMatcher

    patterns = list(node.get("patternProperties", ()))
    if isinstance(pattern := node.get("pattern"), str):
        patterns.append(pattern)
    for pattern in patterns:
        grammar = LLMatcher.grammar_from_json_schema({"type": "string", "pattern": pattern})
        if problem := LLMatcher.validate_grammar(grammar):
            reason = problem.strip().splitlines()[-1].removeprefix("error: ")
            raise document.refused(
                pointer, f"a pattern cannot be enforced ({brief(reason, 120)})", shown(pattern)
            )


def _bound(document: Document, pointer: str, node: dict[str, Any], keyword: str) -> None:
    """Bring a bound to where llguidance is exact, without allowing more than it does."""
    bound = node.get(keyword)
    if isinstance(bound, bool) or not isinstance(bound, int | float) or abs(bound) <= _EXACT:
        return
    is_upper = keyword.lower().endswith("maximum")
    if (bound < 0) == is_upper:
        problem = f"{keyword} is beyond what can be enforced"
        raise document.refused(pointer, problem, shown(bound), f"at most {_EXACT}, or at least")
    node[keyword] = _EXACT if is_upper else -_EXACT


def _check_counts(document: Document, pointer: str, node: Mapping[str, Any]) -> None:
    """Refuse counts of properties that repeated names could feign.

    llguidance does not keep names of additional properties apart.
    """
    least = node.get("minProperties", 0)
    named = set(node.get("required", ())) | set(node.get("properties", {}))
    is_open = node.get("additionalProperties") is not False or node.get("patternProperties")
    if least > max(1, len(set(node.get("required", ())))) and is_open:
        hint = "Say in required which properties there are." if named else None
        problem = "a keyword cannot be enforced beside properties of any name"
        raise document.refused(pointer, problem, f"minProperties {least}", hint=hint)


# --- in other words


def _translate(document: Document, pointer: str, node: dict[str, Any]) -> None:
    """Say in llguidance's words what it has no word for; the schema is changed in its place."""
    for keyword in ("minContains", "maxContains", "uniqueItems", "nullable"):
        node.pop(keyword, None)
    _formats(node)
    if isinstance(node.get("discriminator"), dict):
        _discriminator(node)
    _unevaluated(document, pointer, node)
    _dependencies(node)
    if "propertyNames" in node:
        _property_names(document, pointer, node)
    if isinstance(options := node.get("oneOf"), list):
        _one_of(document, pointer, node, options)


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
    elif name in _INTEGER_FORMATS and node.get("type") == "integer":
        least, most = _INTEGER_FORMATS[name]
        bounds = {"minimum": max(least, -_EXACT), "maximum": min(most, _EXACT)}
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
    while isinstance(names, dict) and set(names) - _ANNOTATIONS == {"$ref"}:
        names = document.at(document.target(names["$ref"], pointer))
    rule = {} if names is True else names
    if isinstance(rule, dict):
        rule = {key: value for key, value in rule.items() if key not in _ANNOTATIONS}
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
            node["patternProperties"] = {rule["pattern"]: others}
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
    for first in range(len(options)):
        for second in range(first + 1, len(options)):
            if not are_disjoint(options[first], options[second], resolve, shared):
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


def schema_grammar(schema: object, where: str) -> str:
    """llguidance's grammar of a JSON Schema; for arguments and errors, see `prepared`."""
    whole = prepared(schema, where)
    if problem := _problem(whole):
        document = Document(whole, where)
        _find_anchors(document)
        pointer, problem = _blamed(document, problem)
        raise document.refused(pointer, "the schema cannot be enforced", brief(problem, 300))
    return _grammar(whole)


def _grammar(schema: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    options: JsonCompileOptions = {"whitespace_pattern": _WHITESPACE}
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)


def _problem(schema: Mapping[str, Any]) -> str:
    """Why llguidance cannot enforce a schema, "" where it can."""
    from llguidance import LLMatcher

    message = LLMatcher.validate_grammar(_grammar(schema)).strip()
    return message.split("\n")[0].removeprefix("Unsatisfiable schema: ")


def _blamed(document: Document, problem: str) -> tuple[str, str]:
    """The innermost part of a schema that cannot be enforced by itself, and why."""
    pointer, node = "", document.root
    while True:
        for place in _needed(node):
            inner = _problem(_alone(document, pointer + place))
            if inner:
                pointer, problem = pointer + place, inner
                node = document.at(pointer)
                break
        else:
            return pointer, problem


def _needed(node: Mapping[str, Any]) -> Iterator[str]:
    """The places in a schema which it cannot do without; of its alternatives it can."""
    required = {f"/properties/{_escaped(name)}" for name in node.get("required", ())}
    for place, part in subschemas(node):
        optional = place.startswith("/properties/") and place not in required
        if (
            isinstance(part, dict)
            and not optional
            and place.split("/")[1] not in ("anyOf", "oneOf")
        ):
            yield place


def _alone(document: Document, pointer: str) -> dict[str, Any]:
    """A part of the schema as a schema of its own, in which the references lead to the same."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(part) for part in value]
        if not isinstance(value, dict):
            return value
        copy = {key: moved(part) for key, part in value.items()}
        if isinstance(reference := value.get("$ref"), str):
            copy["$ref"] = f"#/$defs/it{quote(document.target(reference, pointer))}"
        return copy

    return {"$ref": f"#/$defs/it{quote(pointer)}", "$defs": {"it": moved(document.root)}}
