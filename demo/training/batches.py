"""Batches of the training: rows of token ids, filled with conversations.

Promises: no attention between the conversations of a row; a long conversation is cut into attention
chunks before its questions, so that only the full-attention layer can answer them; all random
choices come from the generator that is passed in. Does not know the model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch.nn.functional import pad

from .encoding import Encoded, encode, ids_of, special_id
from .lessons.conversation import Conversation
from .lessons.haystack import needle
from .lessons.mixture import FIRST, Mixture, lesson
from .lessons.skills import drill, sums


@dataclass
class Batch:
    """Token ids [rows, tokens], which of them are answers, and which are not padding.

    ``talks`` and ``chunks`` are the number of each token's conversation and attention chunk, in
    rows with several; ``features`` are those of pictures, [pictures, 144, hidden].
    """

    ids: torch.Tensor
    answers: torch.Tensor
    present: torch.Tensor
    talks: torch.Tensor | None = None
    chunks: torch.Tensor | None = None
    features: torch.Tensor | None = None


def mask(numbers: torch.Tensor | None) -> torch.Tensor | None:
    """A causal mask within equal ``numbers``, [rows, 1, tokens, tokens]; None for None."""
    if numbers is None:
        return None
    same = numbers[:, None, :, None] == numbers[:, None, None, :]
    return same & torch.ones_like(same[0, 0]).tril()


class Batches:
    """Makes random batches of ``rows`` rows of ``row`` tokens."""

    def __init__(
        self, tokenizer: Tokenizer, *, rows: int, row: int, longest: int, device: str
    ) -> None:
        self.tokenizer = tokenizer
        self.rows, self.row, self.longest, self.device = rows, row, longest, device

    def text(self, rng: random.Random, mixture: Mixture = FIRST) -> Batch:
        """Conversations of a few questions."""
        return self._pack(lambda: lesson(rng, mixture))

    def sums(self, rng: random.Random) -> Batch:
        """Sums only."""
        return self._pack(lambda: sums(rng))

    def drill(self, rng: random.Random) -> Batch:
        """Lists to repeat, with a chunk boundary somewhere in each row."""
        batch = self._pack(lambda: drill(rng))
        assert batch.talks is not None
        batch.chunks = 2 * batch.talks
        for chunks in batch.chunks:
            chunks[rng.randint(1, len(chunks)) :] += 1
        return batch

    def long(self, rng: random.Random, longest: bool, *, cut: bool) -> Batch:
        """Long conversations, or one of ``longest`` tokens; with ``cut`` in several chunks."""
        rows = 1 if longest else rng.choice((1, self.rows))
        tokens = self.longest if longest else self.row * self.rows // rows
        talks = []
        for _ in range(rows):
            codes = rng.randint(2, 8)
            conversation = needle(
                rng, False, tokens - 130, self._count, codes=codes, questions=min(codes, 5)
            )
            talks.append([encode(self.tokenizer, conversation)])
        batch = self._batch(talks)
        batch.talks = None
        batch.chunks = torch.zeros_like(batch.ids)
        for chunks in batch.chunks:
            for _ in range(rng.randint(1, 4) if cut else 0):
                chunks[rng.randint(1, tokens - 150) :] += 1
        return batch

    def pictures(self, lessons: Sequence[Conversation], features: torch.Tensor) -> Batch:
        """Conversations with pictures, whose ``features`` are in order."""
        batch = self._batch([[encode(self.tokenizer, lesson)] for lesson in lessons])
        batch.talks = None
        batch.features = features
        return batch

    def _count(self, text: str) -> int:
        return len(ids_of(self.tokenizer, text))

    def _pack(self, draw: Callable[[], Conversation]) -> Batch:
        """Rows of as many conversations as fit, each a chunk of its own."""
        rows, following = [], self._short_enough(draw)
        for _ in range(self.rows):
            row: list[Encoded] = []
            while sum(len(talk.ids) for talk in [*row, following]) <= self.row:
                row.append(following)
                following = self._short_enough(draw)
            rows.append(row)
        batch = self._batch(rows)
        batch.chunks = batch.talks
        return batch

    def _short_enough(self, draw: Callable[[], Conversation]) -> Encoded:
        """The next conversation that is no longer than a row."""
        while True:
            encoded = encode(self.tokenizer, draw())
            if len(encoded.ids) <= self.row:
                return encoded

    def _batch(self, rows: list[list[Encoded]]) -> Batch:
        """Rows of conversations, padded at the end to the length of the longest row."""
        longest = max(sum(len(talk.ids) for talk in row) for row in rows)

        def stack(values: list[list[int]], padding: int) -> torch.Tensor:
            padded = [pad(torch.tensor(v), (0, longest - len(v)), value=padding) for v in values]
            return torch.stack(padded).to(self.device)

        padding = special_id(self.tokenizer, "<|finetune_right_pad|>")
        return Batch(
            ids=stack([[i for talk in row for i in talk.ids] for row in rows], padding),
            answers=stack([[i for talk in row for i in talk.answers] for row in rows], 0).bool(),
            present=stack([[1 for talk in row for _ in talk.ids] for row in rows], 0).bool(),
            talks=stack([[n for n, talk in enumerate(row) for _ in talk.ids] for row in rows], -1),
        )
