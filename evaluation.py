"""How far models are from a reference on a text and on questions: `llama4_edge.compare`.

Opens one model at a time: the reference predicts first, and what counts of its predictions is kept
in a file, which each candidate is held against. Chunks, places and arithmetic are those of
``llama-perplexity --kl-divergence``. Promises that memory is bounded by one call's logits, whatever
the text's length.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DamagedTensorError, OutputError, SettingError
from .measure.divergence import (
    Divergence,
    Estimate,
    Floats,
    Prediction,
    Statistics,
    perplexity,
)
from .measure.questions import Question
from .measure.reference_file import (
    ReferenceFile,
    ReferenceText,
    is_reference_file,
    new_reference,
    opened_reference,
)
from .measure.results import Accuracy, Comparison, ModelResult, with_settings
from .model import Model
from .opening import names_of
from .ranges import (
    as_path,
    as_tuple,
    check_callback,
    check_flag,
    check_text,
    check_whole,
    wrong_type,
)
from .runtime.files.model_file import ModelInfo, check_model_file
from .runtime.main_memory import has_gpus
from .runtime.settings import EngineSettings, KVTypes, check_settings_of_model
from .system.cores import usable_threads

DEFAULT_CHUNK = 512
"""Tokens of a chunk, as in llama-perplexity."""

_QUESTION_CONTEXT = 4096  # tokens, for a question and a choice
_MIN_CONTEXT = 8  # tokens: half of a chunk is context, and statistics want some of the others
_END_OF_TURN = "<|eot|>"
_ROWS = 32  # predictions that are worked on together: up to 1.2 MB each, of a model that is unsure
_MOST_OUTPUTS = 256  # rows of logits at a time, 197 MiB of Llama 4's


@dataclass(frozen=True)
class CompareProgress:
    """`done` of `total` steps, a chunk of the text or a question each, of one model."""

    model: str
    done: int
    total: int


@dataclass(frozen=True)
class Candidate:
    """A model to compare, and what it is opened with where that is not the usual.

        >>> compare("scout.gguf", [Candidate("scout.gguf", kv_type="q8_0")], text=wikitext)

    Args:
        path: the GGUF.
        kv_type: what the KV cache is kept as; see `EngineSettings`.
        n_expert_used: routed experts that a token visits; None is as many as the file says.

    Raises:
        SettingError: a setting is outside its range.
    """

    path: str | os.PathLike[str]
    kv_type: KVTypes = EngineSettings.kv_type
    n_expert_used: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", as_path("path", self.path))
        checked = EngineSettings(kv_type=self.kv_type, n_expert_used=self.n_expert_used)
        object.__setattr__(self, "kv_type", checked.kv_type)

    @property
    def file(self) -> str:
        """The path as text."""
        return os.fspath(self.path)

    @property
    def name(self) -> str:
        """The path, and what is not as usual."""
        return with_settings(self.file, self.kv_type, self.n_expert_used)


def compare(
    reference: str | os.PathLike[str],
    candidates: Sequence[str | os.PathLike[str] | Candidate] = (),
    *,
    text: str | None = None,
    questions: Sequence[Question] = (),
    n_ctx: int | None = None,
    n_chunks: int | None = None,
    special: bool = False,
    save: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    devices: Sequence[str] | None = None,
    workers: Sequence[str] = (),
    progress: Callable[[CompareProgress], None] | None = None,
) -> Comparison:
    """Measure what quantization, or anything else that changes a model, did to it.

        >>> found = compare("scout-bf16.gguf", ["scout-int4.gguf"], text=wikitext)
        >>> found.candidates[0].statistics.kl_mean.value

    Args:
        reference: a GGUF, or the predictions that ``save`` wrote, of which the text is known.
        candidates: GGUFs with the same vocabulary, or `Candidate` values: the same file with
            another KV cache, say. The reference and what is a file alone keep theirs in f16.
        text: is cut into chunks of ``n_ctx`` tokens, the first one of each replaced by the
            beginning-of-text token; the predictions in the second half of each chunk count.
        questions: are asked of each model that is opened.
        n_ctx: tokens of a chunk, at least 8; None is 512.
        n_chunks: how many chunks are read at most; None is all.
        special: whether the text of a control token becomes that token, as in conversations that
            are written in the chat template.
        save: file to keep the reference's predictions in, which must not exist.
        n_threads, devices, workers: see `Model`.
        progress: called after each step.

    Raises:
        SettingError: there is nothing to compare; the text is shorter than two chunks; settings
            are not possible for a candidate.
        ModelFileError: a file is not a whole Llama 4 GGUF, or has another vocabulary.
        DamagedTensorError: a model computes NaN.
        OutputError: the predictions cannot be written.
        EngineError: llama.cpp failed.
    """
    name, others = as_path("reference", reference), _checked_candidates(candidates)
    check_text("text", text, or_none=True)
    check_callback("progress", progress)
    check_whole("n_ctx", n_ctx, _MIN_CONTEXT, or_none=True)
    check_whole("n_chunks", n_chunks, 1, or_none=True)
    check_flag("special", special)
    asked = as_tuple("questions", questions, "Question values")
    if not all(isinstance(one, Question) for one in asked):
        raise wrong_type("questions", questions, "Question values")
    report = progress or _silent
    machine = {
        "n_threads": n_threads,
        "devices": None if devices is None else names_of("devices", devices),
        "workers": names_of("workers", workers),
    }
    target = None if save is None else Path(as_path("save", save))
    if is_reference_file(Path(name)):
        unused = {"text": text, "save": save, "n_ctx": n_ctx, "n_chunks": n_chunks}
        _check_unused(name, **unused, special=special or None)
        with opened_reference(Path(name)) as kept:
            _check_candidates(others, kept.text.vocabulary, kept.text.model)
            first = ModelResult(name, None, perplexity=_perplexity_of(kept))
            return _compared(kept, first, others, asked, machine, report)
    if text is None and not asked:
        raise SettingError("nothing to compare", expected="text, or questions")
    if target is not None and target.exists():
        raise OutputError(f"{target} exists", hint="Give another name, or move it away.")
    chunk = n_ctx or DEFAULT_CHUNK
    _check_candidates(others, _digest(check_model_file(name)), Path(name).name)
    with _opened(Candidate(name), chunk, asked, machine) as model:
        laid_out = _laid_out(model, name, text, chunk, n_chunks, special)
        with new_reference(laid_out, target) as kept:
            # The model is closed before the first candidate is opened.
            first = _first_result(model, name, kept, asked, report)
            model.close()
            return _compared(kept, first, others, asked, machine, report)


def _check_unused(name: str, **settings: object) -> None:
    """Raise where a setting was given beside saved predictions, which have theirs."""
    unused = [setting for setting, value in settings.items() if value is not None]
    if unused:
        raise SettingError(
            f"{name} holds saved predictions, of the text that they were made of",
            found=unused[0],
            hint="Leave it out.",
        )


def _checked_candidates(candidates: object) -> list[Candidate]:
    if isinstance(candidates, str | os.PathLike | Candidate):
        candidates = (candidates,)
    listed = as_tuple("candidates", candidates, "paths, or Candidate values")
    return [
        one if isinstance(one, Candidate) else Candidate(as_path("candidates", one))
        for one in listed
    ]


def _silent(_: CompareProgress) -> None:
    """Nobody wants to know."""


@contextmanager
def _opened(
    one: Candidate, chunk: int, questions: Sequence[Question], machine: dict[str, Any]
) -> Iterator[Model]:
    """A model with room for a chunk, and for a question where some are asked."""
    n_ctx = chunk
    if questions:
        trained = check_model_file(one.file).hparams.n_ctx_train
        n_ctx = max(chunk, min(_QUESTION_CONTEXT, trained))
    # On a GPU the planner has counted as many rows of logits as usual.
    usual = has_gpus(machine["devices"], machine["workers"])
    n_outputs = EngineSettings.n_outputs if usual else min(chunk - chunk // 2, _MOST_OUTPUTS)
    with Model(
        one.file,
        n_ctx=n_ctx,
        cache_ram=0,
        n_outputs=n_outputs,
        # Given always: the planner would be free to choose another.
        kv_type=one.kv_type,
        n_expert_used=one.n_expert_used,
        **machine,
    ) as model:
        yield model


def _laid_out(
    model: Model,
    name: str,
    text: str | None,
    n_ctx: int,
    n_chunks: int | None,
    special: bool,
) -> ReferenceText:
    """The text in chunks, none where there is no text."""
    bos = model.vocabulary.bos_id if model.vocabulary.add_bos else None
    tokens = []
    if text is not None:
        tokens = model.tokenize(text, special=special, add_bos=bos is not None)
    count = min(len(tokens) // n_ctx, n_chunks or len(tokens))
    if text is not None and len(tokens) < 2 * n_ctx:
        raise SettingError(
            "the text is too short",
            found=f"{len(tokens)} tokens",
            expected=f"at least {2 * n_ctx}, two chunks of n_ctx",
            hint="Give a longer text, or a smaller n_ctx.",
        )
    return ReferenceText(
        model=Path(name).name,
        vocabulary=_digest(model.info),
        n_vocab=len(model.vocabulary),
        n_ctx=n_ctx,
        bos=bos,
        tokens=tuple(tokens[: count * n_ctx]),
    )


def _digest(info: ModelInfo) -> str:
    """Of the tokens that the numbers stand for."""
    tokens = info.gguf.metadata["tokenizer.ggml.tokens"]
    digest = hashlib.sha256()
    for token in tokens if isinstance(tokens, list | tuple) else ():
        digest.update(str(token).encode() + b"\0")
    return digest.hexdigest()


def _check_candidates(others: Sequence[Candidate], vocabulary: str, reference: str) -> None:
    """Before the reference is read, which may take hours: they are its likes, and can be opened."""
    for one in others:
        info = check_model_file(one.file)
        if _digest(info) != vocabulary:
            raise SettingError(
                f"{one.file} has another vocabulary than {reference}",
                expected="the same tokens",
                hint="Compare models that were made of the same checkpoint.",
            )
        settings = EngineSettings(kv_type=one.kv_type, n_expert_used=one.n_expert_used)
        check_settings_of_model(settings, info.hparams, one.file)


def _first_result(
    model: Model,
    name: str,
    kept: ReferenceFile,
    questions: Sequence[Question],
    report: Callable[[CompareProgress], None],
) -> ModelResult:
    """Let the reference predict, and keep it."""
    text = kept.text
    _check_questions(model, name, questions)
    steps = _Steps(name, text.n_chunks + len(questions), report)
    nll = np.empty((text.n_chunks, text.n_predicted), np.float32)
    for number in range(text.n_chunks):
        _keep(model, name, kept, number, nll[number])
        steps.done()
    return ModelResult(
        name,
        model.info.bytes,
        kv_type=model.engine.settings.kv_type,
        perplexity=perplexity(nll.ravel()) if nll.size else None,
        accuracy=_accuracy(model, questions, None, steps),
    )


def _keep(model: Model, name: str, kept: ReferenceFile, number: int, nll: Floats) -> None:
    """Write down what the reference predicts in a chunk, some places at a time."""
    following = kept.text.following(number)

    def keep(first: int, rows: Floats, pool: ThreadPoolExecutor) -> None:
        places = range(first, first + len(rows))
        predictions = list(
            pool.map(lambda place: Prediction.of(rows[place - first], following[place]), places)
        )
        nll[first : first + len(rows)] = [-one.own for one in predictions]
        kept.write(number, first, predictions)

    _each_rows(model, kept.text, number, keep, name)


def _compared(
    kept: ReferenceFile,
    reference: ModelResult,
    others: Sequence[Candidate],
    questions: Sequence[Question],
    machine: dict[str, Any],
    report: Callable[[CompareProgress], None],
) -> Comparison:
    text = kept.text
    chosen = None if reference.accuracy is None else reference.accuracy.chosen
    results = []
    for one in others:
        with _opened(one, text.n_ctx, questions, machine) as model:
            _check_questions(model, one.name, questions)
            steps = _Steps(one.name, text.n_chunks + len(questions), report)
            statistics = _statistics(model, one.name, kept, steps) if text.n_chunks else None
            results.append(
                ModelResult(
                    one.file,
                    model.info.bytes,
                    one.kv_type,
                    one.n_expert_used,
                    None if statistics is None else statistics.perplexity,
                    statistics,
                    _accuracy(model, questions, chosen, steps),
                )
            )
    return Comparison(
        reference=reference,
        candidates=tuple(results),
        n_ctx=text.n_ctx,
        n_chunks=text.n_chunks,
        n_tokens=text.n_chunks * text.n_predicted,
        n_questions=len(questions),
    )


def _statistics(model: Model, name: str, kept: ReferenceFile, steps: _Steps) -> Statistics:
    text = kept.text
    found = Divergence.empty(text.n_chunks * text.n_predicted)
    for number in range(text.n_chunks):
        _measure(model, name, kept, number, found)
        steps.done()
    return found.statistics()


def _measure(model: Model, name: str, kept: ReferenceFile, number: int, found: Divergence) -> None:
    """Hold what a model predicts in a chunk against the reference."""
    begin, following = number * kept.text.n_predicted, kept.text.following(number)
    predictions: Iterator[Prediction] = iter(())

    def measure(first: int, rows: Floats, pool: ThreadPoolExecutor) -> None:
        nonlocal predictions
        if first == 0:
            predictions = kept.predictions(number)
        theirs = list(islice(predictions, len(rows)))

        def one(row: int) -> None:
            place = first + row
            found.measure(begin + place, rows[row], following[place], theirs[row])

        for _ in pool.map(one, range(len(rows))):
            pass

    _each_rows(model, kept.text, number, measure, name)


def _each_rows(
    model: Model,
    text: ReferenceText,
    number: int,
    work: Callable[[int, Floats, ThreadPoolExecutor], None],
    name: str,
) -> None:
    """Do something with the logits of the places of a chunk that count, in order.

    Args:
        work: called with the number of a place, from 0, its logits and those of the places after
            it, float32 of [n, n_vocab], and threads; from 0 on again where they come anew.
    """
    with ThreadPoolExecutor(usable_threads(), "compare") as pool:

        def take(place: int, rows: Floats) -> None:
            first = place - text.first
            rows = rows[: text.n_predicted - first]  # nothing follows the last token
            for begin in range(0, len(rows), _ROWS):
                work(first + begin, rows[begin : begin + _ROWS], pool)

        try:
            model.engine.each_logits(text.chunk(number), text.n_ctx - text.first, take)
        except ValueError as error:
            if isinstance(error, SettingError):
                raise
            raise DamagedTensorError(
                f"{name} cannot be compared",
                found=f"{error}, in chunk {number + 1} of the text",
                hint="Convert it, or fetch it, again: `llama4 inspect --check` looks for damage.",
            ) from error


class _Steps:
    """Counts the steps of one model."""

    def __init__(self, model: str, total: int, report: Callable[[CompareProgress], None]) -> None:
        self._model, self._total, self._report = model, total, report
        self._done = 0

    def done(self) -> None:
        """One more."""
        self._done += 1
        self._report(CompareProgress(self._model, self._done, self._total))


def _perplexity_of(kept: ReferenceFile) -> Estimate | None:
    chunks = map(kept.predictions, range(kept.text.n_chunks))
    nll = [-one.own for predictions in chunks for one in predictions]
    return perplexity(np.array(nll, np.float32)) if nll else None


def _accuracy(
    model: Model, questions: Sequence[Question], reference: Sequence[int] | None, steps: _Steps
) -> Accuracy | None:
    """How a model answers; `reference` is what the reference chose."""
    if not questions:
        return None
    chosen = []
    for question in questions:
        chosen.append(_choice(model, question))
        steps.done()
    return Accuracy.of(chosen, [one.answer for one in questions], reference)


def _check_questions(model: Model, name: str, questions: Sequence[Question]) -> None:
    """Before the text is read, which may take hours: each question fits, with each choice.

    Raises:
        SettingError: one does not.
    """
    most = model.engine.settings.n_ctx
    for number, question in enumerate(questions, 1):
        before, answers = _tokens_of(model, question)
        count = len(before) + max(map(len, answers))
        if count > most:
            raise SettingError(
                f"question {number} is too long for {name}",
                found=f"{count:,} tokens with a choice",
                expected=f"at most {most:,}",
            )


def _choice(model: Model, question: Question) -> int:
    """The number of the choice that the model finds likeliest after the question."""
    before, answers = _tokens_of(model, question)
    likelihoods = []
    for answer in answers:
        scores = model.score([*before, *answer])[max(len(before) - 1, 0) :]
        likelihoods.append(sum(one.logprob for one in scores))
    return int(np.argmax(likelihoods))


def _tokens_of(model: Model, question: Question) -> tuple[list[int], list[list[int]]]:
    """Those of a question and of each choice.

    In a chat format a choice is a whole message, with its end: without it one that others begin
    with would never be less likely than they. Otherwise a text goes on, after a space.
    """
    if model.info.chat_template is None:
        before = model.tokenize(question.text, add_bos=True)
        return before, [model.tokenize(f" {choice}") for choice in question.choices]
    before = list(model.chat_prompt([{"role": "user", "content": question.text}]).token_ids)
    end = model.vocabulary.control_tokens.get(_END_OF_TURN)
    ending = [] if end is None else [end]
    return before, [[*model.tokenize(choice), *ending] for choice in question.choices]
