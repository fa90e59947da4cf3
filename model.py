"""A model that is asked in text and answers in text: the Python API.

Promises that it goes where the planner says unless it is placed by hand, that what is known not to
fit is refused before it loads, and that any number of threads may ask at the same time. Knows
nothing of terminals.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, overload

import numpy as np
import numpy.typing as npt

from .chat.answer import Completion, Stream, answers_to, completions_of
from .chat.forms import Form
from .chat.options import AnswerOptions, AnswerSettings
from .chat.prompt import Messages, Prompt, Prompts, chat_settings, text_settings
from .chat.session import Session, Sessions, as_conversation
from .chat.structure import Structure, Structures
from .chat.tools import ToolInput, as_tools
from .chat.vocabulary import Vocabulary, whole_numbers
from .chat.window import prompt_of
from .errors import EngineError
from .opening import (
    check_plan,
    mode_of,
    names_of,
    open_engine,
    planned,
    wished_placement,
)
from .ranges import as_path, check_callback, check_flag, check_whole
from .runtime.adapters import (
    Adapter,
    AdapterInput,
    ControlVectorInput,
    WantedAdapters,
    as_adapters,
    as_control_vectors,
)
from .runtime.bindings.amx import use_extra_bufts
from .runtime.checked_adapters import CheckedAdapters
from .runtime.features import names_in
from .runtime.files.model_file import ModelInfo, check_model_file
from .runtime.files.session_file import SessionFile
from .runtime.logprobs import TokenLogprobs
from .runtime.main_memory import has_gpus
from .runtime.placement import Placement, check_overrides
from .runtime.settings import (
    Context,
    EngineSettings,
    FlashAttention,
    KVTypes,
    LoadMode,
    check_settings_of_model,
    context_length,
)
from .vision.projector import Pictures
from .vision.seen import SEEN

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .chat.template import ChatTemplate
    from .planner import Plan
    from .progress import Progress
    from .vision.opening import PictureInput


class Model:
    """A Llama 4 GGUF, loaded. Close it, or use it in a ``with`` statement.

    Args:
        path: the GGUF.
        plan: of `llama4_edge.plan`, for this file. It decides everything but ``n_batch``,
            ``n_outputs`` and ``n_threads``.
        n_ctx: tokens the context holds, prompt and answer together; None is 32768, or what the
            model was trained for if that is less; "max" is the longest context that fits.
        n_parallel: requests that are answered at the same time, each in a context of ``n_ctx``
            tokens of its own. More than that wait, in the order in which they came.
        placement: where layers and tensors go, chosen by hand; None lets the planner choose.
        devices: names of the GPUs that the planner may use; None is all, () is the CPU alone.
        kv_type: what the KV cache is kept as, one type or a pair of those of keys and of values;
            None is f16, or what the planner finds better.
        mmap: False copies weights instead of mapping the file, as ``load_mode="none"`` does: a file
            that is truncated meanwhile then ends no process.
        n_batch, n_ubatch, n_outputs, n_threads, n_expert_used, flash_attention: see
            ``EngineSettings``.
        load_mode, cache_ram, workers: see the same.
        adapters: LoRA adapters, as GGUFs that `llama4 convert-lora` makes: files, pairs of a file
            and a scale, or `Adapter`. A request can have others of them, and other scales.
        control_vectors: files of directions that are added after layers, given in the same way.
        control_vector_layers: the first and the last of these layers; None is all.
        projector: the GGUF of the vision tower, which llama.cpp calls mmproj. None is the only one
            beside the model (``mmproj-*.gguf``), which is loaded when the first picture comes.
        on_load_progress: called with the fraction loaded; returning False cancels.

    Without ``plan`` and ``placement`` the model goes where `llama4_edge.plan` says, if there is a
    GPU or a worker. Where a device cannot allocate what was planned, a warning says so and the
    plan's fallback is tried. ``Model.plan`` is the plan that was used, None where there was none.

    Raises:
        ModelFileError: the file is not a whole Llama 4 GGUF; or one of an adapter or a control
            vector is damaged, or of another model.
        VocabularyError: its tokenizer cannot be read exactly.
        SettingError: a setting is outside its range, or names a device or tensor that is not there;
            ``n_ctx`` is more than the model was trained for.
        AllocationError: the context does not fit into main memory, or a device is short of memory
            and no plan is left to fall back on.
        EngineError: llama.cpp cannot load the model.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        plan: Plan | None = None,
        n_ctx: Context = None,
        n_parallel: int = EngineSettings.n_parallel,
        n_batch: int = EngineSettings.n_batch,
        n_ubatch: int = EngineSettings.n_ubatch,
        n_outputs: int = EngineSettings.n_outputs,
        n_threads: int | None = None,
        placement: Placement | None = None,
        devices: Sequence[str] | None = None,
        kv_type: KVTypes | None = None,
        n_expert_used: int | None = None,
        flash_attention: FlashAttention = EngineSettings.flash_attention,
        load_mode: LoadMode = EngineSettings.load_mode,
        mmap: bool = True,
        cache_ram: int | None = None,
        workers: Sequence[str] = (),
        adapters: Iterable[AdapterInput] = (),
        control_vectors: Iterable[ControlVectorInput] = (),
        control_vector_layers: tuple[int, int] | None = None,
        projector: str | os.PathLike[str] | None = None,
        on_load_progress: Callable[[float], object] | None = None,
    ) -> None:
        path = as_path("path", path)
        check_callback("on_load_progress", on_load_progress)
        self.info: ModelInfo = check_model_file(path)
        wish = EngineSettings(
            n_ctx=context_length(n_ctx, self.info.hparams.n_ctx_train, os.fspath(path)),
            n_parallel=n_parallel,
            n_batch=n_batch,
            n_ubatch=n_ubatch,
            n_outputs=n_outputs,
            n_threads=n_threads,
            use_extra_bufts=use_extra_bufts(),
            placement=wished_placement(placement, devices),
            kv_type=EngineSettings.kv_type if kv_type is None else kv_type,
            n_expert_used=n_expert_used,
            flash_attention=flash_attention,
            load_mode=mode_of(load_mode, mmap),
            cache_ram=cache_ram,
            workers=names_of("workers", workers),
            adapters=as_adapters(adapters),
            control_vectors=as_control_vectors(control_vectors),
            control_vector_layers=control_vector_layers,
        )
        if plan is not None:
            check_plan(
                plan, wish, n_ctx=n_ctx, placement=placement, devices=devices, kv_type=kv_type
            )
        check_settings_of_model(wish, self.info.hparams, os.fspath(path))
        CheckedAdapters.of(wish, self.info)
        check_overrides(wish.placement.overrides, [tensor.name for tensor in self.info.tensors])
        # Before the weights, because it is quick and can fail.
        self.vocabulary = Vocabulary(self.info.gguf.metadata)
        self._pictures = Pictures(self.info, projector)
        self._prompts = Prompts(self.vocabulary, self.info.chat_template, self._pictures.digest)
        self.structures = Structures(self.vocabulary, self.info.eog_ids)
        if n_ctx == "max" or (
            plan is None and placement is None and has_gpus(devices, wish.workers)
        ):
            plan = planned(path, wish, n_ctx, kv_type, placement, projector)
        if plan is not None and placement is not None:
            # Placed by hand: of the plan, only the length of the context counts.
            wish, plan = replace(wish, n_ctx=plan.settings.n_ctx), None
        self.engine, self.plan = open_engine(self.info, wish, plan, on_load_progress)
        try:
            self._pictures.open(self.engine)
        except BaseException:
            self.engine.close()
            raise
        self.sessions = Sessions(self.engine, self.info, self._pictures.digest)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise EngineError(
            "a model can be neither copied nor pickled", hint="Open its file again instead."
        )

    @property
    def projector(self) -> Path | None:
        """The file of the vision tower; None where there is none, ModelFileError for several."""
        return self._pictures.path()

    def close(self) -> None:
        """End the answers that are being made, in any thread, and free the model.

        Closing twice is harmless.
        """
        self.engine.close()
        self._prompts.close()

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters that are loaded, with the scales that hold where a request does not say.

        Assigning what a request's ``adapters`` may be changes these scales for later requests.
        """
        return self.engine.adapters.current

    @adapters.setter
    def adapters(self, wanted: WantedAdapters) -> None:
        self.engine.adapters.scales = self.engine.adapters.of(wanted)

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template; TemplateError if it has none."""
        return self._prompts.template

    def tokenize(self, text: str, *, special: bool = False, add_bos: bool = False) -> list[int]:
        """The token ids of a text; see ``Vocabulary.encode`` for ``special``."""
        return self.vocabulary.encode(text, special=special, add_bos=add_bos)

    def detokenize(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of token ids; control tokens show their names only if ``special``."""
        return self.vocabulary.decode(tokens, special=special)

    def image_features(
        self,
        picture: PictureInput,
        *,
        allow_download: bool = False,
        on_progress: Callable[[float], object] | None = None,
    ) -> npt.NDArray[np.float32]:
        """What the model sees of a picture, float32 of [tiles, 144, n_embd].

        Each tile's features stand in reading order, 12 rows of 12; the tiles as in `image_tiles`.

        Args:
            picture, allow_download: see `image_tiles`.
            on_progress: called with the fraction encoded after each tile; returning False cancels.

        Raises:
            ImageError: it is not a picture, or one that is damaged or too large.
            ModelFileError: the projector is not one for this model.
            EngineError: there is no projector, or encoding was cancelled.
        """
        check_callback("on_progress", on_progress)
        tiles = SEEN.tiles(picture, allow_download=allow_download)
        return self._pictures.features(tiles, on_progress=on_progress)

    def logits(
        self, tokens: Iterable[int] | Prompt, *, adapters: WantedAdapters = None
    ) -> npt.NDArray[np.float32]:
        """The logits after each token, float32 of [n_tokens, n_vocab]; see ``Engine.logits``."""
        prompt = self.with_features(self.text_prompt(tokens))
        return self.engine.logits(prompt.positions, prompt.features, adapters)

    def score(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        top: int = 0,
        adapters: WantedAdapters = None,
    ) -> list[TokenLogprobs]:
        """How likely the model finds each token of a text but the first, after those before it.

            >>> sum(one.logprob for one in model.score("Paris is in France"))

        Args:
            prompt: text, tokenized as by `generate`; or token ids, or a `Prompt` without pictures.
            top: how many of the likeliest tokens to give beside each.
            adapters: see `generate`.

        Raises:
            ContextFullError: it does not fit into the context.
            EngineError: it is empty, or has pictures; llama.cpp failed, or the model was closed.
            SettingError: ``top`` is not a number of tokens.
        """
        return self.engine.score(self.scored_tokens(prompt, top), top, adapters)

    def scored_tokens(self, prompt: str | Iterable[int] | Prompt, top: int) -> list[int]:
        """The tokens that `score` is about; raises for arguments as that."""
        check_whole("top", top, 0, self.engine.n_vocab)
        shown = self.text_prompt(prompt)
        if shown.pictures:
            raise EngineError("a prompt with pictures cannot be scored")
        return shown.positions

    def with_features(self, prompt: Prompt) -> Prompt:
        """The prompt with what makes the features of its pictures, when they are decoded.

        Raises:
            EngineError, ModelFileError: there is no projector for this model.
        """
        if not prompt.pictures or prompt.features is not None:
            return prompt
        names = names_in(prompt.positions)
        return replace(prompt, features=self._pictures.of_prompt(prompt.pictures, names))

    def structure_of(self, form: Form) -> Structure:
        """A form, ready for answers; see ``Structures.of``."""
        return self.structures.of(form)

    def text_prompt(self, prompt: str | Iterable[int] | Prompt, *, special: bool = False) -> Prompt:
        """What `generate` goes on with; see there."""
        if isinstance(prompt, Prompt):
            return prompt
        if not isinstance(prompt, str):
            return Prompt(whole_numbers(prompt))
        n_ctx = self.engine.settings.n_ctx
        return Prompt(self._prompts.of_text(prompt, special=special, n_ctx=n_ctx))

    def chat_prompt(self, messages: Messages, **options: Unpack[AnswerOptions]) -> Prompt:
        """What `chat` goes on with: the ``token_ids`` of messages, and their pictures."""
        return self.shown_prompt(messages, chat_settings(messages, options))

    def shown_prompt(self, messages: Messages, settings: AnswerSettings) -> Prompt:
        """The same, with the settings as a value."""
        return prompt_of(self._prompts, messages, settings, self.engine.settings.n_ctx)

    @overload
    def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[AnswerOptions],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        stream: Literal[True],
        **options: Unpack[AnswerOptions],
    ) -> Stream: ...

    @overload
    def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        stream: bool,
        **options: Unpack[AnswerOptions],
    ) -> Completion | Stream: ...

    @overload
    def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        n: int,
        stream: Literal[False] = ...,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        n: int,
        stream: Literal[True],
        **options: Unpack[AnswerOptions],
    ) -> list[Stream]: ...

    def generate(
        self,
        prompt: str | Iterable[int] | Prompt,
        *,
        stream: bool = False,
        n: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Completion | Stream | list[Completion] | list[Stream]:
        """Continue a text or token ids, without a chat template.

        Args:
            prompt: text, tokenized without control tokens and after BOS if the model asks for it;
                or token ids, or a `Prompt`, taken as they are.
            stream: whether to get the text piece by piece, beginning at once.
            n: how many answers to give; the prompt is read once. With a seed, each has a seed that
                is one more than that of the one before. None is one answer that is not in a list.
            temperature, top_k, top_p, min_p, seed: how tokens are chosen; see ``Sampling``.
            sampling: all of these at once. Those that are given beside it win.
            max_tokens: of the answer; None is until the model ends it or the context is full.
            stop: strings that end the answer, which stops before the first of them; a string is
                one.
            special: whether control tokens, such as those that a fine-tune added, are read where
                the prompt names them and shown by name in the answer. Leave it off for text from
                outside.
            response_format: what the answer is: ``{"type": "json_object"}``, or as OpenAI has it a
                JSON Schema, ``{"type": "json_schema", "json_schema": {"schema": ...}}``; or the
                schema itself, or a class of pydantic's. The properties come in its order. The model
                is told nothing of it: say in the prompt what you want. Beside ``tools`` it may be
                calls instead.
            grammar: a grammar in llama.cpp's GBNF that the answer follows instead.
            regex: a regular expression that the whole answer matches instead, as in
                ``re.fullmatch``.
            logprobs: whether ``Completion.logprobs`` has the natural logarithm of each token's
                probability, in the model's own distribution.
            top_logprobs: beside each, for how many of the likeliest tokens.
            drafts: whether what the text has said before is drafted and decoded in one batch, where
                that was measured to be faster: when an answer copies or changes a text, and no
                other answer is made at the time. Each token is chosen as it would be without.
            adapters: which of the model's adapters it has, and how much of each, as in
                ``[("poems.gguf", 0.5)]``: by their files, their names without ``.gguf``, or their
                places from 0; those that are not named have no part in it, and ``[]`` is the bare
                model. None is what the model was opened with.

        Raises:
            ContextFullError: the prompt alone does not fit into the context.
            EngineError: the prompt is empty, or llama.cpp failed.
            SettingError: a setting outside its range, or of the wrong type; or a form that is
                invalid, cannot be enforced, or is met by nothing.
        """
        settings = text_settings(options)
        shown = self.text_prompt(prompt, special=settings.special)
        return self._answer(shown, settings, stream=stream, n=n)

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[AnswerOptions],
    ) -> Completion: ...

    @overload
    def chat(
        self, messages: Messages, *, stream: Literal[True], **options: Unpack[AnswerOptions]
    ) -> Stream: ...

    @overload
    def chat(
        self, messages: Messages, *, stream: bool, **options: Unpack[AnswerOptions]
    ) -> Completion | Stream: ...

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        n: int,
        stream: Literal[False] = ...,
        **options: Unpack[AnswerOptions],
    ) -> list[Completion]: ...

    @overload
    def chat(
        self, messages: Messages, *, n: int, stream: Literal[True], **options: Unpack[AnswerOptions]
    ) -> list[Stream]: ...

    def chat(
        self,
        messages: Messages,
        *,
        stream: bool = False,
        n: int | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Completion | Stream | list[Completion] | list[Stream]:
        """Answer the last of some messages; see `generate` for the other arguments.

        What these messages share with what a sequence of the model holds is not decoded again.

        Args:
            messages: mappings with "role" and "content", or `Message` values, oldest first; a
                string is one message of the user. A `Conversation` brings its sampling with it, and
                its ``when_full``. Content may be a list of parts, ``{"type": "text", "text": ...}``
                and ``{"type": "image", "image": picture}`` (see `image_tiles`) or OpenAI's
                ``image_url`` with a ``data:`` URL.
            when_full: what happens at the end of the context. "stop" refuses messages that do not
                fit, and ends an answer there. "drop" goes on without the oldest exchanges, in the
                middle of an answer too: ``Completion.dropped_messages`` says without how many
                messages. System messages and `with_documents` in the first question stay. About
                half of the rest is dropped at a time, and what is left is decoded again, so that
                the following turns find room.
            allow_download: whether a picture may be an ``http://`` or ``https://`` URL.
            tools: what the model may call, Python functions or OpenAI's definitions; the calls are
                in ``Completion.tool_calls``, and `run_tools` carries them out.
            tool_choice: "auto" leaves the model free; "none" shows it no tools; "required" makes
                the answer a call, and the name of a tool a call of that one, with arguments that
                its schema allows.
            parallel_tool_calls: whether an answer may have several calls.

        Raises:
            TemplateError: the model has no chat template, or it does not render these messages.
            ImageError: a picture of a message cannot be read.
            ContextFullError: the messages alone do not fit into the context; or, where the oldest
                are dropped, the last exchange.
            SettingError: a setting outside its range, or of the wrong type.
        """
        settings = chat_settings(messages, options)
        prompt = self.shown_prompt(messages, settings)
        return self._answer(prompt, settings, stream=stream, n=n)

    def save_session(
        self,
        path: str | os.PathLike[str],
        messages: Messages | None = None,
        *,
        tools: Iterable[ToolInput] = (),
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Session:
        """Keep what was said, and what the model has read of it, in a file for another process.

            >>> model.save_session("book.l4s", talk)

        Args:
            path: the file, replaced in one step; only its owner may read it.
            messages: the conversation, as `chat` takes it; None is no text, and what was asked for
                last, as after `generate`.
            tools: what the model was shown of them beside the messages.
            on_progress: called with the bytes written so far.

        Raises:
            SessionError: it cannot be written, which leaves what was there, another process has it
                open, or it is not a session.
            TemplateError: the model has no chat template, or it does not render these messages.
            SettingError: an argument is of the wrong type.
        """
        check_callback("on_progress", on_progress)
        known = as_tools(tools)
        talk = as_conversation(() if messages is None else messages, self.info.name)
        tokens = None
        if messages is not None:
            tokens = self._prompts.of_messages(talk, tools=known).positions
        return self.sessions.save_read(path, talk, tokens, on_progress)

    def load_session(
        self,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Session:
        """Take in what `save_session` kept: what begins like it goes on without being read again.

            >>> talk = model.load_session("book.l4s").conversation.user("And then?")
            >>> print(model.chat(talk).text)

        Where it fails because of the state, ``Conversation.load(path)`` still reads the text, which
        the model then reads anew.

        Args:
            on_progress: called with the bytes read so far.

        Raises:
            SessionError: the file is damaged or not a session, or what it holds is of another
                model, of other settings, or longer than the context; says which.
        """
        check_callback("on_progress", on_progress)
        with SessionFile(path) as file:
            return self.sessions.load(file, on_progress)

    def _answer(
        self, prompt: Prompt, settings: AnswerSettings, *, stream: bool, n: int | None
    ) -> Completion | Stream | list[Completion] | list[Stream]:
        check_flag("stream", stream)
        prompt = self.with_features(prompt)
        structure = None if settings.form is None else self.structure_of(settings.form)
        answers = answers_to(
            Stream, self.engine, self.vocabulary, prompt, settings, structure, n=n, paced=stream
        )
        if stream:
            return answers if n is not None else answers[0]
        completions = completions_of(answers)
        return completions if n is not None else completions[0]
