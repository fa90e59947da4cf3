"""What is seen of llama.cpp's graphs: each matrix, with experts apart, on other machines too."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama4_edge import Model
from llama4_edge.errors import EngineError
from llama4_edge.runtime.activations import ActivationSums, Total
from llama4_edge.runtime.bindings import observer
from llama4_edge.runtime.bindings.library import native_function
from llama4_edge.runtime.workers.worker import local_workers

TOKENS = list(range(40, 90))
# sizeof(ggml_tensor) as native/activations.cpp has it, and of the object of a context before it.
SIZE, OBJECT = 336, 32


def test_ggmls_tensor_has_the_size_that_is_repeated() -> None:
    assert native_function("ggml_tensor_overhead", ctypes.c_size_t)() == SIZE + OBJECT


@contextmanager
def observed(path: Path, **settings: Any) -> Iterator[tuple[Model, ActivationSums]]:
    sums = ActivationSums(output=False, logits=False)
    try:
        with Model(path, n_ctx=64, n_outputs=64, n_threads=1, **settings) as model:
            model.engine.observe(sums)
            yield model, sums
    finally:
        sums.close()


def read(model: Model, sums: ActivationSums, tokens: list[int]) -> None:
    model.engine.in_thread(sums.begin)
    model.engine.each_logits(tokens, len(tokens), lambda _place, _rows: None)
    assert model.engine.in_thread(sums.add)


def totals(path: Path, **settings: Any) -> dict[str, Total]:
    with observed(path, **settings) as (model, sums):
        read(model, sums, TOKENS)
    return sums.totals


def same(one: dict[str, Total], other: dict[str, Total]) -> bool:
    return one.keys() == other.keys() and all(
        (one[name].counts == other[name].counts).all()
        and one[name].sums == pytest.approx(other[name].sums, rel=1e-5)
        for name in one
    )


def test_matrices_with_one_input_have_one_sum(tiny_path: Path) -> None:
    found = totals(tiny_path)
    for layer in range(4):
        for names in (
            ("attn_q", "attn_k", "attn_v"),
            ("ffn_gate_inp", "ffn_gate_shexp", "ffn_up_shexp"),
            ("ffn_gate_exps", "ffn_up_exps"),
        ):
            first, *others = (found[f"blk.{layer}.{name}.weight"] for name in names)
            assert all((first.sums == other.sums).all() for other in others)
    queries = [found[f"blk.{layer}.attn_q.weight"].sums for layer in range(4)]
    assert not any(np.allclose(queries[0], other) for other in queries[1:])


def test_texts_add_up_and_one_that_was_given_up_does_not(tiny_path: Path) -> None:
    with observed(tiny_path) as (model, sums):
        read(model, sums, TOKENS[:30])
        once = {
            name: Total(one.sums.copy(), one.counts.copy()) for name, one in sums.totals.items()
        }
        model.engine.in_thread(sums.begin)
        model.engine.each_logits(TOKENS, len(TOKENS), lambda _place, _rows: None)
        sums.spoil()
        assert not model.engine.in_thread(sums.add)
        read(model, sums, TOKENS[:30])
    twice = {name: Total(2 * one.sums, 2 * one.counts) for name, one in once.items()}
    assert sums.n_added == 2 and same(sums.totals, twice)


def test_a_token_counts_for_each_expert_that_it_visits(tiny_path: Path) -> None:
    for n_used in (1, 2, 4):
        found = totals(tiny_path, n_expert_used=n_used)
        for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            one = found[f"blk.1.{name}.weight"]
            assert one.counts.sum() == n_used * len(TOKENS)
            assert (one.counts == len(TOKENS)).all() or n_used < 4
            # What nobody was sent to has no sums.
            assert (one.sums.any(1) == (one.counts > 0)).all()


def test_activations_are_fetched_from_another_machine(tiny_path: Path) -> None:
    with local_workers(1) as workers:
        assert same(totals(tiny_path, workers=workers), totals(tiny_path))


def test_an_installation_without_cpp_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "native_library", lambda: None)
    with pytest.raises(EngineError, match=r"C\+\+ part of llama4-edge, which was not built"):
        ActivationSums(output=False, logits=False)
