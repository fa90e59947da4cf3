"""What a model gave a token: the natural logarithm of its probability, and those of the likeliest.

Knows nothing of text, or of how the token was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenLogprobs:
    """The probability of one token in the model's own distribution, before any sampler.

    Args:
        token: its id.
        logprob: the natural logarithm of its probability, at most 0.
        top: the likeliest tokens at that place, the likeliest first, each with its own.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
