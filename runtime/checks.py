"""What comes in from callers: token ids and prompts that fit, as Python's numbers.

Promises that what it lets through, llama.cpp can decode. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import ContextFullError, EngineError, SettingError
from ..ranges import value_text
from .features import Features
from .sampling import Sampling

_LEAST_NAME = -(1 << 63)  # of a feature: a state has 64 bits for each


class Checks(NamedTuple):
    """What is checked for a model with ``n_vocab`` tokens and ``n_ctx`` places in a sequence."""

    n_vocab: int
    n_ctx: int

    def tokens(self, tokens: Iterable[int], features: Features | None = None) -> list[int]:
        """The same as Python's numbers, if each is the id of a token, or the name of a feature."""
        try:
            checked: list[Any] = list(tokens)
        except TypeError:
            raise EngineError(
                "the tokens are not a list of token ids", found=value_text(tokens)
            ) from None
        for index, token in enumerate(checked):
            if type(token) is not int:
                if not isinstance(token, np.integer):
                    raise EngineError(
                        "a token id is not a whole number",
                        found=value_text(token),
                        expected=f"0 to {self.n_vocab - 1}",
                    )
                checked[index] = int(token)
            if not (0 if features is None else _LEAST_NAME) <= token < self.n_vocab:
                raise EngineError(
                    "a token id is not in the model's vocabulary",
                    found=str(token),
                    expected=f"0 to {self.n_vocab - 1}",
                )
        return checked

    def prompt(self, tokens: Iterable[int], features: Features | None = None) -> list[int]:
        """The same for at least one that fits."""
        prompt = self.tokens(tokens, features)
        if not prompt:
            raise no_tokens()
        self.room(prompt)
        return prompt

    def room(self, prompt: Sequence[int]) -> None:
        """Raise ContextFullError if it does not fit into a sequence."""
        if len(prompt) > self.n_ctx:
            raise context_full(len(prompt), self.n_ctx)

    def biases(self, sampling: Sampling) -> None:
        """Raise SettingError if there is a bias of a token that the model does not have."""
        beyond = [token for token, _ in sampling.logit_bias if token >= self.n_vocab]
        if beyond:
            raise SettingError(
                "logit_bias has a token that is not in the model's vocabulary",
                found=str(beyond[0]),
                expected=f"0 to {self.n_vocab - 1}",
            )


def no_tokens() -> EngineError:
    """The error where something is to be decoded, and nothing is there."""
    return EngineError("there are no tokens to decode", expected="at least one")


def context_full(wanted: int, n_ctx: int) -> ContextFullError:
    """The error where more is to be decoded than fits."""
    return ContextFullError(
        "the tokens do not fit into the context",
        found=f"{wanted} tokens",
        expected=f"at most {n_ctx}",
        hint="Shorten the prompt, or open the model with a larger n_ctx.",
    )
