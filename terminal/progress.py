"""How far a conversion, a download, the loading of a model or of a prompt is, on stderr.

Promises: nothing is drawn unless stderr is a terminal that can redraw a line, and nothing of it
stays. Does not know what is converted or loaded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..units import bytes_text
from .console import screen
from .visible import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..progress import Progress as Bytes

# Below this many columns the tensor's name would push the time left off the line.
_WIDE = 100

# Until it is said what is being done.
_PATIENCE = 1.0


@contextmanager
def byte_progress() -> Iterator[Callable[[Bytes], None] | None]:
    """Draw a bar with its rate while the block runs; yields what takes a `Progress`.

    Yields None when stderr is not a terminal, or one that cannot redraw (``TERM=dumb``).
    """
    err = screen()
    if err is None:
        yield None
        return

    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Bytes a second, in the binary units of everything else."""

        def render(self, task: Task) -> Text:
            """The rate, once there is one."""
            return Text("" if task.speed is None else f"{bytes_text(round(task.speed))}/s")

    columns: list[ProgressColumn] = [
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        RateColumn(),
        TimeRemainingColumn(compact=True),
    ]
    if err.width >= _WIDE:
        columns.insert(2, DownloadColumn(binary_units=True))
        columns.append(TextColumn("{task.fields[item]}", markup=False))
    columns.append(TextColumn("{task.description}", markup=False))

    # Transient: the report that follows says how it went, and an error stands alone.
    with Progress(*columns, console=err, transient=True, expand=True) as bar:
        task = bar.add_task("", total=None, item="")
        begun = False
        words: TaskID | None = None

        def show(at: Bytes) -> None:
            nonlocal begun, words
            if at.activity and words is None:
                # No bytes pass meanwhile: a bar that only moves, and the words on every width.
                words = bar.add_task("", total=None, item="")
            if words is not None:
                bar.update(words, visible=bool(at.activity), description=one_line(at.activity))
                bar.update(task, visible=not at.activity)
            if not begun:
                # What an interrupted job had done says nothing about the rate of this one.
                bar.reset(task, total=at.bytes_total, completed=at.bytes_before)
                begun = True
            item = one_line(at.item)
            bar.update(task, completed=at.bytes_done, total=at.bytes_total, item=item)

        yield show


@contextmanager
def loading_progress(name: str) -> Iterator[Callable[[float], None] | None]:
    """Draw how much of the model `name` is loaded; yields ``Model(on_load_progress=…)`` or None."""
    err = screen()
    if err is None:
        yield None
        return

    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    label = TextColumn("loading {task.description}", markup=False)
    with Progress(label, BarColumn(), TaskProgressColumn(), console=err, transient=True) as bar:
        task = bar.add_task(one_line(name), total=1.0)

        def show(fraction: float) -> None:
            bar.update(task, completed=fraction)

        yield show


@contextmanager
def reading_progress(progress: Callable[[], tuple[int, int]]) -> Iterator[None]:
    """Say how far the reading of a prompt is, where the block takes longer than a second.

    Args:
        progress: how many tokens are read, and of how many.
    """

    def text() -> str:
        done, total = progress()
        return f"reading the prompt: {done:,} of {total:,} tokens"

    with _line(text):
        yield


@contextmanager
def waiting_progress(what: str) -> Iterator[None]:
    """Say what is done, and for how long, where the block takes longer than a second."""
    begun = time.monotonic()
    with _line(lambda: f"{what}: {time.monotonic() - begun:.0f} s"):
        yield


@contextmanager
def _line(text: Callable[[], str]) -> Iterator[None]:
    """Draw a line that changes, from a second after the block has begun until it ends."""
    err = screen()
    if err is None:
        yield
        return

    from rich.live import Live
    from rich.text import Text

    live = Live(
        get_renderable=lambda: Text(text(), style="bright_black"),
        console=err,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    timer = threading.Timer(_PATIENCE, live.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        try:
            timer.join()
        finally:
            live.stop()


@contextmanager
def step_bar() -> Iterator[tuple[Progress, TaskID] | None]:
    """A bar of steps that are counted, on stderr, and its task, which has a `rate` in words.

    Yields None where nothing is drawn.
    """
    err = screen()
    if err is None:
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        yield bar, bar.add_task("loading", total=None, rate="")
