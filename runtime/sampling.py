"""How the next token is chosen. Declared once: the command line and the API take it from here.

Promises that a ``Sampling`` that exists is one llama.cpp can carry out. Knows nothing of llama.cpp.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace

from ..ranges import MAX_INT32, check_whole, is_number, outside

MAX_SEED = 2**32 - 2
"""The largest seed: llama.cpp reads 2**32 - 1 as "choose one yourself" (LLAMA_DEFAULT_SEED)."""


@dataclass(frozen=True)
class Sampling:
    """The settings in the order llama.cpp's sampler chain applies them.

    The defaults for ``temperature`` and ``top_p`` are those of Meta's ``generation_config.json``.

    Args:
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together have this probability; 1.0 keeps all.
        min_p: keep tokens at least this likely, relative to the likeliest; 0.0 keeps all.
        temperature: divides the logits; 0.0 always takes the likeliest token.
        seed: of the random numbers; the same seed gives the same text. None chooses a seed.

    Raises:
        SettingError: a value outside its range.
    """

    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_whole("top_k", self.top_k, 0, MAX_INT32)
        check_whole("seed", self.seed, 0, MAX_SEED, or_none=True)
        if not (is_number(self.temperature) and 0.0 <= self.temperature < math.inf):
            raise outside("temperature", self.temperature, "a number from 0.0 up")
        if not (is_number(self.top_p) and 0.0 < self.top_p <= 1.0):
            raise outside("top_p", self.top_p, "a number above 0.0, at most 1.0")
        if not (is_number(self.min_p) and 0.0 <= self.min_p < 1.0):
            raise outside("min_p", self.min_p, "a number from 0.0 to below 1.0")

    def with_seed(self) -> Sampling:
        """The same settings with a seed that is known, drawn now if there was none."""
        return (
            self if self.seed is not None else replace(self, seed=secrets.randbelow(MAX_SEED + 1))
        )
