"""Answers that follow grammars: what may come next is what llama.cpp's own sampler allows."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge import Model
from llama4_edge.chat.forms import Form
from llama4_edge.chat.gbnf import Tokens, read_grammar
from llama4_edge.chat.lexemes import lark_grammar
from llama4_edge.chat.structure import Structures
from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.errors import SettingError
from llama4_edge.runtime.files.model_file import check_model_file

NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that no UTF-8 has

Allowed = Callable[[list[int]], npt.NDArray[np.bool_]]

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}  # at most a line
"""

GRAMMARS = {
    "JSON": JSON,
    "arithmetic": 'root ::= (expr "=" ws term "\\n")+\nexpr ::= term ([-+*/] term)*\n'
    'term ::= ident | num | "(" ws expr ")" ws\nident ::= [a-z] [a-z0-9_]* ws\n'
    "num ::= [0-9]+ ws\nws ::= [ \\t\\n]*",
    "keywords": 'root ::= (stmt ";")+\nstmt ::= "int" ws id | id ws "=" ws id | "(" stmt ")"\n'
    "id ::= [a-z]+\nws ::= [ ]+",
    "what may end earlier": 'root ::= "(" root ")" | [a-z]* "ab" [a-z]*',
    "beginnings of each other": 'root ::= ("a" | "ab") ("bc" | "c") ("(" root ")")?',
    "empty parts": 'root ::= (a? b*)* ("(" root ")")?\na ::= "x"?\nb ::= ("y" | "")',
    "repetitions": 'root ::= "ab"{2,4} ("(" root ")" | "b"{3}) "c"{2,} "d"{0,1}',
    "spaces in repetitions": 'root ::= ( "a" { 2 , 3\n} | "b"\n+ )',
    "recursion": 'root ::= "a" root "a" | "a"',
    "a tail": 'root ::= [a-z ]+ ("(" root ")")*',
    "classes": 'root ::= [-a] [a-] [\\]\\[] [x^] [] "z" ("(" root ")")?',
    "escapes": 'root ::= "\\x41\\u0042\\U00000043" [\\x61-\\x63] "\\\\\\"\\t\\r\\n" root?',
    "Unicode": 'root ::= [\\u3041-\\u309F]{1,3} ("é" root)?',
    "alternatives over lines": 'root ::= "a" |\n  # one\n  "b"\nunused ::= "c"\n',
    "dashes in names": 'root ::= the-2nd ("," the-2nd)*\nthe-2nd ::= "2" | "(" root ")"',
}


@pytest.fixture(scope="module")
def structures(tiny_path: Path) -> Structures:
    info = check_model_file(tiny_path)
    return Structures(Vocabulary(info.gguf.metadata), info.eog_ids)


@pytest.fixture(scope="module")
def tokens(tiny_path: Path) -> Tokens:
    info = check_model_file(tiny_path)
    vocabulary = Vocabulary(info.gguf.metadata)

    def token_of(text: str) -> int | None:
        found = vocabulary.encode(text, special=True)
        return found[0] if len(found) == 1 else None

    return Tokens(token_of, len(vocabulary), info.eog_ids)


@pytest.fixture(scope="module")
def sampler(tiny_path: Path) -> Iterator[Callable[[str], Allowed | None]]:
    """``sampler(grammar)(tokens)``: what llama.cpp allows after them; None if it cannot read it."""
    from llama4_edge.runtime.bindings.library import llama

    bindings = llama()
    parameters = bindings.llama_model_default_params()
    parameters.vocab_only = True
    model = bindings.llama_model_load_from_file(str(tiny_path).encode(), parameters)
    vocab = bindings.llama_model_get_vocab(model)
    count = bindings.llama_vocab_n_tokens(vocab)
    kind = np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")])

    def of(grammar: str) -> Allowed | None:
        made = bindings.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
        if not made:
            return None

        def allowed(accepted: list[int]) -> npt.NDArray[np.bool_]:
            for token in accepted:
                bindings.llama_sampler_accept(made, token)
            candidates = np.zeros(count, kind)
            candidates["id"] = np.arange(count)
            data = ctypes.cast(candidates.ctypes.data, bindings.llama_token_data_p)
            array = bindings.llama_token_data_array(
                data=data, size=count, selected=-1, sorted=False
            )
            bindings.llama_sampler_apply(made, ctypes.byref(array))
            result: npt.NDArray[np.bool_] = candidates["logit"] > -np.inf
            return result

        return allowed

    yield of
    bindings.llama_model_free(model)


@pytest.mark.parametrize("name", GRAMMARS)
def test_what_may_come_next_is_what_llama_cpps_sampler_allows(
    name: str,
    tokens: Tokens,
    structures: Structures,
    sampler: Callable[[str], Allowed | None],
    tiny_path: Path,
) -> None:
    lark = lark_grammar(read_grammar(GRAMMARS[name], "grammar", tokens), tokens.ends)
    # Else what a token after another must be is one token only, as the tokenizer would cut it.
    structure = structures.of_grammar('%llguidance {"no_forcing": true}\n' + lark, "grammar")
    data = Vocabulary(check_model_file(tiny_path).gguf.metadata).text_bytes()
    # llama.cpp takes bytes for characters that no UTF-8 has, and none for NUL.
    judged = [
        index
        for index, piece in enumerate(data)
        if index in tokens.ends or (piece and b"\0" not in piece and not set(piece) & NEVER)
    ]
    for seed in range(12):
        rng = np.random.default_rng(seed)
        constraint, allowed = structure.constraint(), sampler(GRAMMARS[name])
        assert allowed is not None
        last: list[int] = []
        said = b""
        for _ in range(30):
            mask = constraint.mask()
            assert mask is not None
            ours = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(data)]
            theirs = allowed(last)
            if _is_whole(said):  # else llama.cpp takes surrogates and what is too long
                assert ours[judged].tolist() == theirs[judged].astype(np.uint8).tolist()
            choices = [index for index in judged if ours[index] and index not in tokens.ends]
            if not choices or (theirs[list(tokens.ends)].any() and rng.random() < 0.1):
                break
            last = [int(rng.choice(choices))]
            said += data[last[0]] or b""
            constraint.accept(last[0])


def _is_whole(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_one_token_is_what_is_named(structures: Structures, tokens: Tokens) -> None:
    header = tokens.of("<|header_start|>")
    assert header is not None
    form = Form("grammar", f'root ::= <|header_start|> "a" !<[{header}]>{{2}} "."', "grammar")
    constraint = structures.of(form).constraint()

    def allowed() -> set[int]:
        mask = constraint.mask()
        assert mask is not None
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: tokens.count]
        return set(np.flatnonzero(bits).tolist())

    a, b = tokens.of("a"), tokens.of("b")
    assert a is not None and b is not None
    for expected, token in (
        ({header}, header),
        ({a}, a),
        (set(range(tokens.count)) - {header, *tokens.ends}, b),
    ):
        assert allowed() == expected
        constraint.accept(token)


def test_left_recursion_which_llama_cpp_refuses_is_followed(
    tiny_path: Path, sampler: Callable[[str], Allowed | None]
) -> None:
    grammar = 'root ::= root "+" [0-9] | [0-9]'
    assert sampler(grammar) is None
    with Model(tiny_path, n_ctx=128, n_threads=1) as model:
        text = model.generate("x", grammar=grammar, max_tokens=40, top_k=0, temperature=5.0).text
    assert all(digit.isdigit() for digit in text.removesuffix("+").split("+"))


def test_a_rule_that_never_ends_is_not_begun(tokens: Tokens, structures: Structures) -> None:
    form = Form("grammar", 'root ::= "a" | "b" loop\nloop ::= "c" loop', "grammar")
    mask = structures.of(form).constraint().mask()
    assert mask is not None
    bits = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[: tokens.count])
    assert bits.tolist() == [tokens.of("a")]


REFUSED = {
    "": "no rule 'root'",
    "x": "line 1, column 2, found the end of the line, expected ::=",
    'root ::= "a': "line 1, column 12",
    'root ::= "a"\nb ::= [a-': "line 2, column 10",
    'root ::= ("a"': "line 1, column 14, found the end of the line, expected \\)",
    "root ::= *": "expected something to repeat",
    'root ::= ""*': "expected something to repeat",
    'root ::= "a"{2,1}': "a number from 2 up",
    'root ::= "a"{x}': "expected a number",
    'root ::= "\\q"': "expected an escape",
    'root ::= "\\u12"': "expected an escape",
    "root ::= nothing": "no rule 'nothing', found it in the rule root",
    'root ::= "a" ; "b"': "expected the end of the line",
    'root = "a"': "expected ::=",
    "root ::= <[99999]>": "expected a token of the model, not '<\\[99999\\]>'",
    "root ::= <no such token>": "expected a token of the model",
    "root ::= <|eot|>": "a token that does not end the answer",
    'root ::= "a" root': "no text that follows it ever ends",
    "root ::= x\nx ::= y\ny ::= x": "no text that follows it ever ends",
    "root ::= " + "(" * 200 + '"a"' + ")" * 200: "at most 100 parentheses",
}


@pytest.mark.parametrize("grammar", REFUSED)
def test_what_is_no_grammar_is_refused_with_its_place(grammar: str, structures: Structures) -> None:
    with pytest.raises(SettingError, match=REFUSED[grammar]) as caught:
        structures.of(Form("grammar", grammar, "grammar"))
    assert str(caught.value).startswith("grammar ") or str(caught.value).startswith("grammar:")


def test_a_grammar_is_for_one_answer_alone(tiny_path: Path) -> None:
    options: dict[str, Any] = {"top_k": 0, "temperature": 5.0, "max_tokens": 60, "seed": 1}
    with Model(tiny_path, n_ctx=128, n_threads=1, n_parallel=2) as model:
        held = model.generate("x", grammar='root ::= ("ab" | "ba")+ "."', n=6, **options)
        free = model.generate("x", **options)
    for answer in held:
        assert set(answer.text) <= set("ab.")
        assert answer.finish_reason == "length" or answer.text.endswith(".")
    assert not set(free.text) <= set("ab.")
