"""Token ids in, logits and token ids out: one model and one context of llama.cpp.

Promises that llama.cpp, which ends the process on some input, only ever sees input it accepts; that
an interrupted call leaves the engine usable; and that any thread may call it. Requests are answered
by a `Scheduler`, several at a time; all else is done to the first sequence, one call after the
other. Knows nothing of text.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import EngineError
from ..ranges import check_whole, wrong_type
from ..system.memory import host_memory
from .activations import ActivationSums
from .adapters import LoadedAdapters, Scales
from .bindings.memory import MemoryReport
from .cache import Cache, Held
from .checked_adapters import CheckedAdapters
from .checks import Checks, context_full, no_tokens
from .constraint import Constraint
from .encoder import Encoder
from .features import Features, names_in
from .files.model_file import check_model_file
from .handles import Handles
from .logprobs import TokenLogprobs
from .main_memory import usual_cache
from .placement import CPU
from .request import Request
from .rows import TakeEach, TakeRows, each_rows, pieces_of, rows_of_each
from .sampling import Sampling
from .scheduler import Scheduler
from .scoring import Scoring
from .sequence import CachedSequence
from .settings import EngineSettings, check_settings_of_model
from .state import SequenceState

_T = TypeVar("_T")

# Settings with which no model need be looked at.
_ALWAYS_POSSIBLE: dict[str, Any] = {
    "n_expert_used": None, "kv_type": "f16",
    "adapters": (), "control_vectors": (), "control_vector_layers": None,
}  # fmt: skip


class Engine:
    """A loaded model with its context. Close it, or use it in a ``with`` statement.

    ``last_prompt`` is the one that was asked for last, () where none was, and ``last_adapters`` are
    the scales that it was asked for with. ``adapters`` are those
    of the settings, and what holds of them where a request does not say.

    Args:
        path: a GGUF that ``check_model_file`` accepted.
        end_ids: tokens that end an answer, beside those that llama.cpp takes for ends.
        on_progress: called with the fraction loaded, 0.0 to 1.0; returning False cancels.

    Raises:
        SettingError: the settings are not possible for this model.
        EngineError: llama.cpp cannot load the model or make the context; its own words are given.
        ModelFileError: an adapter or a control vector is damaged, or of another model.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: EngineSettings | None = None,
        *,
        end_ids: Iterable[int] = (),
        on_progress: Callable[[float], object] | None = None,
    ) -> None:
        self.path = Path(path)
        self.settings = settings or EngineSettings()
        self.checked_adapters: CheckedAdapters | None = None
        if self.settings != replace(self.settings, **_ALWAYS_POSSIBLE):
            # What llama.cpp would end the process for depends on the model.
            info = check_model_file(self.path, needs_tokenizer=False)
            check_settings_of_model(self.settings, info.hparams, os.fspath(path))
            self.checked_adapters = CheckedAdapters.of(self.settings, info)
        self.last_prompt: tuple[int, ...] = ()
        self.last_adapters: Scales = ()
        self.adapters = LoadedAdapters(self.settings.adapters)
        self._handles = Handles(
            self.path, self.settings, on_progress, end_ids, self.checked_adapters
        )
        self._set_up()
        self.n_vocab = self._handles.n_vocab
        # A forgotten engine is freed soon: whoever forgets it may be in the middle of anything.
        self._free = weakref.finalize(self, self._handles.close, wait=False)
        self._free.atexit = False  # `bindings.thread` sees to that

    def _set_up(self) -> None:
        """Nothing is held, and nobody asks."""
        settings = self.settings
        every = [CachedSequence(self._handles, number) for number in range(settings.n_parallel)]
        self._sequence = every[0]
        self._checks = Checks(self._handles.n_vocab, settings.n_ctx)
        # Where nobody else can wait, more is handed to llama.cpp in one call.
        n_read = settings.n_ubatch if settings.n_parallel > 1 else settings.n_batch
        n_outputs = min(
            settings.n_outputs, settings.n_ubatch, settings.n_ctx, self._handles.n_batch
        )
        self.cache = Cache(every, self._cache_budget())
        self.scheduler = Scheduler(
            self._handles, every, self.cache, settings.n_ctx, n_read, n_outputs
        )

    def _cache_budget(self) -> int:
        """Bytes of main memory that states of sequences may take."""
        if self.settings.cache_ram is not None:
            return self.settings.cache_ram
        mapped = self._handles.memory_report().on(CPU).weights if self.settings.mapped else 0
        return usual_cache(host_memory().free - mapped)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise EngineError(
            "an engine can be neither copied nor pickled", hint="Open its file again."
        )

    def close(self) -> None:
        """Free the context and the model; closing twice is harmless.

        What another thread is doing with them ends first, with an EngineError.
        """
        self._free.detach()
        self._handles.close()
        self.scheduler.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return not self._free.alive

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the KV cache."""
        return self._call(lambda: tuple(self._sequence.tokens))

    @property
    def tokens_left(self) -> int:
        """How many more tokens fit into the context."""
        self._check()
        if self._sequence.unsure:
            self._call(lambda: None)
        return self.settings.n_ctx - len(self._sequence.tokens)

    @property
    def sequences(self) -> list[tuple[int, bool]]:
        """Of each sequence, how many tokens it holds and whether a request has it, as of now.

        Any thread may ask, at any time.
        """
        return self.scheduler.usage

    def request(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_tokens: int | None,
        accept: Callable[[int, bool], bool],
        *,
        paced: bool = True,
        after: Request | None = None,
        features: Features | None = None,
        goes_on: bool = False,
        drafts: bool = False,
        ignores_ends: bool = False,
        constraint: Constraint | None = None,
        logprobs: int | None = None,
        adapters: object = None,
    ) -> Request:
        """What ``scheduler.submit`` takes, to go on with a prompt; see `Request` for arguments.

        Args:
            adapters: which of those that are loaded, as ``adapters.of`` takes them.

        Raises:
            ContextFullError: the prompt does not fit.
            EngineError: it has no tokens, one is not the id of a token, or the engine was closed.
            SettingError: ``logit_bias`` has a token that the model does not; ``logprobs`` is not a
                number of tokens; ``constraint`` is not a `Constraint`; an adapter is not loaded.
        """
        self._check()
        check_whole("logprobs", logprobs, 0, self.n_vocab, or_none=True)
        if not (constraint is None or isinstance(constraint, Constraint)):
            raise wrong_type("constraint", constraint, "a Constraint or None")
        scales = self.adapters.of(adapters)
        checked = self._checks.prompt(prompt, features)
        self._checks.biases(sampling)
        self.last_prompt, self.last_adapters = tuple(checked), scales
        return Request(
            checked,
            sampling,
            max_tokens,
            accept,
            paced=paced,
            after=after,
            features=features,
            goes_on=goes_on,
            drafts=drafts,
            ignores_ends=ignores_ends,
            constraint=constraint,
            n_logprobs=logprobs,
            adapters=scales,
        )

    def resume(self, request: Request, prompt: Sequence[int] | None) -> None:
        """Go on with a request that is full after a shorter prompt; None ends it.

        Args:
            prompt: token ids that leave room for more than the answer so far.

        Raises:
            EngineError: as `request`; it is still full.
        """
        self._check()
        checked = None
        if prompt is not None:
            checked = self._checks.prompt(prompt, request.features)
            self.last_prompt = tuple(checked)
        self.scheduler.resume(request, checked)

    def observe(self, activations: ActivationSums) -> None:
        """Have what is multiplied from now on added up; the context is made anew, and is empty.

        Whoever waits for an answer must not be there. Steps in C++ (`Steps`) are not seen.

        Raises:
            EngineError: llama.cpp cannot make the context again.
        """
        self._check()
        self._handles.activations = activations
        self._handles.make_context(self.settings)
        self._set_up()

    def is_end(self, token: int) -> bool:
        """Whether this token ends an answer (end of text, turn, …)."""
        self._check()
        (token,) = self._checks.tokens([token])
        return self._handles.thread.call(lambda: self._handles.is_end(token))

    def memory(self) -> MemoryReport:
        """The bytes that llama.cpp has on each device; a file that is mapped counts as weights."""
        self._check()
        return self._handles.memory_report()

    def open_encoder(
        self, path: Path, on_progress: Callable[[float], object] | None = None
    ) -> Encoder:
        """Load a projector beside the model, which is freed with it; see `Encoder`."""
        self._check()
        return Encoder(self._handles, path, self.settings, on_progress)

    def in_thread(self, work: Callable[[], _T]) -> _T:
        """What ``work`` returns, called in the thread that calls llama.cpp, between two batches.

        Raises:
            EngineError: the engine was closed.
        """
        self._check()
        return self._handles.thread.call(work)

    def clear(self) -> None:
        """Forget all tokens that no request has, also those of states in main memory."""
        self._call(self.scheduler.clear)

    def prefill(self, tokens: Sequence[int]) -> int:
        """Make these the tokens in the cache, with the logits after the last one ready to sample.

        Returns:
            How many tokens were in the cache already and were kept.

        Raises:
            ContextFullError: they do not fit; nothing has changed.
            EngineError: there are none, one is not the id of a token, or llama.cpp failed.
        """
        self._check()
        prompt = self._checks.prompt(tokens)

        def work() -> int:
            kept = self._sequence.keep_of(prompt, self.adapters.scales)
            self._sequence.extend(prompt[kept:])
            return kept

        return self._call(work)

    def append(self, token: int) -> None:
        """Decode one more token, so that the logits after it are ready to sample.

        Raises:
            ContextFullError: the context is full; nothing has changed.
            EngineError: it is not the id of a token, or llama.cpp failed.
        """
        self._check()
        checked = self._checks.tokens([token])
        self._call(lambda: self._append(checked))

    @contextmanager
    def sampler(self, sampling: Sampling) -> Iterator[Callable[[], int]]:
        """What chooses the next token from the logits after the last one.

        With a seed of None one is drawn; ``Sampling.with_seed`` makes it known. Calling it raises
        EngineError where nothing was decoded last, or the logits are NaN.
        """
        self._checks.biases(sampling)
        sampler = self._call(lambda: self._handles.make_sampler(sampling, self._sequence.tokens))
        try:
            yield lambda: self._call(lambda: self._sequence.sample(sampler))
        finally:
            self._handles.free_sampler(sampler)

    def last_logits(self) -> npt.NDArray[np.float32]:
        """The logits after the last token, float32 of [n_vocab]; a copy."""
        return self._call(lambda: np.array(self._sequence.last_logits()))

    def logits(
        self,
        tokens: Sequence[int],
        features: Features | None = None,
        adapters: object = None,
    ) -> npt.NDArray[np.float32]:
        """The logits after each token, float32 of [n_tokens, n_vocab]; the array is the caller's.

        The tokens are decoded from the first one on, ``n_outputs`` at a time, in a sequence that is
        waited for as by a request. Some may be names of ``features``.

        Raises:
            ContextFullError: they do not fit.
            EngineError: one is not the id of a token, llama.cpp failed, or this thread asked for
                something else meanwhile.
            SettingError: an adapter is not loaded.
        """
        self._check()
        scales = self.adapters.of(adapters)
        prompt = self._checks.tokens(tokens, features)
        self._checks.room(prompt)
        result = np.empty((len(prompt), self.n_vocab), dtype=np.float32)

        def keep(begin: int, rows: npt.NDArray[np.float32]) -> None:
            result[begin : begin + len(rows)] = rows

        self._each_rows(prompt, len(prompt), features, scales, keep)
        return result

    def each_logits(
        self,
        tokens: Sequence[int],
        n_last: int,
        take: TakeRows,
        features: Features | None = None,
    ) -> None:
        """The same after each of the last ``n_last`` tokens, without a copy of all of them.

        Args:
            take: called with the place of a token, from 0, and the logits after it and those that
                follow it, a view of [n, n_vocab] which is valid for the call. It is called in the
                engine's thread, and again for the same ones where they had to be decoded anew.

        Raises:
            As `logits`; SettingError: ``n_last`` is not a number of these tokens.
        """
        self._check()
        prompt = self._checks.tokens(tokens, features)
        self._checks.room(prompt)
        check_whole("n_last", n_last, 0, len(prompt))
        self._each_rows(prompt, n_last, features, self.adapters.of(None), take)

    def logits_of_each(self, prompts: Sequence[Sequence[int]], take: TakeEach) -> None:
        """The logits after each token of several prompts, which are decoded in one batch.

        Args:
            prompts: at most ``n_parallel``, of no more than ``n_batch`` and ``n_outputs`` tokens
                together.
            take: called with the number of a prompt and its logits, a view of [n_tokens, n_vocab]
                which is valid for the call, in the engine's thread.

        Raises:
            As `logits`; SettingError: they are too many.
        """
        self._check()
        checked = [self._checks.tokens(prompt) for prompt in prompts]
        for prompt in checked:
            self._checks.room(prompt)
        check_whole("prompts", len(checked), 0, self.settings.n_parallel)
        most = min(self._handles.n_batch, self.settings.n_outputs)
        check_whole("tokens of all prompts", sum(map(len, checked)), 0, most)
        if not any(checked):
            return
        with ExitStack() as stack:
            scales = self.adapters.of(None)
            requests = [stack.enter_context(self._lent_sequence(scales)) for _ in checked]
            rows_of_each(self._handles, requests, checked, take)

    def _each_rows(
        self,
        prompt: Sequence[int],
        n_last: int,
        features: Features | None,
        scales: Scales,
        take: TakeRows,
    ) -> None:
        """Decode a prompt, and hand the logits after its last tokens on as they come."""
        if not prompt:
            return
        handles = self._handles
        n_outputs = min(self.settings.n_outputs, handles.n_batch)
        pieces = pieces_of(len(prompt), n_last, n_outputs, handles.n_batch)
        with self._lent_sequence(scales) as request:
            for begin, end in pieces:
                if features is not None and (names := names_in(prompt[begin:end])):
                    self._make(features, names)
            each_rows(handles, request, prompt, pieces, n_last, features, take)

    def score(
        self, tokens: Sequence[int], n_top: int = 0, adapters: object = None
    ) -> list[TokenLogprobs]:
        """What the model gave each token but the first, after those before it.

        They are decoded among the tokens of other requests, ``n_outputs`` at a time, of whose
        logits nothing else is kept.

        Args:
            n_top: how many of the likeliest tokens to give beside each.

        Raises:
            ContextFullError: all but the last token do not fit.
            EngineError: there are none, one is not the id of a token, llama.cpp failed, or this
                thread asked for something else meanwhile.
            SettingError: ``n_top`` is not a number of tokens; an adapter is not loaded.
        """
        scoring = self.scoring(tokens, n_top, adapters)
        try:
            self.scheduler.submit(scoring)
            self.scheduler.wait(scoring, lambda: scoring.ended)
        finally:
            self.scheduler.cancel(scoring)
        return scoring.result()

    def scoring(self, tokens: Sequence[int], n_top: int = 0, adapters: object = None) -> Scoring:
        """The same for ``scheduler.submit``; raises for arguments as `score`."""
        self._check()
        check_whole("n_top", n_top, 0, self.n_vocab)
        checked = self._checks.tokens(tokens)
        if not checked:
            raise no_tokens()
        self._checks.room(checked[:-1])
        return Scoring(checked, n_top, self.scheduler.n_outputs, self.adapters.of(adapters))

    def state_of(
        self, tokens: Sequence[int], adapters: Scales | None = None
    ) -> SequenceState | None:
        """A copy of what is held that has most of these tokens at its beginning, to go on from.

        It may have other tokens after those. None where nothing is held that begins so.

        Args:
            tokens: token ids, or the negative numbers of pictures' rows.
            adapters: the scales with which they were read; None is any.
        """
        self._check()
        wanted = list(tokens)

        def work() -> SequenceState | None:
            return self.cache.state_of(wanted, adapters)

        return self._handles.thread.call(work)

    def held(self) -> list[Held]:
        """What each state has that `state_of` gives, those that were used least lately first."""
        self._check()
        return self._handles.thread.call(self.cache.held)

    def keep_state(self, state: SequenceState) -> None:
        """Take a state in, so that the next request which begins like it goes on from there.

        It is waited for a sequence as by a request. What that one held is lost if it is not kept.

        Raises:
            ContextFullError: it has more tokens than fit.
            EngineError: it is not of this model with these types of the KV cache, or this thread
                asked for something else meanwhile.
        """
        self._check()
        self._checks.room(state.tokens)
        with self._lent_sequence(state.adapters) as request:

            def work() -> None:
                if request.sequence is not None:
                    self.cache.restore(request.sequence, state)

            self._handles.thread.call(work)
            if request.error is not None:
                raise request.error

    # --- in the caller's thread

    def _make(self, features: Features, names: Sequence[int]) -> None:
        """Have the rows of these names made, others being served between the calls."""

        def step() -> bool:
            if not features.is_ready(names):
                features.step(names)
            return features.is_ready(names)

        while not self._handles.thread.call(step):
            pass

    def _check(self) -> None:
        if self.closed:
            raise EngineError(f"{self.path}: the model was closed", hint="Open it again.")
        self._handles.thread.check()

    @contextmanager
    def _lent_sequence(self, adapters: Scales) -> Iterator[Request]:
        """A request that has a sequence, for use in the engine's thread."""
        request = Request(adapters=adapters)
        try:
            self.scheduler.submit(request)
            self.scheduler.wait(request, lambda: request.sequence is not None or request.ended)
            yield request
        finally:
            self.scheduler.cancel(request)

    def _call(self, work: Callable[[], _T]) -> _T:
        """What ``work`` returns, called in the engine's thread when what is remembered is true.

        It has the first sequence for itself, which nobody may be answered in meanwhile.
        """
        self._check()

        def call() -> _T:
            if self.scheduler.uses(self._sequence):
                raise EngineError(
                    "the engine is answering a request", hint="Wait for its end, or cancel it."
                )
            self._sequence.settle()
            return work()

        return self._handles.thread.call(call)

    # --- in the engine's thread

    def _append(self, token: list[int]) -> None:
        held = len(self._sequence.tokens)
        if held == self.settings.n_ctx:
            raise context_full(held + 1, self.settings.n_ctx)
        self._extend(token)

    def _extend(self, tokens: Sequence[int]) -> None:
        """Decode tokens that fit after those in the cache, the first ones with what holds now."""
        if not self._sequence.tokens:
            self._sequence.adapters = self.adapters.scales
        self._sequence.extend(tokens)
