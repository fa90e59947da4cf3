"""Long conversations of the small world: one fact to keep through thousands of words.

Promises: a text of about the wanted length with sentences that give codes, and questions for them
at the end. Does not know tokens: whoever wants a length in tokens counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .conversation import Conversation, Turn
from .skills import NAMES, ask, code, code_of, key, keys, tell

_HAY = (
    "{name} walks from the {key} to the {other}.",
    "The {key} stands beside the {other}.",
    "In the morning {name} cleans the {key}.",
    "Nobody has seen the {key} since {name} left.",
    "{name} and {friend} meet at the {key}.",
    "The {key} is closed, but the {other} is open.",
    "It is quiet in the {key}, and {name} reads a book.",
    "{name} paints the {key} and waits.",
)


def hay(chance: random.Random) -> str:
    """A sentence that matters to no question."""
    return chance.choice(_HAY).format(
        name=chance.choice(NAMES), friend=chance.choice(NAMES), key=key(chance), other=key(chance)
    )


def needle(
    chance: random.Random,
    examined: bool,
    tokens: int,
    count: Callable[[str], int],
    *,
    codes: int,
    questions: int,
    depths: Sequence[float] | None = None,
) -> Conversation:
    """A message of about ``tokens`` tokens that gives some codes, and questions for them.

    Args:
        chance: where everything random comes from.
        examined: whether its codes are those of the examination.
        tokens: the length of the message.
        count: the number of tokens of a text.
        codes: how many codes there are.
        questions: for how many of them the conversation asks: for the first in the message itself,
            for the others in further turns.
        depths: where each code stands, 0 the beginning and 1 the end; anywhere if None.
    """
    known = {one: code(chance, examined) for one in keys(chance, codes)}
    asked, *further = chance.sample(list(known), questions)
    question = ask(chance, asked)
    told = [tell(chance, *pair) for pair in known.items()]
    left = tokens - count(" ".join([*told, question]))
    text: list[str] = []
    while left > 0:
        text.append(hay(chance))
        left -= count(" " + text[-1])
    for number, sentence in enumerate(told):
        depth = chance.random() if depths is None else depths[number]
        text.insert(round(depth * len(text)), sentence)
    first = Turn(" ".join([*text, question]), code_of(asked, known[asked]))
    others = (Turn(ask(chance, one), code_of(one, known[one])) for one in further)
    return Conversation("needle", (first, *others))
