"""Answers that match regular expressions as a whole, as Python has them."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from llama4_edge import Model
from llama4_edge.errors import SettingError


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Iterator[Model]:
    with Model(tiny_path, n_ctx=128, n_threads=1, n_parallel=4) as loaded:
        yield loaded


PATTERNS = [
    "", "abc", "yes|no", "a|ab|abc", r"[a-z]+@[a-z]+\.(com|org)", r"\d{3}-\d{4}", r"^\w+$",
    r"\A\s*x\Z", "(^a|b)c$", "a.c", "(?s)a.c", "[^a-y]{2}", "(?P<x>ab){1,3}", "a??b*?c+?",
    r"[\w-]{1,4}", r"[^\W\d_]+", "(?x) a b  # c", r"\U0001F600|\x41|\101|\N{BULLET}", "a{,3}",
    "a{2,}b", r"(?a:\w)\w", "[]a]+", "x(?:y|)z", r"[\]\[&~]+", "/", r"\/+", "(?i)[^a-z]",
    r"(?i)stra\u00dfe|kelvin", "(?i:a)b", "(a|b)*abb", "((a{1,3}b?){2}|c){1,2}",
    r"[+-]?\d+(\.\d+)?",
    r"\[[^\]]{0,9}\]", r"\$\{[a-z]+\}", r'"(?:[^"\\]|\\.)*"', r"(?:[01]\d|2[0-3]):[0-5]\d", r"\.",
    "\u00e9+|\u4e2d{2}", r"\t\n\r\f\v\a\0", "(?m)^a$", "(?:)", "(|a)b", "a(?#comment)b",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_whole_answer_is_what_re_fullmatch_finds(pattern: str, model: Model) -> None:
    answers = model.generate(
        "x", regex=pattern, n=8, max_tokens=60, temperature=9.0, top_k=0, top_p=1.0, seed=2
    )
    whole = [answer.text for answer in answers if answer.finish_reason == "stop"]
    assert all(re.fullmatch(pattern, text) for text in whole), whole
    assert whole


def test_every_text_of_a_few_letters_may_come_that_matches(model: Model) -> None:
    from llama4_edge.chat.forms import Form

    pattern = "(a|bc?){1,2}"
    structure = model.structure_of(Form("regex", pattern, "regex"))
    letters = [token for letter in "abc" for token in model.tokenize(letter)]
    found: set[str] = set()
    pending: list[tuple[tuple[int, ...], str]] = [((), "")]
    while pending:
        tokens, text = pending.pop()
        constraint = structure.constraint()
        for token in tokens:
            constraint.mask()
            constraint.accept(token)
        mask = constraint.mask()
        assert mask is not None
        bits = [bool(mask[token // 32] >> (token % 32) & 1) for token in range(32 * len(mask))]
        if any(bits[end] for end in model.info.eog_ids):
            found.add(text)
        pending += [
            ((*tokens, token), text + model.detokenize([token])) for token in letters if bits[token]
        ]
    texts = {"".join(letters) for n in range(6) for letters in product("abc", repeat=n)}
    assert found == {text for text in texts if re.fullmatch(pattern, text)}


REFUSED = {
    "(": "no regular expression, found missing \\)",
    "a**": "no regular expression, found multiple repeat",
    "[z-a]": "no regular expression, found bad character range",
    "(?=a)b": "cannot be enforced, found looking ahead or behind",
    "(?!a)b": "cannot be enforced, found looking ahead or behind",
    "(?<!a)b": "cannot be enforced, found looking ahead or behind",
    r"(a)\1": "cannot be enforced, found a backreference",
    "(?P<x>a)(?P=x)": "cannot be enforced, found a backreference",
    r"\bfoo": "cannot be enforced, found a word boundary",
    "(a)?(?(1)b|c)": "cannot be enforced, found a condition on a group",
    "a^b": "cannot be enforced, found an anchor in the middle",
    "(a$)+": "cannot be enforced, found an anchor in the middle",
    "a{1000000}": "repeats a part too often",
    "[^\\s\\S]": "cannot be enforced",
    "(" * 600 + ")" * 600: "nested too deep",
    "a" * 2_000_000: "regex is too long",
    string.ascii_letters + "(?i": "no regular expression",
}


@pytest.mark.parametrize("pattern", REFUSED, ids=lambda pattern: pattern[:20])
def test_what_cannot_be_held_to_is_refused(pattern: str, model: Model) -> None:
    with pytest.raises(SettingError, match=REFUSED[pattern]) as caught:
        model.generate("x", regex=pattern)
    assert str(caught.value).startswith("regex ")
    assert len(str(caught.value)) < 500
