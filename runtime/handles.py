"""llama.cpp's objects of one engine: model, context, batch and samplers, made and freed in order.

Promises that they are made, used and freed in one thread (`bindings.thread`), that what is made is
freed however the making ends, and that nothing is touched again that a lost worker had a part in.
Knows nothing of what a context holds.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..architecture import ATTENTION_CHUNK
from ..errors import EngineError, WorkerError
from .activations import ActivationSums
from .adapters import Scales
from .bindings.adapters import NativeAdapters
from .bindings.batch import Batch
from .bindings.library import captured_log, llama, refused
from .bindings.memory import MemoryReport, layers_in, report_of
from .bindings.parameters import context_params, model_params, progress_callback
from .bindings.sampler import DrySamplers, Sampler
from .bindings.steps import Steps
from .checked_adapters import CheckedAdapters
from .main_memory import check_loaded
from .sampling import Sampling
from .settings import EngineSettings
from .workers.remote import connect

logger = logging.getLogger(__name__)

_MAX_VIEWS = 256  # of the rows of logits: sequences, or tokens of a draft


class Closeable(Protocol):
    """What has something of llama.cpp's that uses the model."""

    def close(self) -> None:
        """Free it, in the thread."""


class Handles:
    """A loaded model with a context, ready to decode. Close it.

    ``model``, ``context``, ``memory`` (the context's KV cache), ``vocab`` and ``batch`` are for
    calls in ``thread`` alone. What is appended to ``beside`` uses the model, and is closed before
    it is freed. ``n_parallel`` is how many sequences the context has, ``n_chunked_cells`` how many
    cells each of them has in the chunked layers, ``n_decoded`` counts the batches: the
    logits are those of the last one. ``is_copying`` is whether cells of a sequence will be
    copied to another one before the next batch. ``adapters`` are None where there are none.
    ``activations`` sees what contexts that are made from then on compute, None where nobody does.

    Args:
        path: a GGUF that ``check_model_file`` accepted.
        checked: the adapters of the settings.
        on_progress: called with the fraction loaded, 0.0 to 1.0; returning False cancels.
        end_ids: tokens that end an answer, beside those that llama.cpp takes for ends.

    Raises:
        EngineError: llama.cpp cannot load the model or make the context; its own words are given.
        WorkerError: a worker is absent, or was lost.
    """

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        on_progress: Callable[[float], object] | None = None,
        end_ids: Iterable[int] = (),
        checked: CheckedAdapters | None = None,
    ) -> None:
        self.path = path
        self.llama = llama()
        self.model: Any = None
        self.context: Any = None
        self._batch: Batch | None = None
        self.adapters: NativeAdapters | None = None
        self.no_scales: Scales = (0.0,) * len(settings.adapters)
        self.beside: list[Closeable] = []
        self._samplers: list[Sampler] = []
        self._dry: DrySamplers | None = None
        self._ends: dict[int, bool] = dict.fromkeys(end_ids, True)
        self._end_ids = tuple(self._ends)
        self._views: dict[int, npt.NDArray[np.float32]] = {}
        self.activations: ActivationSums | None = None
        self.n_decoded = 0
        self.workers = connect(settings.workers)
        self.thread = self.workers.thread
        self.thread.on_end = self._free
        try:
            self._load(settings, on_progress, checked)
            self.make_context(settings)
        except BaseException:
            self.close()
            raise

    def close(self, *, wait: bool = True) -> None:
        """Stop the call that runs and free everything; closing twice is harmless.

        Args:
            wait: whether to return only when all is freed, or a worker is lost.
        """
        with suppress(WorkerError):  # what a lost worker had a part in stays
            self.workers.close(wait=wait)

    def make_context(self, settings: EngineSettings) -> None:
        """Make a context, in place of the one that is there.

        Raises:
            EngineError: llama.cpp cannot; there is none then.
            AllocationError: with the adapters, it takes more memory than a device has.
        """
        observer = None if self.activations is None else self.activations.native
        params = context_params(settings, observer)
        self.n_parallel = settings.n_parallel

        def make() -> None:
            self._free_context()
            self.context = self.llama.llama_init_from_model(self.model, params)
            if self.context:
                self._complete()
                if self.adapters is not None:
                    scales = tuple(adapter.scale for adapter in settings.adapters)
                    self.adapters.attach(self.context, settings.control_vector_layers, scales)

        with captured_log() as log:
            self.thread.call(make)
        if not self.context:
            raise refused(
                f"{self.path}: llama.cpp cannot make a context of {settings.n_ctx} tokens",
                log,
                hint="If memory is short, lower n_ctx or n_ubatch.",
            )

    def memory_report(self) -> MemoryReport:
        """What llama.cpp has on each device; a file that is mapped counts as weights."""
        return self.thread.call(
            lambda: report_of(self.context, self.params.devices, adapters=self.adapters)
        )

    def use_adapters(self, scales: Scales) -> None:
        """Have the next batches computed with so much of each adapter; called in the thread.

        Raises:
            EngineError: llama.cpp cannot, as where memory is short.
        """
        if self.adapters is not None:
            self.adapters.use(scales)

    def is_end(self, token: int) -> bool:
        """Whether this token ends an answer; called in the thread."""
        if token not in self._ends:
            self._ends[token] = bool(self.llama.llama_vocab_is_eog(self.vocab, token))
        return self._ends[token]

    @property
    def batch(self) -> Batch:
        """The batch of the context."""
        assert self._batch is not None
        return self._batch

    def logits(self, row: int) -> npt.NDArray[np.float32]:
        """The logits of a token of the last batch, float32 of [n_vocab]; a view, for now only.

        Called in the thread.
        """
        pointer = self.llama.llama_get_logits_ith(self.context, row)
        address = ctypes.addressof(pointer.contents)
        # Making an array takes microseconds; llama.cpp's buffer is nearly always the same.
        if (view := self._views.get(address)) is None:
            if len(self._views) > _MAX_VIEWS:
                self._views.clear()
            view = np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))
            self._views[address] = view
        return view

    def make_sampler(self, sampling: Sampling, tokens: Sequence[int]) -> Sampler:
        """What chooses the tokens after these; called in the thread.

        With a seed of None one is drawn.
        """
        assert self._dry is not None
        sampler = Sampler(self.llama, self._dry, self.n_vocab, sampling.with_seed(), tokens)
        self._samplers.append(sampler)
        return sampler

    def free_sampler(self, sampler: Sampler) -> None:
        """Free a sampler soon; called anywhere."""
        self.thread.post(lambda: self._free_sampler(sampler))

    # --- how they are made and freed

    def _load(
        self,
        settings: EngineSettings,
        on_progress: Callable[[float], object] | None,
        checked: CheckedAdapters | None,
    ) -> None:
        cancelled = False

        def progress(fraction: float) -> bool:
            nonlocal cancelled
            cancelled = on_progress is not None and on_progress(fraction) is False
            return not cancelled

        self.params = model_params(settings, self.workers.native_devices)
        n_layers = settings.placement.n_gpu_layers
        if n_layers > 0 and not self.params.devices:
            logger.warning(
                "llama.cpp has no GPU to use here: n_gpu_layers of %d has no effect. "
                "`llama4 doctor` says what is missing.",
                n_layers,
            )
        native = self.params.native
        native.progress_callback = callback = progress_callback(self.thread, progress)

        def load() -> None:
            self.model = self.llama.llama_model_load_from_file(os.fsencode(self.path), native)

        with captured_log() as log:
            self.thread.call(load)
        del callback  # kept until here: llama.cpp knows only its address
        if cancelled:
            raise EngineError(f"{self.path}: loading was cancelled")
        if not self.model:
            raise refused(f"{self.path}: llama.cpp cannot load the model", log)
        check_loaded(self.path, log)
        if checked is not None:

            def load_adapters() -> None:
                name = os.fspath(self.path)
                self.adapters = NativeAdapters(self.model, checked, layers_in(log), name)

            self.thread.call(load_adapters)

    def _complete(self) -> None:
        """What goes with a context."""
        abort, argument = self.thread.abort_callback
        self.llama.llama_set_abort_callback(
            self.context, self.llama.ggml_abort_callback(abort), argument
        )
        self.memory = self.llama.llama_get_memory(self.context)
        self.vocab = self.llama.llama_model_get_vocab(self.model)
        self._dry = self._dry or DrySamplers(self.llama, self.vocab)
        # llama.cpp lowers what it was asked for to n_ctx, and aborts on a batch beyond that.
        self.n_batch = int(self.llama.llama_n_batch(self.context))
        # Cells of the chunked layers of a sequence (llama-kv-cache-iswa.cpp, `size_swa`).
        n_ubatch = int(self.llama.llama_n_ubatch(self.context))
        cells = min(int(self.llama.llama_n_ctx_seq(self.context)), ATTENTION_CHUNK + n_ubatch)
        self.n_chunked_cells = (cells + 255) // 256 * 256
        self._batch = Batch(self.llama, self.n_batch)
        self.n_decoded = 0
        self.is_copying = False
        self.n_vocab = int(self.llama.llama_vocab_n_tokens(self.vocab))
        self.steps = Steps(
            self.llama, self.context, self.vocab, self.n_vocab, self._end_ids,
            self.thread.stop, self.thread.attention,
        )  # fmt: skip

    def _free(self) -> None:
        for sampler in list(self._samplers):
            self._free_sampler(sampler)
        if self._dry is not None:
            self._dry.close()
        while self.beside:
            self.beside.pop().close()
        # The context uses adapters and the model, and adapters use the model.
        self._free_context()
        adapters, self.adapters = self.adapters, None
        if adapters is not None:
            adapters.close()
        model, self.model = self.model, None
        if model:
            self.llama.llama_model_free(model)

    def _free_context(self) -> None:
        self._batch = None
        context, self.context = self.context, None
        if context:
            self.llama.llama_free(context)

    def _free_sampler(self, sampler: Sampler) -> None:
        if sampler in self._samplers:
            self._samplers.remove(sampler)
            sampler.close()
