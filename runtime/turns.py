"""Whose turn it is to use an engine, where one answer takes many calls.

Promises turns in the order in which they were asked for, one at a time; and that nobody waits for
their own thread, which could never end the turn: a later request of a thread supersedes its earlier
one, as it does that of a thread which has ended. Knows nothing of engines.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import EngineError

_LOOK_EVERY = 1.0  # seconds, for threads that end without a word


class Turn:
    """One turn, until it is over or superseded."""

    def __init__(self, turns: Turns) -> None:
        self.thread = threading.current_thread()
        self.superseded = False
        self._turns = turns

    @property
    def usable(self) -> bool:
        """Whether neither a later request nor the closing of the model has ended it."""
        return not (self.superseded or self._turns.closed)

    def check(self) -> None:
        """Raise EngineError if it is not usable."""
        if self.superseded:
            raise EngineError(
                "this stream was ended by a later request to the same model",
                hint="Finish one answer before asking for the next, or open a second model.",
            )
        if self._turns.closed:
            raise EngineError("the model was closed", hint="Open it again.")


class Turns:
    """The line of those who want an engine for themselves; the first in it has it."""

    def __init__(self) -> None:
        self.closed = False
        # Its lock is reentrant: a stream that the garbage collector finds leaves the line too.
        self._changed = threading.Condition()
        self._line: deque[Turn] = deque()

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """A turn for the length of the block, which begins when all earlier ones are over.

        Raises:
            EngineError: the model was closed, or the same thread asked for a later turn meanwhile.
        """
        turn = Turn(self)
        try:
            with self._changed:
                self._supersede(turn.thread)
                self._line.append(turn)
                while turn.usable and (first := self._line[0]) is not turn:
                    if first.thread.is_alive():
                        self._changed.wait(_LOOK_EVERY)
                    else:
                        self._supersede(first.thread)
            turn.check()
            yield turn
        finally:
            with self._changed:
                self._leave(turn)

    def close(self) -> None:
        """End all turns."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _supersede(self, thread: threading.Thread) -> None:
        # A copy: the garbage collector and signal handlers may change the line at any time.
        for turn in list(self._line):
            if turn.thread is thread:
                turn.superseded = True
                self._leave(turn)

    def _leave(self, turn: Turn) -> None:
        with suppress(ValueError):  # it has left already
            self._line.remove(turn)
        self._changed.notify_all()
