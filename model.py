"""A model that is asked in text and answers in text: the Python API.

Joins the engine, the vocabulary, the chat template and the text stream, and adds nothing to what
each of them promises. Knows nothing of terminals.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Literal, Protocol, overload

import numpy as np
import numpy.typing as npt

from .chat.answer import Completion, Stream
from .chat.conversation import Message
from .chat.template import ChatTemplate
from .chat.vocabulary import Vocabulary
from .errors import AllocationError, EngineError, SettingError
from .runtime.bindings.amx import use_extra_bufts
from .runtime.engine import Engine
from .runtime.files.model_file import ModelInfo, check_model_file
from .runtime.placement import Placement, check_overrides
from .runtime.sampling import Sampling
from .runtime.settings import DEFAULT_CONTEXT, EngineSettings, FlashAttention, KVType

logger = logging.getLogger(__name__)


class Planned(Protocol):
    """What a plan is to a model: settings, and another plan for when they ask too much."""

    @property
    def settings(self) -> EngineSettings:
        """How the engine is made."""

    def more_modest(self) -> Planned | None:
        """The plan to try when a device has not the memory for this one; None after the last."""


class Model:
    """A Llama 4 GGUF, loaded. Close it, or use it in a ``with`` statement.

    Args:
        path: the GGUF.
        plan: what `llama4_edge.plan` found for this file. It decides everything but ``n_batch`` and
            ``n_threads``. Where a device has not the memory for it all the same, a warning says so,
            and the next more modest plan is tried.
        n_ctx: tokens the context holds, prompt and answer together; None is 32768, or what the
            model was trained for if that is less.
        n_batch, n_ubatch, n_threads, placement, kv_type, flash_attention, workers: see
            ``EngineSettings``.
        on_load_progress: called with the fraction loaded; returning False cancels.

    Raises:
        ModelFileError: the file is not a whole Llama 4 GGUF.
        VocabularyError: its tokenizer is not one that can be read exactly.
        SettingError: a setting is outside its range, or names a device or tensor that is not there.
        EngineError: llama.cpp cannot load it, or ``n_ctx`` is more than it was trained for.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        plan: Planned | None = None,
        n_ctx: int | None = None,
        n_batch: int = EngineSettings.n_batch,
        n_ubatch: int = EngineSettings.n_ubatch,
        n_threads: int | None = None,
        placement: Placement = Placement(),  # noqa: B008 (frozen)
        kv_type: KVType = EngineSettings.kv_type,
        flash_attention: FlashAttention = EngineSettings.flash_attention,
        workers: Sequence[str] = (),
        on_load_progress: Callable[[float], object] | None = None,
    ) -> None:
        self.info: ModelInfo = check_model_file(path)
        settings = EngineSettings(
            n_ctx=_context(self.info, n_ctx),
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_threads=n_threads,
            use_extra_bufts=use_extra_bufts(),
            placement=placement,
            kv_type=kv_type,
            flash_attention=flash_attention,
            workers=tuple(workers),
        )
        check_overrides(placement.overrides, [one.name for one in self.info.tensors])
        if plan is not None:
            _check_unplanned(settings, n_ctx)
        # Before the weights, because it is quick and can fail.
        self.vocabulary = Vocabulary(self.info.gguf.metadata)
        self.engine, self.plan = _open(path, settings, plan, on_load_progress)
        self._stream: Stream | None = None

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End a stream that is open and free the model; closing twice is harmless."""
        if self._stream is not None:
            self._stream.close()
        self.engine.close()

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template; TemplateError if it has none."""
        bos, eos = self.vocabulary.bos_id, self.vocabulary.eos_id
        return ChatTemplate(
            self.info.chat_template,
            control_tokens=self.vocabulary.control_tokens,
            bos_token="" if bos is None else self.vocabulary.token_text(bos),
            eos_token="" if eos is None else self.vocabulary.token_text(eos),
        )

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> list[int]:
        """The token ids of a text; see ``Vocabulary.encode`` for ``special``."""
        return self.vocabulary.encode(text, special=special, add_bos=add_bos)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; control tokens show their names only if ``special``."""
        return self.vocabulary.decode(tokens, special=special)

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits after each token, float32 of [n_tokens, n_vocab]; see ``Engine.logits``."""
        self._end_stream()
        return self.engine.logits(tokens)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any] | Message]) -> list[int]:
        """The token ids with which a model is asked to answer these messages.

        Only the template writes control tokens: their names in a message are plain text.

        Raises:
            TemplateError: the model has no template, or it does not render these messages, or one
                of them has an image.
        """
        plain = [asdict(one) if isinstance(one, Message) else one for one in messages]
        tokens: list[int] = []
        for piece in self.template.render(plain):
            if piece.control:
                tokens.append(self.vocabulary.control_tokens[piece.text])
            else:
                tokens.extend(self.vocabulary.encode(piece.text))
        bos = self.vocabulary.bos_id
        if self.vocabulary.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = ...,
        sampling: Sampling = ...,
        stop: Sequence[str] = ...,
        stream: Literal[False] = ...,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = ...,
        sampling: Sampling = ...,
        stop: Sequence[str] = ...,
        stream: Literal[True],
    ) -> Stream: ...

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stop: Sequence[str] = (),
        stream: bool = False,
    ) -> Completion | Stream:
        """Continue a text or token ids, without a chat template.

        Args:
            prompt: text, tokenized without control tokens and after BOS if the model asks for it;
                or token ids, taken as they are.
            max_tokens: of the answer; None is until the model ends it or the context is full.
            stop: strings that end the answer, which stops before the first of them.
            stream: whether to get the text piece by piece; the prompt has then been read.

        Raises:
            ContextFullError: the prompt alone does not fit into the context.
            EngineError: the prompt is empty, or llama.cpp failed.
            SettingError: a setting outside its range.
        """
        if isinstance(prompt, str):
            prompt = self.tokenize(prompt, add_bos=self.vocabulary.add_bos)
        return self._answer(prompt, max_tokens, sampling, stop, stream)

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any] | Message],
        *,
        max_tokens: int | None = ...,
        sampling: Sampling = ...,
        stop: Sequence[str] = ...,
        stream: Literal[False] = ...,
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any] | Message],
        *,
        max_tokens: int | None = ...,
        sampling: Sampling = ...,
        stop: Sequence[str] = ...,
        stream: Literal[True],
    ) -> Stream: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any] | Message],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stop: Sequence[str] = (),
        stream: bool = False,
    ) -> Completion | Stream:
        """Answer the last of some messages; see ``generate`` for the other arguments.

        What these messages share with the last request is not decoded again.

        Raises:
            TemplateError: the model has no chat template, or it does not render these messages.
            ContextFullError: the messages alone do not fit into the context.
        """
        return self._answer(self.chat_prompt(messages), max_tokens, sampling, stop, stream)

    def _answer(
        self,
        prompt: Sequence[int],
        max_tokens: int | None,
        sampling: Sampling,
        stop: Sequence[str],
        stream: bool,
    ) -> Completion | Stream:
        self._end_stream()
        answer = Stream(
            self.engine,
            self.vocabulary,
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
        )
        self._stream = answer
        if stream:
            return answer
        with answer:
            for _ in answer:
                pass
        return answer.completion

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._stream._supersede()
            self._stream = None


def _check_unplanned(settings: EngineSettings, n_ctx: int | None) -> None:
    """Whether nothing is asked for that a plan decides."""
    names = ("n_ubatch", "placement", "kv_type", "flash_attention", "workers")
    usual = EngineSettings()
    asked = [name for name in names if getattr(settings, name) != getattr(usual, name)]
    if n_ctx is not None or asked:
        raise SettingError(
            "a plan decides what is asked for beside it",
            found=", ".join(["n_ctx"] * (n_ctx is not None) + asked),
            hint="Ask `plan` for it.",
        )


def _open(
    path: str | os.PathLike[str],
    settings: EngineSettings,
    plan: Planned | None,
    on_progress: Callable[[float], object] | None,
) -> tuple[Engine, Planned | None]:
    """An engine with these settings; or with a plan's, or with those of a more modest one."""
    while True:
        if plan is not None:
            settings = replace(
                plan.settings, n_batch=settings.n_batch, n_threads=settings.n_threads
            )
        try:
            return Engine(path, settings, on_progress=on_progress), plan
        except AllocationError as error:
            modest = None if plan is None else plan.more_modest()
            if modest is None:
                raise
            said = str(error).rstrip(".")
            logger.warning("%s. Planned was: %s. Now trying: %s", said, plan, modest)
            plan = modest


def _context(info: ModelInfo, n_ctx: int | None) -> int:
    if n_ctx is None:
        return min(DEFAULT_CONTEXT, info.hparams.n_ctx_train)
    if n_ctx > info.hparams.n_ctx_train:
        raise EngineError(
            f"{info.path}: n_ctx is more than the model was trained for",
            found=f"{n_ctx} tokens",
            expected=f"at most {info.hparams.n_ctx_train}",
            hint="Lower n_ctx (-c).",
        )
    return n_ctx
