from __future__ import annotations

import random

import pytest

from llama4_edge.chat.matching import Matcher
from llama4_edge.chat.vocabulary import any_of


@pytest.mark.parametrize("seed", range(5))
def test_texts_are_found_where_a_regular_expression_finds_the_longest(seed: int) -> None:
    rng = random.Random(seed)
    words = {"".join(rng.choices("ab]-^<|", k=rng.randint(1, 4))) for _ in range(12)}
    text = "".join(rng.choices("ab]-^<|c ", k=3000))
    pattern = any_of(words)
    assert pattern is not None
    assert list(Matcher(words).find(text)) == [match.span() for match in pattern.finditer(text)]
    assert list(Matcher(()).find(text)) == []
