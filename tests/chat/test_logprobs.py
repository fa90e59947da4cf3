"""How likely each token of an answer was. `tests/reference` compares it with transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llama4_edge import Model, TextPiece
from llama4_edge.errors import SettingError


def test_a_form_changes_what_is_chosen_and_not_how_likely_it_was(tiny_path: Path) -> None:
    with Model(tiny_path, n_ctx=64, n_threads=1) as model:
        held = model.generate("x", regex="[ab]{4}", logprobs=True, seed=1)
        assert held.logprobs is not None
        tokens = [*model.tokenize("x"), *held.tokens]
        logits = model.logits(tokens)[-len(held.tokens) - 1 : -1].astype(np.float64)
    for entry, row in zip(held.logprobs, logits, strict=True):
        assert entry.logprob == pytest.approx(
            row[entry.token] - np.log(np.exp(row).sum()), abs=1e-3
        )
        assert entry.top == ()


def test_the_pieces_of_a_stream_bring_those_of_their_tokens(tiny_path: Path) -> None:
    options = {"max_tokens": 20, "seed": 3, "temperature": 5.0, "logprobs": True}
    with Model(tiny_path, n_ctx=64, n_threads=1) as model:
        whole = model.generate("x", **options)  # type: ignore[call-overload]
        stream = model.generate("x", stream=True, **options)  # type: ignore[call-overload]
        pieces = [event for event in stream.events() if isinstance(event, TextPiece)]
    entries = [entry for piece in pieces for entry in piece.logprobs or ()]
    assert len(entries) == len(whole.tokens)
    assert [entry.token for entry in entries] == list(whole.tokens)


def test_those_that_were_not_asked_for_are_not_there(tiny_path: Path) -> None:
    with Model(tiny_path, n_ctx=64, n_threads=1) as model:
        assert model.generate("x", max_tokens=3).logprobs is None
        with pytest.raises(SettingError, match="top_logprobs is asked for without logprobs"):
            model.generate("x", top_logprobs=3)
        with pytest.raises(SettingError, match="top_logprobs is outside its range, found 101"):
            model.generate("x", logprobs=True, top_logprobs=101)
