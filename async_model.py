"""The Python API for ``async`` code: what `Model` does, awaited.

Promises that the event loop waits for nothing but the tokens of a text prompt; and that a task
which is cancelled ends its answers. Knows nothing of models beyond `Model`.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Sequence,
)
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec, overload

import numpy as np
import numpy.typing as npt

from .chat.answer import Answer, Completion, answers_to, closed_on_error
from .chat.events import AnswerEnded, AnswerEvent, CallEvent, TextPiece
from .chat.options import AnswerOptions, AnswerSettings
from .chat.prompt import Messages, Prompt, chat_settings, text_settings
from .chat.session import Session
from .chat.tools import ToolInput
from .chat.vocabulary import Vocabulary
from .errors import EngineError, SettingError
from .model import Model
from .ranges import check_flag
from .runtime.adapters import WantedAdapters
from .runtime.constraint import Constraint
from .runtime.engine import Engine
from .runtime.logprobs import TokenLogprobs
from .runtime.request import Request

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .progress import Progress
    from .vision.opening import PictureInput

_P = ParamSpec("_P")

# Seconds, for workers that vanish without a word.
_LOOK_EVERY = 1.0


class AsyncStream(Answer, AsyncIterator[str]):
    """An answer while it is being made: iterate over it with ``async for`` for pieces of text.

    As a `Stream`, it goes on while it is read, and closing, forgetting or leaving its ``async
    with`` block ends it. Cancelling the task that waits for a piece does so too.
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
        self._event = asyncio.Event()
        self._request.notify = _teller(asyncio.get_running_loop(), self._event)
        self._request.owned_by(*_reader())

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def __anext__(self) -> str:
        """The next piece of text, never empty.

        Raises:
            StopAsyncIteration: the answer is complete, or was closed or cancelled.
            EngineError: llama.cpp failed, or the model was closed.
        """
        while not isinstance(event := await self._next(), TextPiece):
            pass
        return event.text

    async def events(self) -> AsyncIterator[AnswerEvent]:
        """The answer as typed events; see ``Stream.events``."""
        while True:
            try:
                piece = await self._next()
            except StopAsyncIteration:
                break
            yield piece
        yield AnswerEnded(self.completion)

    async def _next(self) -> TextPiece | CallEvent:
        """The next piece of text or of a call; see `__anext__`."""
        self._request.owned_by(*_reader())
        try:
            while (piece := self._take()) is None:
                if self._is_full:
                    # As a prompt, what is left is written by a template.
                    await asyncio.to_thread(self._go_on)
                else:
                    await self._wait()
            return piece
        except StopIteration:
            raise StopAsyncIteration from None
        except BaseException:
            # As with a generator: what was interrupted is over, and the model goes on.
            self.close()
            raise

    async def _wait(self) -> None:
        """Until there is a piece, or the end."""
        await _until(self._engine, [self._request], self._event, lambda: self._has_news)

    def _taken(self) -> list[AnswerEvent]:
        """All that is there, and the end where that is next.

        Raises:
            BaseException: what ended the answer, where nothing was there before.
        """
        taken: list[AnswerEvent] = []
        try:
            while (piece := self._take()) is not None:
                taken.append(piece)
        except StopIteration:
            taken.append(AnswerEnded(self.completion))
        except BaseException:
            if not taken:
                raise
        return taken


async def taken_together(
    streams: Sequence[AsyncStream],
) -> AsyncGenerator[list[tuple[int, list[AnswerEvent]]], None]:
    """What happens in some answers: what is there at once, by the numbers of the answers.

    All of them are closed at the end, however it comes.

    Args:
        streams: answers of one model that nobody else reads.

    Raises:
        EngineError: what ended one of them.
    """
    news = asyncio.Event()
    tell = _teller(asyncio.get_running_loop(), news)
    for stream in streams:
        stream._request.notify = tell
    left = dict(enumerate(streams))
    try:
        while left:
            taken = [(number, events) for number, one in left.items() if (events := one._taken())]
            for number, events in taken:
                if isinstance(events[-1], AnswerEnded):
                    del left[number]
            if taken:
                yield taken
                continue
            for stream in left.values():
                if stream._is_full:
                    await asyncio.to_thread(stream._go_on)
            await _until(
                streams[0]._engine,
                [stream._request for stream in left.values()],
                news,
                lambda: any(stream._has_news for stream in left.values()),
                reads_all=True,
            )
    finally:
        for stream in streams:
            stream.close()


async def _until(
    engine: Engine,
    requests: Sequence[Request],
    event: asyncio.Event,
    is_there: Callable[[], bool],
    *,
    reads_all: bool = False,
) -> None:
    """Wait for what some requests bring, of which the event tells.

    Args:
        reads_all: whether the task reads others while it waits for one of them.
    """
    scheduler = engine.scheduler
    reader, goes_on = _reader()
    for request in requests:
        # One that has an owner of its own is not given up for another that its reader waits for.
        scheduler.awaits(request, request.news if reads_all else reader, goes_on)
    try:
        while True:
            event.clear()
            if scheduler.expects(requests, is_there):
                return
            scheduler.check()
            # Until Python 3.12 wait_for forgets a cancellation that comes with the event.
            look = asyncio.get_running_loop().call_later(_LOOK_EVERY, event.set)
            try:
                await event.wait()
            finally:
                look.cancel()
    finally:
        for request in requests:
            request.awaited = 0


def _reader() -> tuple[object, Callable[[], bool]]:
    """The task that this is, and whether it still goes on.

    Weakly: what ended a task keeps the answer that it read, which would keep the task.
    """
    task = asyncio.current_task()
    if task is None:
        return None, lambda: True
    reader = weakref.ref(task)  # the same for the same task

    def goes_on() -> bool:
        task = reader()
        return task is not None and not task.done()

    return reader, goes_on


def _teller(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> Callable[[], None]:
    """What sets an event of a loop from another thread; it keeps no stream."""

    def tell() -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            loop.call_soon_threadsafe(event.set)

    return tell


def _opener(make: Callable[_P, Model]) -> Callable[_P, Coroutine[Any, Any, AsyncModel]]:
    async def open(*args: _P.args, **kwargs: _P.kwargs) -> AsyncModel:
        """Load a model in another thread; the arguments are those of `Model`."""
        return AsyncModel(await asyncio.to_thread(make, *args, **kwargs))

    return open


class AsyncModel:
    """A `Model` for ``async`` code: any number of tasks ask at the same time.

    Close it, or use it in an ``async with`` statement::

        async with await AsyncModel.open("scout-int4.gguf", n_parallel=8) as model:
            answers = await asyncio.gather(*(model.chat(text) for text in questions))

    Args:
        model: what answers; it may be asked by threads too.

    Raises:
        SettingError: it is not a `Model`.
    """

    open = staticmethod(_opener(Model))

    def __init__(self, model: Model) -> None:
        if not isinstance(model, Model):
            raise SettingError(
                "model is of the wrong type",
                found=type(model).__name__,
                expected="a Model; AsyncModel.open(path) loads one",
            )
        self.model = model

    async def __aenter__(self) -> AsyncModel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise EngineError(
            "a model can be neither copied nor pickled", hint="Open its file again instead."
        )

    async def close(self) -> None:
        """End the answers that are being made and free the model; twice is harmless."""
        await asyncio.to_thread(self.model.close)

    async def logits(
        self, tokens: Iterable[int], *, adapters: WantedAdapters = None
    ) -> npt.NDArray[np.float32]:
        """The logits after each token, float32 of [n_tokens, n_vocab]; see ``Engine.logits``."""
        return await asyncio.to_thread(self.model.logits, tokens, adapters=adapters)

    async def score(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        top: int = 0,
        adapters: WantedAdapters = None,
    ) -> list[TokenLogprobs]:
        """How likely the model finds each token of a text but the first; see ``Model.score``.

        Cancelling the task ends it.
        """
        engine, event = self.model.engine, asyncio.Event()
        scoring = engine.scoring(self.model.scored_tokens(prompt, top), top, adapters)
        scoring.notify = _teller(asyncio.get_running_loop(), event)
        try:
            engine.scheduler.submit(scoring)
            await _until(engine, [scoring], event, lambda: scoring.ended)
        finally:
            engine.scheduler.cancel(scoring)
        return scoring.result()

    async def chat_prompt(self, messages: Messages, **options: Unpack[AnswerOptions]) -> Prompt:
        """What `chat` goes on with; see ``Model.chat_prompt``."""
        return await asyncio.to_thread(self.model.chat_prompt, messages, **options)

    async def image_features(
        self, picture: PictureInput, *, allow_download: bool = False
    ) -> npt.NDArray[np.float32]:
        """What the model sees of a picture; see ``Model.image_features``."""
        return await asyncio.to_thread(
            self.model.image_features, picture, allow_download=allow_download
        )

    @overload
    async def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[AnswerOptions],
    ) -> Completion: ...

    @overload
    async def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        stream: Literal[True],
        **options: Unpack[AnswerOptions],
    ) -> AsyncStream: ...

    @overload
    async def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        n: int,
        stream: Literal[False] = ...,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]: ...

    @overload
    async def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        n: int,
        stream: Literal[True],
        **options: Unpack[AnswerOptions],
    ) -> list[AsyncStream]: ...

    async def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        stream: bool = False,
        n: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Completion | AsyncStream | list[Completion] | list[AsyncStream]:
        """Continue a text or token ids; see ``Model.generate``."""
        settings = text_settings(options)
        shown = self.model.text_prompt(prompt, special=settings.special)
        return await self._answer(shown, settings, stream=stream, n=n)

    @overload
    async def chat(
        self,
        messages: Messages,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[AnswerOptions],
    ) -> Completion: ...

    @overload
    async def chat(
        self, messages: Messages, *, stream: Literal[True], **options: Unpack[AnswerOptions]
    ) -> AsyncStream: ...

    @overload
    async def chat(
        self,
        messages: Messages,
        *,
        n: int,
        stream: Literal[False] = ...,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]: ...

    @overload
    async def chat(
        self, messages: Messages, *, n: int, stream: Literal[True], **options: Unpack[AnswerOptions]
    ) -> list[AsyncStream]: ...

    async def chat(
        self,
        messages: Messages,
        *,
        stream: bool = False,
        n: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Completion | AsyncStream | list[Completion] | list[AsyncStream]:
        """Answer the last of some messages; see ``Model.chat``."""
        settings = chat_settings(messages, options)
        # A template may take long, and is somebody else's.
        prompt = await asyncio.to_thread(self.model.shown_prompt, messages, settings)
        return await self._answer(prompt, settings, stream=stream, n=n)

    async def save_session(
        self,
        path: str | os.PathLike[str],
        messages: Messages | None = None,
        *,
        tools: Iterable[ToolInput] = (),
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Session:
        """Keep what was said, and what the model has read of it; see ``Model.save_session``."""
        return await asyncio.to_thread(
            self.model.save_session, path, messages, tools=tools, on_progress=on_progress
        )

    async def load_session(
        self,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Session:
        """Take in what `save_session` kept; see ``Model.load_session``."""
        return await asyncio.to_thread(self.model.load_session, path, on_progress=on_progress)

    async def _answer(
        self, prompt: Prompt, settings: AnswerSettings, *, stream: bool, n: int | None
    ) -> Completion | AsyncStream | list[Completion] | list[AsyncStream]:
        if prompt.pictures:
            # The projector may have to be loaded.
            prompt = await asyncio.to_thread(self.model.with_features, prompt)
        engine, vocabulary = self.model.engine, self.model.vocabulary
        check_flag("stream", stream)
        # What is needed once for a model, and a schema that is large, take their time.
        form = settings.form
        structure = None
        if form is not None:
            structure = await self.model.structures.awaited(form)
        answers = answers_to(
            AsyncStream, engine, vocabulary, prompt, settings, structure, n=n, paced=stream
        )
        if stream:
            return answers if n is not None else answers[0]
        with closed_on_error(answers):
            for answer in answers:
                async for _piece in answer:
                    pass
        completions = [answer.completion for answer in answers]
        return completions if n is not None else completions[0]
