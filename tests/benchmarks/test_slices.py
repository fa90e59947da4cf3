"""The slices of `benchmarks.slices`: the statistics of the model that they are made like."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.slices import Trained, statistics, write_trained_slice
from demo.checkpoint import SCOUT_LIKE
from demo.training import MODEL
from llama4_edge.quant.encode import Floats


def tails(matrix: Floats) -> float:
    """The fourth moment; 3 is that of normal numbers."""
    return float((matrix**4).mean() / np.square(matrix).mean() ** 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    geometry = replace(SCOUT_LIKE, hidden=512, expert_ffn=512, experts=2, vision=None, shards=2)
    return Trained.read(write_trained_slice(tmp_path_factory.mktemp("slice") / "made", geometry))


@pytest.mark.parametrize(
    "name",
    ["self_attn.q_proj.weight", "feed_forward.experts.gate_up_proj", "self_attn.v_proj.weight"],
)
def test_rows_and_columns_have_the_scales_of_the_trained_model(made: Trained, name: str) -> None:
    trained = Trained.read(MODEL)
    name = next(one for one in made.tensors if f"layers.2.{name}" in one)
    source, matrix = trained.like(name), made.tensors[name]
    source, matrix = source.reshape(-1, source.shape[-1]), matrix.reshape(-1, matrix.shape[-1])
    # A sum over twice as many columns.
    assert np.square(matrix).mean() * 2 == pytest.approx(np.square(source).mean(), rel=0.15)
    rows, columns, _ = statistics(source)
    made_rows, made_columns, _ = statistics(matrix)
    assert made_columns.max() / made_columns.mean() == pytest.approx(
        columns.max() / columns.mean(), rel=0.35
    )
    assert made_rows.std() / made_rows.mean() == pytest.approx(rows.std() / rows.mean(), abs=0.05)


def test_numbers_of_the_embedding_are_as_far_from_normal(made: Trained) -> None:
    name = "language_model.model.embed_tokens.weight"
    source, matrix = Trained.read(MODEL).tensors[name], made.tensors[name]
    assert np.square(matrix).mean() == pytest.approx(np.square(source).mean(), rel=0.1)
    assert 4 < tails(source) < tails(matrix) * 1.1


def test_outliers_are_in_the_same_columns_of_the_stream(made: Trained) -> None:
    layer = "language_model.model.layers.0"
    norm = made.tensors[f"{layer}.input_layernorm.weight"]
    trained = Trained.read(MODEL).like(f"{layer}.input_layernorm.weight")
    assert sorted(norm) == pytest.approx(np.repeat(np.sort(trained), 2))
    # Two columns for one of the demo model: the same ones in every norm.
    after = made.tensors[f"{layer}.post_attention_layernorm.weight"]
    pairs = set(zip(norm.tolist(), after.tolist(), strict=True))
    assert len(pairs) <= len(trained)
