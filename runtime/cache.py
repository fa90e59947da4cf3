"""What was read is not read again: which sequence a request gets, and what it goes on from.

A request goes on from the longest beginning of its prompt that is held with the adapters that it
has, by a sequence of the context or by a state in main memory. A sequence leaves its state there
when its place is taken by something that would lose what it holds, and only if it would take longer
to read that again.

Promises that states and checkpoints take no more memory than they may, those that were used least
lately leaving first. Used in the thread that calls llama.cpp alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ..architecture import ATTENTION_CHUNK
from ..errors import EngineError
from .adapters import Scales
from .sequence import CachedSequence, reusable_prefix, rewound
from .state import Bytes, Checkpoint, SequenceState

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

WORTH_KEEPING = 16
"""Tokens that are read again rather than kept: saving and restoring a small state takes as long as
reading about ten (benchmarks/states.py)."""

_WORTH_COPYING = 64  # tokens: all cells of a sequence are copied, however few it holds
_LEAST_SHARE = 8  # of what a state has, what would be lost without it is an eighth at least
_SECONDS_PER_BYTE = 1e-9  # to copy a state, until it was measured


@dataclass
class _Kept:
    """A state in main memory; its checkpoints may leave before it does."""

    tokens: tuple[int, ...]
    data: Bytes
    highest: int
    checkpoints: list[Checkpoint]
    adapters: Scales

    @property
    def ends(self) -> list[int]:
        return [checkpoint.n_tokens for checkpoint in self.checkpoints]

    def reusable(self, tokens: Sequence[int], adapters: Scales) -> int:
        if adapters != self.adapters:
            return 0
        return reusable_prefix(self.tokens, tokens, self.highest, self.ends)

    def state(self) -> SequenceState:
        return SequenceState(self.tokens, self.data, tuple(self.checkpoints), self.adapters)


class Held(NamedTuple):
    """Tokens that need not be read again, by whoever has these adapters."""

    tokens: tuple[int, ...]
    adapters: Scales


class Cache:
    """The sequences of a context, and the states that others have left in main memory.

    Args:
        sequences: those of the context, in the order of their numbers.
        budget: bytes that states and checkpoints may take; 0 keeps none.
    """

    def __init__(self, sequences: Sequence[CachedSequence], budget: int) -> None:
        self.budget = budget
        self._sequences = tuple(sequences)
        self._kept: list[_Kept] = []  # that which was used least lately is the first
        self._last_use = dict.fromkeys(self._sequences, -1)
        self._asked = dict.fromkeys(self._sequences, 0)  # tokens of the last prompt
        self._n_used = 0
        # The best that was seen: another process may have had the processor meanwhile.
        self._seconds_per_token = self._seconds_per_byte = math.inf

    @property
    def nbytes(self) -> int:
        """Bytes of main memory that states and checkpoints take."""
        checkpoints = {id(one): one.nbytes for owner in self._owners for one in owner.checkpoints}
        return sum(kept.data.nbytes for kept in self._kept) + sum(checkpoints.values())

    def take(
        self, prompt: Sequence[int], free: Sequence[CachedSequence], adapters: Scales
    ) -> tuple[CachedSequence, int]:
        """Give one of the free sequences away, holding as much of the prompt as is held anywhere.

        Args:
            prompt: its last token is always decoded.
            adapters: with which it is read.

        Returns:
            The sequence, and how many tokens it holds.
        """
        for sequence in self._sequences:
            sequence.settle()
        held = {sequence: sequence.reusable(prompt, adapters) for sequence in self._sequences}

        used = {sequence.number for sequence in self._sequences} - {one.number for one in free}

        def preference(sequence: CachedSequence) -> tuple[int, bool, int, int]:
            # What begins with most of the prompt that was read there goes on there; all else takes
            # a place where nothing is lost, beside those that are used, and of these the one that
            # was used least lately.
            goes_on = 2 * held[sequence] >= self._asked[sequence]
            matters = self.budget > 0 and len(used) > 0
            is_loss = (goes_on or matters) and self._is_loss(sequence, held[sequence])
            n_kept = held[sequence] if goes_on and not is_loss else 0
            ubatches = _ubatches(used | {sequence.number}) if matters else 0
            return n_kept, not (matters and is_loss), -ubatches, -self._last_use[sequence]

        place = max(free, key=preference)
        beside = max(self._sequences, key=held.__getitem__)
        kept = self._best_kept(prompt, adapters, held[beside])
        is_loss = self._is_loss(place, held[place])
        if kept is not None:
            self._kept.remove(kept)  # it needs no room while it moves
        if is_loss:
            self._leave(place)
        if kept is not None:
            self._move_in(place, kept, prompt)
        elif held[beside] >= held[place] + _WORTH_COPYING:
            self._copy(place, beside, held[beside])
        self._asked[place] = len(prompt)
        return place, place.keep_of(prompt, adapters)

    def release(self, sequence: CachedSequence) -> None:
        """It was used just now."""
        self._n_used += 1
        self._last_use[sequence] = self._n_used

    def restore(self, sequence: CachedSequence, state: SequenceState) -> None:
        """Have a sequence that was taken hold a state; see `CachedSequence.restore`."""
        sequence.settle()
        sequence.restore(state)
        self._asked[sequence] = len(state.tokens)
        self._make_room(0)  # its checkpoints count

    def state_of(
        self, tokens: Sequence[int], adapters: Scales | None = None
    ) -> SequenceState | None:
        """A copy of what is held that begins with most of these tokens; see ``Engine.state_of``."""
        wanted = [*tokens, *tokens[-1:]]  # the last of a prompt does not count
        for sequence in self._sequences:
            sequence.settle()

        def length(owner: CachedSequence | _Kept) -> int:
            return owner.reusable(wanted, owner.adapters if adapters is None else adapters)

        best = max(self._owners, key=length)
        return best.state() if length(best) else None

    def held(self) -> list[Held]:
        """What is held, those that were used least lately first; no beginning of another of it."""
        for sequence in self._sequences:
            sequence.settle()
        every = [Held(tuple(owner.tokens), owner.adapters) for owner in self._owners]
        return [
            one
            for number, one in enumerate(every)
            if len(one.tokens) >= WORTH_KEEPING
            and not any(
                other.adapters == one.adapters
                and other.tokens[: len(one.tokens)] == one.tokens
                and (len(other.tokens), at) > (len(one.tokens), number)
                for at, other in enumerate(every)
            )
        ]

    def clear(self, is_used: Callable[[CachedSequence], bool]) -> None:
        """Forget all states, and what those sequences hold that are not used."""
        self._kept.clear()
        for sequence in self._sequences:
            if not is_used(sequence):
                sequence.settle()
                sequence.keep(0)
                self._last_use[sequence] = -1

    def note_reading(self, n_tokens: int, seconds: float) -> None:
        """Tell how long it took to read some tokens."""
        if n_tokens >= WORTH_KEEPING:
            self._seconds_per_token = min(self._seconds_per_token, seconds / n_tokens)

    def note_end(self, sequence: CachedSequence) -> None:
        """Take a checkpoint, if a sequence has just come to the end of a chunk.

        There has to be room for it beside the states: it takes that of older checkpoints.
        """
        n_tokens = len(sequence.tokens)
        if n_tokens % ATTENTION_CHUNK or n_tokens in sequence.ends or not self.budget:
            return
        nbytes = sequence.nbytes_chunked()
        # Half a chunk is what it saves who goes back there.
        if self._is_quicker(nbytes, ATTENTION_CHUNK // 2) and self._make_room(nbytes, states=False):
            try:
                self._timed(nbytes, sequence.take_checkpoint)
            except (EngineError, MemoryError) as error:
                logger.warning("no checkpoint is taken at %d tokens: %s", n_tokens, error)

    @property
    def _owners(self) -> list[CachedSequence | _Kept]:
        """All that hold something, those that were used least lately first."""
        return [*self._kept, *sorted(self._sequences, key=self._last_use.__getitem__)]

    # --- what is worth it

    def _is_loss(self, sequence: CachedSequence, n_held: int) -> bool:
        """Whether keeping ``n_held`` of its tokens alone would lose what is worth keeping."""
        n_tokens = len(sequence.tokens)
        if not self.budget or n_held >= self._asked[sequence] - 1:
            return False  # the last prompt is asked again, or is gone on with
        wanted = [*sequence.tokens, -1]
        others = (one for one in self._owners if one is not sequence)
        adapters = sequence.adapters
        lost = n_tokens - max([n_held, *(one.reusable(wanted, adapters) for one in others)])
        if lost < WORTH_KEEPING or lost * _LEAST_SHARE < n_tokens:
            return False
        nbytes = sequence.nbytes()
        return nbytes <= self.budget and self._is_quicker(nbytes, lost)

    def _is_quicker(self, nbytes: int, n_tokens: int) -> bool:
        """Whether so many bytes are written and read in less time than the tokens are read."""
        rate = self._seconds_per_byte
        seconds = 2 * nbytes * (_SECONDS_PER_BYTE if math.isinf(rate) else rate)
        return seconds < n_tokens * self._seconds_per_token

    def _timed(self, nbytes: int, copy: Callable[[], _T]) -> _T:
        begun = time.perf_counter()
        result = copy()
        seconds = time.perf_counter() - begun
        if nbytes >= 1 << 20:
            self._seconds_per_byte = min(self._seconds_per_byte, seconds / nbytes)
        return result

    # --- moving in and out

    def _best_kept(self, prompt: Sequence[int], adapters: Scales, n_held: int) -> _Kept | None:
        """The state with the longest beginning, if the sequences hold much less of it."""
        best = max(self._kept, key=lambda kept: kept.reusable(prompt, adapters), default=None)
        if best is None:
            return None
        gain = best.reusable(prompt, adapters) - n_held
        # It is only read, and not written.
        is_quicker = self._is_quicker(best.data.nbytes // 2, gain)
        return best if gain >= WORTH_KEEPING and is_quicker else None

    def _leave(self, sequence: CachedSequence) -> None:
        """Keep what a sequence holds, and nothing that it makes superfluous."""
        tokens = sequence.tokens
        self._kept = [
            one
            for one in self._kept
            if sequence.reusable([*one.tokens, -1], one.adapters) < len(one.tokens)
        ]
        nbytes = sequence.nbytes()
        if not self._make_room(nbytes):
            return
        try:
            state = self._timed(nbytes, sequence.state)
        except (EngineError, MemoryError) as error:
            logger.warning("%d tokens that were read are not kept: %s", len(tokens), error)
            return
        if state is not None:
            checkpoints = list(state.checkpoints)
            self._kept.append(
                _Kept(state.tokens, state.data, state.highest, checkpoints, state.adapters)
            )

    def _move_in(self, place: CachedSequence, kept: _Kept, prompt: Sequence[int]) -> None:
        """Have a sequence hold a state, which stays if the prompt leaves it before its end."""
        try:
            self._timed(kept.data.nbytes, lambda: place.restore(kept.state()))
        except EngineError as error:
            logger.warning("%s: it is read again", error)
            return
        lost = len(kept.tokens) - kept.reusable(prompt, kept.adapters)
        if lost >= WORTH_KEEPING and self._make_room(kept.data.nbytes):
            self._kept.append(kept)

    def _copy(self, place: CachedSequence, source: CachedSequence, count: int) -> None:
        """Have a sequence hold what another one does, of which ``count`` tokens are wanted."""
        if count == len(source.tokens) or rewound(count, source.highest) == count:
            place.copy(source)
        elif (state := source.state()) is not None:
            # It takes a checkpoint, whose cells would be lost when those of the source are copied.
            place.restore(state)

    def _make_room(self, nbytes: int, *, states: bool = True) -> bool:
        """Whether there is room for so many bytes, after less important ones have left.

        Args:
            states: whether states may leave.
        """
        while self.nbytes + nbytes > self.budget:
            if not (
                self._drop_checkpoint(but_for=1)
                or (states and self._drop_state())
                or self._drop_checkpoint(but_for=0)
            ):
                return False
        return True

    def _drop_state(self) -> bool:
        """Drop the state that was used least lately, if there is one."""
        if self._kept:
            del self._kept[0]
            return True
        return False

    def _drop_checkpoint(self, *, but_for: int) -> bool:
        """Drop the oldest checkpoint of what was used least lately and has more than this many."""
        for owner in self._owners:
            if len(owner.checkpoints) > but_for:
                del owner.checkpoints[0]
                return True
        return False


def _ubatches(numbers: Set[int]) -> int:
    """In how many ubatches these sequences answer: llama.cpp puts neighbours alone into one.

    (``llama_batch_allocr::split_equal`` of sequences with cells of their own. Each reads all
    weights.)
    """
    return sum(number - 1 not in numbers for number in numbers)
