"""Bytes, counts, durations and rates as text for people.

Promises the same units everywhere: binary ones for bytes and contexts, powers of ten for other
counts. Does not know what the numbers measure.
"""

from __future__ import annotations

from collections.abc import Sequence

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_COUNTS = ("", "K", "M", "B", "T")


def bytes_text(count: int, *, digits: int = 1) -> str:
    """`count` bytes in binary units, with `digits` after the point: ``60.9 GiB``."""
    return _scaled(count, 1024, _BYTES, " ", digits)


def told_apart(first: int, second: int) -> tuple[str, str]:
    """Two different numbers of bytes for one sentence, with as many digits as tell them apart."""
    texts = [(bytes_text(first, digits=n), bytes_text(second, digits=n)) for n in (1, 2, 3)]
    exact = f"{first:,} bytes", f"{second:,} bytes"
    return next((pair for pair in texts if pair[0] != pair[1]), exact)


def count_text(count: int) -> str:
    """`count` in thousands, millions, billions (10^9): ``107.8B``."""
    return _scaled(count, 1000, _COUNTS, "", 1)


def _scaled(count: int, step: int, units: Sequence[str], gap: str, digits: int) -> str:
    value = float(count)
    for unit in units:
        # 999.96 would round to 1000.0 of a unit: it is 1.0 of the next.
        if abs(value) < step - 0.5 * 10**-digits or unit == units[-1]:
            break
        value /= step
    number = f"{count:d}" if unit == units[0] else f"{value:.{digits}f}"
    return f"{number}{gap}{unit}"


def context_text(n_ctx: int) -> str:
    """A context in binary thousands or millions of tokens: ``32k``, ``10M``."""
    return f"{n_ctx / 2**20:g}M" if n_ctx >= 2**20 else f"{n_ctx / 2**10:g}k"


def rate_text(tokens_per_second: float) -> str:
    """``9.3 tokens/s``, ``240 tokens/s``, ``4,974 tokens/s``."""
    digits = 1 if tokens_per_second < 100 else 0
    return f"{tokens_per_second:,.{digits}f} tokens/s"


def seconds_text(seconds: float) -> str:
    """A duration: ``4.2 s``, ``3 min 05 s``, ``1 h 02 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
