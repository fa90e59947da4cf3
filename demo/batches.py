"""What a step of the training reads: rows of token ids filled with conversations.

Promises: conversations in a row do not see each other; a row of a long conversation is cut into
chunks of attention before its questions, so that only the layer which sees everything can answer.
Does not know the model; all that is drawn comes from the random generator that it is given.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch.nn.functional import pad

from .encoding import Encoded, encode, ids_of
from .world.conversation import Conversation
from .world.haystack import needle
from .world.lessons import lesson
from .world.skills import drill, sums


@dataclass
class Batch:
    """Token ids [rows, tokens], which of them are answers, and which are no filling.

    ``talks`` and ``chunks`` number the conversation and the chunk that a token is in, for rows that
    hold several; ``features`` are those of pictures, [pictures, 144, hidden].
    """

    ids: torch.Tensor
    answers: torch.Tensor
    present: torch.Tensor
    talks: torch.Tensor | None = None
    chunks: torch.Tensor | None = None
    features: torch.Tensor | None = None


def mask(numbers: torch.Tensor | None) -> torch.Tensor | None:
    """What each token may see: those before it that have its number; None means all of them."""
    if numbers is None:
        return None
    same = numbers[:, None, :, None] == numbers[:, None, None, :]
    return same & torch.ones_like(same[0, 0]).tril()


class Batches:
    """Draws batches of ``rows`` rows of ``row`` tokens."""

    def __init__(
        self, tokenizer: Tokenizer, *, rows: int, row: int, longest: int, device: str
    ) -> None:
        self.tokenizer = tokenizer
        self.rows, self.row, self.longest, self.device = rows, row, longest, device

    def text(self, chance: random.Random) -> Batch:
        """Conversations of a few questions."""
        return self._filled(lambda: lesson(chance))

    def sums(self, chance: random.Random) -> Batch:
        """Sums and nothing else."""
        return self._filled(lambda: sums(chance))

    def drill(self, chance: random.Random) -> Batch:
        """Lists to be repeated, with a chunk ending somewhere in the row."""
        batch = self._filled(lambda: drill(chance))
        assert batch.talks is not None
        batch.chunks = 2 * batch.talks
        for chunks in batch.chunks:
            chunks[chance.randint(1, len(chunks)) :] += 1
        return batch

    def long(self, chance: random.Random, longest: bool, *, cut: bool) -> Batch:
        """Long conversations, or one of ``longest`` tokens, that may be cut into chunks."""
        rows = 1 if longest else chance.choice((1, self.rows))
        tokens = self.longest if longest else self.row * self.rows // rows
        talks = []
        for _ in range(rows):
            codes = chance.randint(2, 8)
            conversation = needle(
                chance, False, tokens - 130, self._count, codes=codes, questions=min(codes, 5)
            )
            talks.append([encode(self.tokenizer, conversation)])
        batch = self._batch(talks)
        batch.talks = None
        batch.chunks = torch.zeros_like(batch.ids)
        for chunks in batch.chunks:
            for _ in range(chance.randint(1, 4) if cut else 0):
                chunks[chance.randint(1, tokens - 150) :] += 1
        return batch

    def pictures(self, lessons: Sequence[Conversation], features: torch.Tensor) -> Batch:
        """Pictures with a few questions each."""
        batch = self._batch([[encode(self.tokenizer, one)] for one in lessons])
        batch.talks = None
        batch.features = features
        return batch

    def _count(self, text: str) -> int:
        return len(ids_of(self.tokenizer, text))

    def _filled(self, draw: Callable[[], Conversation]) -> Batch:
        """Rows filled with conversations, each a chunk of its own."""
        rows, kept = [], self._fitting(draw)
        for _ in range(self.rows):
            row: list[Encoded] = []
            while sum(len(one.ids) for one in [*row, kept]) <= self.row:
                row.append(kept)
                kept = self._fitting(draw)
            rows.append(row)
        batch = self._batch(rows)
        batch.chunks = batch.talks
        return batch

    def _fitting(self, draw: Callable[[], Conversation]) -> Encoded:
        """A conversation that a row can hold; few are too long."""
        while True:
            encoded = encode(self.tokenizer, draw())
            if len(encoded.ids) <= self.row:
                return encoded

    def _batch(self, rows: list[list[Encoded]]) -> Batch:
        """Rows of conversations, filled up at the end to the length of the longest."""
        longest = max(sum(len(one.ids) for one in row) for row in rows)

        def stacked(values: list[list[int]], empty: int) -> torch.Tensor:
            filled = [pad(torch.tensor(v), (0, longest - len(v)), value=empty) for v in values]
            return torch.stack(filled).to(self.device)

        fill = self.tokenizer.token_to_id("<|finetune_right_pad|>")
        return Batch(
            ids=stacked([[i for one in row for i in one.ids] for row in rows], fill),
            answers=stacked([[i for one in row for i in one.answers] for row in rows], 0).bool(),
            present=stacked([[1 for one in row for _ in one.ids] for row in rows], 0).bool(),
            talks=stacked([[n for n, one in enumerate(row) for _ in one.ids] for row in rows], -1),
        )
