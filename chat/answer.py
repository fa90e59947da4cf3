"""An answer: while it is being made, and whole.

Promises that the pieces of a stream together are the text of its completion, however it ended; and
that an answer which nobody reads any more is ended. Knows nothing of templates, of plans, or of
what a model is loaded from.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from ..errors import EngineError
from ..runtime.constraint import Constraint
from ..runtime.engine import Engine
from ..runtime.logprobs import TokenLogprobs
from ..runtime.request import Outcome, Request
from .call_parser import Found
from .conversation import Message
from .events import AnswerEnded, AnswerEvent, CallEvent, TextPiece, ToolCallEnded
from .options import AnswerSettings
from .prompt import Prompt
from .streaming import TextStream
from .tool_calls import ToolCall
from .tools import checked_call
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..runtime.scheduler import Scheduler
    from .structure import Structure

_A = TypeVar("_A", bound="Answer")

FinishReason = Outcome | Literal["tool_calls"]
"""Why an answer ended, in OpenAI's words: the model or a stop string ended it, with calls of tools
or without, or ``max_tokens`` or the context was full."""


@dataclass(frozen=True)
class Completion:
    """An answer, and what it took.

    ``tokens`` are the generated ids, without the one that ended the answer but with those of a stop
    string. ``finish_reason`` is None for an answer that was closed or cancelled before it ended,
    ``stop_string`` the stop string that ended it, None where there was none. ``prompt_tokens``
    counts the whole prompt, ``reused_tokens`` the part of it that was still in the cache. ``seed``
    is the one that was used.

    ``dropped_messages`` were not shown to the model at the end of the answer, because the context
    was full. Where some were dropped in the middle of it, what was left was decoded again with the
    answer so far: ``reread_tokens``, which ``prefill_seconds`` include. Of ``drafted_tokens``,
    ``accepted_tokens`` were chosen. ``logprobs`` has an entry for each of ``tokens``, or is None
    where they were not asked for; ``end_logprobs`` is that of the token which ended the answer,
    where one did. ``tool_calls`` are what the model calls of the tools that it was shown; ``text``
    is without them.
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
    dropped_messages: int = 0
    reread_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = None
    end_logprobs: TokenLogprobs | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def message(self) -> Message:
        """The answer as a message, with its calls of tools, to go on with."""
        return Message("assistant", self.text, tool_calls=self.tool_calls)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens decoded (not reused) a second; 0.0 if no time was measured."""
        read = self.prompt_tokens - self.reused_tokens + self.reread_tokens
        return _rate(read, self.prefill_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        """Generated tokens a second; 0.0 if no time was measured."""
        return _rate(len(self.tokens), self.decode_seconds)


class Answer:
    """An answer that is being made: what those who wait for it in one way or another share.

    Args:
        prompt: token ids, and how to shorten them.
        constraint: holds the answer to a form.
        paced: whether it waits for its reader, who may be slow or gone.
        after: an answer to a prompt that begins like this one and is to be read first.

    Raises:
        ContextFullError: the prompt does not fit into the context.
        EngineError: the prompt is empty, or the model was closed.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        prompt: Prompt,
        settings: AnswerSettings,
        *,
        constraint: Constraint | None = None,
        paced: bool = True,
        after: Answer | None = None,
    ) -> None:
        self._engine, self._settings = engine, settings
        self._prompt, self._n_prompt = prompt, len(prompt)
        sampling = settings.sampling.with_seed()
        self._seed = sampling.seed or 0
        self._text = _Text(vocabulary, settings)
        # What was handed out, each with the number of tokens that it ends with.
        self._read: list[tuple[TextPiece | CallEvent, int]] = []
        self._finished = self._closed = False
        self._request: Request = engine.request(
            prompt.positions,
            sampling,
            settings.max_tokens,
            self._text.accept,
            paced=paced,
            after=None if after is None else after._request,
            goes_on=prompt.shortened is not None,
            features=prompt.features,
            drafts=settings.drafts,
            constraint=constraint,
            logprobs=settings.n_logprobs,
            adapters=settings.adapters,
        )
        # A forgotten answer is ended, be it for an interrupt in the next line. (What the engine
        # knows of it does not keep it, nor does an error that ended the request and was raised.)
        request = weakref.ref(self._request)
        forget = weakref.finalize(self, _forget, engine.scheduler, request)
        forget.atexit = False
        engine.scheduler.submit(self._request)

    def cancel(self) -> None:
        """End the answer soon, in whichever thread: within a token, or a piece of the prompt.

        Who reads it gets what is there, and then its end.
        """
        self._engine.scheduler.cancel(self._request)

    def close(self) -> None:
        """End the answer after the last piece that was read; a complete one stays as it is."""
        if not self._is_complete:
            self._closed = True
            self.cancel()
            self._request.notify()

    @property
    def dropped_messages(self) -> int:
        """How many messages the model is not shown so far; see `Completion`."""
        return self._prompt.dropped_messages

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """How many tokens of the prompt are read, or were there already, and how many it has."""
        request, sequence = self._request, self._request.sequence
        held = 0 if sequence is None else len(sequence.tokens)
        return min(held, request.n_prompt), request.n_prompt

    @property
    def reused_tokens(self) -> int:
        """How many tokens of the prompt were in the cache; 0 before it begins to be read."""
        return self._request.reused_tokens

    @property
    def completion(self) -> Completion:
        """The whole answer, once it is complete or was closed.

        Raises:
            EngineError: the answer is not complete yet.
        """
        if self._engine.closed or self._request.error is not None:
            self.close()
        if not (self._closed or self._is_complete):
            raise EngineError(
                "the answer is not complete yet", hint="Read the stream to its end, or close it."
            )
        request, text = self._request, self._text
        reason: FinishReason | None = None if self._closed else request.outcome
        events = [event for event, _ in self._read]
        calls = tuple(event.call for event in events if isinstance(event, ToolCallEnded))
        tokens = tuple(text.tokens[: self._n_read] if self._closed else text.tokens)
        return Completion(
            text="".join(event.text for event in events if isinstance(event, TextPiece)),
            tokens=tokens,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            stop_string=text.stop.matched if reason else None,
            prompt_tokens=self._n_prompt,
            reused_tokens=request.reused_tokens,
            seed=self._seed,
            prefill_seconds=request.prefill_seconds,
            decode_seconds=request.decode_seconds,
            dropped_messages=self.dropped_messages,
            reread_tokens=request.reread_tokens,
            drafted_tokens=request.drafted_tokens,
            accepted_tokens=request.accepted_tokens,
            logprobs=self._logprobs(0, len(tokens)),
            end_logprobs=self._end_logprobs(len(tokens)) if reason == "stop" else None,
            tool_calls=calls,
        )

    @property
    def _n_read(self) -> int:
        """Of how many tokens the text was read."""
        return self._read[-1][1] if self._read else 0

    def _logprobs(self, begin: int, end: int) -> tuple[TokenLogprobs, ...] | None:
        """Those of some tokens of the answer; None where they were not asked for."""
        if self._settings.n_logprobs is None:
            return None
        return tuple(self._request.logprobs[begin:end])

    def _end_logprobs(self, n_tokens: int) -> TokenLogprobs | None:
        """That of the token after the last one; None where a stop string ended the answer."""
        if self._settings.n_logprobs is None or self._text.stop.matched is not None:
            return None
        return next(iter(self._request.logprobs[n_tokens:]), None)

    @property
    def _is_complete(self) -> bool:
        """Whether it has ended without an error, and all of it was read."""
        request, text = self._request, self._text
        if request.ended and not (self._finished or text.ready or request.error):
            self._finished = True
            text.finish()
        return self._finished and not text.ready

    @property
    def _has_news(self) -> bool:
        return bool(self._text.ready) or self._request.ended or self._is_full or self._closed

    @property
    def _is_full(self) -> bool:
        """Whether it waits for `_go_on`."""
        request = self._request
        return request.waits_to_be_resumed and not (request.ended or self._closed)

    def _go_on(self) -> None:
        """Go on where the context is full: without the oldest exchanges, or to the end."""
        assert self._prompt.shortened is not None
        shorter = self._prompt.shortened(self._request.n_chosen)
        self._prompt = shorter or self._prompt
        positions = None if shorter is None else shorter.positions
        self._engine.resume(self._request, positions)

    def _take(self) -> TextPiece | CallEvent | None:
        """The next piece of text or of a call if one is there; None while there is none.

        Raises:
            StopIteration: the answer is complete, or was closed or cancelled.
            BaseException: what ended it.
        """
        # Looked at first: when the end is seen, all that was made before it is there.
        ended = self._request.ended
        if self._closed or self._is_complete:
            raise StopIteration
        if self._text.ready:
            found, count = self._text.ready[0]
            event = self._event_of(found, count)
            self._read.append((event, count))
            self._text.ready.popleft()
            self._request.take(count)
            return event
        if ended and self._request.error is not None:
            raise self._request.error
        return None

    def _event_of(self, found: Found, count: int) -> TextPiece | CallEvent:
        """What was found in the text, as it is handed out."""
        if isinstance(found, str):
            return TextPiece(found, self._logprobs(self._n_read, count))
        if isinstance(found, ToolCallEnded):
            return replace(found, call=checked_call(found.call, self._settings.tools))
        return found


class _Text:
    """The tokens of an answer and their text; the engine's thread adds, a reader takes away.

    ``ready`` is what to hand out, text and what is found of calls, each with the number of tokens
    whose bytes are all in the text so far.
    """

    def __init__(self, vocabulary: Vocabulary, settings: AnswerSettings) -> None:
        self.tokens: list[int] = []
        self._sizes: list[int] = []  # bytes of each
        self.ready: deque[tuple[Found, int]] = deque()
        self.stop = TextStream(settings.stop)
        self._calls = settings.call_parser()
        self._vocabulary, self._special = vocabulary, settings.special

    def accept(self, token: int, is_end: bool) -> bool:
        """Take a token into the answer; whether more are wanted."""
        if is_end:
            return False
        data = self._vocabulary.token_bytes(token, special=self._special)
        self.tokens.append(token)
        self._sizes.append(len(data))
        self._add(self.stop.push(data))
        return self.stop.matched is None and not (self._calls and self._calls.is_full)

    def finish(self) -> None:
        """No more tokens come: what was held back belongs to the answer."""
        self._add(self.stop.finish())
        if self._calls is not None:
            self._hand_out(self._calls.finish())

    def _add(self, text: str) -> None:
        if text:
            self._hand_out([text] if self._calls is None else self._calls.push(text))

    def _hand_out(self, found: Iterable[Found]) -> None:
        count, waiting = len(self.tokens), self.stop.n_waiting
        while waiting > 0:
            count -= 1
            waiting -= self._sizes[count]
        self.ready.extend((one, count) for one in found)


class Stream(Answer, Iterator[str]):
    """An answer while it is being made: iterate over it for pieces of text.

    It begins as soon as the model has a sequence free, and goes on while it is read. Closing it or
    leaving its ``with`` block ends it, and so does forgetting it; leaving a ``for`` loop early does
    no harm. Other threads wait for its end where no sequence is free; its own thread ends it then
    by waiting for something else of the model.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        prompt: Prompt,
        settings: AnswerSettings,
        *,
        constraint: Constraint | None = None,
        paced: bool = True,
        after: Answer | None = None,
    ) -> None:
        super().__init__(
            engine, vocabulary, prompt, settings, constraint=constraint, paced=paced, after=after
        )
        # One piece at a time; reentrant for signal handlers, which find the step half done.
        self._stepping = threading.RLock()
        self._process = os.getpid()
        self._reading = False

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> str:
        """The next piece of text, never empty.

        Raises:
            StopIteration: the answer is complete, or was closed or cancelled.
            EngineError: llama.cpp failed; the model was closed, or something else was waited for
                while no sequence was free; or a signal handler asks for a piece while the next one
                is being made.
        """
        while not isinstance(event := self._next(), TextPiece):
            pass
        return event.text

    def events(self) -> Iterator[AnswerEvent]:
        """The answer as typed events: each `TextPiece`, and at the end an `AnswerEnded`.

        Of a call of a tool there are `ToolCallBegun`, each `ToolCallPiece` of its arguments, and
        `ToolCallEnded`. What was read of the stream in another way is not repeated.

        Raises:
            EngineError: as `__next__`; then there is no `AnswerEnded`.
        """
        while True:
            try:
                piece = self._next()
            except StopIteration:
                break
            yield piece
        yield AnswerEnded(self.completion)

    def _next(self) -> TextPiece | CallEvent:
        """The next piece of text or of a call; see `__next__`."""
        thread = threading.current_thread()
        self._request.owned_by(thread, thread.is_alive)
        with self._one_step():
            if self._reading:
                raise EngineError(
                    "this stream is being read already",
                    hint="A signal handler can close a stream that it interrupts, not read it.",
                )
            try:
                self._reading = True
                while (piece := self._take()) is None:
                    if self._is_full:
                        self._go_on()
                    else:
                        self._engine.scheduler.wait(self._request, lambda: self._has_news)
                return piece
            except StopIteration:
                raise
            except BaseException:
                if self._closed and self._request.error is None:
                    raise StopIteration from None
                # As with a generator: what was interrupted is over, and the model goes on.
                self.close()
                raise
            finally:
                self._reading = False

    @contextmanager
    def _one_step(self) -> Iterator[None]:
        """Wait for what another thread is doing with the stream."""
        if self._process != os.getpid():
            # A fork, in which nobody goes on with what was under way.
            self._process, self._reading, self._stepping = os.getpid(), False, threading.RLock()
        with self._stepping:
            yield


def answers_to(
    kind: type[_A],
    engine: Engine,
    vocabulary: Vocabulary,
    prompt: Prompt,
    settings: AnswerSettings,
    structure: Structure | None,
    *,
    n: int | None,
    paced: bool,
) -> list[_A]:
    """So many answers to one prompt, which is read once; they begin at once.

    Raises:
        ContextFullError, EngineError: see `Answer`.
        SettingError: ``n`` is out of range.
    """
    answers: list[_A] = []
    with closed_on_error(answers):
        for one in settings.each(n):
            after = answers[-1] if answers else None
            held = None if structure is None else structure.constraint()
            answers.append(
                kind(engine, vocabulary, prompt, one, constraint=held, paced=paced, after=after)
            )
    return answers


def completions_of(answers: Sequence[Stream]) -> list[Completion]:
    """The whole answers, read one after the other; where that fails, all are ended."""
    with closed_on_error(answers):
        for answer in answers:
            for _piece in answer:
                pass
    return [answer.completion for answer in answers]


@contextmanager
def closed_on_error(answers: Sequence[Answer]) -> Iterator[None]:
    """End some answers if a block, in which there may come more, fails."""
    try:
        yield
    except BaseException:
        for answer in answers:
            answer.close()
        raise


def _forget(scheduler: Scheduler, request: weakref.ref[Request]) -> None:
    """End a request whose answer nobody reads any more, if it goes on."""
    if (one := request()) is not None:
        scheduler.cancel(one)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0.0 else 0.0
