"""How far a conversion or the loading of a model is, on stderr, for a person to watch.

Promises: nothing is drawn unless stderr is a terminal that can redraw a line, and nothing of it
stays. Does not know what is converted or loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..units import bytes_text
from .console import console, printable

if TYPE_CHECKING:
    from rich.console import Console

    from ..progress import Progress


# Below this many columns the tensor's name would push the time left off the line.
_WIDE = 100


@contextmanager
def conversion_progress() -> Iterator[Callable[[Progress], None] | None]:
    """Draw a bar while the block runs; yields what to hand to ``convert(progress=…)``.

    Yields None when stderr is not a terminal, or one that cannot redraw (``TERM=dumb``).
    """
    with _byte_bar() as show:
        if show is None:
            yield None
            return
        yield lambda at: show(at.bytes_done, at.bytes_total, at.item, at.bytes_before)


@contextmanager
def check_progress() -> Iterator[Callable[[Progress], None] | None]:
    """The same bar while a model file is checked; yields ``find_damage(progress=…)`` or None."""
    with _byte_bar() as show:
        if show is None:
            yield None
            return
        yield lambda at: show(at.bytes_done, at.bytes_total, at.item, 0)


@contextmanager
def pull_progress() -> Iterator[Callable[[Progress], None] | None]:
    """The same bar while files are fetched; yields ``pull(progress=…)`` or None."""
    with _byte_bar() as show:
        if show is None:
            yield None
            return
        yield lambda at: show(at.bytes_done, at.bytes_total, at.item, at.bytes_before)


@contextmanager
def _byte_bar() -> Iterator[Callable[[int, int, str, int], None] | None]:
    """A bar with its rate; yields what takes bytes done, in all, what is at work, done before."""
    err = _screen()
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
        columns.append(TextColumn("{task.fields[tensor]}", markup=False))

    # Transient: the report that follows says how it went, and an error stands alone.
    with Progress(*columns, console=err, transient=True, expand=True) as bar:
        task = bar.add_task("", total=None, tensor="")

        begun = False

        def show(done: int, total: int, tensor: str, before: int) -> None:
            nonlocal begun
            if not begun:
                # What an interrupted conversion had done says nothing about the rate of this one.
                bar.reset(task, total=total, completed=before)
                begun = True
            bar.update(task, completed=done, total=total, tensor=printable(tensor))

        yield show


@contextmanager
def loading_progress(name: str) -> Iterator[Callable[[float], None] | None]:
    """Draw how much of the model `name` is loaded; yields ``Model(on_load_progress=…)`` or None."""
    err = _screen()
    if err is None:
        yield None
        return

    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    label = TextColumn("loading {task.description}", markup=False)
    with Progress(label, BarColumn(), TaskProgressColumn(), console=err, transient=True) as bar:
        task = bar.add_task(printable(name), total=1.0)

        def show(fraction: float) -> None:
            bar.update(task, completed=fraction)

        yield show


def _screen() -> Console | None:
    """The terminal on stderr, or None where nothing can be redrawn."""
    if not sys.stderr.isatty():
        return None
    err = console(stderr=True)
    return None if err.is_dumb_terminal else err
