"""``/v1/completions``: OpenAI's older protocol, which continues texts and tokens.

Evaluation harnesses use it with ``echo`` and ``logprobs``, which tell how likely a prompt is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response

from ..async_model import AsyncModel, AsyncStream, taken_together
from ..chat.answer import Completion
from ..chat.events import AnswerEnded, AnswerEvent, TextPiece
from ..chat.prompt import Prompt
from ..model import Model
from ..runtime.logprobs import TokenLogprobs
from .chunks import Head, compact, failure_event
from .endpoint import Call, Endpoint
from .errors import ApiError
from .events import merged
from .logprobs import TextLogprobs
from .pieces import json_answer
from .schema.answers import CompletionAnswer
from .schema.openai import CompletionRequest, TextOrTokens
from .stream import DONE, EventStream
from .usage import timings_of, usage_of

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Task:
    """One of the prompts.

    Attributes:
        text: what ``echo`` writes.
        shown: its tokens but for a BOS that was added, each as likely as the model finds it; None
            where that is not asked for.
    """

    prompt: Prompt
    text: str = ""
    shown: Sequence[TokenLogprobs | int] | None = None


async def _complete(call: Call[CompletionRequest]) -> Response:
    body = call.body
    options: Any = await call.prepared(lambda: _options(call))
    n_parallel = call.model.model.engine.settings.n_parallel
    tasks = await _all([_task(call, prompt) for prompt in body.prompts], n_parallel)
    head = Head.new("cmpl", "text_completion", call.server.model_name)
    if body.stream:
        opened = [_streams(call.model, task.prompt, options) for task in tasks]
        streams = await _all(opened, len(opened))
        return EventStream(
            _Writer(call, tasks, [one for each in streams for one in each], head).events(),
            failure_event,
            beat_seconds=call.server.settings.beat_seconds,
        )
    answers = await _all([_answers(call.model, task.prompt, options) for task in tasks], n_parallel)
    for completions in answers:
        for number, completion in enumerate(completions):
            call.record.note(completion, is_first=number == 0)

    def answer() -> dict[str, Any]:
        made = [completion for completions in answers for completion in completions]
        choices = _choices(call, tasks, answers)
        usage = usage_of(call.record)
        return {**head.fields, "choices": choices, "usage": usage, "timings": timings_of(made)}

    return await json_answer(answer)  # with log probabilities it may be long


def _options(call: Call[CompletionRequest]) -> dict[str, Any]:
    """The keywords of ``Model.generate``."""
    body = call.body
    return {
        "sampling": body.sampling(call.server.settings.sampling),
        "max_tokens": body.most_tokens,
        "n": body.n_made,
        **body.options(),
    }


async def _streams(model: AsyncModel, prompt: Prompt, options: Any) -> list[AsyncStream]:
    streams: list[AsyncStream] = await model.generate(prompt, stream=True, **options)
    return streams


async def _answers(model: AsyncModel, prompt: Prompt, options: Any) -> list[Completion]:
    completions: list[Completion] = await model.generate(prompt, **options)
    return completions


async def _task(call: Call[CompletionRequest], prompt: TextOrTokens) -> _Task:
    """A prompt with what ``echo`` says of it.

    Raises:
        ApiError: it is empty, or has a token that is none.
    """
    body = call.body
    # Tokenizing may take long, and others are answered meanwhile.
    read, text = await asyncio.to_thread(_read, call.model.model, prompt)
    if not body.echo:
        return _Task(read)
    if body.logprobs is None:
        return _Task(read, text)
    adapters = body.options().get("adapters")
    scores = await call.model.score(read, top=body.logprobs, adapters=adapters)
    vocabulary = call.model.model.vocabulary
    is_added = isinstance(prompt, str) and vocabulary.add_bos
    shown: list[TokenLogprobs | int] = [read.positions[0], *scores]
    return _Task(read, text, shown[is_added:])


def _read(model: Model, prompt: TextOrTokens) -> tuple[Prompt, str]:
    """The tokens of a prompt, and its text."""
    if isinstance(prompt, str):
        read, text = model.text_prompt(prompt), prompt
    else:
        n_vocab = model.engine.n_vocab
        if beyond := next((token for token in prompt if token >= n_vocab), None):
            raise ApiError(
                400,
                f"a token of prompt is not in the model's vocabulary, found {beyond}, "
                f"expected 0 to {n_vocab - 1}.",
                "prompt",
                "invalid_value",
            )
        read, text = Prompt(prompt), model.detokenize(prompt)
    if not read.positions:
        raise ApiError(400, "prompt is empty, expected at least one token.", "prompt")
    return read, text


async def _all(work: Sequence[Coroutine[Any, Any, _T]], limit: int) -> list[_T]:
    """What each of these gives; where one fails, the others are ended.

    Args:
        limit: how many are done at a time, so that others who ask come in between.
    """
    free = asyncio.Semaphore(limit)

    async def one(piece: Coroutine[Any, Any, _T]) -> _T:
        async with free:
            return await piece

    tasks = [asyncio.ensure_future(one(piece)) for piece in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for piece in work:
            piece.close()  # those that had not begun


def _best(completions: Sequence[Completion], n: int) -> list[Completion]:
    """The likeliest answers, by the mean of their tokens' log probabilities."""
    if len(completions) == n:
        return list(completions)

    def mean(completion: Completion) -> float:
        logprobs = completion.logprobs or ()
        return sum(one.logprob for one in logprobs) / max(len(logprobs), 1)

    return sorted(completions, key=mean, reverse=True)[:n]


def _choices(
    call: Call[CompletionRequest], tasks: Sequence[_Task], answers: Sequence[Sequence[Completion]]
) -> list[dict[str, Any]]:
    """All answers, in the order of their prompts."""
    chosen = [
        (task, completion)
        for task, completions in zip(tasks, answers, strict=True)
        for completion in _best(completions, call.body.n or 1)
    ]
    return [_choice(call, *one, index) for index, one in enumerate(chosen)]


def _choice(
    call: Call[CompletionRequest], task: _Task, completion: Completion, index: int
) -> dict[str, Any]:
    logprobs = None
    if call.body.logprobs is not None:
        writer = TextLogprobs(call.model.model.vocabulary, call.body.logprobs)
        answer = (*(completion.logprobs or ()), *_end_of(completion))
        logprobs = writer.of([*(task.shown or ()), *answer])
    return {
        "index": index,
        "text": task.text + completion.text,
        "logprobs": logprobs,
        "finish_reason": completion.finish_reason,
    }


def _end_of(completion: Completion) -> tuple[TokenLogprobs, ...]:
    """The token that ended an answer, which has no text; harnesses count on one for each token."""
    return () if completion.end_logprobs is None else (completion.end_logprobs,)


class _Writer:
    """Writes the chunks of some answers, as few as there can be."""

    def __init__(
        self,
        call: Call[CompletionRequest],
        tasks: Sequence[_Task],
        streams: Sequence[AsyncStream],
        head: Head,
    ) -> None:
        self._call, self._tasks, self._streams, self._head = call, tasks, streams, head
        self._usage = ',"usage":null' if call.body.includes_usage else ""
        self._completions: dict[int, Completion] = {}
        vocabulary, n_top = call.model.model.vocabulary, call.body.logprobs
        self._logprobs = [
            None if n_top is None else TextLogprobs(vocabulary, n_top) for _ in streams
        ]

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The whole stream."""
        for number in range(len(self._streams)):
            # With log probabilities it is as long as the prompt.
            if echo := await asyncio.to_thread(self._echo, number):
                yield echo
        async for taken in taken_together(self._streams):
            self._call.record.note_first()
            yield b"".join(
                self._written(number, event) for number, events in taken for event in merged(events)
            )
        if self._call.body.includes_usage:
            done = [self._completions[number] for number in range(len(self._streams))]
            usage, timings = compact(usage_of(self._call.record)), compact(timings_of(done))
            yield self._head.chunk("", f',"usage":{usage},"timings":{timings}')
        yield DONE

    def _echo(self, index: int) -> bytes:
        """The prompt before an answer."""
        task = self._tasks[index // self._call.body.n_made]
        return self._chunk(index, task.text, task.shown) if task.text or task.shown else b""

    def _written(self, index: int, event: AnswerEvent) -> bytes:
        if isinstance(event, TextPiece):
            return self._chunk(index, event.text, event.logprobs)
        if isinstance(event, AnswerEnded):
            self._completions[index] = event.completion
            is_first = index % self._call.body.n_made == 0
            self._call.record.note(event.completion, is_first=is_first)
            end, reason = _end_of(event.completion), compact(event.completion.finish_reason)
            return self._chunk(index, "", end, reason)
        return b""  # without tools there is nothing else

    def _chunk(
        self,
        index: int,
        text: str,
        entries: Sequence[TokenLogprobs | int] | None,
        reason: str = "null",
    ) -> bytes:
        writer = self._logprobs[index]
        logprobs = "null" if writer is None or not entries else compact(writer.of(entries))
        choice = (
            f'{{"index":{index},"text":{compact(text)},"logprobs":{logprobs},'
            f'"finish_reason":{reason}}}'
        )
        return self._head.chunk(choice, self._usage)


routes = [
    Endpoint(
        CompletionRequest,
        _complete,
        summary="Continue texts, or tokens.",
        answer=CompletionAnswer,
        prompt_field="prompt",
        n_answers=lambda body: len(body.prompts) * body.n_made,
    ).route("/v1/completions")
]
