"""How likely the model found tokens: natural logarithms of its own distribution.

That is the softmax of all logits, before temperature, samplers, biases and constraints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bindings.candidates import CANDIDATE, Floats, largest, log_sum


@dataclass(frozen=True)
class TokenLogprobs:
    """A token, and what the model gave it and those that it found likeliest there.

    ``top`` are the likeliest tokens with their logarithms, the likeliest first; ``token`` need not
    be among them.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, logits: Floats, token: int, n_top: int) -> TokenLogprobs | None:
        """Those of a token, computed from the logits before it.

        Args:
            logits: float32 of [n_vocab], contiguous.
            n_top: how many of the likeliest, at most n_vocab.

        Returns:
            None where logits are NaN, or the largest is infinite.
        """
        count = max(n_top, 1)
        likeliest = np.empty(count, CANDIDATE)
        if not largest(logits, count, likeliest):
            return None
        total = log_sum(logits, float(likeliest["logit"][0]))
        pairs = zip(likeliest["id"].tolist(), likeliest["logit"].tolist(), strict=True)
        top = tuple((other, logit - total) for other, logit in pairs)[:n_top]
        return cls(token, float(logits[token]) - total, top)
