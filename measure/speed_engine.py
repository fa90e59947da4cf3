"""What only measuring needs of an engine: new contexts for a loaded model, tokens at any time.

Promises what the engine promises. Nothing here is needed to answer anyone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from ..errors import ContextFullError, EngineError, SettingError
from ..runtime.engine import Engine
from ..runtime.settings import EngineSettings
from ..runtime.state import SequenceState

_DESCRIPTION_BYTES = 128


class BenchEngine(Engine):
    """An engine whose context can be made anew while the model stays loaded."""

    def __enter__(self) -> BenchEngine:
        return self

    @property
    def description(self) -> str:
        """llama.cpp's own name for the model: architecture, size, type of most tensors."""
        handles = self._handles

        def read() -> str:
            text = ctypes.create_string_buffer(_DESCRIPTION_BYTES)
            handles.llama.llama_model_desc(handles.model, text, _DESCRIPTION_BYTES)
            return text.value.decode("utf-8", "replace")

        return self._call(read)

    @property
    def first_token(self) -> int | None:
        """The token that llama.cpp would put before a text, if the model has one."""
        llama, vocab = self._handles.llama, self._handles.vocab

        def read() -> int | None:
            return (
                int(llama.llama_vocab_bos(vocab)) if llama.llama_vocab_get_add_bos(vocab) else None
            )

        return self._call(read)

    def remake(self, settings: EngineSettings) -> None:
        """Replace the context by an empty one with other settings.

        Raises:
            SettingError: the model would have to be loaded anew.
            EngineError: llama.cpp cannot make the context; the engine is closed then.
        """
        self._check()
        for name in (
            "placement", "workers", "use_extra_bufts", "load_mode", "n_expert_used", "adapters",
            "control_vectors",
        ):  # fmt: skip
            if getattr(settings, name) != getattr(self.settings, name):
                raise SettingError(f"{name} cannot change while the model is loaded")
        try:
            self._handles.make_context(settings)
        except BaseException:
            self.close()
            raise
        self.settings = settings
        self._set_up()

    def extend(self, tokens: Sequence[int]) -> None:
        """Decode these tokens after those in the cache, with the logits after the last one.

        Raises:
            ContextFullError: they do not fit; nothing has changed.
            EngineError: there are none, one is not the id of a token, or llama.cpp failed.
        """
        checked = self._checks.prompt(tokens)
        left = self.tokens_left
        if len(checked) > left:
            raise ContextFullError(
                "the tokens do not fit into the context", found=len(checked), expected=left
            )
        self._call(lambda: self._extend(checked))

    def decode_each(self, tokens: Sequence[int]) -> None:
        """Decode tokens one after the other, each when all devices have finished the one before.

        Raises:
            ContextFullError: they do not fit.
            EngineError: one is not the id of a token, or llama.cpp failed.
        """
        checked = self._checks.tokens(tokens)

        def work() -> None:
            for token in checked:
                if self._handles.thread.stopping:
                    return
                self._append([token])

        self._call(work)

    def synchronize(self) -> None:
        """Return when all devices have finished what they were asked to do."""
        self._call(lambda: self._handles.llama.llama_synchronize(self._handles.context))

    def restore(self, state: SequenceState) -> bool:
        """Hold what a state has; False where it does not fit, and then nothing is held."""

        def write() -> bool:
            try:
                self._sequence.restore(state)
            except EngineError:
                return False
            return True

        return self._call(write)
