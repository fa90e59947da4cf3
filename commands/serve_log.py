"""What `llama4 serve` says while it runs: lines for people on stderr, or JSON on stdout.

Promises that no line holds a key, or anything of what was said. Where stderr is no terminal and
no JSON was asked for, requests are not told, and only what matters is.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..terminal.console import abandon_stdout, note
from ..terminal.visible import one_line, visible_json
from .flags import with_flags
from .output import show_warnings

if TYPE_CHECKING:
    from ..errors import Llama4EdgeError
    from ..model import Model
    from ..server.state import Served


class ServeLog:
    """Says what happens.

    Args:
        as_json: an object in a line of stdout for each thing.
        verbose: llama.cpp's log too.
    """

    def __init__(self, *, as_json: bool, verbose: bool) -> None:
        self._as_json = as_json
        self._shows_requests = as_json or verbose or sys.stderr.isatty()
        show_warnings(verbose=verbose)
        if as_json:
            package = logging.getLogger("llama4_edge")
            lines = _JSONLines(self)
            for handler in package.handlers:
                lines.setLevel(handler.level)
                lines.filters = handler.filters
            package.handlers = [lines]

    def listening(self, url: str) -> None:
        """Requests may come."""
        self._say({"event": "listening", "url": url}, f"Listening on {url}")

    def ready(self, model: Model) -> None:
        """The model is loaded."""
        settings = model.engine.settings
        record = {
            "event": "ready",
            "model": model.info.name,
            "n_ctx": settings.n_ctx,
            "n_parallel": settings.n_parallel,
            "plan": None if model.plan is None else str(model.plan),
        }
        where = "" if model.plan is None else f" {model.plan}"
        count = settings.n_parallel
        text = (
            f"{model.info.name}, {settings.n_ctx:,} tokens of context, "
            f"{count} answer{'s' * (count > 1)} at a time.{where}"
        )
        self._say(record, text)

    def request(self, served: Served) -> None:
        """A request was answered."""
        from ..server.access_log import line_of, record_of

        if self._as_json:
            self._write(record_of(served))
        elif self._shows_requests:
            self._note(line_of(served))

    def stopping(self, grace: float) -> None:
        """No more requests are taken."""
        text = f"Stopping: answers have {grace:g} s to end. Ctrl-C again ends them at once."
        self._say({"event": "stopping", "grace_seconds": grace}, text)

    def stopped(self) -> None:
        """The model is freed."""
        self._say({"event": "stopped"}, "Stopped.")

    def failed(self, error: Llama4EdgeError) -> None:
        """It cannot go on; as JSON."""
        self._write({"event": "failed", **error.as_dict()})

    def warned(self, level: str, message: str) -> None:
        """The library has something to say."""
        self._write({"event": "log", "level": level, "message": message})

    def _say(self, record: dict[str, Any], text: str) -> None:
        if self._as_json:
            self._write(record)
        else:
            self._note(text)

    def _note(self, text: str) -> None:
        with suppress(OSError):  # whoever read it is gone, and the server goes on
            note(text)

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), **record}, ensure_ascii=False)
        try:
            sys.stdout.write(visible_json(line) + "\n")
            sys.stdout.flush()
        except OSError:
            # Whoever read it is gone, and the server goes on.
            abandon_stdout()


class _JSONLines(logging.Handler):
    """What the package logs, as lines of JSON."""

    def __init__(self, log: ServeLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = with_flags(record.getMessage())
        for line in filter(None, text.splitlines()):
            self._log.warned(record.levelname.lower(), one_line(line))
