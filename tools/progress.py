"""One line that says how far a long command is: redrawn on a terminal, now and then elsewhere.

Promises that every line of the command's output is kept in a log, and that a terminal's line never
wraps. Does not know what the command does: whoever starts it reads its lines.
"""

from __future__ import annotations

import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

# The first files are not like the others.
_ESTIMATE_FROM = 0.05
_QUIET_SECONDS = 30
"""Without a terminal, a line is written at least this often while the text changes."""


def duration(seconds: float) -> str:
    """``9 s``, ``2:09 min``."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02} min"


@dataclass
class ProgressLine:
    """How far a job is, on `stream`. `clock` gives seconds."""

    title: str
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._start = self.clock()
        self._terminal = self.stream.isatty()
        self._written = ("", self._start)
        self._tenth = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the job began."""
        return self.clock() - self._start

    def update(self, text: str, fraction: float | None = None, *, estimate: bool = False) -> None:
        """Say `text`; with `fraction` (0 to 1) done and `estimate`, the time left at this pace too.

        Without a terminal only every tenth of the work is written, or a text that is new after
        half a minute.
        """
        line = f"{self.title}: {text}, {duration(self.elapsed)}"
        if estimate and fraction and fraction >= _ESTIMATE_FROM:
            line += f", about {duration(self.elapsed * (1 - fraction) / fraction)} left"
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"\r\x1b[K{line[:width]}")
            self.stream.flush()
            return
        tenth = int((fraction or 0) * 10)
        last_text, last_time = self._written
        is_due = text != last_text and self.clock() - last_time >= _QUIET_SECONDS
        if tenth > self._tenth or is_due:
            self._tenth = max(tenth, self._tenth)
            self._write(line, text)

    def finish(self, text: str) -> None:
        """Say how the job ended, on a line that stays."""
        if self._terminal:
            self.stream.write("\r\x1b[K")
        self._write(f"{self.title}: {text}, {duration(self.elapsed)}", text)

    def _write(self, line: str, text: str) -> None:
        self.stream.write(f"{line}\n")
        self.stream.flush()
        self._written = (text, self.clock())


def follow(
    command: Sequence[str],
    on_line: Callable[[str], None],
    on_second: Callable[[], None],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run `command` with its output in `log`, and give its exit status.

    `on_line` gets each line of stdout and stderr as it comes, `on_second` is called once a second.
    Ctrl-C ends the command before it is raised.
    """
    lines: queue.Queue[str | None] = queue.Queue()
    process = subprocess.Popen(
        command, env=environment, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output = process.stdout
    assert output is not None

    def read() -> None:
        with output, log.open("w", encoding="utf-8") as kept:
            for line in output:
                kept.write(line)
                lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        drawn = time.monotonic()
        while True:
            try:
                line = lines.get(timeout=1)
            except queue.Empty:
                pass
            else:
                if line is None:
                    break
                on_line(line)
            if time.monotonic() - drawn >= 1:
                on_second()
                drawn = time.monotonic()
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        reader.join(timeout=5)


def log_end(log: Path, *, begin: str | None = None, count: int = 30, width: int = 300) -> str:
    """The last `count` lines of `log`; with `begin`, `count` lines from its first occurrence on."""
    tail: deque[str] = deque(maxlen=count)
    beginning: list[str] = []
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            tail.append(line.rstrip("\n")[:width])
            if begin is not None and (beginning or begin in line) and len(beginning) < count:
                beginning.append(tail[-1])
    return "\n".join(beginning or tail)
