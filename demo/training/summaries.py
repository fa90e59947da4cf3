"""The auxiliary losses of further training: what tells pictures apart, and where answers look.

Promises: losses that are small only if, in the middle of the model, the token behind a picture says
what it shows and which picture of the conversation it is, an answer's tokens say which one is asked
about, and a head of the last layer attends from them to the token behind it. Linear classifiers,
discarded after the training. Does not know how batches are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy, rms_norm

from .lessons.picture import COLOURS, COUNTS, SHAPES, Picture

# The most pictures of a conversation.
PLACES = 4
# The label of an answer's token that is about no picture: `cross_entropy` leaves it out.
NO_PICTURE = -100


class Summaries(torch.nn.Module):
    """Linear classifiers: of a picture by the token behind it, and of what an answer is about."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.sizes = [len(COLOURS), len(SHAPES), len(COUNTS), PLACES]
        self.classes = torch.nn.Linear(hidden, sum(self.sizes))
        self.asked = torch.nn.Linear(hidden, PLACES)

    def forward(
        self,
        conversations: Sequence[Sequence[Picture]],
        behind: torch.Tensor,
        about: Sequence[int],
        answering: torch.Tensor,
    ) -> torch.Tensor:
        """The mean cross entropy of the true labels.

        Args:
            conversations: the pictures of each conversation.
            behind: the model's state at the token behind each of them, [pictures, hidden].
            about: the number of the picture that each token of the answers is about, or
                ``NO_PICTURE``.
            answering: the model's state where each of those tokens is predicted, [tokens, hidden].
        """
        labels = [
            (tuple(COLOURS).index(p.colour), SHAPES.index(p.shape), p.count - 1, place)
            for pictures in conversations
            for place, p in enumerate(pictures)
        ]
        targets = torch.tensor(labels, device=behind.device)
        scores = self.classes(rms_norm(behind, behind.shape[-1:]))
        parts = torch.split(scores, self.sizes, dim=1)
        content = [cross_entropy(part, targets[:, n]) for n, part in enumerate(parts)]
        asked = self.asked(rms_norm(answering, answering.shape[-1:]))
        of_answers = cross_entropy(asked, torch.tensor(about, device=asked.device))
        return torch.stack(content).mean() + of_answers


def attention_loss(
    queries: torch.Tensor,
    keys: torch.Tensor,
    answers: torch.Tensor,
    ends: torch.Tensor,
    about: Sequence[int],
) -> torch.Tensor:
    """The cross entropy of one head's attention, whose target is the picture asked about.

    Args:
        queries: of the head, [rows, tokens, head_dim]; so are ``keys``.
        answers: which tokens are answers, [rows, tokens]; they are predicted a token earlier.
        ends: which tokens are those behind a picture, [rows, tokens].
        about: the number of the picture in its row that each token of the answers, row by row, is
            about, or ``NO_PICTURE``.

    Returns:
        The mean over the rows that have answers about a picture.
    """
    losses = []
    begin = 0
    for row in range(len(answers)):
        places = answers[row, 1:].nonzero()[:, 0]
        numbers = about[begin : begin + len(places)]
        begin += len(places)
        known = [n for n, number in enumerate(numbers) if number != NO_PICTURE]
        if not known:
            continue
        at = places[known]
        behind = ends[row].nonzero()[:, 0]
        scores = queries[row, at] @ keys[row].T / math.sqrt(queries.shape[-1])
        later = torch.arange(scores.shape[1], device=at.device) > at[:, None]
        targets = behind[[numbers[n] for n in known]]
        losses.append(cross_entropy(scores.masked_fill(later, -torch.inf), targets))
    return torch.stack(losses).mean()
