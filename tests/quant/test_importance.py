"""Activation statistics: the weights that llama-quantize takes from them, and merging."""

from __future__ import annotations

import numpy as np
import pytest

from llama4_edge.errors import ModelFileError
from llama4_edge.quant.importance import Activations, Importance, Starved, merged


def activations(sums: object, counts: list[int], starved: Starved | None = None) -> Activations:
    return Activations(np.array(sums, np.float32), np.array(counts, np.int64), starved)


EXPERTS = activations([[3, 6], [0, 0], [1, 7]], [3, 0, 7])


def test_weights_are_means_of_squares_and_one_where_nothing_was_seen() -> None:
    weights = Importance({"a": EXPERTS}).weights("a")
    assert weights is not None
    # Divided as float32 numbers, as llama-quantize does.
    expected = np.array([[1, 2], [1, 1], [np.float32(1) / np.float32(7), 1]], np.float32)
    assert weights.dtype == np.float32 and (weights == expected).all()


def test_a_tensor_without_statistics_has_no_weights() -> None:
    importance = Importance({"a": EXPERTS})
    assert importance.weights("b") is None
    assert "a" in importance and "b" not in importance


def test_columns_of_all_experts_in_one_matrix_are_told_apart_by_the_shape() -> None:
    flat = Importance({"a": activations([[2, 4, 6, 8]], [2])}, "old.dat")
    weights = flat.weights("a", (2, 2))
    assert weights is not None and weights.tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ModelFileError, match=r"old.dat is of another model.*1 matrices of 4 col"):
        flat.weights("a", (2, 3))
    with pytest.raises(ModelFileError, match="3 matrices of 2 columns of a, expected 2 matrices"):
        Importance({"a": EXPERTS}).weights("a", (2, 3))


def test_merging_adds_what_was_measured_and_no_substitutes() -> None:
    substitute = activations(
        [[3, 6], [4, 4]], [3, 1], Starved((1,), np.zeros((1, 2), np.float32), np.zeros(1, np.int64))
    )
    one = Importance({"a": substitute, "b": activations([[5]], [20])}, datasets=("x",))
    other = Importance({"a": activations([[1, 1], [2, 8]], [1, 2])}, datasets=("y", "z"))
    both = merged([one, other], 8)
    assert both.tensors["a"].sums.tolist() == [[4, 7], [2, 8]]
    assert both.tensors["a"].counts.tolist() == [4, 2]
    assert both.tensors["b"].sums.tolist() == [[5]]
    assert both.datasets == ("x", "y", "z")
    assert (both.n_chunks, both.chunk_size) == (2, 8)


def test_columns_in_one_matrix_are_merged_with_those_of_experts() -> None:
    flat = Importance({"a": activations([[1, 1, 2, 2, 3, 3]], [10])})
    for parts in ([flat, Importance({"a": EXPERTS})], [Importance({"a": EXPERTS}), flat]):
        found = merged(parts, 512).tensors["a"]
        assert found.sums.tolist() == [[4, 7], [2, 2], [4, 10]]
        assert found.counts.tolist() == [13, 10, 17]


def test_statistics_of_another_model_are_not_merged() -> None:
    one = Importance({"a": EXPERTS}, "one.gguf")
    with pytest.raises(ModelFileError, match=r"two.gguf is of another model.*2 matrices of 1 col"):
        merged([one, Importance({"a": activations([[1], [2]], [1, 1])}, "two.gguf")], 512)
    with pytest.raises(ModelFileError, match=r"two.gguf is .*found none of the tensors of one.g"):
        merged([one, Importance({"b": EXPERTS}, "two.gguf")], 512)


def test_sums_that_overflow_together_are_not_merged() -> None:
    huge = Importance({"a": activations([[3e38]], [1])}, "huge.gguf")
    with pytest.raises(ModelFileError, match=r"huge.gguf cannot be merged, found sums of a that"):
        merged([huge, huge], 512)
