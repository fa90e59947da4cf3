"""Schemas, grammars and regular expressions that nobody thought of: held to, or one error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from llama4_edge.chat.forms import Form
from llama4_edge.chat.structure import Structures
from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.errors import SettingError
from llama4_edge.runtime.files.model_file import check_model_file
from tests.chat.schemas import SCHEMAS
from tests.chat.test_gbnf import GRAMMARS
from tests.fuzzing import damaged_json, efforts, fuzz


class Walker:
    """Says something without sense of a form, as a model would that gives all tokens the same."""

    def __init__(self, path: Path) -> None:
        info = check_model_file(path)
        self.vocabulary = Vocabulary(info.gguf.metadata)
        self.ends = info.eog_ids
        self.structures = Structures(self.vocabulary, self.ends)

    def text(self, form: Form, seed: int, most: int = 60) -> str | None:
        """A whole text of the form, None for one that was cut off or a form that is refused."""
        try:
            constraint = self.structures.of(form).constraint()
        except SettingError as error:
            assert len(str(error)) < 1000
            return None
        rng = np.random.default_rng(seed)
        tokens: list[int] = []
        for _ in range(most):
            mask = constraint.mask()
            assert mask is not None
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(self.vocabulary)]
            allowed = np.flatnonzero(bits)
            assert allowed.size, "nothing may come, and the answer is not whole"
            ends = bits[list(self.ends)].any()
            if ends and (allowed.size == len(self.ends) or rng.random() < 0.3):
                return self.vocabulary.decode(tokens)
            tokens.append(int(rng.choice(np.setdiff1d(allowed, self.ends))))
            constraint.accept(tokens[-1])
            if constraint.is_complete:
                return self.vocabulary.decode(tokens)
        return None


@pytest.fixture(scope="module")
def walker(tiny_path: Path) -> Walker:
    return Walker(tiny_path)


NAMES = st.sampled_from(["a", "b", "c", "ä", 'q"', ""])
INTEGERS = st.integers(-20, 20)
VALUES = st.none() | st.booleans() | INTEGERS | st.sampled_from(["", "x", "é\n", "1"])
LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {}, True]),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={
            "minimum": INTEGERS, "maximum": INTEGERS, "exclusiveMinimum": INTEGERS,
            "exclusiveMaximum": INTEGERS, "multipleOf": st.integers(1, 9),
        },
    ),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": st.integers(0, 4), "maxLength": st.integers(0, 6),
            "pattern": st.sampled_from(["^a", "b$", "^[a-c]*$", "x|y", "^\\d+$"]),
        },
    ),
    st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": VALUES | st.lists(VALUES, max_size=2)}),
    st.sampled_from([{"$ref": "#/$defs/one"}, {"$ref": "#"}]),
)  # fmt: skip


def _composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("array")},
            optional={
                "items": inner | st.just(False), "prefixItems": several,
                "minItems": st.integers(0, 2), "maxItems": st.integers(0, 3),
            },
        ),
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(NAMES, inner, max_size=3)},
            optional={
                "required": st.lists(NAMES, unique=True, max_size=2),
                "additionalProperties": inner | st.booleans(),
                "patternProperties": st.fixed_dictionaries({"^a|x$": inner}),
                "dependentRequired": st.dictionaries(
                    NAMES, st.lists(NAMES, unique=True, max_size=2), max_size=2
                ),
                "maxProperties": st.integers(0, 3), "minProperties": st.integers(0, 2),
                "propertyNames": st.sampled_from([{"enum": ["a", "z"]}, {"pattern": "^[a-z]$"}]),
            },
        ),
        st.fixed_dictionaries({"anyOf": several}),
        st.fixed_dictionaries({"allOf": several}),
        st.fixed_dictionaries({"oneOf": several}),
    )  # fmt: skip


COMPOSED = st.recursive(LEAVES, _composed, max_leaves=6)


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """A schema with a definition that it may use."""
    schema = draw(COMPOSED)
    return schema | {"$defs": {"one": draw(COMPOSED)}} if isinstance(schema, dict) else schema


@efforts
def test_whatever_a_schema_lets_pass_meets_it(walker: Walker, effort: settings) -> None:
    def check(case: tuple[Any, int]) -> None:
        schema, seed = case
        text = walker.text(Form("schema", schema, "response_format"), seed)
        if text is not None:
            Draft202012Validator(schema).validate(json.loads(text))

    fuzz(check, st.tuples(documents(), st.integers(0, 9)), effort)


@efforts
def test_a_damaged_schema_is_held_to_or_refused(walker: Walker, effort: settings) -> None:
    def check(case: tuple[Any, int]) -> None:
        schema, seed = case
        text = walker.text(Form("schema", schema, "response_format"), seed)
        if text is not None:
            kind = validator_for(schema, default=Draft202012Validator)
            kind(schema).validate(json.loads(text))

    sound = [schema for schema in SCHEMAS.values() if isinstance(schema, dict)]
    inputs = st.sampled_from(sound).flatmap(damaged_json)
    fuzz(check, st.tuples(inputs, st.integers(0, 9)), effort)


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")  # of Python's own parser
@efforts
def test_any_regular_expression_is_held_to_or_refused(walker: Walker, effort: settings) -> None:
    def check(case: tuple[str, int]) -> None:
        pattern, seed = case
        text = walker.text(Form("regex", pattern, "regex"), seed)
        assert text is None or re.fullmatch(pattern, text)

    parts = st.sampled_from(
        ["a", "b", "(", ")", "[a-c]", "[^b]", "*", "+?", "{1,2}", "|", ".", r"\d", r"\w", "^", "$",
         "(?i)", "(?:", "(?=", r"\1", "é", r"\.", "[", "]", "-", "\\", "\ud800"]
    )  # fmt: skip
    patterns = st.lists(parts, max_size=8).map("".join)
    fuzz(check, st.tuples(patterns, st.integers(0, 9)), effort)


@efforts
def test_any_grammar_is_followed_or_refused(walker: Walker, effort: settings) -> None:
    def check(case: tuple[str, int]) -> None:
        walker.text(Form("grammar", case[0], "grammar"), case[1])

    parts = st.sampled_from(
        ['"a"', '"', "[a-c]", "[^", "]", "(", ")", "*", "+", "?", "{2}", "{1,", "}", "|", "root",
         "x", " ", "\n", "::=", "root ::= ", "\nx ::= ", ".", "<[97]>", "!<[98]>", "<", ">", "#",
         "\\", "\\u0041", "\0", "é", "\ud800"]
    )  # fmt: skip
    written = st.lists(parts, max_size=12).map(lambda words: "root ::= " + "".join(words))

    def cut(case: tuple[str, int, int, str]) -> str:
        grammar, begin, length, put = case
        begin %= len(grammar)
        return grammar[:begin] + put + grammar[begin + length :]

    damaged = st.tuples(
        st.sampled_from(list(GRAMMARS.values())), st.integers(0, 999), st.integers(0, 5), parts
    ).map(cut)
    fuzz(check, st.tuples(written | damaged, st.integers(0, 9)), effort)
