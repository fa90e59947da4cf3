from __future__ import annotations

import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from llama4_edge.errors import RecipeError
from llama4_edge.quant import type_named, type_overrides
from llama4_edge.quant.types import TYPES, TensorType


@pytest.mark.parametrize("name", TYPES)
def test_numbers_and_block_sizes_are_those_of_the_gguf_package(name: str) -> None:
    number = GGMLQuantizationType[name]
    assert TYPES[name] == TensorType(name, int(number), *GGML_QUANT_SIZES[number])


def test_a_type_is_found_in_any_case() -> None:
    assert type_named("q4_k") is type_named("Q4_K") is TYPES["Q4_K"]


def test_an_unknown_type_is_refused_with_the_types_there_are() -> None:
    with pytest.raises(RecipeError, match="unknown tensor type, found 'q4_9', expected one of f32"):
        type_named("q4_9")


@pytest.mark.parametrize("pair", ["x", ("x",), ("x", 1), ("x", "q6_k", "y"), None])
def test_an_override_that_is_no_pair_of_texts_is_refused(pair: object) -> None:
    with pytest.raises(RecipeError, match="types are of the wrong type, found"):
        type_overrides([pair])  # type: ignore[list-item]
