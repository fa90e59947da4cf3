"""What the small world is made of: a conversation, and whether it is kept for the examination.

Promises: plain values. Does not know tokens, pictures' pixels or the model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .picture import Picture


@dataclass(frozen=True)
class Turn:
    """What a person says and what the model is to answer."""

    said: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns in their order; an examination scores the last answer.

    ``kind`` names the skill that the last answer needs. The picture comes with the first turn.
    """

    kind: str
    turns: tuple[Turn, ...]
    picture: Picture | None = None


def held_out(*parts: object, share: float = 0.15) -> bool:
    """Whether what ``parts`` name is kept for the examination: a ``share`` of all, by their hash.

    Training leaves these out, so that whatever is asked in an examination was never seen.
    """
    text = "\x1f".join(map(str, parts))
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < share * 2**32
