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
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal
from difflib import SequenceMatcher
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..errors import SettingError
from ..untrusted import brief, shown
from .alternatives import MAX_ALTERNATIVES, MAX_OPTIONAL, Alternatives, optional_run
from .chains import longest_chain
from .disjoint import parts_of
from .least import least_values
from .making import go_on
from .metaschema import DRAFTS, metaschema_error
from .regex import searched
from .schema_document import Copy, Document, escaped, find_anchors, subschemas
from .schema_words import (
    EXACT,
    FORMATS,
    INTEGER_FORMATS,
    KNOWN,
    REFUSED,
    UNCHECKED_FORMATS,
    name_patterns,
    translate,
)

# As people write it: a space, or a line's end and its indentation.
_WHITESPACE = r" |\n[ \t]{0,20}"

_ALIKE = 0.85  # from where on an unknown keyword is probably a known one that is misspelled

_MAX_MULTIPLE = 100_000  # states of what divides
_MAX_DENOMINATOR = 2**10

MAX_CHAIN = 1500
"""The most schemas that lead to one another. llguidance needs about 7 kB of the stack for each."""

MAX_LEAST = 100_000
"""The most values that the smallest answer to a schema may have."""

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions


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
    document = Document(Copy(where).of(schema), where)
    try:
        return _prepared(document)
    except RecursionError:
        raise document.refused("", "the schema is nested too deep") from None


def _prepared(document: Document) -> dict[str, Any]:
    _check_metaschema(document)
    find_anchors(document)
    if isinstance(document.root, bool):
        document.root = {} if document.root else {"enum": []}
    reachable = _reachable(document)
    for pointer, node in reachable.items():
        go_on()
        _check(document, pointer, node)
    _check_chains(document, reachable)
    _check_cycles(document, reachable)
    resolve: Callable[[str], Any] = lambda ref: document.at(document.target(ref, ""))  # noqa: E731
    _check_alternatives(document, reachable, resolve)
    least = least_values(document.root, resolve)
    if not least <= MAX_LEAST:
        if least == math.inf:
            problem = "no value meets the schema"
            hint = "A part that is required holds itself, or two parts contradict each other."
            raise document.refused("", problem, hint=hint)
        problem = "the smallest value that meets the schema is too large"
        raise document.refused("", problem, f"{int(least):,} values", f"at most {MAX_LEAST:,}")
    for pointer, node in reachable.items():
        go_on()
        translate(document, pointer, node)
    for node in reachable.values():  # last, as they are in the pointers too
        name_patterns(document, node)
    document.root.pop("x-guidance", None)  # llguidance's options, which are ours to set
    root: dict[str, Any] = document.root
    return root


def _check_metaschema(document: Document) -> None:
    """Refuse what is no JSON Schema of the draft that it names."""
    if not isinstance(document.root, dict | bool):
        raise document.refused("", "a JSON Schema is an object", shown(document.root))
    try:
        error = metaschema_error(document.root)
    except KeyError as name:
        found, expected = shown(name.args[0]), ", ".join(DRAFTS)
        raise document.refused("/$schema", "an unknown draft", found, expected) from None
    if error is not None:
        pointer = "".join(f"/{escaped(str(part))}" for part in error.absolute_path)
        problem = "this is no valid JSON Schema"
        raise document.refused(pointer, problem, brief(error.message, 200))


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


def _following(
    document: Document,
    reachable: Mapping[str, Mapping[str, Any]],
    keywords: Collection[str] | None = None,
) -> dict[str, list[str]]:
    """Where each schema leads: to what it refers to, and its parts, or those of some keywords."""
    following: dict[str, list[str]] = {}
    for pointer, node in reachable.items():
        places = [
            pointer + place
            for place, _ in subschemas(node)
            if keywords is None or place.split("/")[1] in keywords
        ]
        if isinstance(reference := node.get("$ref"), str):
            places.append(document.target(reference, pointer))
        following[pointer] = [place for place in places if place in reachable]
    return following


def _check_chains(document: Document, reachable: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a schema in which llguidance, which follows it by recursion, would find no end."""
    length = longest_chain(_following(document, reachable))
    if length > MAX_CHAIN:
        problem = "the schema refers from one part to another too often"
        raise document.refused("", problem, f"a chain of {length:,}", f"at most {MAX_CHAIN:,}")


# Those whose schemas are for the same value as the one that they stand in.
_BESIDE = ("allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies")


def _check_cycles(document: Document, reachable: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a schema that is a part of itself for the same value, which has no meaning."""
    beside = _following(document, reachable, _BESIDE)
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


def _check_alternatives(
    document: Document,
    reachable: Mapping[str, Mapping[str, Any]],
    resolve: Callable[[str], Any],
) -> None:
    """Refuse what would compile, and then take too long for each token."""
    alternatives = Alternatives(resolve)
    for pointer, node in reachable.items():
        if (count := alternatives.of(node)) <= MAX_ALTERNATIVES:
            continue
        run = optional_run(parts_of(node, resolve) or [])
        if run > MAX_OPTIONAL:
            problem = "too many properties in a row that may be left out"
            raise document.refused(pointer, problem, f"{run:,}", f"at most {MAX_OPTIONAL}")
        problem = "too many alternatives of anyOf or oneOf at one place"
        expected = f"at most {MAX_ALTERNATIVES:,}, of which an optional property counts as 8"
        raise document.refused(pointer, problem, f"{count:,}", expected)


def _check(document: Document, pointer: str, node: dict[str, Any]) -> None:
    """Refuse what cannot be enforced in one schema."""
    for keyword in node:
        if keyword in REFUSED:
            raise document.refused(pointer, "a keyword cannot be enforced", keyword)
        if keyword not in KNOWN and (meant := _meant(keyword)):
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
    known = FORMATS | UNCHECKED_FORMATS | INTEGER_FORMATS.keys()
    if name is not None and name not in known:
        expected = ", ".join(sorted(FORMATS))
        raise document.refused(pointer, "a format cannot be enforced", shown(name), expected)
    _check_patterns(document, pointer, node)
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        _bound(document, pointer, node, keyword)
    _check_multiple(document, pointer, node.get("multipleOf"))
    for keyword in ("const", "enum"):
        _check_values(document, pointer, keyword, node.get(keyword))
    _check_counts(document, pointer, node)


@lru_cache(maxsize=1024)
def _meant(keyword: str) -> str | None:
    """The keyword that an unknown one is a misspelling of."""
    if len(keyword) > 40:
        return None
    for known in KNOWN:
        if SequenceMatcher(None, keyword.lower(), known.lower()).ratio() >= _ALIKE:
            return known
    return None


def _check_patterns(document: Document, pointer: str, node: dict[str, Any]) -> None:
    from llguidance import LLMatcher

    patterns = list(node.get("patternProperties", ()))
    if isinstance(pattern := node.get("pattern"), str):
        patterns.append(pattern)
    for pattern in patterns:
        try:
            reason = ""
            text = searched(pattern, document.where, narrow=True)
            grammar = LLMatcher.grammar_from_json_schema(
                {"type": "string", "pattern": pattern if text is None else text}
            )
            if problem := LLMatcher.validate_grammar(grammar):
                reason = problem.strip().splitlines()[-1].removeprefix("error: ")
        except SettingError as error:
            reason = str(error.found or error.problem.removeprefix(f"{document.where} "))
        if reason:
            raise document.refused(
                pointer, f"a pattern cannot be enforced ({brief(reason, 120)})", shown(pattern)
            )


def _bound(document: Document, pointer: str, node: dict[str, Any], keyword: str) -> None:
    """Bring a bound to where llguidance is exact, without allowing more than it does."""
    bound = node.get(keyword)
    if isinstance(bound, bool) or not isinstance(bound, int | float) or abs(bound) <= EXACT:
        return
    is_upper = keyword.lower().endswith("maximum")
    if (bound < 0) == is_upper:
        problem = f"{keyword} is beyond what can be enforced"
        raise document.refused(pointer, problem, shown(bound), f"at most {EXACT}, or at least")
    node[keyword] = EXACT if is_upper else -EXACT


def _check_multiple(document: Document, pointer: str, divisor: int | float | None) -> None:
    """Refuse a divisor that takes too many states, or of which float64 has no exact multiples."""
    if divisor is None:
        return
    numerator, denominator = divisor.as_integer_ratio()
    if denominator > _MAX_DENOMINATOR:
        problem = "multipleOf has multiples that float64 has not"
        hint = "In float64, with which many validators compute, 0.3 is no multiple of 0.1."
        expected = "a whole number, or 0.5, 0.25, ..."
        raise document.refused(pointer, problem, divisor, expected, hint=hint)
    if numerator > _MAX_MULTIPLE:
        problem = "multipleOf is beyond what can be enforced"
        raise document.refused(pointer, problem, shown(divisor), f"at most {_MAX_MULTIPLE:,}")


def _check_values(document: Document, pointer: str, keyword: str, value: Any) -> None:
    """Refuse integers that llguidance would write as others, since it reads them as float64."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending += one
        elif isinstance(one, dict):
            pending += one.values()
        elif isinstance(one, int) and abs(one) > EXACT and int(Decimal(repr(float(one)))) != one:
            problem = f"an integer in {keyword} is beyond what can be enforced"
            raise document.refused(pointer, problem, shown(one), f"at most {EXACT}")


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


def schema_grammar(schema: object, where: str) -> str:
    """llguidance's grammar of a JSON Schema; for arguments and errors, see `prepared`."""
    whole = prepared(schema, where)
    if problem := _problem(whole):
        document = Document(whole, where)
        find_anchors(document)
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

    try:
        grammar = _grammar(schema)
    except ValueError as error:  # a number beyond float64
        return str(error)
    message = LLMatcher.validate_grammar(grammar).strip()
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
    required = {f"/properties/{escaped(name)}" for name in node.get("required", ())}
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
