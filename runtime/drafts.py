"""Drafts: how a text is likely to go on, by what followed where it said the same before.

A batch that decodes a draft with the token before it has the logits after each of them: if the
tokens that are chosen from these are those of the draft, several cost little more than one.

Promises long and sure drafts, or none: only after `KEY` tokens that the text has had before, and
only of a length that is expected to take less time than its tokens one by one, by what batches took
on this machine and by what became of the drafts before it; and that a draft costs the same in a
short text and in a long one. Knows nothing of llama.cpp.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

KEY = 8
"""Tokens at the end of a text that it must have had before."""

LENGTHS = (3, 7, 15, 31, 62)
"""Tokens of a draft. With the token before it, 63 at most: of 64 on, ggml's attention on the CPU
sums in another precision, and other tokens could be chosen than without drafts."""

GAIN = 1.15
"""How many times as fast a draft must be expected to be."""

_LONGEST = 64  # tokens before two places that are compared
_PLACES = 8  # that are compared, the last ones
_HALF_LIFE = 64  # tokens after which half of a draft that cost time is forgiven
_FORGOTTEN = 1024  # batches after which a batch of some size is taken to cost half of what it did

_KEPT, _ENOUGH = 8, 3  # measurements of a length; and as many as make it known

_FACTOR = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, whose bits are well mixed
_FACTORS = [pow(_FACTOR, KEY - 1 - index, 2**64) for index in range(KEY)]
_MASK = 2**64 - 1
_BITS = 10, 18  # of the index of a hash table, at least and at most


class Costs:
    """What a batch costs that decodes a draft of one sequence, in batches of a single token.

    It is a lower quartile of what the last ones took, because other work on the machine makes some
    of them slow. What was measured is forgotten with time, so that a length which was slow once is
    tried again.
    """

    def __init__(self) -> None:
        self._n_singles = 0
        self._seconds = deque[float](maxlen=_KEPT)  # of the last ones of a single token
        # What the last ones of each length cost, and how many singles there had been then.
        self._costs = {length: deque[float](maxlen=_KEPT) for length in LENGTHS}
        self._measured_at = dict.fromkeys(LENGTHS, 0)

    def add(self, length: int, seconds: float) -> None:
        """A batch with a draft of this length, 0 for none, took so long."""
        if length:
            # The time of a single token grows with the text: the cost is that of then.
            self._costs[length].append(seconds / _quick(self._seconds))
            self._measured_at[length] = self._n_singles
        else:
            self._seconds.append(seconds)
            self._n_singles += 1

    def of(self, length: int) -> float:
        """What was measured, less what is forgotten, at least 1.0."""
        age = self._n_singles - self._measured_at[length]
        return max(1.0, _quick(self._costs[length]) * math.pow(0.5, age / _FORGOTTEN))

    def offers(self) -> Iterator[tuple[int, float]]:
        """The lengths that may be tried, each with its cost.

        The last one may not be known yet, and is said to cost no more than the one before it.
        """
        cost = 1.0
        for length in LENGTHS if len(self._seconds) == _KEPT else ():
            is_known = len(self._costs[length]) >= _ENOUGH
            cost = self.of(length) if is_known else cost
            yield length, cost
            if not is_known:
                return


class Drafter:
    """Drafts for one text.

    Args:
        text: its token ids. It may become longer at its end; nothing else of it changes.
    """

    def __init__(self, text: Sequence[int]) -> None:
        self._text = text
        self._index = _Index(text)
        # Drafts that took longer than their tokens would have, and up to where they are counted.
        self._losses, self._counted = 0.0, len(text)

    def draft(self, limit: int, costs: Costs, is_end: Callable[[int], bool]) -> list[int]:
        """What is likely to follow, of one of `LENGTHS`; empty where nothing is sure enough.

        Args:
            limit: tokens it may have at most.
            is_end: whether a token ends an answer; there is none in a draft.
        """
        place, n_equal = self._index.find()
        if not (length := self._best_length(n_equal, limit, costs)):
            return []
        text = self._text
        # What repeats itself up to its end goes on doing so.
        period = len(text) - place
        likely = [text[place + index % period] for index in range(length)]
        for index, token in enumerate(likely):
            if token < 0 or is_end(token):  # a place without a token has none to propose
                return likely[: self._best_length(n_equal, index, costs)]
        return likely

    def learn(self, length: int, n_chosen: int, costs: Costs) -> None:
        """A draft of this length brought so many tokens, with the one after those accepted."""
        self._forgive()
        self._losses = self._losses + 1 if n_chosen < costs.of(length) else self._losses / 2

    def _best_length(self, n_equal: int, limit: int, costs: Costs) -> int:
        """The length that brings most for its cost, 0 where none brings enough."""
        if not n_equal or limit < LENGTHS[0]:
            return 0
        self._forgive()
        best, most = 0, GAIN
        expected = _expected(n_equal, round(self._losses, 1))
        for (length, cost), n_tokens in zip(costs.offers(), expected, strict=False):
            if length <= limit and n_tokens > most * cost:
                best, most = length, n_tokens / cost
        return best

    def _forgive(self) -> None:
        self._losses *= math.pow(0.5, (len(self._text) - self._counted) / _HALF_LIFE)
        self._counted = len(self._text)


class _Index:
    """Where a text has had each sequence of `KEY` tokens: hash chains, as zlib's deflate has them.

    A place is the index of the token after such a sequence. ``_last`` has the last place of each
    hash, ``_before`` for each place the one before it with the same hash; 0 is none. They take a
    megabyte at most, and four bytes a token.
    """

    def __init__(self, text: Sequence[int]) -> None:
        self._text = text
        self._hash = 0  # of what is before the first place that is not known yet
        self._before = array("i")
        self._build()

    def find(self) -> tuple[int, int]:
        """Where the end of the text stood before, and how many tokens before it were the same.

        The longest of these; the last of equally long ones; (0, 0) where there are less than `KEY`.
        """
        self._catch_up()
        text, end = self._text, len(self._text)
        place, longest = 0, KEY - 1
        candidate = int(self._last[self._slot()]) if end > KEY else 0
        for _ in range(_PLACES):
            if not candidate or longest == _LONGEST:
                break
            if candidate > longest and text[candidate - 1 - longest] == text[end - 1 - longest]:
                n_equal = self._common(candidate)
                if n_equal > longest:
                    place, longest = candidate, n_equal
            candidate = self._before[candidate]
        return (place, longest) if place else (0, 0)

    def _common(self, place: int) -> int:
        """How many tokens before a place are those before the end, `_LONGEST` at most."""
        text, end = self._text, len(self._text)
        most = min(place, _LONGEST)
        for index in range(1, most + 1):
            if text[place - index] != text[end - index]:
                return index - 1
        return most

    def _slot(self) -> int:
        mixed: int = self._hash * _FACTOR & _MASK
        return mixed >> self._shift

    def _catch_up(self) -> None:
        """Have all places but the end of the text, and the hash of what is before that."""
        if len(self._text) >= self._limit:
            self._build()
        text, before = self._text, self._before
        for place in range(len(before), len(text)):
            gone = 0
            if place < KEY:
                before.append(0)
            else:
                slot = self._slot()
                before.append(self._last[slot])
                self._last[slot] = place
                gone = text[place - KEY] * _FACTORS[0]
            self._hash = ((self._hash - gone) * _FACTOR + text[place]) & _MASK

    def _build(self) -> None:
        """Begin with the text as it is now, and a table that has room for some more."""
        count = len(self._text)
        bits = min(max(count.bit_length() + 1, _BITS[0]), _BITS[1])
        self._limit = 2**bits if bits < _BITS[1] else sys.maxsize
        self._shift = 64 - bits
        self._last: npt.NDArray[np.int32] = np.zeros(2**bits, np.int32)
        self._hash, self._before = 0, array("i")
        if count < 2 * KEY:
            return  # nothing is worth NumPy's time
        tokens = np.array(self._text, np.int64).astype(np.uint64)
        hashes = np.zeros(count - KEY + 1, np.uint64)  # of what is before each place from KEY on
        for index, factor in enumerate(_FACTORS):
            hashes += tokens[index : index + hashes.size] * np.uint64(factor)
        self._hash = int(hashes[-1])
        slots = hashes[:-1] * np.uint64(_FACTOR) >> np.uint64(self._shift)
        order = np.argsort(slots, kind="stable")
        follows = np.flatnonzero(np.diff(slots[order]) == 0)
        before = np.zeros(count, np.int32)
        before[KEY + order[follows + 1]] = KEY + order[follows]
        self._before.frombytes(before.tobytes())
        self._last[slots] = np.arange(KEY, count)  # of equal ones the last counts


@lru_cache(maxsize=4096)
def _expected(n_equal: int, losses: float) -> tuple[float, ...]:
    """How many tokens a batch is likely to bring with a draft of each of `LENGTHS`.

    After n tokens that were the same, the next one is the same with a probability of
    (n + 1) / (n + 2), by Laplace's rule of succession; losses count as tokens that were not. On
    edits of this project's source code and on its prose, in Meta's tokens, drafts after 8, 16 and
    32 tokens bring that or more.
    """
    expected, probability = [1.0], 1.0
    for index in range(1, LENGTHS[-1] + 1):
        probability *= (n_equal + index) / (n_equal + index + 1 + losses)
        expected.append(expected[-1] + probability)
    return tuple(expected[length] for length in LENGTHS)


def _quick(values: Collection[float]) -> float:
    """The lower quartile."""
    return sorted(values)[(len(values) - 1) // 4]
