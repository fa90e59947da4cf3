"""What only measuring needs of an engine: new contexts for a loaded model, tokens at any time.

Promises what the engine promises. Nothing here is needed to answer anyone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from ..errors import ContextFullError, SettingError
from ..runtime.bindings.batch import SEQUENCE
from ..runtime.engine import Engine
from ..runtime.settings import EngineSettings

_DESCRIPTION_BYTES = 128


class BenchEngine(Engine):
    """An engine whose context can be made anew while the model stays loaded."""

    def __enter__(self) -> BenchEngine:
        return self

    @property
    def description(self) -> str:
        """llama.cpp's own name for the model: architecture, size, type of most tensors."""
        self._ready()
        text = ctypes.create_string_buffer(_DESCRIPTION_BYTES)
        self._llama.llama_model_desc(self._model, text, _DESCRIPTION_BYTES)
        return text.value.decode("utf-8", "replace")

    @property
    def first_token(self) -> int | None:
        """The token that llama.cpp would put before a text, if the model has one."""
        self._ready()
        if not self._llama.llama_vocab_get_add_bos(self._vocab):
            return None
        return int(self._llama.llama_vocab_bos(self._vocab))

    def remake(self, settings: EngineSettings) -> None:
        """Replace the context by an empty one with other settings.

        Raises:
            SettingError: the model would have to be loaded anew.
            EngineError: llama.cpp cannot make the context; the engine is closed then.
        """
        self._ready()
        for name in ("placement", "workers", "use_extra_bufts"):
            if getattr(settings, name) != getattr(self.settings, name):
                raise SettingError(f"{name} cannot change while the model is loaded")
        # Until there is a new one, the engine counts as closed.
        self._free.detach()
        self._workers.run(self._free_context)
        self.settings = settings
        self._tokens, self._highest = [], -1
        self._unsure = self._has_logits = False
        try:
            self._begin()
        except BaseException:
            self._workers.close()
            raise

    def _free_context(self) -> None:
        self._llama.llama_batch_free(self._batch.native)
        self._llama.llama_free(self._context)

    def extend(self, tokens: Sequence[int]) -> None:
        """Decode these tokens after those in the cache, with the logits after the last one.

        Raises:
            ContextFullError: they do not fit; nothing has changed.
            EngineError: there are none, an id is out of range, or llama.cpp failed.
        """
        self._ready()
        tokens = list(tokens)
        self._check_prompt(tokens)
        if len(tokens) > self.tokens_left:
            raise ContextFullError(
                "the tokens do not fit into the context",
                found=len(tokens),
                expected=self.tokens_left,
            )
        self._extend(tokens)

    def synchronize(self) -> None:
        """Return when all devices have finished what they were asked to do."""
        self._ready()
        self._workers.run(lambda: self._llama.llama_synchronize(self._context))

    def state(self) -> bytes:
        """All that the cache holds, for `restore`."""
        self._ready()

        def read() -> bytes:
            size = int(self._llama.llama_state_seq_get_size(self._context, SEQUENCE))
            buffer = (ctypes.c_uint8 * size)()
            self._llama.llama_state_seq_get_data(self._context, buffer, size, SEQUENCE)
            return bytes(buffer)

        return self._workers.run(read)

    def restore(self, state: bytes, tokens: Sequence[int]) -> bool:
        """Fill the empty cache with a `state` that holds `tokens`; False where it does not fit."""
        self._ready()
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        restored = self._workers.run(
            lambda: self._llama.llama_state_seq_set_data(
                self._context, buffer, len(state), SEQUENCE
            )
        )
        self._unsure = True
        if restored:
            self._tokens = list(tokens)
            self._highest = len(tokens) - 1
            self._unsure = False
        return bool(restored)
