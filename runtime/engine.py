"""Token ids in, logits and token ids out: one model and one context of llama.cpp.

Promises that llama.cpp, which ends the process on some input, only ever sees input it accepts; that
an interrupted call leaves the engine usable; and that any thread may call it: calls are made one
after the other. Who needs several with nobody between them takes a `turn`. Knows nothing of text.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import ContextFullError, EngineError
from ..ranges import value_text
from .bindings.memory import MemoryReport
from .handles import Handles, SamplerChain
from .sampling import Sampling
from .sequence import CachedSequence, reusable_prefix
from .settings import EngineSettings
from .turns import Turn, Turns

_T = TypeVar("_T")

BURST_SECONDS = 0.02
"""How long tokens are chosen in one call before they are handed on: a person sees no delay."""


class Engine:
    """A loaded model with its context. Close it, or use it in a ``with`` statement.

    Args:
        path: a GGUF that ``check_model_file`` accepted.
        end_ids: tokens that end an answer, beside those that llama.cpp takes for ends.
        on_progress: called with the fraction loaded, 0.0 to 1.0; returning False cancels.

    Raises:
        EngineError: llama.cpp cannot load the model or make the context; its own words are given.
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
        self._turns = Turns()
        self._ends: dict[int, bool] = dict.fromkeys(end_ids, True)
        self._handles = Handles(self.path, self.settings, on_progress)
        self._sequence = CachedSequence(self._handles)
        self.n_vocab = self._handles.n_vocab
        # A forgotten engine is freed soon: whoever forgets it may be in the middle of anything.
        self._free = weakref.finalize(self, self._handles.close, wait=False)
        self._free.atexit = False  # `bindings.thread` sees to that

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
        self._turns.close()
        self._handles.close()

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

    def turn(self) -> AbstractContextManager[Turn]:
        """A block in which this thread alone uses the engine, as far as others ask for turns too.

        Raises:
            EngineError: the engine was closed, or this thread asked for a later turn meanwhile.
        """
        self._check()
        return self._turns.turn()

    def is_end(self, token: int) -> bool:
        """Whether this token ends an answer (end of text, turn, …)."""
        self._check()
        (token,) = self._checked([token])
        if token not in self._ends:
            self._call(lambda: self._note_end(token))
        return self._ends[token]

    def memory(self) -> MemoryReport:
        """The bytes that llama.cpp has on each device; a file that is mapped counts as weights."""
        self._check()
        return self._handles.memory_report()

    def clear(self) -> None:
        """Forget all tokens."""
        self._call(lambda: self._sequence.keep(0))

    def prefill(self, tokens: Sequence[int]) -> int:
        """Make these the tokens in the cache, with the logits after the last one ready to sample.

        Returns:
            How many tokens were in the cache already and were kept.

        Raises:
            ContextFullError: they do not fit; nothing has changed.
            EngineError: there are none, one is not the id of a token, or llama.cpp failed.
        """
        self._check()
        prompt = self._checked_prompt(tokens)

        def work() -> int:
            kept = reusable_prefix(self._sequence.tokens, prompt, self._sequence.highest)
            self._sequence.keep(kept)
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
        checked = self._checked([token])
        self._call(lambda: self._append(checked))

    @contextmanager
    def sampler(self, sampling: Sampling, turn: Turn | None = None) -> Iterator[Sampler]:
        """What chooses the next token from the logits after the last one.

        With a seed of None llama.cpp chooses; ``Sampling.with_seed`` makes it known.

        Args:
            turn: the turn in which it is used, outside of which it raises EngineError.
        """
        chain = self._call(lambda: self._handles.make_sampler(sampling))
        try:
            yield Sampler(self, chain, turn)
        finally:
            self._handles.free_sampler(chain)

    def last_logits(self) -> npt.NDArray[np.float32]:
        """The logits after the last token, float32 of [n_vocab]; a copy."""
        return self._call(lambda: np.array(self._sequence.last_logits()))

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each token, float32 of [n_tokens, n_vocab]; the array is the caller's.

        The tokens are decoded from the first one on, ``n_outputs`` at a time.

        Raises:
            ContextFullError: they do not fit.
            EngineError: one is not the id of a token, or llama.cpp failed.
        """
        self._check()
        prompt = self._checked(tokens)
        self._check_room(prompt)
        result = np.empty((len(prompt), self.n_vocab), dtype=np.float32)
        if not prompt:
            return result

        def work() -> npt.NDArray[np.float32]:
            self._sequence.keep(0)
            size = min(self.settings.n_outputs, self._handles.n_batch)
            # A short piece comes first: where fewer than 64 tokens are decoded, ggml's attention
            # on the CPU sums in f16 (ops.cpp, ggml_compute_forward_flash_attn_ext), which costs
            # accuracy where many keys are attended to, and the first piece has few.
            edges = [0, *range(len(prompt) % size or size, len(prompt) + 1, size)]
            for begin, end in pairwise(edges):
                if self._handles.thread.stopping:
                    break
                self._sequence.decode(prompt[begin:end], outputs=end - begin)
                result[begin:end] = self._sequence.output_rows(end - begin)
            return result

        return self._call(work)

    # --- in the caller's thread

    def _check(self) -> None:
        if self.closed:
            raise EngineError(f"{self.path}: the model was closed", hint="Open it again.")
        self._handles.thread.check()

    def _call(self, work: Callable[[], _T]) -> _T:
        """What ``work`` returns, called in the engine's thread when what is remembered is true."""
        self._check()

        def call() -> _T:
            self._sequence.settle()
            return work()

        return self._handles.thread.call(call)

    def _checked_prompt(self, tokens: Iterable[int]) -> list[int]:
        prompt = self._checked(tokens)
        if not prompt:
            raise EngineError("there are no tokens to decode", expected="at least one")
        self._check_room(prompt)
        return prompt

    def _check_room(self, prompt: Sequence[int]) -> None:
        if len(prompt) > self.settings.n_ctx:
            raise _full(len(prompt), self.settings.n_ctx)

    def _checked(self, tokens: Iterable[int]) -> list[int]:
        """The same as Python's numbers, if each is the id of a token."""
        try:
            checked: list[Any] = list(tokens)
        except TypeError:
            raise EngineError(
                "the tokens are not a list of token ids", found=value_text(tokens)
            ) from None
        for index, token in enumerate(checked):
            if type(token) is not int:
                if not isinstance(token, np.integer):
                    raise EngineError(
                        "a token id is not a whole number",
                        found=value_text(token),
                        expected=f"0 to {self.n_vocab - 1}",
                    )
                checked[index] = int(token)
            if not 0 <= token < self.n_vocab:
                raise EngineError(
                    "a token id is not in the model's vocabulary",
                    found=str(token),
                    expected=f"0 to {self.n_vocab - 1}",
                )
        return checked

    # --- in the engine's thread

    def _append(self, token: list[int]) -> None:
        held = len(self._sequence.tokens)
        if held == self.settings.n_ctx:
            raise _full(held + 1, self.settings.n_ctx)
        self._sequence.decode(token, outputs=1)

    def _sample(self, chain: SamplerChain) -> int:
        token = self._sequence.sample(chain)
        self._note_end(token)
        return token

    def _note_end(self, token: int) -> None:
        if token not in self._ends:
            self._ends[token] = self._handles.is_end(token)


class Sampler:
    """Chooses tokens from an engine's logits; ``Engine.sampler`` makes it."""

    def __init__(self, engine: Engine, chain: SamplerChain, turn: Turn | None) -> None:
        self._engine, self._chain, self._turn = engine, chain, turn

    def __call__(self) -> int:
        """A token, chosen from the logits after the last one.

        Raises:
            EngineError: nothing was decoded last, or the logits are NaN.
        """
        return self._engine._call(self._choose)

    def burst(self, token: int, accept: Callable[[int, bool], bool]) -> None:
        """``append`` a token and choose the next one, and go on with that while more are wanted.

        All of it is one call to the engine's thread, of about `BURST_SECONDS`: waking a thread of
        an idle machine takes up to 0.2 ms, as long as a token of a small model.

        Args:
            accept: called in the engine's thread with each token that was chosen, and with whether
                it is one that ends an answer; returns whether to go on. It must not call the
                engine. A full context ends the burst too.

        Raises:
            ContextFullError, EngineError: as ``append`` and the choice alone.
        """
        engine = self._engine
        following = engine._checked([token])

        def work() -> None:
            nonlocal following
            until = time.monotonic() + BURST_SECONDS
            while True:
                self._check_turn()
                engine._append(following)
                following = [engine._sample(self._chain)]
                (chosen,) = following
                if not accept(chosen, engine._ends[chosen]) or engine._handles.thread.stopping:
                    return
                is_full = len(engine._sequence.tokens) == engine.settings.n_ctx
                if is_full or time.monotonic() > until:
                    return

        engine._call(work)

    def _choose(self) -> int:
        self._check_turn()
        return self._engine._sample(self._chain)

    def _check_turn(self) -> None:
        if self._turn is not None:
            self._turn.check()


def _full(wanted: int, n_ctx: int) -> ContextFullError:
    return ContextFullError(
        "the tokens do not fit into the context",
        found=f"{wanted} tokens",
        expected=f"at most {n_ctx}",
        hint="Shorten the prompt, or open the model with a larger n_ctx.",
    )
