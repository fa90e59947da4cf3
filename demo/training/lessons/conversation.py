"""The values of a lesson: a conversation, its turns, and the split into training and examination.

Promises: plain values. Does not know tokens, pixels or the model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .picture import Picture


@dataclass(frozen=True)
class Turn:
    """What a person writes, after the pictures of the message, and the correct answer.

    ``about`` is the number of the picture that the answer describes, from 0; None if it is about
    none.
    """

    question: str
    answer: str
    pictures: tuple[Picture, ...] = ()
    about: int | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns in order; an examination scores the last answer.

    ``kind`` is the skill that the last answer needs.
    """

    kind: str
    turns: tuple[Turn, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those of all turns, in order."""
        return tuple(picture for turn in self.turns for picture in turn.pictures)


def held_out(*parts: object, share: float = 0.15) -> bool:
    """Whether the item that ``parts`` identify is held out: a ``share`` of all items, by hash.

    Held-out items are in the examination and never in the training data.
    """
    text = "\x1f".join(map(str, parts))
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < share * 2**32
