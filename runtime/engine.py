"""Token ids in, logits and token ids out: one model and one context of llama.cpp.

Promises that llama.cpp, which ends the process on some input, only ever sees input it accepts; that
an interrupted call leaves the engine usable; and that what it remembers of earlier calls changes
the time an answer takes and never the answer. Knows nothing of text.

An engine belongs to one thread at a time.
"""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..architecture import ATTENTION_CHUNK
from ..errors import AllocationError, ContextFullError, EngineError, WorkerError
from .bindings.batch import SEQUENCE, Batch
from .bindings.interruptible import interruptibly
from .bindings.library import CapturedLog, captured_log, llama
from .bindings.memory import MemoryReport, report_of
from .bindings.parameters import context_params, model_params
from .sampling import Sampling
from .settings import EngineSettings
from .workers.remote import Workers, connect

logger = logging.getLogger(__name__)

_ABORTED = 2


def reusable_prefix(cached: Sequence[int], tokens: Sequence[int], highest: int) -> int:
    """How many tokens at the beginning of ``tokens`` need not be decoded again.

    At least the last token is always decoded, because its logits are wanted.

    Args:
        cached: the tokens in the KV cache.
        tokens: the tokens that are wanted in the cache.
        highest: the highest position at which llama.cpp was asked to decode since the cache was
            cleared, whether that succeeded or not; -1 for none.
    """
    pairs = zip(cached, tokens[:-1], strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    # Nothing is dropped: what follows the cached tokens finds all it attends to.
    if common == len(cached):
        return common
    # The chunked layers have a cache for one chunk and one ubatch only. A cell is overwritten as
    # soon as it lies in an earlier chunk than the next position (llama_kv_cache::find_slot with
    # is_masked_swa; llama-kv-cache-iswa.cpp sets the size). So all cells of the chunk of `highest`
    # are there, and of earlier chunks any may be gone, without llama_memory_seq_rm saying so.
    # Position `common` attends to its own chunk from its beginning: that has to be the same one.
    return common if common // ATTENTION_CHUNK == highest // ATTENTION_CHUNK else 0


class Engine:
    """A loaded model with its context. Close it, or use it in a ``with`` statement.

    Args:
        path: a GGUF that ``check_model_file`` accepted.
        on_progress: called with the fraction loaded, 0.0 to 1.0; returning False cancels.

    Raises:
        EngineError: llama.cpp cannot load the model or make the context; its own words are given.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: EngineSettings | None = None,
        *,
        on_progress: Callable[[float], object] | None = None,
    ) -> None:
        self.path = Path(path)
        self.settings = settings or EngineSettings()
        self._llama = llama()
        self._tokens: list[int] = []
        self._highest = -1
        self._unsure = False
        self._has_logits = False
        self._workers = connect(self.settings.workers)
        try:
            self._open(on_progress)
        except BaseException:
            self._workers.close()
            raise

    def _open(self, on_progress: Callable[[float], object] | None) -> None:
        self._params = model_params(self.settings, self._workers.native_devices)
        wished = self.settings.placement.n_gpu_layers
        if wished > 0 and not self._params.devices:
            logger.warning(
                "llama.cpp has no GPU to use here: n_gpu_layers (-ngl) of %d has no effect. "
                "`llama4 doctor` says what is missing.",
                wished,
            )
        self._model = self._load(on_progress)
        self._begin()

    def _begin(self) -> None:
        """Make a context, and all that goes with it, for the model that is loaded."""
        try:
            self._context = self._make_context()
        except BaseException:
            self._discard_model(self._model)
            raise
        self._memory = self._llama.llama_get_memory(self._context)
        self._vocab = self._llama.llama_model_get_vocab(self._model)
        # llama.cpp lowers what it was asked for to n_ctx, and aborts on a batch beyond that.
        self._n_batch = int(self._llama.llama_n_batch(self._context))
        self._batch = Batch(self._llama, self._n_batch)
        self._free = weakref.finalize(
            self,
            _free,
            self._llama,
            self._workers,
            self._batch.native,
            self._context,
            self._model,
        )
        # Workers see the end of the process by themselves, and one that does not answer must not
        # keep it from ending.
        self._free.atexit = not self._workers
        self.n_vocab = int(self._llama.llama_vocab_n_tokens(self._vocab))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and the model; closing twice is harmless."""
        self._free()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return not self._free.alive

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the KV cache."""
        self._ready()
        return tuple(self._tokens)

    @property
    def tokens_left(self) -> int:
        """How many more tokens fit into the context."""
        self._ready()
        return self.settings.n_ctx - len(self._tokens)

    def is_end(self, token: int) -> bool:
        """Whether llama.cpp counts this token as the end of an answer (end of text, turn, …)."""
        self._ready()
        self._check_tokens([token])
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def memory(self) -> MemoryReport:
        """The bytes that llama.cpp has on each device; a file that is mapped counts as weights."""
        self._ready()
        return report_of(self._context, self._params.devices)

    def clear(self) -> None:
        """Forget all tokens."""
        self._ready()
        self._keep(0)

    def prefill(self, tokens: Sequence[int]) -> int:
        """Make these the tokens in the cache, with the logits after the last one ready to sample.

        Returns:
            How many tokens were in the cache already and were kept.

        Raises:
            ContextFullError: they do not fit; nothing has changed.
            EngineError: there are none, an id is out of range, or llama.cpp failed.
        """
        self._ready()
        tokens = list(tokens)
        self._check_prompt(tokens)
        kept = reusable_prefix(self._tokens, tokens, self._highest)
        self._keep(kept)
        self._extend(tokens[kept:])
        return kept

    def append(self, token: int) -> None:
        """Decode one more token, so that the logits after it are ready to sample.

        Raises:
            ContextFullError: the context is full; nothing has changed.
            EngineError: the id is out of range, or llama.cpp failed.
        """
        if not self.tokens_left:
            raise _full(len(self._tokens) + 1, self.settings.n_ctx)
        self._check_tokens([token])
        self._decode([token], outputs=1)

    @contextmanager
    def sampler(self, sampling: Sampling) -> Iterator[Callable[[], int]]:
        """A function that chooses the next token from the logits after the last one.

        With a seed of None llama.cpp chooses; ``Sampling.with_seed`` makes it known. The function
        raises EngineError if nothing was decoded, or if the logits are not numbers.
        """
        self._ready()
        chain = _sampler_chain(self._llama, sampling)

        def choose() -> int:
            # NaN has no order, and llama.cpp's sorting has no defence against it.
            if not math.isfinite(float(self._last_logits().max())):
                raise EngineError(
                    f"{self.path}: the model's logits are not numbers",
                    hint="The file's weights are damaged: convert the model again.",
                )
            return int(self._llama.llama_sampler_sample(chain, self._context, -1))

        def sample() -> int:
            self._ready()
            return self._workers.run(choose)

        try:
            yield sample
        finally:
            self._llama.llama_sampler_free(chain)

    def last_logits(self) -> npt.NDArray[np.float32]:
        """The logits after the last token, float32 of [n_vocab]; a copy."""
        self._ready()
        return np.array(self._last_logits())

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each token, float32 of [n_tokens, n_vocab]; the array is the caller's.

        The tokens are decoded from the first one on, ``n_outputs`` at a time.

        Raises:
            ContextFullError: they do not fit.
            EngineError: an id is out of range, or llama.cpp failed.
        """
        self._ready()
        tokens = list(tokens)
        result = np.empty((len(tokens), self.n_vocab), dtype=np.float32)
        if not tokens:
            return result
        self._check_prompt(tokens)
        self._keep(0)
        size = min(self.settings.n_outputs, self._n_batch)

        # The short piece comes first: with fewer than 64 rows, ggml's flash attention on the CPU
        # sums in f16 (ops.cpp, ggml_compute_forward_flash_attn_ext), which costs accuracy where
        # many keys are attended to, and the first piece has few.
        edges = [0, *range(len(tokens) % size or size, len(tokens) + 1, size)]

        def work(stopping: Callable[[], bool]) -> None:
            for begin, end in pairwise(edges):
                if stopping():
                    return
                self._decode(tokens[begin:end], outputs=end - begin)
                result[begin:end] = self._output_rows(end - begin)

        self._decode_in_thread(work)
        return result

    # Below: how the native objects are made and driven.

    def _load(self, on_progress: Callable[[float], object] | None) -> Any:
        cancelled = False

        def work(stopping: Callable[[], bool], report: Callable[[float], None]) -> Any:
            def during(fraction: float, _: object) -> bool:
                report(fraction)
                return not stopping()

            callback = self._llama.llama_progress_callback(during)
            params = self._params.native
            params.progress_callback = callback
            return self._workers.run(
                lambda: self._llama.llama_model_load_from_file(os.fsencode(self.path), params)
            )

        def progress(fraction: float) -> bool:
            nonlocal cancelled
            cancelled = on_progress is not None and on_progress(fraction) is False
            return not cancelled

        with captured_log() as log:
            model = interruptibly(work, progress, self._discard_model, self._give_up)
        if cancelled:
            self._discard_model(model)
            raise EngineError(f"{self.path}: loading was cancelled")
        if not model:
            raise _refused(f"{self.path}: llama.cpp cannot load the model", log)
        return model

    def _discard_model(self, model: Any) -> None:
        if model:
            with suppress(WorkerError):  # then nothing of it is to be touched
                self._workers.run(lambda: self._llama.llama_model_free(model))

    def _discard_context(self, context: Any) -> None:
        if context:
            with suppress(WorkerError):
                self._workers.run(lambda: self._llama.llama_free(context))

    def _make_context(self) -> Any:
        params = context_params(self.settings)

        def make(_stopping: object, _report: object) -> Any:
            return self._workers.run(lambda: self._llama.llama_init_from_model(self._model, params))

        with captured_log() as log:
            context = interruptibly(make, lambda _: True, self._discard_context, self._give_up)
        if not context:
            raise _refused(
                f"{self.path}: llama.cpp cannot make a context of {self.settings.n_ctx} tokens",
                log,
                hint="If memory is short, lower n_ctx (-c) or n_ubatch (-ub).",
            )
        return context

    @property
    def _give_up(self) -> Callable[[], None] | None:
        """What ends a call that does not end when it is told to; without workers all do."""
        return self._workers.cut if self._workers else None

    def _extend(self, tokens: Sequence[int]) -> None:
        """Decode checked tokens that fit, with logits for the last."""
        size = self._n_batch
        pieces = [tokens[at : at + size] for at in range(0, len(tokens), size)]

        def work(stopping: Callable[[], bool]) -> None:
            for number, piece in enumerate(pieces, start=1):
                if stopping():
                    return
                self._decode(piece, outputs=1 if number == len(pieces) else 0)

        self._decode_in_thread(work)

    def _decode_in_thread(self, work: Callable[[Callable[[], bool]], None]) -> None:
        """Run decoding that an interrupt stops within one operation of ggml's graph (on the CPU).

        On a GPU, llama.cpp cannot stop before the end of the current call of n_batch tokens.
        """

        def decode(stopping: Callable[[], bool], _: object) -> None:
            # Kept with the engine, for as long as a call that was left behind may ask it.
            self._stopping = self._llama.ggml_abort_callback(lambda _: stopping())
            self._llama.llama_set_abort_callback(self._context, self._stopping, None)
            try:
                work(stopping)
            finally:
                if not self._workers.lost:
                    self._stopping = self._llama.ggml_abort_callback()
                    self._llama.llama_set_abort_callback(self._context, self._stopping, None)

        interruptibly(decode, lambda _: True, lambda _: None, self._give_up)

    def _decode(self, tokens: Sequence[int], *, outputs: int) -> None:
        """Decode at most n_batch checked tokens that fit, with logits for the last ``outputs``."""
        first = len(self._tokens)
        self._batch.fill(tokens, first, outputs)
        # From here until llama.cpp has succeeded, only llama.cpp knows which tokens it holds.
        self._unsure = True
        self._has_logits = False
        self._tokens.extend(tokens)
        self._highest = max(self._highest, first + len(tokens) - 1)

        def decode() -> int:
            status = int(self._llama.llama_decode(self._context, self._batch.native))
            if outputs:
                # A GPU has only been told what to do so far: the time it takes belongs here.
                self._llama.llama_synchronize(self._context)
            return status

        with captured_log() as log:
            status = self._workers.run(decode)
        if status == _ABORTED:
            return
        if status != 0:
            self._ready()
            raise _refused(f"{self.path}: llama.cpp cannot decode (status {status})", log)
        self._has_logits = outputs > 0
        self._unsure = False

    def _ready(self) -> None:
        """Before every use: the engine is open, and what it believes of the cache is true."""
        if self.closed:
            raise EngineError(f"{self.path}: the model was closed", hint="Open it again.")
        self._workers.check()
        if self._unsure:
            held = int(self._llama.llama_memory_seq_pos_max(self._memory, SEQUENCE)) + 1
            if held <= 0:
                # The chunked layers may hold nothing where the others still do.
                self._llama.llama_memory_clear(self._memory, False)
                self._highest = -1
            self._has_logits = False
            del self._tokens[max(held, 0) :]
            self._unsure = False

    def _keep(self, count: int) -> None:
        if count == len(self._tokens):
            return
        self._unsure = True
        self._has_logits = False
        if count:
            self._llama.llama_memory_seq_rm(self._memory, SEQUENCE, count, -1)
        else:
            self._llama.llama_memory_clear(self._memory, False)
            self._highest = -1
        del self._tokens[count:]
        self._unsure = False

    def _last_logits(self) -> npt.NDArray[np.float32]:
        """A view of llama.cpp's own memory, good until the next call."""
        if not self._has_logits:
            raise EngineError("there are no logits: no token was decoded last")
        pointer = self._workers.run(lambda: self._llama.llama_get_logits_ith(self._context, -1))
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def _output_rows(self, count: int) -> npt.NDArray[np.float32]:
        pointer = self._workers.run(lambda: self._llama.llama_get_logits(self._context))
        return np.ctypeslib.as_array(pointer, shape=(count, self.n_vocab))

    def _check_prompt(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise EngineError("there are no tokens to decode", expected="at least one")
        self._check_tokens(tokens)
        if len(tokens) > self.settings.n_ctx:
            raise _full(len(tokens), self.settings.n_ctx)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if not 0 <= token < self.n_vocab:
                raise EngineError(
                    "a token id is not in the model's vocabulary",
                    found=str(token),
                    expected=f"0 to {self.n_vocab - 1}",
                )


def _free(bindings: Any, workers: Workers, batch: Any, context: Any, model: Any) -> None:
    def free() -> None:
        # The context uses the model, so it goes first.
        bindings.llama_batch_free(batch)
        bindings.llama_free(context)
        bindings.llama_model_free(model)

    # What a lost worker had a part in stays: llama.cpp may still be in the middle of it.
    with suppress(WorkerError):
        workers.run(free)
    workers.close()


def _sampler_chain(bindings: Any, sampling: Sampling) -> Any:
    chain = bindings.llama_sampler_chain_init(bindings.llama_sampler_chain_default_params())
    if sampling.temperature == 0.0:
        samplers = [bindings.llama_sampler_init_greedy()]
    else:
        seed = bindings.LLAMA_DEFAULT_SEED if sampling.seed is None else sampling.seed
        samplers = [
            bindings.llama_sampler_init_top_k(sampling.top_k),
            bindings.llama_sampler_init_top_p(sampling.top_p, 1),
            bindings.llama_sampler_init_min_p(sampling.min_p, 1),
            bindings.llama_sampler_init_temp(sampling.temperature),
            bindings.llama_sampler_init_dist(seed),
        ]
    for sampler in samplers:
        bindings.llama_sampler_chain_add(chain, sampler)
    return chain


def _refused(problem: str, log: CapturedLog, hint: str | None = None) -> EngineError:
    kind = AllocationError if log.shortage else EngineError
    found = log.shortage or log.last_error or "no reason in its log"
    return kind(problem, found=found, hint=hint)


def _full(wanted: int, n_ctx: int) -> ContextFullError:
    return ContextFullError(
        "the tokens do not fit into the context",
        found=f"{wanted} tokens",
        expected=f"at most {n_ctx}",
        hint="Shorten the prompt, or open the model with a larger n_ctx.",
    )
