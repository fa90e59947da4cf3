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
from math import sqrt
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
    rows_of,
)
from .measure.questions import Question
from .measure.reference_file import (
    ReferenceFile,
    ReferenceText,
    is_reference_file,
    new_reference,
    opened_reference,
)
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
from .runtime.settings import EngineSettings
from .system.cores import usable_threads

DEFAULT_CHUNK = 512
"""Tokens of a chunk, as in llama-perplexity."""

_QUESTION_CONTEXT = 4096  # tokens, for a question and a choice
_MIN_CONTEXT = 8  # tokens: half of a chunk is context, and statistics want some of the others
_MOST_OUTPUTS = 256  # rows of logits at a time, 197 MiB of Llama 4's


@dataclass(frozen=True)
class CompareProgress:
    """`done` of `total` steps, a chunk of the text or a question each, of one model."""

    model: str
    done: int
    total: int


@dataclass(frozen=True)
class Accuracy:
    """How many of the questions a model answered right, by log-likelihood.

    Args:
        value: the share of right answers.
        interval: in which the true share lies with 95% confidence (Wilson's).
        same: the share that is answered as the reference answers; 1 for the reference itself.
        chosen: the number of the choice that it found likeliest, of each question.
    """

    value: float
    interval: tuple[float, float]
    same: float
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class ModelResult:
    """What was found of one model.

    Args:
        model: its file.
        bytes: of the file and its parts; None for saved predictions.
        perplexity: on the text; None where there was none.
        statistics: how far it is from the reference; None for the reference itself.
        accuracy: of its answers; None where there were no questions.
    """

    model: str
    bytes: int | None
    perplexity: Estimate | None = None
    statistics: Statistics | None = None
    accuracy: Accuracy | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; probabilities as shares of 1, divergences in nats."""
        record: dict[str, Any] = {"model": self.model, "bytes": self.bytes}
        if self.perplexity is not None:
            record |= _named("perplexity", self.perplexity)
        if self.statistics is not None:
            found = self.statistics
            record |= _named("perplexity_ratio", found.perplexity_ratio)
            record["kl"] = {
                **_named("mean", found.kl_mean),
                "median": found.kl_median,
                "p99": found.kl_p99,
                "max": found.kl_max,
            }
            record |= _named("same_top", found.same_top)
            record |= _named("rms_p_difference", found.rms_p_difference)
        if self.accuracy is not None:
            right = self.accuracy
            record |= {
                "accuracy": right.value,
                "accuracy_interval": list(right.interval),
                "same_answers": right.same,
            }
        return record


@dataclass(frozen=True)
class Comparison:
    """A reference, and what differs of each candidate.

    Args:
        n_ctx, n_chunks: the text was read in so many chunks of so many tokens.
        n_tokens: how many predictions were compared.
        n_questions: how many questions were asked.
    """

    reference: ModelResult
    candidates: tuple[ModelResult, ...]
    n_ctx: int
    n_chunks: int
    n_tokens: int
    n_questions: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "n_tokens": self.n_tokens,
            "n_questions": self.n_questions,
            "reference": self.reference.as_dict(),
            "candidates": [one.as_dict() for one in self.candidates],
        }


def _named(name: str, estimate: Estimate) -> dict[str, Any]:
    return {
        name: estimate.value,
        f"{name}_error": estimate.error,
        f"{name}_interval": list(estimate.interval),
    }


def compare(
    reference: str | os.PathLike[str],
    candidates: Sequence[str | os.PathLike[str]] = (),
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
        candidates: GGUFs with the same vocabulary.
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
        SettingError: there is nothing to compare; the text is shorter than two chunks.
        ModelFileError: a file is not a whole Llama 4 GGUF, or has another vocabulary.
        DamagedTensorError: a model computes NaN.
        OutputError: the predictions cannot be written.
        EngineError: llama.cpp failed.
    """
    name, others = _checked_names(reference, candidates)
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
            _check_vocabularies(others, kept.text.vocabulary, kept.text.model)
            first = ModelResult(name, None, _perplexity_of(kept))
            return _compared(kept, first, others, asked, machine, report)
    if text is None and not asked:
        raise SettingError("nothing to compare", expected="text, or questions")
    if target is not None and target.exists():
        raise OutputError(f"{target} exists", hint="Give another name, or move it away.")
    chunk = n_ctx or DEFAULT_CHUNK
    _check_vocabularies(others, _digest(check_model_file(name)), Path(name).name)
    with _opened(name, chunk, asked, machine) as model:
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


def _checked_names(reference: object, candidates: object) -> tuple[str, list[str]]:
    name = as_path("reference", reference)
    if isinstance(candidates, str | os.PathLike):
        candidates = (candidates,)
    listed = as_tuple("candidates", candidates, "paths")
    return name, [as_path("candidates", one) for one in listed]


def _silent(_: CompareProgress) -> None:
    """Nobody wants to know."""


@contextmanager
def _opened(
    name: str, chunk: int, questions: Sequence[Question], machine: dict[str, Any]
) -> Iterator[Model]:
    """A model with room for a chunk, and for a question where some are asked."""
    n_ctx = chunk
    if questions:
        n_ctx = max(chunk, min(_QUESTION_CONTEXT, check_model_file(name).hparams.n_ctx_train))
    # On a GPU the planner has counted as many rows of logits as usual.
    usual = has_gpus(machine["devices"], machine["workers"])
    n_outputs = EngineSettings.n_outputs if usual else min(chunk - chunk // 2, _MOST_OUTPUTS)
    with Model(name, n_ctx=n_ctx, cache_ram=0, n_outputs=n_outputs, **machine) as model:
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


def _check_vocabularies(names: Sequence[str], vocabulary: str, reference: str) -> None:
    """Before the reference is read, which may take hours: the candidates are its likes."""
    for name in names:
        if _digest(check_model_file(name)) != vocabulary:
            raise SettingError(
                f"{name} has another vocabulary than {reference}",
                expected="the same tokens",
                hint="Compare models that were made of the same checkpoint.",
            )


def _first_result(
    model: Model,
    name: str,
    kept: ReferenceFile,
    questions: Sequence[Question],
    report: Callable[[CompareProgress], None],
) -> ModelResult:
    """Let the reference predict, and keep it."""
    text = kept.text
    steps = _Steps(name, text.n_chunks + len(questions), report)
    nll = np.empty(text.n_chunks * text.n_predicted, np.float32)
    for number in range(text.n_chunks):
        predictions = _predictions(model, name, text, number)
        begin = number * text.n_predicted
        nll[begin : begin + text.n_predicted] = [-one.own for one in predictions]
        kept.write(predictions)
        steps.done()
    return ModelResult(
        name,
        model.info.bytes,
        perplexity(nll) if len(nll) else None,
        accuracy=_accuracy(model, questions, None, steps),
    )


def _predictions(model: Model, name: str, text: ReferenceText, number: int) -> list[Prediction]:
    """What the reference predicts in a chunk."""
    predictions: dict[int, Prediction] = {}
    following = text.following(number)

    def predict(place: int, logits: Floats) -> None:
        predictions[place] = Prediction.of(logits, following[place])

    _each_place(model, text, number, predict, name)
    return [predictions[place] for place in range(text.n_predicted)]


def _compared(
    kept: ReferenceFile,
    reference: ModelResult,
    names: Sequence[str],
    questions: Sequence[Question],
    machine: dict[str, Any],
    report: Callable[[CompareProgress], None],
) -> Comparison:
    text = kept.text
    chosen = None if reference.accuracy is None else reference.accuracy.chosen
    results = []
    for name in names:
        with _opened(name, text.n_ctx, questions, machine) as model:
            steps = _Steps(name, text.n_chunks + len(questions), report)
            statistics = _statistics(model, name, kept, steps) if text.n_chunks else None
            results.append(
                ModelResult(
                    name,
                    model.info.bytes,
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
    for number, predictions in enumerate(kept.chunks()):
        _measure(model, name, text, number, predictions, found)
        steps.done()
    return found.statistics()


def _measure(
    model: Model,
    name: str,
    text: ReferenceText,
    number: int,
    predictions: Sequence[Prediction],
    found: Divergence,
) -> None:
    """Hold what a model predicts in a chunk against the reference."""
    begin, following = number * text.n_predicted, text.following(number)

    def measure(place: int, logits: Floats) -> None:
        found.measure(begin + place, logits, following[place], predictions[place])

    _each_place(model, text, number, measure, name)


def _each_place(
    model: Model,
    text: ReferenceText,
    number: int,
    work: Callable[[int, Floats], None],
    name: str,
) -> None:
    """Do something with the logits of each place of a chunk that counts, on all cores."""
    threads = usable_threads()

    def several(first: int, rows: Floats, places: range) -> None:
        for place in places:
            if first + place < text.n_predicted:  # nothing follows the last token
                work(first + place, rows[place])

    with ThreadPoolExecutor(threads, "compare") as pool:

        def take(place: int, rows: Floats) -> None:
            parts = rows_of(len(rows), threads)
            for _ in pool.map(lambda part: several(place - text.first, rows, part), parts):
                pass

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


def _perplexity_of(kept: ReferenceFile) -> Estimate:
    nll = [-one.own for predictions in kept.chunks() for one in predictions]
    return perplexity(np.array(nll, np.float32))


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
    right = sum(one == question.answer for one, question in zip(chosen, questions, strict=True))
    same = sum(map(int.__eq__, chosen, reference or chosen))
    return Accuracy(
        right / len(questions),
        _wilson(right, len(questions)),
        same / len(questions),
        tuple(chosen),
    )


def _choice(model: Model, question: Question) -> int:
    """The number of the choice that the model finds likeliest after the question."""
    if model.info.chat_template is None:
        before = model.tokenize(question.text + " ", add_bos=True)
    else:
        before = list(model.chat_prompt([{"role": "user", "content": question.text}]).token_ids)
    likelihoods = []
    for choice in question.choices:
        answer = model.tokenize(choice)
        scores = model.score([*before, *answer])[len(before) - 1 :]
        likelihoods.append(sum(one.logprob for one in scores))
    return int(np.argmax(likelihoods))


def _wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (E. B. Wilson, 1927)."""
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(middle - half, 0.0), min(middle + half, 1.0)
