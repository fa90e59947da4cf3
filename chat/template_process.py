"""A process that renders one chat template, within limits of time and memory.

Promises that a template which never ends, or takes all memory, costs one error and no more than its
limits; that what comes back is bounded; and that the process ends with the one that uses it,
however that ends. It starts when it is needed, again after it was ended, and anew in a process that
was forked. Knows no messages.

The limits grow with what is rendered: 2 seconds of computing and one for each MiB, five times that
until it is ended on a machine that has no time for it; 512 MiB of address space and 16 times the
bytes; 4 MiB of text and 16 times the bytes. macOS ignores the limit of the address space: there,
only the limit of time ends a template that takes memory.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import TemplateError
from ..units import bytes_text, told_apart
from .rendering import ANSWER, ENCODING, FAULT, MEMORY, REQUEST, TEXT, RenderingError

SECONDS = 2.0
"""Seconds of computing for a template and a short conversation."""

MEMORY_BYTES = 512 << 20
"""Address space of the process for a short conversation. It starts with about 40 MiB."""

TEXT_BYTES = 4 << 20
"""The longest text that is taken for a short conversation."""

_MIB = 1 << 20
_FACTOR = 16  # of memory, and of text, over the bytes of what is rendered
_PATIENCE = 5.0  # of real seconds, over those of computing

# What Python needs of the environment, and the time zone.
_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ", "TZDIR")

# `rendering` with the module path of this process. Without `site`, which would add another one.
_PROGRAM = """
import sys
program, *sys.path = sys.argv[1:]
with open(program, "rb") as file:
    code = compile(file.read(), program, "exec")
exec(code)
"""


class TemplateProcess:
    """A template, compiled in a process of its own. Threads take turns.

    Raises:
        RenderingError: it is not valid Jinja.
        TemplateError: compiling it takes too long or too much memory, or there is no process.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        # A signal handler may ask while its own thread does.
        self._lock = threading.RLock()
        self._is_asking = False
        self._child: _Child | None = None
        # At the end of Python too.
        self._finalizer: weakref.finalize[Any, TemplateProcess] | None = None
        _everywhere.add(self)
        with self._lock:
            self._running()

    def render(self, names: Mapping[str, Any]) -> str:
        """What the template writes.

        Args:
            names: values of JSON, whose strings may hold lone surrogates.

        Raises:
            RenderingError: it fails on these names.
            TemplateError: it takes too long, too much memory, or writes too much.
        """
        request = json.dumps(names, ensure_ascii=False).encode(*ENCODING)
        with self._lock:
            if self._is_asking:
                return TemplateProcess(self._source).render(names)
            return self._ask(self._running(), request, "to render these messages")

    def close(self) -> None:
        """End the process. Rendering again starts another one."""
        with self._lock:
            self._end()

    def _running(self) -> _Child:
        """The process, after the template was compiled there."""
        if self._child is None or self._child.has_ended():
            self._end()
            self._child = _Child()
            self._finalizer = weakref.finalize(self, self._child.end)
            try:
                self._ask(self._child, self._source.encode(*ENCODING), "to compile")
            except RenderingError:
                self._end()
                raise
        return self._child

    def _ask(self, child: _Child, request: bytes, purpose: str) -> str:
        self._is_asking = True
        try:
            return child.ask(request, purpose)
        except RenderingError:
            raise
        except BaseException:
            # Ctrl-C too: the answer would be that to the next question.
            self._end()
            raise
        finally:
            self._is_asking = False

    def _end(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._child = self._finalizer = None

    def _after_fork(self) -> None:
        """In the process that was forked: the other one goes on with the child."""
        self._lock = threading.RLock()
        self._is_asking = False
        if self._child is not None:
            self._child.forget()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._child = self._finalizer = None


_everywhere: weakref.WeakSet[TemplateProcess] = weakref.WeakSet()


def _after_fork() -> None:
    for process in list(_everywhere):
        process._after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class _Child:
    """The process itself, and the two pipes to it.

    Raises:
        TemplateError: it cannot be started.
    """

    def __init__(self) -> None:
        from . import rendering

        path = [str(Path(entry).absolute()) for entry in sys.path if isinstance(entry, str)]
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM, rendering.__file__, *path]
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise TemplateError(
                "the process that renders the chat template cannot be started", found=str(error)
            ) from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._pipes = self._process.stdin, self._process.stdout

    def ask(self, request: bytes, purpose: str) -> str:
        """What the process answers.

        Raises:
            RenderingError: the template fails.
            TemplateError: it has reached a limit, or the process has ended.
        """
        seconds = SECONDS + len(request) / _MIB
        memory = MEMORY_BYTES + _FACTOR * len(request)
        most = TEXT_BYTES + _FACTOR * len(request)
        late = threading.Event()

        def expire() -> None:
            late.set()
            self._process.kill()

        watchdog = threading.Timer(_PATIENCE * seconds, expire)
        watchdog.daemon = True
        try:
            watchdog.start()
            self._write(REQUEST.pack(len(request), seconds, memory))
            self._write(request)
            kind, size = ANSWER.unpack(self._read(ANSWER.size))
            if size > most:
                found, limit = told_apart(size, most)
                raise TemplateError(
                    "the chat template writes too much",
                    found=found,
                    expected=f"at most {limit}",
                )
            answer = self._read(size).decode(*ENCODING)
        except (OSError, EOFError):
            raise self._ended(late.is_set(), seconds, purpose) from None
        except UnicodeDecodeError:
            kind = -1
        finally:
            watchdog.cancel()
        if kind == TEXT:
            return answer
        if kind == FAULT:
            raise RenderingError(answer)
        if kind == MEMORY:
            raise TemplateError(
                f"the chat template takes too much memory {purpose}",
                expected=f"at most {bytes_text(memory)}",
            )
        raise TemplateError("the process of the chat template answers with what is no answer")

    def has_ended(self) -> bool:
        """Whether somebody has ended it."""
        return self._process.poll() is not None

    def end(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()
        self.forget()

    def forget(self) -> None:
        """Close the pipes alone."""
        for pipe in self._pipes:
            pipe.close()

    def _ended(self, late: bool, seconds: float, purpose: str) -> TemplateError:
        """Why the process has ended."""
        self._process.kill()
        status = self._process.wait()
        if late or status == -getattr(signal, "SIGPROF", 0):
            return TemplateError(
                f"the chat template takes too long {purpose}",
                expected=f"at most {seconds:.1f} s of computing",
            )
        reason = f"exit status {status}"
        with suppress(ValueError):
            reason = signal.Signals(-status).name
        return TemplateError(
            f"the process of the chat template, which had {purpose}, has ended", found=reason
        )

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._pipes[0].write(rest) :]

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._pipes[1].read(min(size, _MIB))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
