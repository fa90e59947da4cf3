"""An answer: while it is being made, and whole.

Promises that the pieces of a stream together are the text of its completion, however it ended.
Knows nothing of templates, of plans, or of what a model is loaded from.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
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
        self._sampling = settings.sampling.with_seed()
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._finish_reason: FinishReason | None = None
        self._ended = False
        self._decode_seconds = 0.0
        self._prompt_tokens = len(prompt)
        # One step at a time; reentrant for signal handlers.
        self._stepping = threading.RLock()
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
            EngineError: the model was asked something else meanwhile, or was closed.
        """
        with self._stepping:
            return self._next()

    def _next(self) -> str:
        if self._turn.superseded:
            self.close()
            self._turn.check()
        while not self._ended:
            started = time.perf_counter()
            try:
                piece = self._step()
            except BaseException:
                # As with a generator: what was interrupted is over, and the model goes on.
                self.close()
                raise
            finally:
                self._decode_seconds += time.perf_counter() - started
            if piece:
                self._pieces.append(piece)
                return piece
        raise StopIteration

    def close(self) -> None:
        """End the answer here; closing a complete one changes nothing."""
        with self._stepping:
            if not self._ended:
                self._end(None)

    @property
    def completion(self) -> Completion:
        """The whole answer, once it is complete or was closed.

        Raises:
            EngineError: the answer is not complete yet.
        """
        if not self._turn.usable:
            self.close()
        if not self._ended:
            raise EngineError(
                "the answer is not complete yet", hint="Read the stream to its end, or close it."
            )
        return Completion(
            text="".join(self._pieces),
            tokens=tuple(self._tokens),
            finish_reason=self._finish_reason,
            stop_string=self._text.matched,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            seed=self._sampling.seed or 0,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._decode_seconds,
        )

    def _step(self) -> str:
        """Choose one token; the text that became certain with it."""
        if len(self._tokens) == self._max_tokens:
            return self._end("length")
        if self._tokens:
            if not self._engine.tokens_left:
                return self._end("length")
            token = self._sampler.after(self._tokens[-1])
        else:
            token = self._sampler()
        if self._engine.is_end(token):
            return self._end("stop")
        self._tokens.append(token)
        text = self._text.push(self._vocabulary.token_bytes(token))
        if self._text.matched is not None:
            self._end("stop")
        return text

    def _end(self, reason: FinishReason | None) -> str:
        """Finish; the text that was held back, which belongs to the answer."""
        self._ended = True
        self._finish_reason = reason
        self._resources.close()
        return self._text.finish()


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0.0 else 0.0
