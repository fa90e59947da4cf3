"""`llama4 run`: answers of a given form, and as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llama4_edge import Model
from tests.command_line import RUN, Command, greedy, the_error

SCHEMA = '{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}'
HOT = ("-n", 60, "--temp", 5, "-s", 3)


def test_an_answer_is_as_a_schema_says(llama4: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA, encoding="utf-8")
    flags = (("-j", SCHEMA), ("--json-schema", SCHEMA), ("-jf", "schema.json"))
    outputs = {llama4("run", model, "Hello", *HOT, *flag).stdout for flag in flags}
    (output,) = outputs
    assert [entry in (1, 2) for entry in json.loads(output)] == [True, True]


def test_an_answer_is_as_a_grammar_or_a_regular_expression_says(
    llama4: Command, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "ab.gbnf").write_text('root ::= ("a" | "b"){3}\n', encoding="utf-8")
    flags = (
        ("--grammar", 'root ::= ("a" | "b"){3}'), ("--grammar-file", "ab.gbnf"),
        ("--regex", "[ab]{3}"),
    )  # fmt: skip
    for flag in flags:
        output = llama4("run", model, "Hello", *HOT, *flag).stdout
        assert re.fullmatch(r"[ab]{3}\n", output)


def test_json_has_the_answer_and_what_it_took(llama4: Command, model: Path) -> None:
    result = llama4("run", model, "Hello", *RUN, "--json")
    record = json.loads(result.stdout)
    assert record["text"] == greedy(model, "Hello", 8)
    assert (record["finish_reason"], record["completion_tokens"]) == ("length", 8)
    assert record["prompt_tokens"] > 1 and record["seed"] >= 0
    assert "logprobs" not in record


def test_json_has_how_likely_each_token_was(llama4: Command, model: Path) -> None:
    record = json.loads(llama4("run", model, "Hello", *RUN, "--json", "--logprobs", 2).stdout)
    with Model(model) as loaded:
        answer = loaded.chat("Hello", max_tokens=8, temperature=0, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert [(entry["id"], entry["logprob"]) for entry in record["logprobs"]] == [
        (entry.token, pytest.approx(entry.logprob, abs=1e-3)) for entry in answer.logprobs
    ]
    for entry in record["logprobs"]:
        assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]
        first, second = (top["logprob"] for top in entry["top_logprobs"])
        assert entry["logprob"] <= first and second <= first


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-j", "{"), "the schema is not JSON"),
        (("-jf", "no.json"), "no.json does not exist"),
        (("--grammar-file", "no.gbnf"), "no.gbnf does not exist"),
        (("-j", "{}", "--regex", "a"), "one form: give --json-schema or --regex"),
        (("--logprobs", 1), "--logprobs goes with --json"),
        (("--logprobs", "x", "--json"), "not a whole number"),
    ],
)
def test_forms_that_are_none_are_usage_errors(
    llama4: Command, model: Path, flags: tuple[object, ...], message: str
) -> None:
    result = llama4("run", model, "Hello", *flags)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--grammar", 'root ::= "a'), "grammar is not GBNF in line 1, column 12"),
        (("--regex", "("), "regex is no regular expression"),
        (("-j", '{"type": "x"}'), "response_format (-j).schema: this is no valid JSON Schema"),
        (("--logprobs", 101, "--json"), "top_logprobs (--logprobs) is outside its range"),
    ],
)
def test_forms_that_cannot_be_held_to_are_one_error(
    llama4: Command, model: Path, flags: tuple[object, ...], message: str
) -> None:
    result = llama4("run", model, "Hello", *flags)
    if "--json" in flags:
        assert message.replace(" (--logprobs)", "") in json.loads(result.stdout)["problem"]
    else:
        assert message in the_error(result)
