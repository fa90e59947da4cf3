from __future__ import annotations

import random
import unicodedata

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from llama4_edge.chat.matching import Matcher, is_alone, is_space
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


def test_letters_of_words_and_white_space_are_those_of_tokenizers() -> None:
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.add_tokens(
        [
            AddedToken("<W>", single_word=True, normalized=False),
            AddedToken("<S>", rstrip=True, normalized=False),
        ]
    )
    # Planes 0 and 1, but surrogates and what is not assigned: versions of Unicode differ there.
    characters = [
        character
        for character in map(chr, range(0x20000))
        if unicodedata.category(character) not in ("Cs", "Cn")
    ]
    words = tokenizer.encode_batch([f"<W>{character}" for character in characters])
    spaces = tokenizer.encode_batch([f"<S>{character}" for character in characters])
    assert [c for c, it in zip(characters, words, strict=True) if 1 in it.ids] == [
        c for c in characters if is_alone(f"<W>{c}", 0, 3)
    ]
    assert [c for c, it in zip(characters, spaces, strict=True) if it.ids == [2]] == [
        c for c in characters if is_space(c)
    ]
