"""Which tokens belong to a piece of an answer, where characters have several."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama4_edge import Model
from llama4_edge.chat.answer import _Text
from llama4_edge.chat.options import AnswerSettings


def test_a_piece_counts_the_tokens_whose_bytes_are_all_in_the_text(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Model(tiny_path, n_ctx=64, n_threads=1) as model:
        vocabulary = model.vocabulary
    tokens = [b"a", b"\xe2", b"\xc3", b"\xa9b\xf0", b"\x9f\x98", b"\x80", b"z"]
    monkeypatch.setattr(vocabulary, "token_bytes", lambda token, **_: tokens[token])
    text = _Text(vocabulary, AnswerSettings())
    for token in range(len(tokens)):
        assert text.accept(token, False)
    # A byte that begins no character is one by itself as soon as another one begins.
    assert list(text.ready) == [("a", 1), ("\ufffd", 2), ("éb", 3), ("\U0001f600", 6), ("z", 7)]
