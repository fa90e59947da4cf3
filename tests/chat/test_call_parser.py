"""Tool calls are found in every form that Llama 4 writes, whichever way the text is cut."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from llama4_edge.chat.call_parser import CallParser, Found
from llama4_edge.chat.events import ToolCallBegun, ToolCallEnded, ToolCallPiece
from llama4_edge.chat.tool_calls import ToolCall
from tests.fuzzing import efforts, fuzz

TOOLS = {"weather": ["city", "unit"], "add": ["a", "b"], "now": [], "für": ["x"]}


def parser(most: int | None = None) -> CallParser:
    numbers = count()
    return CallParser(TOOLS, most=most, new_id=lambda: f"call_{next(numbers)}")


def found(pieces: Iterable[str], most: int | None = None) -> list[Found]:
    one = parser(most)
    taken = [event for piece in pieces for event in one.push(piece)]
    return [*taken, *one.finish()]


def read(pieces: Iterable[str], most: int | None = None) -> tuple[str, list[ToolCall]]:
    """The text and the calls, whose events are as they should be."""
    text: list[str] = []
    calls: list[ToolCall] = []
    open_call, written = None, ""
    for event in found(pieces, most):
        if isinstance(event, str):
            assert event
            assert open_call is None
            text.append(event)
        elif isinstance(event, ToolCallBegun):
            assert open_call is None
            assert event.index == len(calls)
            open_call, written = event, ""
        elif isinstance(event, ToolCallPiece):
            assert open_call is not None
            assert event.index == open_call.index
            assert event.arguments
            written += event.arguments
        else:
            assert isinstance(event, ToolCallEnded)
            assert open_call == ToolCallBegun(event.index, event.call.id, event.call.name)
            assert event.call.arguments_json == written
            calls.append(event.call)
            open_call = None
    assert open_call is None
    return "".join(text), calls


def summary(text: str) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    rest, calls = read([text])
    assert [call.error for call in calls] == [None] * len(calls)
    return rest, [(call.name, dict(call.arguments)) for call in calls]


WEATHER = '{"name": "weather", "parameters": {"city": "Köln"}}'
ADD = '{"name": "add", "parameters": {"a": 1, "b": [2.5, {"c": null}]}}'
W = ("weather", {"city": "Köln"})
A = ("add", {"a": 1, "b": [2.5, {"c": None}]})

FORMS: dict[str, tuple[str, str, list[tuple[str, dict[str, Any]]]]] = {
    "alone": (WEATHER, "", [W]),
    "arguments": ('{"name": "add", "arguments": {"a": 1}}', "", [("add", {"a": 1})]),
    "type": ('{"type": "function", "name": "now", "parameters": {}}', "", [("now", {})]),
    "function": ('{"function": "now", "parameters": {}}', "", [("now", {})]),
    "nested function": (
        '{"id": "x", "type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}',
        "",
        [("add", {"a": 1})],
    ),
    "arguments first": ('{"parameters": {"a": 1}, "name": "add"}', "", [("add", {"a": 1})]),
    "no arguments": ('{"name": "now"}', "", [("now", {})]),
    "null": ('{"name": "now", "parameters": null}', "", [("now", {})]),
    "compact": ('{"name":"add","parameters":{"a":1}}', "", [("add", {"a": 1})]),
    "spread": ('{\n  "name" : "add",\n  "parameters" : {\n "a" : 1 }\n}', "", [("add", {"a": 1})]),
    "a list": (f"[{WEATHER}, {ADD}]", "", [W, A]),
    "a list over lines": (f"[\n  {WEATHER},\n  {ADD}\n]\n", "", [W, A]),
    "semicolons": (f"{WEATHER}; {ADD}", "", [W, A]),
    "commas": (f"{WEATHER}, {ADD}", "", [W, A]),
    "lines": (f"{WEATHER}\n{ADD}\n", "", [W, A]),
    "nothing between": (WEATHER + ADD, "", [W, A]),
    "markers": (f"<|python_start|>{WEATHER}<|python_end|>", "", [W]),
    "markers each": (f"<|python_start|>{WEATHER}<|python_end|>" * 2, "", [W, W]),
    "a list in markers": (f"<|python_start|>[{WEATHER}]<|python_end|>", "", [W]),
    "text before": (f"Let me see.\n{WEATHER}", "Let me see.\n", [W]),
    "text behind": (f"{WEATHER}\nThat is it.", "\nThat is it.", [W]),
    "text between": (f"a {WEATHER} b {ADD} c", "a  b  c", [W, A]),
    "white space around": (f" \n{WEATHER}\n ", "", [W]),
    "a fence": (f"```json\n{WEATHER}\n```", "", [W]),
    "a fence in text": (f"Here:\n```\n{WEATHER}\n```\nDone.", "Here:\n\nDone.", [W]),
    "pythonic": ('[weather(city="Köln")]', "", [W]),
    "pythonic, several": ("[now(), weather(city='Köln')]", "", [("now", {}), W]),
    "pythonic in markers": ("<|python_start|>[now()]<|python_end|>", "", [("now", {})]),
    "pythonic in text": ("So [now()], then.", "So , then.", [("now", {})]),
    "pythonic values": (
        '[add(a={"x": True, "y": (1, None)}, b=[-1.5, 0x1F, 1_000, .5])]',
        "",
        [("add", {"a": {"x": True, "y": [1, None]}, "b": [-1.5, 31, 1000, 0.5]})],
    ),
    "pythonic strings": (
        r"""[add(a='it\'s \x41\u00e9\n', b=r"\d+")]""",
        "",
        [("add", {"a": "it's Aé\n", "b": r"\d+"})],
    ),
    "pythonic, by position": ('[weather("Köln")]', "", [W]),
    "Meta's python_list": ("[add(a={x=1})]", "", [("add", {"a": {"x": 1}})]),
    "Llama 3's tag": ('<function=add>{"a": 1}</function>', "", [("add", {"a": 1})]),
    "Python's words and quotes": (
        "{'name': 'add', 'parameters': {'a': True, 'b': None,}}",
        "",
        [("add", {"a": True, "b": None})],
    ),
    "a name in ASCII": ('{"name": "f\\u00fcr", "parameters": {}}', "", [("für", {})]),
    "a path": (
        '{"name": "add", "parameters": {"a": "C:\\users\\d"}}', "", [("add", {"a": r"C:\users\d"})]
    ),
    "braces in a string": (
        '{"name": "add", "parameters": {"a": "}]{;"}}', "", [("add", {"a": "}]{;"})]
    ),
    "without the last brace": ('{"name": "add", "parameters": {"a": 1}', "", [("add", {"a": 1})]),
    "inside an object": ('{"calls": [' + WEATHER + "]}", '{"calls": }', [W]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_call_is_found_in_every_form(name: str) -> None:
    text, rest, calls = FORMS[name]
    assert summary(text) == (rest, calls)


@pytest.mark.parametrize("name", FORMS)
def test_where_a_text_is_cut_makes_no_difference(name: str) -> None:
    text = FORMS[name][0]
    whole = read([text])
    assert read(text) == whole
    for at in range(1, len(text)):
        assert read([text[:at], text[at:]]) == whole


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello.",
        "{",
        '{"a": 1} and [1, 2], [x], {x}, [] `code` <b> ```',
        '{"name": "Paris", "parameters": {"a": 1}}',
        '{"name": "add", "age": 3}',
        '{"name": "add", "description": "of numbers", "parameters": {"type": "object"}}',
        '{"type": "object", "name": "add", "parameters": {}}',
        '{"name": "adder", "parameters": {}}',
        '{"name": "ad", "parameters": {}}',
        '```python\nprint({"a": [1]})\n```\n',
        "add(a=1)",
        "[add(x)]",
        "[adder(a=1)]",
        "see [weather]",
        "<function=other>{}</function>",
        '{"name": "add", "par',
        '[{"name": "add"',
        "<|python_start|>x = 1<|python_end|>",
    ],
)
def test_what_calls_no_tool_stays_text(text: str) -> None:
    assert read([text]) == (text, [])
    assert read(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "written", "error", "rest"),
    [
        ('{"name": "add", "parameters": {"a": "1', '{"a": "1', "cut off", ""),
        ('{"name": "add", "parameters": {"a": 1', '{"a": 1', "cut off", ""),
        ('{"name": "add", "parameters": ', "", "cut off", ""),
        ("[add(a=[1, ", '{"a": [1, ', "cut off", ""),
        ('{"name": "add", "parameters": {"a": x}} y', '{"a": x}', "x is not a value", " y"),
        ('{"name": "add", "parameters": {"a" 1}} y', '{"a"1}', "'1' stands where a colon", " y"),
        ('{"name": "add", "parameters": {"a": NaN}}', '{"a": NaN}', "NaN is not a value", ""),
        ('{"name": "add", "parameters": {"a": 1e999}}', '{"a": 1e999}', "1e999 is too large", ""),
        ('{"name": "add", "parameters": {"a": 1, "a": 2}}', None, "'a' is given twice", ""),
        ('{"name": "add", "parameters": [1]}', "[1]", "not an object", ""),
        ('{"name": "add", "parameters": "x"}', '"x"', "not an object", ""),
        ("[add(a=open('x'), b=2)] y", "{\"a\": open('x'), b=2)", "open is not a value", " y"),
        ("[add(a=1, *b)] y", '{"a": 1*b)', "stands where name=value", " y"),
        ("[add(a=1, a=2)]", '{"a": 1, "a": 2}', "'a' is given twice", ""),
    ],
)
def test_a_call_that_cannot_be_carried_out_is_not_lost(
    text: str, written: str | None, error: str, rest: str
) -> None:
    for pieces in ([text], text):
        left, (call,) = read(pieces)
        assert left == rest
        assert call.name == "add"
        assert error in (call.error or "")
        assert written is None or call.arguments_json == written


def test_of_a_name_that_is_given_twice_the_last_counts() -> None:
    _, (call,) = read(['{"name": "add", "parameters": {"a": 1, "a": 2}}'])
    assert call.arguments == {"a": 2}


def test_numbers_without_end_are_an_error() -> None:
    _, (call,) = read(['{"name": "add", "parameters": {"a": ' + "1" * 100_000 + "}}"])
    assert call.error == "a number has 100,000 digits"
    assert call.arguments == {}


def test_text_is_held_back_no_longer_than_needed() -> None:
    one = parser()
    assert one.push("See ") == ["See "]
    assert one.push("{") == []
    assert one.push('"') == []
    assert one.push("nam") == []
    assert one.push("x") == ['{"namx']
    assert one.push("[") == []
    assert one.push("1") == ["[1"]
    assert one.push("<|py") == []
    assert one.push(">") == ["<|py>"]
    assert one.push('{"name": "add", "parameters": ') == [
        ToolCallBegun(0, "call_0", "add"),
    ]
    assert one.push('{"a": "x') == [ToolCallPiece(0, '{"a": "x')]
    assert one.push('y"') == [ToolCallPiece(0, 'y"')]
    assert one.push("}") == [
        ToolCallPiece(0, "}"),
        ToolCallEnded(0, ToolCall("call_0", "add", {"a": "xy"}, written='{"a": "xy"}')),
    ]
    assert one.push("}") == []
    assert one.push(" Yes") == [" Yes"]


def test_what_follows_the_last_call_that_there_may_be_is_left_out() -> None:
    text = f"a {WEATHER}; {ADD} b"
    for pieces in ([text], text):
        rest, calls = read(pieces, most=1)
        assert (rest, [call.name for call in calls]) == ("a ", ["weather"])


@pytest.mark.parametrize("unit", ["{", "[", "`", "(", '{"a":', '[{"name": "now"},', "[now(),", '"'])
@pytest.mark.parametrize("start", ["", '{"name": "add", "parameters": ', "[add(a="])
def test_brackets_without_end_neither_hang_nor_exceed_the_stack(start: str, unit: str) -> None:
    text = start + unit * 5000
    whole = read([text])
    assert read(text[at : at + 7] for at in range(0, len(text), 7)) == whole
    if start:
        assert all(call.error for call in whole[1] if call.name == "add")


def test_ten_megabytes_of_braces_are_text() -> None:
    text = "{" * 10_000_000
    assert read([text]) == (text, [])


_WORDS = st.sampled_from([
    *('{"name": "add", "parameters": ', '{"a": 1}', "}", "{", "[", "]", ";", ",", "\n", " ", '"'),
    *("[add(", "a=", ")", "now()", "'x'", "r'\\", "\\", "<|python_start|>", "<|python_end|>"),
    *("```", "json\n", "<function=add>", "</function>", "True", "1.5e", "NaN", ":"),
    *('"type": "function", ', "<function=", "x", "\t"),
    *('"name": "now"', '"parameters": ', '"arguments": "{', '"id": "x"', "ü", "\ud83d", "(", "*"),
    *(WEATHER, ADD, "text"),
])  # fmt: skip


@efforts
def test_any_splitting_of_any_text_gives_the_same(effort: settings) -> None:
    def check(given: tuple[list[str], list[int]]) -> None:
        text = "".join(given[0])
        whole = read([text])
        cuts = sorted({at % (len(text) + 1) for at in given[1]})
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert read(pieces) == whole
        assert read(text) == whole

    fuzz(check, st.tuples(st.lists(_WORDS, max_size=25), st.lists(st.integers(0, 500))), effort)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip


@efforts
def test_arguments_are_what_was_written_as_json_and_as_python(effort: settings) -> None:
    def check(value: Any) -> None:
        value = json.loads(json.dumps(value))
        expected = ("", [("add", {"a": value})])
        for ascii_only in (True, False):
            call = {"name": "add", "parameters": {"a": value}}
            assert summary(json.dumps(call, ensure_ascii=ascii_only)) == expected
        assert summary(f"[add(a={value!r})]") == expected

    fuzz(check, _VALUES, effort)
