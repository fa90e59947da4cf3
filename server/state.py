"""What the routes of a server share: model, settings, queue, and who is told of answers.

``request.app.state.server`` is a `Server`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from ..async_model import AsyncModel
from ..chat.answer import Completion
from .errors import ApiError
from .keeper import ModelFacts, ModelKeeper
from .responses_store import ResponseStore
from .session_folder import SessionFolder
from .settings import ServerSettings

_MOST_BODIES = 4
"""Bodies of the largest size that are held at a time."""


@dataclass
class Served:
    """One request, for the log and for metrics; a route fills in what it knows.

    Seconds are those from its first line to its last byte, to the first piece of its answer (0.0
    where there was none), and those that the engine took. ``vanished`` is whether the client hung
    up before the end.
    """

    method: str
    path: str
    begun: float
    status: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    vanished: bool = False
    error: str | None = None
    body_bytes: int = 0

    @property
    def read_tokens(self) -> int:
        """Tokens of prompts that were not cached."""
        return self.prompt_tokens - self.cached_tokens

    def note_first(self) -> None:
        """Remember when the first piece of an answer was there."""
        if not self.first_seconds:
            self.first_seconds = time.monotonic() - self.begun

    def note(self, completion: Completion, *, is_first: bool = True) -> None:
        """Add what an answer took.

        Args:
            is_first: whether it is the first one to its prompt, which is counted once.
        """
        if is_first:
            self.prompt_tokens += completion.prompt_tokens
            self.cached_tokens += completion.reused_tokens
        self.completion_tokens += len(completion.tokens)
        self.prefill_seconds += completion.prefill_seconds
        self.decode_seconds = max(self.decode_seconds, completion.decode_seconds)


class Queue:
    """Counts the answers that are being made or waited for, and refuses what would be too many."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._usual_seconds = 1.0
        self.in_flight = 0

    @contextmanager
    def admitted(self, n_answers: int, n_parallel: int) -> Iterator[None]:
        """Count some answers for the time of a block.

        Raises:
            ApiError: too many wait already.
        """
        # No more of them are made at a time.
        n_answers = min(n_answers, n_parallel)
        waiting = self.in_flight - n_parallel
        if waiting >= self._max_waiting:
            seconds = self._usual_seconds * (waiting + 1) / n_parallel
            raise ApiError(
                429,
                f"Too many requests wait, found {max(waiting, 0)}, expected fewer than "
                f"{self._max_waiting}. Try again later.",
                code="queue_full",
                headers={"Retry-After": str(min(max(math.ceil(seconds), 1), 60))},
            )
        self.in_flight += n_answers
        begun = time.monotonic()
        try:
            yield
        finally:
            self.in_flight -= n_answers
            self._usual_seconds += 0.1 * (time.monotonic() - begun - self._usual_seconds)


class Server:
    """What a server has and does for its routes.

    ``sessions`` is where conversations are kept, None where none are; ``asides`` are done after the
    answers that they belong to. ``observers`` are called with each request that was answered, in
    the event loop. ``stopping`` is whether no more are taken, ``ending`` whether those that are
    left are ended.
    """

    def __init__(self, models: ModelKeeper, settings: ServerSettings) -> None:
        self.models = models
        self.settings = settings
        self.queue = Queue(settings.max_queue)
        self.responses = ResponseStore()
        self.sessions = None if settings.sessions is None else SessionFolder(settings.sessions)
        self.asides: set[asyncio.Task[None]] = set()
        self.observers: list[Callable[[Served], None]] = []
        self.stopping = self.ending = False
        self._answers: set[asyncio.Future[None]] = set()
        self._body_bytes = 0

    @property
    def facts(self) -> ModelFacts | None:
        """What is known of the model; None before it was loaded first."""
        return self.models.facts

    def known_facts(self) -> ModelFacts:
        """What is known of the model.

        Raises:
            ApiError: it is being loaded for the first time.
        """
        if self.facts is None:
            raise ApiError(
                503, "The model is being loaded.", code="loading", headers={"Retry-After": "5"}
            )
        return self.facts

    @property
    def model_name(self) -> str:
        """What the model is called here."""
        if self.settings.alias is not None:
            return self.settings.alias
        return "" if self.facts is None else Path(self.facts.path).name.removesuffix(".gguf")

    @asynccontextmanager
    async def asking(self, n_answers: int = 1) -> AsyncIterator[AsyncModel]:
        """The model for a block in which so many answers are made.

        Raises:
            ApiError: the server stops, too many wait, or the model is being loaded first, or cannot
                be loaded again.
        """
        if self.stopping:
            raise ApiError(503, "The server is stopping.", code="stopping")
        n_parallel = 1 if self.facts is None else self.facts.n_parallel
        with self.queue.admitted(n_answers, n_parallel):
            async with self.models.using() as model:
                yield model

    @contextmanager
    def counted(self, answer: asyncio.Future[None]) -> Iterator[None]:
        """Have an answer ended when the server must be, in this block."""
        self._answers.add(answer)
        try:
            yield
        finally:
            self._answers.discard(answer)

    def end_answers(self) -> None:
        """End all answers now; each tells its client."""
        self.ending = True
        for answer in self._answers:
            answer.cancel()

    def take_body(self, record: Served, size: int) -> None:
        """Count bytes of a request's body until it is answered.

        Raises:
            ApiError: all that are being answered have too many.
        """
        record.body_bytes += size
        self._body_bytes += size
        if self._body_bytes > _MOST_BODIES * self.settings.max_body:
            raise ApiError(
                429,
                "The requests that are being answered are too large together. Try again later.",
                code="queue_full",
                headers={"Retry-After": "5", "Connection": "close"},
            )

    def served(self, record: Served) -> None:
        """Tell the observers of a request that was answered."""
        self._body_bytes -= record.body_bytes
        for observe in self.observers:
            observe(record)


def server_of(request: Request) -> Server:
    """The server that a request was sent to."""
    server: Server = request.app.state.server
    return server


def record_of(request: Request) -> Served:
    """What is told of a request when it was answered."""
    record: Served = request.scope["llama4.served"]
    return record
