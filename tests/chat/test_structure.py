"""What holds answers to forms: made once, kept for a while, for each answer anew."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from llama4_edge import Conversation, Model
from llama4_edge.chat import structure as structure_module
from llama4_edge.chat.automaton import Automaton
from llama4_edge.chat.forms import Form
from llama4_edge.chat.gbnf import Tokens, read_grammar
from llama4_edge.chat.lexemes import lark_grammar
from llama4_edge.chat.making import Making
from llama4_edge.chat.options import AnswerSettings
from llama4_edge.chat.structure import Structures
from llama4_edge.chat.tools import as_tools
from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.errors import EngineError, SettingError
from llama4_edge.runtime.files.model_file import check_model_file

# Seconds for what takes one or two by itself; a busy machine takes more than the product allows.
PATIENCE = 600.0


@pytest.fixture(scope="module")
def structures(tiny_path: Path) -> Structures:
    info = check_model_file(tiny_path)
    return Structures(Vocabulary(info.gguf.metadata), info.eog_ids)


def test_a_form_that_is_asked_for_again_is_not_compiled_again(structures: Structures) -> None:
    first = structures.of(Form("regex", "again", "regex"))
    assert structures.of(Form("regex", "again", "regex")) is first
    for number in range(100):
        structures.of(Form("regex", f"other{number}", "regex"))
    assert structures.of(Form("regex", "again", "regex")) is not first


def test_the_tokens_are_those_of_the_model(full_vocabulary_bf16: Path) -> None:
    info = check_model_file(full_vocabulary_bf16)
    vocabulary = Vocabulary(info.gguf.metadata)
    structures = Structures(vocabulary, info.eog_ids)
    with patch.object(structure_module, "_SECONDS", PATIENCE):
        form = structures.of(Form("regex", "(?s:.*)", "regex"))
    mask = form.constraint().mask()
    assert mask is not None
    allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(vocabulary)]
    control = set(vocabulary.control_tokens.values())
    assert {token for token in control if allowed[token]} == set(info.eog_ids)
    whole = {token for token, data in enumerate(vocabulary.text_bytes()) if data and _is_text(data)}
    assert len(whole) > 190_000
    assert all(allowed[token] for token in whole)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_structured_answer_begins_no_call_of_a_tool(full_vocabulary_bf16: Path) -> None:
    with Model(full_vocabulary_bf16, n_ctx=64, n_threads=1) as model:
        begin = model.vocabulary.control_tokens["<|python_start|>"]
        answer = model.generate(
            "x", response_format={"type": "json_object"}, logit_bias={begin: 1000.0}, max_tokens=8
        )
        free = model.generate("x", logit_bias={begin: 1000.0}, max_tokens=8)
    assert free.tokens[0] == begin
    assert answer.text.startswith("{") and begin not in answer.tokens


def test_an_end_token_ends_an_answer_where_the_form_allows_it_alone(tiny_path: Path) -> None:
    with Model(tiny_path, n_ctx=64, n_threads=1) as model:
        bias = dict.fromkeys(model.info.eog_ids, 1000.0)
        for _ in range(3):
            answer = model.generate("x", regex="a{3}b?", logit_bias=bias, max_tokens=20)
            assert (answer.text, answer.finish_reason) == ("aaa", "stop")


def test_what_grows_beyond_measure_while_answering_is_one_error(tiny_path: Path) -> None:
    with (
        patch.object(structure_module, "_MOST_STATES", 100),
        Model(tiny_path, n_ctx=256, n_threads=1) as model,
        pytest.raises(EngineError, match="the answer cannot be held to regex any further"),
    ):
        model.generate("x", regex="[ab]*a[ab]{60}c", temperature=9.0, top_k=0, top_p=1.0, seed=1)


def test_what_grows_beyond_measure_at_once_is_refused(structures: Structures) -> None:
    with (
        patch.object(structure_module, "_SECONDS", PATIENCE),
        pytest.raises(SettingError, match="regex cannot be enforced, found lexer error"),
    ):
        structures.of(Form("regex", "(a{1000}){1000}", "regex"))


def test_what_takes_too_long_to_compile_is_refused(structures: Structures) -> None:
    begun, waits = threading.Event(), threading.Event()
    result = Making.result

    def slow(*_: object) -> None:
        begun.set()
        waits.wait(PATIENCE)

    def once_begun(making: Making[Any], seconds: float) -> Any:
        assert begun.wait(PATIENCE)
        return result(making, seconds)

    try:
        with (
            patch.object(structure_module, "_SECONDS", 0.1),
            patch.object(structure_module, "translated", slow),
            patch.object(Making, "result", once_begun),
            pytest.raises(SettingError, match=r"regex takes too long to compile, expected 0\.1 s"),
        ):
            structures.of(Form("regex", "slow", "regex"))
    finally:
        waits.set()


def test_lexemes_that_cannot_be_taken_for_each_other_are_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Comparing all of them took 28 s for a thousand rules."""
    count, compared = 300, 0
    goes_on = Automaton.goes_on

    def counting(one: Automaton, other: Automaton) -> int:
        nonlocal compared
        compared += 1
        return goes_on(one, other)

    monkeypatch.setattr(Automaton, "goes_on", counting)
    rules = [f'r{at} ::= "x{at}" r{(at + 1) % count}?' for at in range(count)]
    grammar = "root ::= r0\n" + "\n".join(rules)
    lark_grammar(read_grammar(grammar, "grammar", Tokens(lambda _: None, 300, [])), [])
    assert compared == 0


def test_threads_that_ask_at_once_are_answered(tiny_path: Path) -> None:
    texts: dict[int, str] = {}
    with Model(tiny_path, n_ctx=128, n_threads=1, n_parallel=4) as model:

        def ask(number: int) -> None:
            texts[number] = model.generate("x", regex=f"<{number}>").text

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {number: f"<{number}>" for number in range(8)}


def test_several_answers_a_stop_string_and_penalties_go_with_a_form(tiny_path: Path) -> None:
    with Model(tiny_path, n_ctx=128, n_threads=1, n_parallel=2) as model:
        answers = model.chat(
            "x", regex="[a-z]{5,9}!", n=3, seed=1, repeat_penalty=1.5, presence_penalty=0.5,
            frequency_penalty=0.5, dry_multiplier=0.5, temperature=3.0, top_k=0,
        )  # fmt: skip
        stopped = model.chat("x", regex="[a-z]{5,9}!", stop="!", seed=1)
        short = model.chat("x", regex="[a-z]{5,9}!", max_tokens=1, seed=1)
    assert [answer.seed for answer in answers] == [1, 2, 3]
    assert len({answer.text for answer in answers}) > 1
    assert all(answer.text.endswith("!") for answer in answers)
    assert stopped.text.isalpha() and stopped.stop_string == "!"
    assert short.finish_reason == "length"


def test_a_conversation_keeps_the_answer_and_not_the_form(tiny_path: Path, tmp_path: Path) -> None:
    with Model(tiny_path, n_ctx=256, n_threads=1) as model:
        talk = Conversation().user("x")
        answer = model.chat(talk, response_format={"const": {"a": [1, 2]}})
        talk = talk.assistant(answer)
        talk.save(tmp_path / "talk.json")
        again = Conversation.load(tmp_path / "talk.json")
        assert json.loads(str(again.messages[-1].content)) == {"a": [1, 2]}
        assert not model.chat(again.user("y"), max_tokens=4, seed=1).text.startswith('{"a"')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a", "grammar": "b"}, "an answer has one form, found grammar and regex"),
        ({"regex": 3}, "regex is of the wrong type"),
        ({"grammar": b"x"}, "grammar is of the wrong type"),
        ({"response_format": "json"}, "response_format is of the wrong type"),
        ({"response_format": {"type": "json_schema"}}, "response_format has no schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema has no schema",
        ),
    ],
)
def test_forms_of_the_wrong_type_are_refused(
    options: dict[str, object], message: str, tiny_path: Path
) -> None:
    with (
        Model(tiny_path, n_ctx=64, n_threads=1) as model,
        pytest.raises(SettingError, match=message),
    ):
        model.generate("x", **options)  # type: ignore[call-overload]


WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
    },
}  # fmt: skip
# A keyword that cannot be enforced: any arguments are taken, and checked when they are there.
BAG = {
    "name": "bag",
    "parameters": {"properties": {"items": {"type": "array", "uniqueItems": True}}},
}
CALL = '{"name": "weather", "parameters": {"city": "Rome"}}'


@pytest.mark.parametrize(
    ("text", "options", "fits"),
    [
        ('{"sum": 5}', {}, True),
        (CALL, {}, True),
        (f"{CALL}; {CALL}", {}, True),
        (f"{CALL}; {CALL}", {"parallel_tool_calls": False}, False),
        ('{"name": "bag", "parameters": {"items": [1]}}', {}, True),
        ('{"name": "weather", "parameters": {"town": "Rome"}}', {}, False),
        ('{"name": "other", "parameters": {}}', {}, False),
        (CALL, {"tool_choice": "none"}, False),
        ('{"sum": "5"}', {}, False),
        ("The sum is 5.", {}, False),
    ],
)
def test_beside_tools_an_answer_of_a_form_may_be_calls(
    tiny_path: Path, structures: Structures, text: str, options: dict[str, Any], fits: bool
) -> None:
    wanted = {
        "type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"],
        "additionalProperties": False,
    }  # fmt: skip
    settings = AnswerSettings(response_format=wanted, tools=(as_tools([WEATHER, BAG])), **options)
    assert settings.form is not None
    constraint = structures.of(settings.form).constraint()
    info = check_model_file(tiny_path)
    vocabulary = Vocabulary(info.gguf.metadata)
    for token in [*vocabulary.encode(text), min(info.eog_ids)]:
        mask = constraint.mask()
        assert mask is not None
        if not mask[token // 32] >> (token % 32) & 1:
            assert not fits
            return
        constraint.accept(token)
    assert fits


def test_a_strict_tool_that_cannot_be_enforced_is_refused_beside_a_form(
    structures: Structures,
) -> None:
    tools = as_tools([{**BAG, "strict": True}])
    form = AnswerSettings(response_format={"type": "object"}, tools=tools).form
    assert form is not None
    with pytest.raises(SettingError, match="the parameters of the tool bag"):
        structures.of(form)
