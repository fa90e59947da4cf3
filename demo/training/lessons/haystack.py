"""Long conversations: codes hidden in thousands of words, and questions about them.

Promises: a text of about the requested length with sentences that state codes, then questions about
them. Does not know tokens: the caller passes a function that counts them.
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


def hay(rng: random.Random) -> str:
    """A filler sentence, irrelevant to every question."""
    return rng.choice(_HAY).format(
        name=rng.choice(NAMES), friend=rng.choice(NAMES), key=key(rng), other=key(rng)
    )


def needle(
    rng: random.Random,
    examined: bool,
    tokens: int,
    count: Callable[[str], int],
    *,
    codes: int,
    questions: int,
    depths: Sequence[float] | None = None,
) -> Conversation:
    """A message of about ``tokens`` tokens that states some codes, and questions about them.

    Args:
        rng: the source of all random choices.
        examined: whether to use held-out codes.
        tokens: the length of the message.
        count: the number of tokens of a text.
        codes: the number of codes.
        questions: the number of codes asked for: the first in the message itself, the others in
            further turns.
        depths: the position of each code, from 0 (start) to 1 (end); random if None.
    """
    code_by_key = {name: code(rng, examined) for name in keys(rng, codes)}
    first_key, *other_keys = rng.sample(list(code_by_key), questions)
    question = ask(rng, first_key)
    statements = [tell(rng, *pair) for pair in code_by_key.items()]
    left = tokens - count(" ".join([*statements, question]))
    text: list[str] = []
    while left > 0:
        text.append(hay(rng))
        left -= count(" " + text[-1])
    for number, sentence in enumerate(statements):
        depth = rng.random() if depths is None else depths[number]
        text.insert(round(depth * len(text)), sentence)
    first = Turn(" ".join([*text, question]), code_of(first_key, code_by_key[first_key]))
    others = (Turn(ask(rng, name), code_of(name, code_by_key[name])) for name in other_keys)
    return Conversation("needle", (first, *others))
