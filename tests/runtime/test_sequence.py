"""How much of a cached sequence may be used again; `test_engine` compares the answers."""

from __future__ import annotations

import pytest

from llama4_edge.architecture import ATTENTION_CHUNK as CHUNK
from llama4_edge.runtime.sequence import reusable_prefix


@pytest.mark.parametrize(
    ("cached", "tokens", "highest", "kept"),
    [
        ([], [1, 2, 3], -1, 0),
        ([1, 2], [1, 2, 3], 1, 2),
        ([1, 2, 3], [1, 2, 3], 2, 2),
        ([1, 2, 3], [1, 9, 3], 2, 1),
        ([1, 2, 3], [9, 2, 3], 2, 0),
        ([1, 2, 3, 4], [1, 2], 3, 1),
    ],
)
def test_the_common_prefix_is_kept_but_for_the_last_token(
    cached: list[int], tokens: list[int], highest: int, kept: int
) -> None:
    assert reusable_prefix(cached, tokens, highest) == kept


@pytest.mark.parametrize(
    ("common", "cached", "highest", "kept"),
    [
        # dropping within the first chunk, and within a later one
        (100, CHUNK, CHUNK - 1, 100),
        (CHUNK + 5, CHUNK + 50, CHUNK + 49, CHUNK + 5),
        # to exactly the beginning of the chunk of the highest position
        (CHUNK, CHUNK + 50, CHUNK + 49, CHUNK),
        # back into an earlier chunk: its cells may be gone
        (CHUNK - 1, CHUNK + 1, CHUNK, 0),
        (CHUNK - 1, 2 * CHUNK, 2 * CHUNK - 1, 0),
        # what was decoded and dropped, or tried in vain, has overwritten cells all the same
        (CHUNK - 10, CHUNK - 5, CHUNK, 0),
        # but nothing is dropped when the cache only grows, in whatever chunk that is
        (CHUNK - 10, CHUNK - 10, CHUNK + 7, CHUNK - 10),
        (CHUNK, CHUNK, CHUNK - 1, CHUNK),
    ],
)
def test_tokens_are_dropped_only_within_the_chunk_of_the_highest_position(
    common: int, cached: int, highest: int, kept: int
) -> None:
    cache = [1] * common + [2] * (cached - common)
    assert reusable_prefix(cache, [1] * common + [3, 3], highest) == kept
