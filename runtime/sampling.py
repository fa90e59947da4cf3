"""How the next token is chosen. Declared once: the command line and the API take it from here.

Promises that a ``Sampling`` that exists is one llama.cpp can carry out. Knows nothing of llama.cpp.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..errors import SettingError
from ..ranges import MAX_INT32, check_whole, is_number, outside

MAX_SEED = 2**32 - 2
"""The largest seed: llama.cpp reads 2**32 - 1 as "choose one yourself" (LLAMA_DEFAULT_SEED)."""

MAX_WINDOW = 10_485_760
"""The most tokens that penalties may look back at: the longest context that Llama 4 has."""

_MAX_BREAKER = 40  # bytes of a DRY sequence breaker that llama.cpp reads


@dataclass(frozen=True)
class Sampling:
    """The settings, in llama.cpp's words and meaning, in the order of `bindings.sampler`.

    The defaults for ``temperature`` and ``top_p`` are those of Meta's ``generation_config.json``,
    the others llama.cpp's. What has a neutral value is off with it.

    Args:
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together have this probability; 1.0 keeps all.
        min_p: keep tokens at least this likely, relative to the likeliest; 0.0 keeps all.
        temperature: divides the logits; 0.0 always takes the likeliest token.
        seed: of the random numbers; the same seed gives the same text. None chooses a seed.
        typical_p: keep the tokens nearest to the expected surprise that together have this
            probability; 1.0 keeps all.
        top_n_sigma: keep logits at most this many standard deviations below the largest; 0.0 keeps
            all.
        xtc_probability: how often all tokens but the least likely of those above `xtc_threshold`
            are removed; 0.0 is never.
        xtc_threshold: a probability; above 0.5 two tokens cannot have it.
        dynatemp_range: how far the temperature goes down and up from `temperature` with the entropy
            of the choice; 0.0 keeps it.
        dynatemp_exponent: of the normalized entropy.
        repeat_last_n: how many of the last tokens, those of the prompt too, the next three look at.
        repeat_penalty: divides positive logits of such tokens, and multiplies negative ones; 1.0 is
            none.
        frequency_penalty: subtracted for each time that a token is among them; 0.0 is none.
        presence_penalty: subtracted once; 0.0 is none.
        dry_multiplier: of DRY's penalty ("don't repeat yourself"), which grows with the length of
            the repetition that a token would continue; 0.0 is none.
        dry_base: to the power of that length beyond `dry_allowed_length`.
        dry_allowed_length: tokens that may be repeated without penalty.
        dry_penalty_last_n: how many of the last tokens DRY looks at.
        dry_sequence_breakers: texts that no repetition goes beyond.
        mirostat: 2 for Mirostat 2.0, which keeps the surprise near `mirostat_tau` and replaces
            everything from `top_n_sigma` to `dynatemp_range`; 0 is off.
        mirostat_tau: the surprise to keep, in bits.
        mirostat_eta: how fast it is corrected.
        logit_bias: what is added to the logits of tokens, as a mapping of ids or pairs.

    Raises:
        SettingError: a value outside its range.
    """

    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    seed: int | None = None
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        check_whole("top_k", self.top_k, 0, MAX_INT32)
        check_whole("seed", self.seed, 0, MAX_SEED, or_none=True)
        check_whole("repeat_last_n", self.repeat_last_n, 0, MAX_WINDOW)
        check_whole("dry_penalty_last_n", self.dry_penalty_last_n, 0, MAX_WINDOW)
        check_whole("dry_allowed_length", self.dry_allowed_length, 0, MAX_WINDOW)
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not (is_number(value) and least <= value <= most):
                raise outside(name, value, f"a number from {least} to {most}")
        for name in _FROM_ZERO:
            value = getattr(self, name)
            if not (is_number(value) and 0.0 <= value < math.inf):
                raise outside(name, value, "a number from 0.0 up")
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            if not (is_number(value) and 0.0 < value <= 1.0):
                raise outside(name, value, "a number above 0.0, at most 1.0")
        if not (is_number(self.min_p) and 0.0 <= self.min_p < 1.0):
            raise outside("min_p", self.min_p, "a number from 0.0 to below 1.0")
        if self.mirostat not in (0, 2) or isinstance(self.mirostat, bool):
            raise outside("mirostat", self.mirostat, "0, or 2 for Mirostat 2.0")
        if self.mirostat and self.temperature == 0:
            raise outside("temperature", self.temperature, "a number above 0.0 with mirostat")
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "dry_sequence_breakers", _breakers(self.dry_sequence_breakers))

    @property
    def has_penalties(self) -> bool:
        """Whether one of the penalties for repeated tokens is on; DRY is another matter."""
        off = self.repeat_penalty == 1 and self.frequency_penalty == self.presence_penalty == 0
        return self.repeat_last_n > 0 and not off

    def with_seed(self) -> Sampling:
        """The same settings with a seed that is known, drawn now if there was none."""
        return (
            self if self.seed is not None else replace(self, seed=secrets.randbelow(MAX_SEED + 1))
        )


# What a logit can be changed by without becoming infinite in float32.
_RANGES = {
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0),
    "frequency_penalty": (-1000.0, 1000.0),
    "presence_penalty": (-1000.0, 1000.0),
    "dry_multiplier": (0.0, 1000.0),
    "dry_base": (1.0, 1000.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 1.0),
}
_FROM_ZERO = ("temperature", "top_n_sigma", "dynatemp_range", "dynatemp_exponent")


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    """The biases as pairs; minus infinity forbids a token."""
    if isinstance(value, _Biases):
        return value
    expected = "a mapping of token ids to numbers"
    pairs = value.items() if isinstance(value, Mapping) else value
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise outside("logit_bias", value, expected)
    biases: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise outside("logit_bias", value, expected)
        token, bias = pair
        check_whole("a token id of logit_bias", token, 0, MAX_INT32)
        if not is_number(bias) or not (bias == -math.inf or abs(bias) <= 1000):
            raise outside("logit_bias", bias, "a number from -1000 to 1000, or -inf")
        biases[token] = float(bias)
    return _Biases(biases.items())


class _Biases(tuple[tuple[int, float], ...]):
    """Those that were checked: there may be as many as tokens, and settings are often replaced."""

    __slots__ = ()


def _breakers(value: object) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise outside("dry_sequence_breakers", value, "a list of texts")
    texts = tuple(value)
    for text in texts:
        if not isinstance(text, str) or not text or "\0" in text or not _is_short(text):
            raise SettingError(
                "a text of dry_sequence_breakers cannot be one",
                found=repr(text)[:80],
                expected=f"1 to {_MAX_BREAKER} bytes of UTF-8 without NUL",
            )
    return texts


def _is_short(text: str) -> bool:
    try:
        return len(text.encode()) <= _MAX_BREAKER
    except UnicodeEncodeError:
        return False
