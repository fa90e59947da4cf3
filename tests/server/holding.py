"""An engine that is held between two batches, in the process of the test."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

from llama4_edge import Model
from tests.asking import until


class HeldEngine:
    """Decodes nothing in this block but what it is told to, until the model is closed.

    So what a test does comes before what the engine does next, however late the test gets its turn.
    """

    def __init__(self, model: Model) -> None:
        self._thread = model.engine.scheduler._thread
        self._go_on = Event()

    def __enter__(self) -> HeldEngine:
        self._go_on = self._hold()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Hold it no more."""
        self._go_on.set()

    def step_until(self, is_so: Callable[[], bool]) -> None:
        """Let it decode one batch after the other, as far as there is something to decode."""

        def step() -> bool:
            if is_so():
                return True
            before = self._go_on
            self._go_on = self._hold(before)
            return False

        until(step)

    def _hold(self, before: Event | None = None) -> Event:
        """Hold it when all that was asked for before has had its turn, and let that go on."""
        there, go_on = Event(), Event()

        def hold() -> None:
            there.set()
            until(lambda: go_on.is_set() or self._thread.stopping)

        self._thread.post(hold)
        if before is not None:
            before.set()
        assert there.wait(600)
        return go_on
