"""What activation statistics say of each tensor, by figures that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from llama4_edge.quant.importance import Activations, Importance, Starved
from llama4_edge.quant.importance_summary import ImportanceSummary
from llama4_edge.quant.starved import ExpertCounts

# Of a second matrix that saw nothing, its columns do not count.
SUMS = np.array([[2, 2, 4, 8], [0, 0, 0, 0]], np.float32)
COUNTS = np.array([2, 0])
IMPORTANCE = Importance(
    {
        "blk.10.ffn_up_exps.weight": Activations(SUMS, COUNTS),
        "blk.9.ffn_up_exps.weight": Activations(
            np.array([[1, 0, 0, 0], [0, 3, 0, 0]], np.float32),
            np.array([40, 1]),
            Starved((1,), np.zeros((1, 4), np.float32), np.array([0])),
        ),
        "output.weight": Activations(np.ones((1, 4), np.float32), np.array([7])),
        "blk.9.attn_q.weight": Activations(np.zeros((1, 4), np.float32), np.array([0])),
    },
    name="i.gguf",
    datasets=("wiki", "code"),
    n_chunks=3,
    chunk_size=512,
)


def test_figures_of_a_tensor_are_those_of_its_mean_squares() -> None:
    found = ImportanceSummary.of(IMPORTANCE)
    assert [one.name for one in found.tensors] == [
        "blk.9.ffn_up_exps.weight", "blk.10.ffn_up_exps.weight", "output.weight",
    ]  # fmt: skip
    one = found.tensors[1]
    assert (one.n_matrices, one.n_tokens, one.n_columns) == (2, 2, 4)
    # Of 1, 1, 2 and 4.
    assert (one.sum, one.mean, one.minimum, one.maximum) == (8, 2, 1, 4)
    assert one.deviation == pytest.approx(1.5**0.5)
    assert (one.active, one.entropy, one.evenness, one.outliers) == (1, 1.75, 0.875, 0.25)
    # (2 · 1) / (√88 · √(1 + 9)), where the second matrices add nothing to the product.
    assert one.similarity == pytest.approx(2 / (88 * 10) ** 0.5)
    first, last = found.tensors[0], found.tensors[2]
    assert (first.n_tokens, first.active, first.similarity) == (40, 0.25, None)
    assert (last.evenness, last.outliers, last.similarity) == (1, 0, None)


def test_experts_are_counted_by_what_they_saw_and_not_by_substitutes() -> None:
    found = ImportanceSummary.of(IMPORTANCE)
    assert found.layers == (ExpertCounts(9, (40, 0), (1,)), ExpertCounts(10, (2, 0), (0, 1)))
    record = found.as_dict()
    assert record["layers"][0] == {
        "layer": 9, "experts": [40, 0], "starved": [{"expert": 1, "tokens": 0}],
    }  # fmt: skip
    assert [record[key] for key in ("path", "kind", "datasets", "n_chunks", "chunk_size")] == [
        "i.gguf", "imatrix", ["wiki", "code"], 3, 512,
    ]  # fmt: skip
