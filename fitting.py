"""Types chosen tensor by tensor for a budget of bytes: `llama4_edge.fit`.

Measures what each type of each tensor costs (`measure.sensitivity`), asks the planner for the
budget where a machine is named (`planner.budget`), and solves the choice exactly
(`quant.knapsack`). Promises the same recipe for the same inputs, and to say why each tensor has its
type. Writes no model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .convert.converter import open_source
from .convert.from_gguf import GGUFSource, plan_model
from .convert.importance import ImportanceMatrix, open_matrix
from .convert.job import Job, planned_projector, prepare
from .convert.part_layout import Part
from .convert.target import disk_shortage
from .convert.vision import DEFAULT_VISION_TYPE, vision_type_named
from .errors import SettingError
from .gguf_conversion import is_gguf, model_source
from .measure.choice import (
    CANDIDATES,
    BitsTarget,
    Fit,
    Fitting,
    SizeTarget,
    Subject,
    Target,
    header_file,
    recipe_until_chosen,
    request_for,
)
from .measure.sensitivity import Measurement, measure_tensors
from .planner.budget import machine_target
from .progress import Progress
from .quant import Recipe, TensorType, assign_types, recipe_named, type_overrides
from .quant.recipes import is_typed
from .quant.types import TYPES
from .ranges import (
    as_path,
    as_tuple,
    check_callback,
    check_flag,
    check_text,
    check_whole,
    is_number,
    outside,
)
from .runtime.files.gguf_file import read_gguf
from .runtime.files.model_file import check_model_file
from .units import bytes_text

_MOST_BITS = 32.0
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT])(i?)B?", re.IGNORECASE | re.ASCII)


def fit(
    source: str | os.PathLike[str],
    *,
    fit: str | None = None,
    target_size: int | str | None = None,
    target_bpw: float | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    types: Sequence[tuple[str, str]] = (),
    vision: bool = True,
    vision_type: str | None = None,
    revision: str | None = None,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Fit:
    """Choose the type of every tensor so that the model fits, and loses as little as it can.

        >>> found = fit("Llama-4-Scout-17B-16E-Instruct", fit="h100, 131072 tokens")
        >>> convert("Llama-4-Scout-17B-16E-Instruct", recipe=found.recipe)

    Reads a part of the weights: of Scout less than a hundredth. All experts of a layer's matrix are
    one tensor of a GGUF, and so of one type.

    Args:
        source: a checkpoint directory, a repository on the hub (whose shards are fetched, and kept
            in its cache), or a GGUF, as `convert` takes them.
        fit: a machine and a context, ``"2x rtx 4090, 64gb ram, 32768 tokens"``: the budget is the
            largest for which that context fits with all weights but the token embedding on the
            GPUs; or, if the smallest weights do not fit there or there is no GPU, in all memory.
        target_size: bytes of the GGUF's file, or in words, ``"45GB"``, ``"42GiB"``; the projector
            is another file.
        target_bpw: bits that a number of the model may take on average.
        imatrix: activation statistics, as `calibrate` or llama-imatrix writes them: they weigh
            errors, here and in the conversion, which is to be given them too. Without them, norms
            and weights say about how large activations are.
        types: (regex, type name) pairs that decide before the budget does.
        vision: whether a checkpoint's vision tower is to lie on the machine too, as `convert`
            writes it beside the model: `fit` keeps room for it where an opened model has it, on
            the first GPU that it fits, or in main memory. Of no effect on a GGUF.
        vision_type: what the tower's matrices are stored as, as `convert` takes it.
        revision: of the repository.
        threads: encoders that work at the same time; by default one for each core.
        progress: called with the bytes read so far; then, for a machine, with each plan that is
            tried in words (`Progress.activity`).

    Raises:
        SettingError: none or several of `fit`, `target_size` and `target_bpw`; a machine that is
            not understood; or a budget that even the fewest bits do not meet.
        RecipeError: no such type, or an override that fits no tensor.
        OutputError: the disk is too small for a repository's shards.
        Llama4EdgeError: the source or the statistics cannot be read.
    """
    target = _target(fit, target_size, target_bpw)
    check_flag("vision", vision)
    check_text("revision", revision, or_none=True)
    check_whole("threads", threads, 1, or_none=True)
    check_callback("progress", progress)
    matrices = vision_type_named(DEFAULT_VISION_TYPE if vision_type is None else vision_type)
    name = as_path("source", source)
    matrix = None if imatrix is None else open_matrix(as_path("imatrix", imatrix))
    overrides = type_overrides(as_tuple("types", types, "(regex, type) pairs"))
    with _opened(name, overrides, revision, matrices if vision else None) as model:
        if matrix is not None:
            matrix.check([one.tensor for one in model.job.assignments], model.n_layer)
        fitting = Fitting(model, target, matrix)
        fitting.check()
        last = Progress(0, 0, "")

        def on_progress(at: Progress) -> None:
            nonlocal last
            last = at
            if progress is not None:
                progress(at)

        def on_plan(nbytes: int) -> None:
            on_progress(replace(last, activity=f"planning for {bytes_text(nbytes)} of weights"))

        return fitting.solved(_measured(model, matrix, threads, on_progress), on_plan)


def fewest_bits(
    *,
    fit: str | None = None,
    target_size: int | str | None = None,
    target_bpw: float | None = None,
) -> Recipe:
    """A recipe that is called like the one that `fit` will choose, with about the fewest bits.

    Raises:
        SettingError: as `fit`.
    """
    return recipe_until_chosen(_target(fit, target_size, target_bpw))


def _target(fit: object, target_size: object, target_bpw: object) -> Target:
    """The one target that is given: a machine, bytes, or bits."""
    given = [value for value in (fit, target_size, target_bpw) if value is not None]
    if len(given) != 1:
        raise SettingError(
            "fit, target_size or target_bpw says what the model is to fit",
            found="none of them" if not given else f"{len(given)} of them",
            expected="one",
        )
    if fit is not None:
        check_text("fit", fit)
        assert isinstance(fit, str)
        return machine_target(fit)
    if isinstance(target_size, str):
        return SizeTarget(target_size.strip(), _size_named(target_size))
    if target_size is not None:
        check_whole("target_size", target_size, 1, 2**63)
        assert isinstance(target_size, int)
        return SizeTarget(bytes_text(target_size, digits=2), target_size)
    if not is_number(target_bpw) or not 0 < float(target_bpw) <= _MOST_BITS:  # type: ignore[arg-type]
        raise outside("target_bpw", target_bpw, f"a number of bits up to {_MOST_BITS:g}")
    return BitsTarget(float(target_bpw))  # type: ignore[arg-type]


def _size_named(text: str) -> int:
    """Bytes of a file: ``45GB`` and ``45G`` are 45 * 10^9, ``45GiB`` are 45 * 2^30."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise outside("target_size", text, "a size with its unit, such as '45GB' or '42GiB'")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper()))


# --- what is measured


@contextmanager
def _opened(
    name: str,
    overrides: Sequence[tuple[str, TensorType]],
    revision: str | None,
    matrices: TensorType | None,
) -> Iterator[Subject]:
    """The model in a checkpoint or a GGUF; with `matrices`, a checkpoint's vision tower beside it,
    of this type."""
    bf16 = recipe_named("bf16")
    if is_gguf(name):
        if revision is not None:
            raise SettingError("revision is of no effect", found=f"{name}, a GGUF")
        headers, hparams = model_source(read_gguf(Path(name)))
        job = plan_model(
            headers, request_for(bf16, overrides), None,
            n_layer=hparams.n_layer, n_expert=hparams.n_expert, requantize=True,
        )  # fmt: skip
        yield _model(name, job, headers, overrides, None)
        return
    # Read twice, here and by the conversion; to be fetched once.
    checkpoint = open_source(name, revision=revision, keep_source=True)
    try:
        job = prepare(checkpoint, request_for(bf16, overrides), None)
        need = checkpoint.shards.disk_need(job.files)
        if need is not None:
            shortage = disk_shortage(need.directory, need.nbytes, f"all of {name}", encodes=False)
            if shortage is not None:
                raise shortage
        projector = None if matrices is None else planned_projector(checkpoint, matrices)
        with header_file(job.text[0]) as path:
            headers = model_source(read_gguf(path))[0]
            yield _model(name, job, headers, overrides, projector)
    finally:
        checkpoint.shards.close()


def _model(
    name: str,
    job: Job,
    headers: GGUFSource,
    overrides: Sequence[tuple[str, TensorType]],
    projector: Part | None,
) -> Subject:
    """What is known once the headers are read."""
    with header_file(job.text[0]) as path:
        hparams = check_model_file(path, needs_tokenizer=False).hparams
    typed = [one for one in job.assignments if is_typed(one.tensor)]
    given = {one.tensor.name: one.type for one in typed if one.type.name != "BF16"}
    if overrides:
        # What was asked to stay in bf16 too.
        other = assign_types(
            recipe_named("f16"), [one.tensor for one in job.assignments],
            n_layer=hparams.n_layer, n_expert=hparams.n_expert,
            overrides=overrides,
        )  # fmt: skip
        given |= {it.tensor.name: it.type for it in other if it.type.name == "BF16"}
    return Subject(
        name=name,
        job=job,
        headers=headers,
        n_layer=hparams.n_layer,
        n_ctx_train=hparams.n_ctx_train,
        n_expert=hparams.n_expert,
        n_expert_used=hparams.n_expert_used,
        shapes={one.tensor.name: one.tensor.shape for one in typed},
        fixed=given,
        projector=projector,
    )


def _measured(
    model: Subject,
    matrix: ImportanceMatrix | None,
    threads: int | None,
    progress: Callable[[Progress], None] | None,
) -> dict[str, Measurement]:
    """What each type of each tensor costs."""
    tried = {TYPES[name] for name in CANDIDATES} | set(model.fixed.values())
    return measure_tensors(
        model.job,
        model.shapes,
        sorted(tried, key=lambda it: it.ggml_id),
        None if matrix is None else matrix.importance,
        n_expert_used=model.n_expert_used,
        n_layer=model.n_layer,
        threads=threads,
        progress=progress,
    )
