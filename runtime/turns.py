"""Whose turn it is, where requests have different adapters: a batch is computed with one set.

Promises that no set waits for another longer than a slice and a batch, and that changing them takes
a small part of the time. Knows nothing of requests.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from .adapters import Scales

SLICE_SECONDS = 0.1
"""How long one set of adapters is computed with while others wait; longer where changing them takes
long."""

_WORTH_SWITCHING = 10  # times as long as changing them


class Turns:
    """The sets of adapters that have been computed with, and when last."""

    def __init__(self) -> None:
        self._ends = -math.inf
        self._last: dict[Scales, float] = {}

    def choose(
        self, wanting: Iterable[Scales], current: Scales | None, switch_seconds: float
    ) -> Scales:
        """The set that the next batch has.

        Args:
            wanting: those of the requests that can go on, at least one.
            current: the one that the context computes with.
            switch_seconds: what changing it takes.
        """
        sets = dict.fromkeys(wanting)
        if len(sets) == 1:
            return next(iter(sets))
        now = time.monotonic()
        self._last = {one: self._last.get(one, -math.inf) for one in sets}
        if current in sets and now < self._ends:
            chosen = current
        else:
            # Whoever has waited longest; of several who have never had a turn, the first.
            chosen = min((one for one in sets if one != current), key=self._last.__getitem__)
            self._ends = now + max(SLICE_SECONDS, _WORTH_SWITCHING * switch_seconds)
        self._last[chosen] = now
        return chosen
