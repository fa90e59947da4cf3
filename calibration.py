"""Activation statistics of a model, for encoders that round what matters less: `calibrate`.

Reads texts, and conversations with pictures, and sums the squares of what each matrix is multiplied
with, as llama-imatrix does. Promises that what was interrupted goes on where it was, to the same
bytes, and that a result is whole or not there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from math import exp, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .chat.prompt import Messages, Prompt
from .errors import (
    ContextFullError,
    DamagedTensorError,
    ImageError,
    OutputError,
    SettingError,
    TemplateError,
)
from .measure.calibrated import (
    DAMAGED_HINT,
    Calibration,
    as_importance,
    most_tokens,
    of_model,
    unlikelihoods,
)
from .measure.interrupted import KeptState, write_output
from .model import Model
from .opening import names_of
from .quant.importance import Floats, merged
from .quant.importance_file import importance_bytes, read_importance
from .quant.importance_state import CalibrationState
from .quant.starved import expert_counts, with_substitutes
from .ranges import as_path, as_tuple, check_callback, check_flag, check_text, check_whole
from .runtime.activations import ActivationSums, Total
from .runtime.checks import context_full
from .runtime.files.model_file import ModelInfo, check_model_file
from .runtime.fingerprint import sampled_digest
from .runtime.settings import EngineSettings
from .system.cores import usable_threads

if TYPE_CHECKING:
    import numpy.typing as npt

DEFAULT_CHUNK = 512
"""Tokens of a chunk, as in llama-imatrix."""

DEFAULT_OUTPUT = "imatrix.gguf"
_LEAST_CHUNK = 8
_CONVERSATION = 8192  # tokens that a conversation may have, its pictures included
_MOST_OUTPUTS = 512  # tokens that are read at a time


@dataclass(frozen=True)
class CalibrationProgress:
    """`done` of `total` chunks of the text and conversations.

    Args:
        before: steps that an interrupted calibration had done.
        n_tokens: that were read since.
        perplexity: of the chunks so far; None where it is not computed.
    """

    done: int
    total: int
    before: int
    n_tokens: int
    perplexity: float | None


def calibrate(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] = DEFAULT_OUTPUT,
    *,
    text: str | None = None,
    conversations: Sequence[Messages] = (),
    merge: Sequence[str | os.PathLike[str]] = (),
    datasets: Sequence[str] = (),
    n_ctx: int | None = None,
    n_chunks: int | None = None,
    first_chunk: int = 0,
    special: bool = False,
    process_output: bool = False,
    perplexity: bool = True,
    projector: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    devices: Sequence[str] | None = None,
    workers: Sequence[str] = (),
    progress: Callable[[CalibrationProgress], None] | None = None,
) -> Calibration:
    """Sum what each matrix of a model is multiplied with, for `convert` and llama-quantize.

        >>> found = calibrate("scout-bf16.gguf", "imatrix.gguf", text=wikitext)
        >>> found.coverage
        1.0

    Each expert's sums are its own. Experts that saw fewer than 32 tokens get what the others of
    their layer saw beside their own, and what was measured stays in the file for merging. A
    calibration that was interrupted, by whatever, goes on when it is called again: what is lost is
    at most three seconds of it, or twenty times what saving its sums takes.

    Args:
        model: a GGUF, best in bf16 or q8_0.
        output: the file to write, llama.cpp's GGUF form; it must not exist. Beside it lies, until
            it is whole, ``output.partial``.
        text: is cut into chunks of ``n_ctx`` tokens, the first one of each replaced by the
            beginning-of-text token. What is left at its end is not read.
        conversations: messages as `Model.chat` takes them, with pictures: what the model sees of
            these counts. Each is read as a whole, 8192 tokens at most.
        merge: files of statistics of this model whose sums are added, of either form.
        datasets: names of the texts, kept in the file.
        n_ctx: tokens of a chunk, at least 8; None is 512, or that of the first file where files
            are merged alone.
        n_chunks: how many chunks are read at most; None is all.
        first_chunk: how many chunks at the beginning of the text are left out.
        special: whether the text of a control token becomes that token.
        process_output: whether the output's matrix has statistics too.
        perplexity: whether that of the second half of each chunk is computed, beside.
        projector, n_threads, devices, workers: see `Model`.
        progress: called after each step.

    Raises:
        SettingError: there is nothing to read or merge; the text is shorter than two chunks; a
            conversation is too long.
        ModelFileError: the model is not a whole Llama 4 GGUF; a file of statistics is damaged, or
            of another model.
        DamagedTensorError: the model computes NaN.
        OutputError: the output exists, cannot be written, or ``output.partial`` is of a calibration
            of something else.
        EngineError: llama.cpp failed.
    """
    target = Path(as_path("output", output))
    check_text("text", text, or_none=True)
    check_callback("progress", progress)
    check_whole("n_ctx", n_ctx, _LEAST_CHUNK, or_none=True)
    check_whole("n_chunks", n_chunks, 1, or_none=True)
    check_whole("first_chunk", first_chunk, 0)
    for name, value in (
        ("special", special), ("process_output", process_output), ("perplexity", perplexity),
    ):  # fmt: skip
        check_flag(name, value)
    talks = as_tuple("conversations", conversations, "conversations")
    names = as_tuple("datasets", datasets, "texts")
    for one in names:
        check_text("datasets", one)
    files = [as_path("merge", one) for one in as_tuple("merge", merge, "paths")]
    info = check_model_file(as_path("model", model))
    if text is None and not talks and not files:
        raise SettingError(
            "nothing to calibrate with", expected="text, conversations, or files to merge"
        )
    _check_target(target)
    parts = [of_model(read_importance(file), info) for file in files]
    alone = text is None and not talks
    chunk = (parts[0].chunk_size if alone else 0) or DEFAULT_CHUNK
    job = _Job(
        info=info,
        text=text,
        talks=talks,
        n_ctx=n_ctx or chunk,
        n_chunks=n_chunks,
        first_chunk=first_chunk,
        special=special,
        output=process_output,
        perplexity=perplexity and text is not None,
    )
    machine = {
        "projector": projector,
        "n_threads": n_threads,
        "devices": None if devices is None else names_of("devices", devices),
        "workers": names_of("workers", workers),
    }
    result = _Result()
    with ExitStack() as stack:
        kept = None if alone else stack.enter_context(KeptState(target))
        if kept is not None:
            _check_target(target)  # another calibration may have had it until now
            result = _read(job, machine, kept, progress or _silent)
            parts.append(as_importance(result.totals, names, job.n_ctx, info.path))
        whole = with_substitutes(merged(parts, job.n_ctx))
        _check_target(target)
        write_output(target, importance_bytes(whole))
        if kept is not None:
            kept.remove()
    return Calibration(
        output=os.fspath(target),
        n_tensors=len(whole.tensors),
        n_tokens=most_tokens(whole),
        n_chunks=result.n_chunks,
        n_conversations=result.n_conversations,
        n_ctx=job.n_ctx,
        perplexity=result.perplexity,
        layers=expert_counts(whole),
    )


def _silent(_: CalibrationProgress) -> None:
    """Nobody wants to know."""


# --- files


def _check_target(target: Path) -> None:
    """Before hours of work: the result can be written."""
    if target.exists() or target.is_symlink():
        raise OutputError(f"{target} exists", hint="Give another name, or move it away.")
    if not target.parent.is_dir():
        raise OutputError(
            f"{target} cannot be written",
            found=f"no directory {target.parent}",
            hint="Make the directory first.",
        )


# --- reading


@dataclass(frozen=True)
class _Job:
    """What is read, and how."""

    info: ModelInfo
    text: str | None
    talks: tuple[Messages, ...]
    n_ctx: int
    n_chunks: int | None
    first_chunk: int
    special: bool
    output: bool
    perplexity: bool


@dataclass(frozen=True)
class _Result:
    """What was read."""

    totals: Mapping[str, Total] = field(default_factory=dict)
    n_chunks: int = 0
    n_conversations: int = 0
    perplexity: tuple[float, float] | None = None


def _read(
    job: _Job,
    machine: Mapping[str, Any],
    kept: KeptState,
    report: Callable[[CalibrationProgress], None],
) -> _Result:
    n_ctx, n_parallel = job.n_ctx, 1
    if job.talks:
        n_ctx = max(n_ctx, min(_CONVERSATION, job.info.hparams.n_ctx_train))
    elif n_ctx % _MOST_OUTPUTS:
        # As many chunks at a time as llama-imatrix has. Of few tokens of a chunk ggml's attention
        # sums otherwise than of 64 and more, as there are where 512 divide it.
        n_parallel = max(EngineSettings.n_batch // n_ctx, 1)
    n_outputs = min(_MOST_OUTPUTS, n_ctx) if n_parallel == 1 else n_parallel * n_ctx
    with ExitStack() as stack:
        sums = ActivationSums(output=job.output, logits=job.perplexity)
        stack.callback(sums.close)  # after the model
        model = stack.enter_context(
            Model(
                job.info.path,
                n_ctx=n_ctx,
                n_parallel=n_parallel,
                n_outputs=n_outputs,
                cache_ram=0,
                **machine,
            )
        )
        model.engine.observe(sums)
        reading = _Reading(model, sums, job, kept)
        reading.resume()
        reading.read_all(report)
        return _Result(sums.totals, reading.n_chunks, len(job.talks), reading.perplexity)


class _Reading:
    """Reads one text after the other, chunks first, and keeps how far it is."""

    def __init__(self, model: Model, sums: ActivationSums, job: _Job, kept: KeptState) -> None:
        self._model, self._sums, self._job, self._kept = model, sums, job, kept
        self._bos = model.vocabulary.bos_id if model.vocabulary.add_bos else None
        self._tokens = self._chunked()
        self.n_chunks = len(self._tokens) // job.n_ctx
        together = model.engine.settings.n_parallel
        self._groups = [
            range(begin, min(begin + together, self.n_chunks))
            for begin in range(0, self.n_chunks, together)
        ]
        self._n_units = len(self._groups) + len(job.talks)
        self._nll, self._nll2, self._n_predicted = 0.0, 0.0, 0
        self._of = {
            "model": sampled_digest("llama4.", job.info.parts).hex(),
            "text": hashlib.sha256(self._tokens.tobytes()).hexdigest(),
            "conversations": self._digest_of_talks(),
            "settings": f"n_ctx={job.n_ctx}, process_output={job.output}, "
            f"perplexity={job.perplexity}",
        }

    @property
    def perplexity(self) -> tuple[float, float] | None:
        """Of what was predicted so far, and its standard error."""
        if self._n_predicted < 2:
            return None
        mean = self._nll / self._n_predicted
        variance = max(self._nll2 / self._n_predicted - mean * mean, 0.0)
        return exp(mean), exp(mean) * sqrt(variance / (self._n_predicted - 1))

    def resume(self) -> None:
        """Go on where a run before this was.

        Raises:
            OutputError: it was of something else.
        """
        state = self._kept.read(self._of)
        if state is None:
            return
        totals = {name: Total(sums, counts) for name, (sums, counts) in state.tensors.items()}
        self._sums.restore(totals, min(state.done, self._n_units))
        self._nll, self._nll2 = state.numbers["nll"], state.numbers["nll2"]
        self._n_predicted = int(state.numbers["n_predicted"])

    def read_all(self, report: Callable[[CalibrationProgress], None]) -> None:
        """Read what is left, and keep it."""
        total, n_tokens = self._steps(self._n_units), 0
        before = self._steps(self._sums.n_added)
        try:
            with ThreadPoolExecutor(usable_threads(), "perplexity") as pool:
                for unit in range(self._sums.n_added, self._n_units):
                    n_tokens += self._read_one(unit, pool)
                    so_far = None if self.perplexity is None else self.perplexity[0]
                    done = self._steps(unit + 1)
                    report(CalibrationProgress(done, total, before, n_tokens, so_far))
                    if self._kept.is_due:
                        self._save()
            self._save()
        except OutputError:
            raise
        except BaseException:
            if self._sums.n_added:
                with suppress(OutputError):
                    self._save()
            raise

    def _steps(self, n_units: int) -> int:
        """How many chunks and conversations so many of what is read at a time are."""
        groups = self._groups[:n_units]
        return sum(map(len, groups)) + n_units - len(groups)

    def _read_one(self, unit: int, pool: ThreadPoolExecutor) -> int:
        """Read some chunks or a conversation; how many tokens they have."""
        engine, sums = self._model.engine, self._sums
        nll = np.empty(0)
        if unit < len(self._groups):
            chunks = [self._chunk(number) for number in self._groups[unit]]
            n_tokens = sum(map(len, chunks))
            if self._job.perplexity:
                nll = np.empty((len(chunks), self._job.n_ctx - 1 - self._job.n_ctx // 2))
            decode = partial(self._decode, chunks, nll, pool)
        else:
            prompt = self._prompt(unit - len(self._groups))
            n_tokens, tokens = len(prompt), prompt.positions
            decode = partial(engine.each_logits, tokens, n_tokens, _skip, prompt.features)

        def add() -> bool:
            if not np.isfinite(nll).all():
                sums.check()
                raise DamagedTensorError("the model computes NaN or infinite logits")
            if not sums.add():
                return False
            self._nll += float(nll.sum())
            self._nll2 += float((nll * nll).sum())
            self._n_predicted += nll.size
            return True

        added = False
        while not added:  # again where a batch was given up by what was meant for another
            engine.in_thread(sums.begin)
            decode()
            try:
                added = engine.in_thread(add)
            except DamagedTensorError as error:
                raise DamagedTensorError(
                    f"{self._job.info.path} cannot be calibrated",
                    found=f"{error.problem}, in {self._where(unit)}",
                    hint=DAMAGED_HINT,
                ) from error
        return n_tokens

    def _where(self, unit: int) -> str:
        """What is read then, for an error."""
        if unit >= len(self._groups):
            return f"conversation {unit - len(self._groups) + 1}"
        return f"chunk {self._groups[unit][0] + 1 + self._job.first_chunk} of the text"

    def _chunk(self, number: int) -> npt.NDArray[np.int32]:
        n_ctx = self._job.n_ctx
        return self._tokens[number * n_ctx : (number + 1) * n_ctx]

    def _decode(
        self,
        chunks: Sequence[npt.NDArray[np.int32]],
        nll: npt.NDArray[np.float64],
        pool: ThreadPoolExecutor,
    ) -> None:
        """Decode chunks, and write how unlikely their tokens are where that is wanted."""

        def take(number: int, rows: Floats, place: int = 0) -> None:
            if len(nll):
                unlikelihoods(chunks[number], nll[number], pool, place, rows)

        bos = [] if self._bos is None else [self._bos]
        prompts = [[*bos, *chunk[len(bos) :].tolist()] for chunk in chunks]
        if len(prompts) > 1:
            self._model.engine.logits_of_each(prompts, take)
            return
        (prompt,) = prompts
        engine = self._model.engine
        engine.each_logits(prompt, len(prompt), lambda place, rows: take(0, rows, place))

    def _chunked(self) -> npt.NDArray[np.int32]:
        """The tokens of the text that are read."""
        job = self._job
        if job.text is None:
            return np.empty(0, np.int32)
        tokens = self._model.tokenize(job.text, special=job.special, add_bos=self._bos is not None)
        left = len(tokens) - job.first_chunk * job.n_ctx
        if left < 2 * job.n_ctx:
            is_short = len(tokens) < 2 * job.n_ctx
            after = f" after {job.first_chunk} chunks of {job.n_ctx}" if job.first_chunk else ""
            raise SettingError(
                "the text is too short",
                found=f"{max(left, 0)} tokens{'' if is_short else after}",
                expected=f"at least {2 * job.n_ctx}, two chunks of n_ctx",
                hint="Give a longer text, or a smaller n_ctx."
                if is_short
                else "Leave fewer chunks out: a smaller first_chunk.",
            )
        count = min(left // job.n_ctx, job.n_chunks or left)
        begin = job.first_chunk * job.n_ctx
        return np.array(tokens[begin : begin + count * job.n_ctx], np.int32)

    def _prompt(self, number: int) -> Prompt:
        """A conversation as the model reads it."""
        most = self._model.engine.settings.n_ctx
        try:
            prompt = self._model.chat_prompt(self._job.talks[number])
            if len(prompt) > most:
                raise context_full(len(prompt), most)
        except ContextFullError as error:
            raise SettingError(
                f"conversation {number + 1} is too long",
                found=error.found,
                expected=error.expected,
                hint="Divide it, or leave it out.",
            ) from error
        except (ImageError, TemplateError, SettingError) as error:
            raise type(error)(
                f"conversation {number + 1}: {error.problem}",
                found=error.found,
                expected=error.expected,
                hint=error.hint,
            ) from error
        return self._model.with_features(prompt)

    def _digest_of_talks(self) -> str:
        """Of what the model reads of conversations; the names of pictures' rows are digests."""
        digest = hashlib.sha256()
        for number in range(len(self._job.talks)):
            digest.update(np.array(self._prompt(number).positions, np.int64).tobytes() + b"\0")
        return digest.hexdigest()

    # --- what is kept

    def _save(self) -> None:
        numbers = {"nll": self._nll, "nll2": self._nll2, "n_predicted": self._n_predicted}
        self._kept.save(CalibrationState(self._of, self._sums.n_added, numbers, self._sums.totals))


def _skip(_: int, rows: Floats) -> None:
    """Of a text whose logits are of no use."""
