"""An answer: while it is being made, and whole.

Promises that the pieces of a stream together are the text of its completion, however it ended.
Knows nothing of templates, of plans, or of what a model is loaded from.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from ..errors import EngineError
from ..runtime.engine import Engine
from .options import AnswerSettings
from .streaming import TextStream
from .vocabulary import Vocabulary

FinishReason = Literal["stop", "length"]
"""Why an answer ended, in OpenAI's words: the model or a stop string ended it, or ``max_tokens`` or
the context was full."""


@dataclass(frozen=True)
class Completion:
    """An answer, and what it took.

    ``tokens`` are the generated ids, without the one that ended the answer but with those of a stop
    string. ``finish_reason`` is None for an answer that its reader closed before it ended, and
    ``stop_string`` the stop string that ended it, None where there was none. ``prompt_tokens``
    counts the whole prompt, ``reused_tokens`` the part of it that was still in the cache. ``seed``
    is the one that was used.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None
    stop_string: str | None
    prompt_tokens: int
    reused_tokens: int
    seed: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens decoded (not reused) a second; 0.0 if no time was measured."""
        return _rate(self.prompt_tokens - self.reused_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        """Generated tokens a second; 0.0 if no time was measured."""
        return _rate(len(self.tokens), self.decode_seconds)


class Stream(Iterator[str]):
    """An answer while it is being made: iterate over it for pieces of text.

    Closing it, leaving its ``with`` block or asking the model something else in the same thread
    ends it; leaving a ``for`` loop early does no harm. Other threads wait for its end.

    Args:
        prompt: checked token ids. They are decoded before this returns.

    Raises:
        ContextFullError: the prompt does not fit into the context.
        EngineError: the prompt is empty, or llama.cpp failed.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        settings: AnswerSettings,
    ) -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._text = TextStream(settings.stop)
        self._max_tokens = settings.max_tokens
        self._special = settings.special
        self._sampling = settings.sampling.with_seed()
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        # Pieces to hand out, each with the number of tokens that it ends with.
        self._ready: deque[tuple[str, int]] = deque()
        self._handed_out = 0
        self._stopped = False
        self._finish_reason: FinishReason | None = None
        self._ended = False
        self._decode_seconds = 0.0
        self._prompt_tokens = len(prompt)
        # One step at a time; reentrant for signal handlers, which find the step half done.
        self._stepping = threading.RLock()
        self._process = os.getpid()
        self._reading = self._closing = False
        with ExitStack() as resources:
            self._turn = resources.enter_context(engine.turn())
            started = time.perf_counter()
            self._reused_tokens = engine.prefill(prompt)
            self._prefill_seconds = time.perf_counter() - started
            self._sampler = resources.enter_context(engine.sampler(self._sampling, self._turn))
            self._resources = resources.pop_all()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> str:
        """The next piece of text, never empty.

        Raises:
            StopIteration: the answer is complete, or the stream was closed.
            EngineError: the model was asked something else meanwhile, or was closed; or a signal
                handler asks for a piece while the next one is being made.
        """
        with self._one_step():
            if self._reading:
                raise EngineError(
                    "this stream is being read already",
                    hint="A signal handler can close a stream that it interrupts, not read it.",
                )
            try:
                self._reading = True
                return self._next()
            except EngineError:
                if self._closing:  # and the model was perhaps asked something else since
                    raise StopIteration from None
                raise
            finally:
                self._reading = False
                if self._closing:
                    self._close()

    def _next(self) -> str:
        if self._turn.superseded:
            self._close()
            self._turn.check()
        while not (self._ready or self._ended or self._closing):
            started = time.perf_counter()
            try:
                self._step()
            except BaseException:
                # As with a generator: what was interrupted is over, and the model goes on.
                self._close()
                raise
            finally:
                self._decode_seconds += time.perf_counter() - started
        if self._closing or not self._ready:
            raise StopIteration
        piece, self._handed_out = self._ready.popleft()
        self._pieces.append(piece)
        return piece

    def close(self) -> None:
        """End the answer after the last piece that was read; a complete one stays as it is.

        From a signal handler that interrupts the reading, it ends when the reading goes on.
        """
        with self._one_step():
            if self._reading:
                self._closing = True
            else:
                self._close()

    def _close(self) -> None:
        if self._ended and not self._ready:
            return
        if not self._ended:
            self._end(None)
        self._finish_reason = None
        self._ready.clear()
        del self._tokens[self._handed_out :]

    @contextmanager
    def _one_step(self) -> Iterator[None]:
        """Wait for what another thread is doing with the stream."""
        if self._process != os.getpid():
            # A fork, in which nobody goes on with what was under way.
            self._process, self._reading, self._stepping = os.getpid(), False, threading.RLock()
        with self._stepping:
            yield

    @property
    def completion(self) -> Completion:
        """The whole answer, once it is complete or was closed.

        Raises:
            EngineError: the answer is not complete yet.
        """
        if not self._turn.usable:
            self.close()
        if not self._ended or self._ready:
            raise EngineError(
                "the answer is not complete yet", hint="Read the stream to its end, or close it."
            )
        return Completion(
            text="".join(self._pieces),
            tokens=tuple(self._tokens),
            finish_reason=self._finish_reason,
            stop_string=self._text.matched if self._finish_reason else None,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            seed=self._sampling.seed or 0,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
        )

    def _step(self) -> None:
        """Choose the first token, or a burst of the following ones."""
        if len(self._tokens) == self._max_tokens:
            self._end("length")
        elif not self._tokens:
            token = self._sampler()
            self._accept(token, self._engine.is_end(token))
        elif not self._engine.tokens_left:
            self._end("length")
        else:
            self._sampler.burst(self._tokens[-1], self._accept)
        if self._stopped:
            self._end("stop")

    def _accept(self, token: int, is_end: bool) -> bool:
        """Take a token into the answer, in whichever thread; whether more are wanted."""
        if self._ended or self._closing:  # the former where a lost worker's thread was left behind
            return False
        if is_end:
            self._stopped = True
            return False
        self._tokens.append(token)
        self._add(self._text.push(self._vocabulary.token_bytes(token, special=self._special)))
        self._stopped = self._text.matched is not None
        return not self._stopped and len(self._tokens) != self._max_tokens

    def _add(self, text: str) -> None:
        if text:
            self._ready.append((text, len(self._tokens)))

    def _end(self, reason: FinishReason | None) -> None:
        """Finish; the text that was held back belongs to the answer."""
        self._ended = True
        self._finish_reason = reason
        self._resources.close()
        self._add(self._text.finish())


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0.0 else 0.0
