"""The model of a server: loaded, freed when nobody has asked for a while, and loaded again.

Promises that nobody is given a model that is being freed, and that a request which comes after
that waits for it. Knows nothing of HTTP but that the first loading is told as 503.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from ..async_model import AsyncModel
from ..chat.vocabulary import Vocabulary
from ..model import Model
from ..runtime.adapters import Scales, WantedAdapters
from ..untrusted import brief
from .errors import ApiError

Phase = Literal["loading", "ready", "unloaded", "failed"]

_RETRY_AFTER = "5"


@dataclass(frozen=True)
class AdapterFacts:
    """What is told of an adapter, as its file has it."""

    path: str
    task_name: str
    prompt_prefix: str

    @classmethod
    def of(cls, model: Model) -> tuple[AdapterFacts, ...]:
        """Those of a model's adapters."""
        checked = model.engine.checked_adapters
        return tuple(
            cls(
                str(adapter.path),
                *(
                    brief(adapter.gguf.metadata.get(f"adapter.lora.{key}", ""), 1000)
                    for key in ("task_name", "prompt_prefix")
                ),
            )
            for adapter in (() if checked is None else checked.adapters)
        )


@dataclass(frozen=True)
class ModelFacts:
    """What is told of a model while it is not loaded.

    Args:
        name: of the model, as its file has it.
        n_parallel: answers that are made at the same time.
        created: when it was loaded first, in seconds since 1970.
        has_pictures: whether it has a projector.
        chat_template: its Jinja text; None if it has none.
        bos, eos: the tokens with which a text begins and ends; "" if there is none.
        adapters: those that a request can have, in the order of their numbers.
    """

    name: str
    path: str
    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    n_embd: int
    n_parallel: int
    parameters: int
    bytes: int
    created: int
    has_pictures: bool
    chat_template: str | None
    bos: str
    eos: str
    adapters: tuple[AdapterFacts, ...] = ()

    @classmethod
    def of(cls, model: Model) -> ModelFacts:
        """Those of a loaded model."""
        info, settings = model.info, model.engine.settings
        return cls(
            name=info.name,
            path=str(info.path),
            n_ctx=settings.n_ctx,
            n_ctx_train=info.hparams.n_ctx_train,
            n_vocab=model.engine.n_vocab,
            n_embd=info.hparams.n_embd,
            n_parallel=settings.n_parallel,
            parameters=sum(math.prod(tensor.shape) for tensor in info.tensors),
            bytes=sum(tensor.nbytes for tensor in info.tensors),
            created=int(time.time()),
            has_pictures=model.projector is not None,
            chat_template=info.chat_template,
            bos=_token_text(model.vocabulary, model.vocabulary.bos_id),
            eos=_token_text(model.vocabulary, model.vocabulary.eos_id),
            adapters=AdapterFacts.of(model),
        )


def _token_text(vocabulary: Vocabulary, token: int | None) -> str:
    return "" if token is None else vocabulary.token_text(token)


def _nothing(model: Model) -> None:
    """What is done with a model where nothing is to be done."""


class ModelKeeper:
    """Has a model loaded when somebody asks.

    Args:
        source: a loaded model, or what loads it. That is called in another thread, with a function
            that says whether it is not wanted any more.
        idle_seconds: after which it is freed when nobody asks; None is never.
        opened: called with a model that was loaded, in that thread.
        closing: called with a model that is about to be freed, in another thread.
    """

    def __init__(
        self,
        source: AsyncModel | Callable[[Callable[[], bool]], Model],
        *,
        idle_seconds: float | None = None,
        opened: Callable[[Model], None] = _nothing,
        closing: Callable[[Model], None] = _nothing,
    ) -> None:
        self._source = source
        self._idle_seconds = idle_seconds
        self._opened, self._closing = opened, closing
        self._model: AsyncModel | None = None
        self._changing: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._users = 0
        self.facts: ModelFacts | None = None
        self._scales: Scales | None = None  # of the adapters, where they were changed
        self.failure: Exception | None = None
        self.failed: Callable[[], object] = lambda: None  # called when it cannot be loaded first
        self.cancelled: Callable[[], bool] = lambda: False  # whether it need not be loaded any more
        if isinstance(source, AsyncModel):
            self._model, self.facts = source, ModelFacts.of(source.model)

    @property
    def phase(self) -> Phase:
        """What the model is doing."""
        if self._model is not None:
            return "ready"
        if self._changing is not None:
            return "loading"
        return "failed" if self.failure is not None else "unloaded"

    @property
    def scales(self) -> Scales:
        """Of the adapters, for requests that do not say."""
        if self._model is not None:
            return self._model.model.engine.adapters.scales
        return self._scales or ()

    def set_scales(self, wanted: WantedAdapters) -> None:
        """Change them for later requests, as a request's ``adapters`` say.

        Raises:
            ApiError: the model is not loaded.
            SettingError: there is no such adapter.
        """
        if self._model is None:
            raise ApiError(503, "The model is not loaded.", code="loading")
        self._model.model.adapters = wanted
        self._scales = self.scales

    @property
    def loaded(self) -> AsyncModel | None:
        """The model where it is loaded; it may be freed at any time."""
        return self._model

    def add_closing(self, closing: Callable[[Model], None]) -> None:
        """Have this called too with a model that is about to be freed, and first."""
        later = self._closing

        def both(model: Model) -> None:
            closing(model)
            later(model)

        self._closing = both

    def start(self) -> None:
        """Begin to load it, where it is not loaded."""
        if self._model is None and self._changing is None:
            self._change(self._load())

    @asynccontextmanager
    async def using(self) -> AsyncIterator[AsyncModel]:
        """The model, which stays loaded for this block.

        Raises:
            ApiError: it is being loaded for the first time, or cannot be loaded again.
        """
        if self.facts is None:
            if self.failure is not None:
                raise ApiError(503, f"The model could not be loaded: {self.failure}")
            raise ApiError(
                503,
                "The model is being loaded.",
                code="loading",
                headers={"Retry-After": _RETRY_AFTER},
            )
        self._users += 1
        self._forget_idle()
        try:
            yield await self._loaded()
        finally:
            self._users -= 1
            if not self._users and self._idle_seconds is not None and self._model is not None:
                loop = asyncio.get_running_loop()
                self._idle = loop.call_later(self._idle_seconds, self._unload)

    async def close(self, *, quick: bool = False) -> None:
        """Free a model that was loaded here, and load it no more.

        Args:
            quick: do not call `closing`.
        """
        self._forget_idle()
        if self._changing is not None:
            await asyncio.wait([self._changing])
        if self._model is not None and not isinstance(self._source, AsyncModel):
            if quick:
                self._closing = _nothing
            await self._free()

    async def _loaded(self) -> AsyncModel:
        while self._model is None:
            if self._changing is None:
                self.start()
            assert self._changing is not None
            # Whoever gives up waiting does not keep others from the model.
            await asyncio.shield(self._changing)
            if self._model is None and self.failure is not None:
                raise ApiError(503, f"The model cannot be loaded again: {self.failure}")
        return self._model

    def _unload(self) -> None:
        self._idle = None
        if not self._users and self._changing is None and self._model is not None:
            self._change(self._free())

    def _change(self, work: Coroutine[None, None, None]) -> None:
        self._changing = asyncio.get_running_loop().create_task(work)

    async def _load(self) -> None:
        assert not isinstance(self._source, AsyncModel)
        source = self._source
        self.failure = None

        def load() -> Model:
            model = source(self.cancelled)
            try:
                # It holds up everybody where there are many tokens: not in the middle of answers.
                model.structures.prepare()
                self._opened(model)
            except BaseException:
                model.close()
                raise
            return model

        try:
            model = await asyncio.to_thread(load)
            if self._scales is not None:
                model.engine.adapters.scales = self._scales
            self.facts = self.facts or ModelFacts.of(model)
            self._model = AsyncModel(model)
        except Exception as error:
            self.failure = error
            if self.facts is None:
                self.failed()
        finally:
            self._changing = None

    async def _free(self) -> None:
        model, self._model = self._model, None
        assert model is not None
        try:
            await asyncio.to_thread(self._closing, model.model)
        finally:
            await model.close()
            self._changing = None

    def _forget_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
