"""Rows of the token embedding are those that llama.cpp looks up, whatever their type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge.errors import EngineError
from llama4_edge.runtime.embedding import TokenEmbedding
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.files.model_file import check_model_file
from llama4_edge.runtime.settings import EngineSettings
from tests.fixtures import MakeGGUF


class OneName:
    """Features with the name -1 - t for the token t."""

    def __init__(self, embedding: TokenEmbedding) -> None:
        self.embedding = embedding

    def is_ready(self, names: Sequence[int]) -> bool:
        return True

    def step(self, names: Sequence[int]) -> None:
        raise AssertionError

    def rows(self, positions: Sequence[int]) -> npt.NDArray[np.float32]:
        return self.embedding.rows([max(one, -1 - one) for one in positions])


@pytest.mark.parametrize("recipe", ["bf16", "f16", "int8", "int4", "q4_0", "q4_k_m"])
def test_a_prompt_of_embeddings_is_that_of_the_tokens(
    recipe: str, scout_checkpoint: Path, make_gguf: MakeGGUF
) -> None:
    path = make_gguf(scout_checkpoint, recipe)
    model = check_model_file(path)
    tokens = [int(one) for one in np.random.default_rng(1).integers(0, 256, 100)]
    settings = EngineSettings(n_ctx=128, n_outputs=100, n_threads=1)
    with Engine(path, settings, end_ids=model.eog_ids) as engine:
        expected = engine.logits(tokens)
        named = [*tokens[:-1], -1 - tokens[-1]]
        given = engine.logits(named, OneName(TokenEmbedding(model)))
    # Not a bit differs: the rows are the same, and so is what is computed of them.
    assert np.array_equal(given, expected)


def test_a_file_that_became_shorter_is_an_error(scout_bf16: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(scout_bf16.read_bytes())
    embedding = TokenEmbedding(check_model_file(path))
    first = embedding.rows([3, 1, 3])
    assert first.shape == (3, 256)
    assert np.array_equal(first[0], first[2])
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(EngineError, match="cannot be read, found the file is shorter"):
        embedding.rows([3])
    path.unlink()
    with pytest.raises(EngineError, match="cannot be read"):
        embedding.rows([3])
