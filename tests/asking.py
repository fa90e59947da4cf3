"""Requests to an engine, for the tests that ask it directly."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.request import Request
from llama4_edge.runtime.sampling import Sampling

# Texts that differ as much as their prompts do.
WILD = Sampling(temperature=2.0, top_k=0, top_p=1.0, seed=3)


def random_tokens(count: int, seed: int = 0) -> list[int]:
    """Ids of plain bytes, so that no control token decides an answer."""
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, count)]


def ask(
    engine: Engine,
    prompt: Sequence[int],
    count: int | None = 10,
    sampling: Sampling = WILD,
    **how: Any,
) -> Request:
    """A request that nobody has to read, and that no token ends."""
    how.setdefault("paced", False)
    how.setdefault("accept", lambda _token, _is_end: True)
    request = engine.request(prompt, sampling, count, **how)
    engine.scheduler.submit(request)
    return request


def ended(engine: Engine, request: Request) -> Request:
    """The request, when it has ended."""
    engine.scheduler.wait(request, lambda: request.ended)
    if request.error is not None:
        raise request.error
    return request


def asked(engine: Engine, prompt: Sequence[int], *what: Any, **how: Any) -> Request:
    """A request that has ended; the arguments are those of `ask`."""
    return ended(engine, ask(engine, prompt, *what, **how))


def answer(engine: Engine, request: Request) -> list[int]:
    """Its tokens, when it has ended."""
    return ended(engine, request).text[request.n_prompt :]


def held(engine: Engine) -> list[Request]:
    """The requests that have not ended, as the engine's thread sees them between two batches."""
    scheduler = engine.scheduler
    return engine.in_thread(lambda: [*scheduler._running, *scheduler._waiting, *scheduler._arrived])


@contextmanager
def paused(engine: Engine) -> Iterator[None]:
    """A block in which the engine's thread does nothing: what is asked there begins together."""
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(600)

    engine._handles.thread.post(work)
    try:
        assert begun.wait(600)
        yield
    finally:
        go_on.set()


def resident_bytes() -> int:
    """The main memory of this process that is in use, without what only waits to be used again.

    glibc keeps what was freed in a heap of each thread that ever asked for some.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread does, ten minutes at most: the machine may be busy."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextmanager
def halted(engine: Engine) -> Iterator[None]:
    """The engine makes no tokens while the block runs, however long that takes."""
    there, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        there.set()
        go_on.wait(600)

    engine._handles.thread.post(wait)
    until(there.is_set)
    try:
        yield
    finally:
        go_on.set()
