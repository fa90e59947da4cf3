"""A checkpoint, or an adapter, becomes a GGUF that opens: `convert` and `convert_lora`.

Joins the room that writes a GGUF and those that read it: the planned headers are opened by the very
code that opens the written file, before a byte of it is written. Promises that importing it loads
none of them. Knows no format itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import (
    Llama4EdgeError,
    ModelFileError,
    OutputError,
    SettingError,
    TemplateError,
    UnsupportedError,
    VocabularyError,
)
from .gguf_conversion import convert_gguf, is_gguf
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

if TYPE_CHECKING:
    from .convert.lora.base import Base
    from .convert.part_layout import Part
    from .convert.report import Report
    from .measure.choice import Fit
    from .progress import Progress
    from .quant import Recipe


_MAX_SCALE = 1e6


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    fit: str | None = None,
    target_size: int | str | None = None,
    target_bpw: float | None = None,
    types: Sequence[tuple[str, str]] = (),
    imatrix: str | os.PathLike[str] | None = None,
    merge_lora: Sequence[str | os.PathLike[str] | tuple[str | os.PathLike[str], float]] = (),
    split_size: int | None = None,
    text: bool = True,
    vision: bool = True,
    vision_type: str | None = None,
    revision: str | None = None,
    keep_source: bool = False,
    requantize: bool = False,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_fit: Callable[[Fit], None] | None = None,
) -> Report:
    """Convert the checkpoint, or the GGUF, `source` to the GGUF file `output`.

    A checkpoint with a vision tower becomes two files: the text model, and beside it the tower with
    its projector, which llama.cpp's tools take as ``--mmproj``. A GGUF keeps its metadata, and
    becomes what llama-quantize would make of it; from bf16, what the checkpoint would become.

    Everything is checked, from the headers alone, before anything is written. The files get their
    names only when all are whole. A conversion that was interrupted goes on when it is called again
    with the same arguments, and ends in the same bytes.

    Args:
        source: directory with config.json, tokenizer.json and the safetensors; or the name of a
            repository on the Hugging Face Hub, ``org/name``, whose shards are fetched one after the
            other. What a directory of that name would be is taken for one. Or a GGUF, of which any
            part will do: a text model, or a projector. A projector that llama.cpp's converter
            misnamed is written again with the right names and, without `vision_type`, the same
            bytes.
        output: file to write, or a directory to write it into; by default
            ``<source's name>-<recipe>.gguf`` in the current directory.
        recipe: one of `llama4_edge.RECIPES`, or a recipe file, which `read_recipe` reads; None is
            ``keep`` for integers of 4 and 8 bits, and ``int4`` for everything else.
        fit, target_size, target_bpw: instead of a recipe, what the model is to fit: types are
            chosen tensor by tensor, as `fit` chooses them, which see.
        types: (regex, type name) pairs that decide before the recipe, the first match first.
        imatrix: activation statistics, as ``llama4 calibrate`` and llama-imatrix write them: errors
            in columns that matter count for more. The bytes are llama-quantize's with the same
            file. The projector is not affected.
        merge_lora: LoRA adapters, as `convert_lora` takes them, that are merged into the model,
            each a path or a pair of a path and a scale: their products are added to the weights in
            float32, in this order, before anything is encoded. What one has for the vision tower
            goes into the projector. A GGUF takes what is for its half of the model.
        split_size: bytes of tensors that one file may hold; more go into further parts,
            ``NAME-00001-of-00003.gguf`` and so on. The projector stays in one.
        text: whether the text model is written. Without it, `output` is the projector.
        vision: whether the projector is written, where the checkpoint has a vision tower: beside
            ``NAME-<recipe>.gguf`` it is called ``mmproj-NAME-<vision_type>.gguf``.
        vision_type: what the projector's matrices are stored as: ``f16``, ``bf16``, ``q8_0``,
            ``q4_0`` or ``f32``; None is ``f16``.
        revision: of the repository: a branch, a tag or a commit; by default its main branch.
        keep_source: leave the fetched shards in huggingface_hub's cache.
        requantize: encode tensors of a GGUF that were rounded to fewer bits than Q8_0's already.
        force: replace an existing `output`, and what an interrupted conversion of another kind
            left.
        dry_run: check and plan everything, write nothing; too small a disk is a note then.
        threads: encoders that work at the same time; by default one for each core.
        progress: called after each slab with the bytes read so far.
        on_fit: called with the types that were chosen for `fit`, `target_size` or `target_bpw`,
            before anything is written.

    Returns:
        What was written, by role.

    Raises:
        CheckpointError: the checkpoint is not whole.
        ModelFileError: the GGUF is not whole, or not a Llama 4's; `imatrix` cannot be read, or is
            of another model.
        HubError: the repository cannot be had.
        UnsupportedError: it is whole, and llama.cpp could not run it.
        DamagedTensorError: a weight is infinite or NaN, or the checkpoint changes meanwhile.
        VocabularyError: llama.cpp would read the tokenizer differently.
        RecipeError: no such recipe or type, an override that fits no tensor, or tensors of few bits
            without `requantize`.
        SettingError: `split_size` or `threads` is less than 1, `text` and `vision` exclude each
            other or a setting beside them, or the model cannot fit what it is to fit.
        OutputError: the target exists, its disk is too small, or writing failed.
    """
    check_text("revision", revision, or_none=True)
    check_callback("progress", progress)
    check_callback("on_fit", on_fit)
    flags = {
        "text": text,
        "vision": vision,
        "keep_source": keep_source,
        "requantize": requantize,
        "force": force,
        "dry_run": dry_run,
    }
    for name, flag in flags.items():
        check_flag(name, flag)
    source = as_path("source", source)
    target = None if output is None else as_path("output", output)
    merged = [_scaled(it) for it in as_tuple("merge_lora", merge_lora, "paths, or (path, scale)")]
    check_whole("threads", threads, 1, or_none=True)
    from_gguf = is_gguf(source)
    if requantize and not from_gguf:
        raise SettingError(
            "requantize is of no effect",
            found=f"{source}, which is not a GGUF",
            hint="Leave it out: a checkpoint is converted whatever its weights are stored as.",
        )
    budget: dict[str, Any] = {"fit": fit, "target_size": target_size, "target_bpw": target_bpw}
    budget = {name: value for name, value in budget.items() if value is not None}

    def write(
        recipe: str | os.PathLike[str] | Recipe | None, *, types_follow: bool = False
    ) -> Report:
        from .convert.converter import run
        from .convert.request import request_of

        request = request_of(
            text=text, vision=vision, recipe=recipe, types=types, imatrix=imatrix,
            split_size=split_size, vision_type=vision_type,
        )  # fmt: skip
        replaces = force or (types_follow and split_size is not None)
        if from_gguf:
            return convert_gguf(
                Path(source), target, request, revision=revision, requantize=requantize,
                force=replaces, dry_run=dry_run, threads=threads, progress=progress,
                merge_lora=merged, planned_file=_planned_file, types_follow=types_follow,
            )  # fmt: skip
        return run(
            source, target, request, revision=revision, keep_source=keep_source, force=replaces,
            dry_run=dry_run, threads=threads, progress=progress, check_headers=_check_headers,
            merge_lora=merged, types_follow=types_follow,
        )  # fmt: skip

    if not budget:
        return write(recipe)
    _check_budget(budget, recipe=recipe, text=text)
    from .fitting import fewest_bits
    from .fitting import fit as find_types

    # Measuring takes minutes: what would be refused whatever it finds is refused before. How many
    # parts there are to be, and so what they are called, it finds.
    write(fewest_bits(**budget), types_follow=True)
    found = find_types(
        source, types=types, imatrix=imatrix, vision=vision, vision_type=vision_type,
        revision=revision, threads=threads, progress=progress, **budget,
    )  # fmt: skip
    if on_fit is not None:
        on_fit(found)
    return write(found.recipe)


def _check_budget(budget: Mapping[str, object], *, recipe: object, text: bool) -> None:
    """Raise where types are not to be chosen, though there is a budget for them."""
    if recipe is not None or not text:
        raise SettingError(
            f"{next(iter(budget))} is of no effect",
            found="a recipe" if text else "text=False",
            hint="Leave out one of them: both say how the text model is stored.",
        )


def _scaled(value: object) -> tuple[str, float]:
    """An adapter to be merged: a path, or a pair of a path and a scale."""
    path, scale = value if isinstance(value, tuple) and len(value) == 2 else (value, 1.0)
    if not is_number(scale) or not 0 < abs(float(scale)) < _MAX_SCALE:
        raise outside("an adapter's scale", scale, "a finite number other than 0")
    return as_path("merge_lora", path), float(scale)


def convert_lora(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    outtype: str | None = None,
    revision: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Convert the LoRA adapter `source`, as PEFT saves one, to the GGUF file `output`.

    The file is what `Model` takes in ``adapters``, and llama.cpp's own tools as ``--lora``.
    Adapted may be attention, router, shared expert, dense feed-forward networks, embedding, output,
    and the routed experts: fused ones (PEFT's ``target_parameters``) or linear ones. What llama.cpp
    could not apply is refused by name. The adapter is held against the shapes of its base, of which
    no weight is needed.

    Args:
        source: directory with adapter_config.json and adapter_model.safetensors; or the name of a
            repository on the Hugging Face Hub, ``org/name``.
        output: file to write, or a directory to write it into; by default
            ``<source's name>-<outtype>.gguf`` in the current directory.
        base: the model that the adapter was trained on: a directory with a config.json, a GGUF,
            ``org/name`` on the hub, or one of ``scout``, ``scout-base`` and ``maverick``; by
            default what adapter_config.json names.
        outtype: what its matrices are stored as, ``f32``, ``f16`` or ``bf16``; None is ``f32``,
            which keeps them as they are.
        revision: of the adapter's repository: a branch, a tag or a commit; by default its main
            branch.
        force: replace an existing `output`.
        dry_run: check and plan everything, write nothing.
        progress: called after each matrix with the bytes written so far.

    Returns:
        What was written, by role; ``recipe`` is the type.

    Raises:
        CheckpointError: the adapter is damaged, is of another model than its base, or its base
            cannot be had.
        HubError: a repository cannot be had.
        UnsupportedError: llama.cpp cannot apply it, or its base is not a Llama 4.
        DamagedTensorError: a number is NaN, infinite, or too large for `outtype`.
        ModelFileError: `base` is a GGUF, and no Llama 4.
        SettingError: no such `outtype`.
        OutputError: the target exists, its disk is too small, or writing failed.
    """
    check_text("revision", revision, or_none=True)
    check_callback("progress", progress)
    check_flag("force", force)
    check_flag("dry_run", dry_run)
    source = as_path("source", source)
    target = None if output is None else as_path("output", output)
    model = None if base is None else as_path("base", base)
    from .convert.lora.file import run

    return run(
        source,
        target,
        base=model,
        outtype=outtype,
        revision=revision,
        force=force,
        dry_run=dry_run,
        progress=progress,
        find_base=_find_base,
        check_header=_check_adapter,
    )


def _find_base(name: str) -> Base:
    """The shapes of a model: of a GGUF here, of whatever else in the converter."""
    from .convert.lora.base import Base, read_base
    from .system.files import is_file

    path = Path(name)
    if path.suffix != ".gguf" or not is_file(path):
        return read_base(name)
    from .runtime.files.model_file import check_model_file

    info = check_model_file(path, needs_tokenizer=False, whole=False)
    tied = all(tensor.name != "output.weight" for tensor in info.tensors)
    return Base(name, info.hparams, tied)


def _check_adapter(adapter: Path, part: Part) -> None:
    """Open the file that this part will be, as it is opened to be used.

    Raises:
        UnsupportedError: llama.cpp could not apply it.
    """
    from .runtime.files.adapter_file import check_adapter_file

    with _planned_file([part]) as path:
        try:
            check_adapter_file(path, whole=False)
        except ModelFileError as error:
            raise UnsupportedError(
                f"{adapter} would become a file that llama.cpp cannot apply",
                found=error.problem.removeprefix(f"{path} "),
                expected=error.expected,
            ) from None


def _check_headers(checkpoint: Path, text: Sequence[Part], projector: Sequence[Part]) -> None:
    """Open the files that these parts will be, as they are opened to be talked to.

    Raises:
        VocabularyError: its tokenizer, or its chat template, is of no use.
        UnsupportedError: llama.cpp could not run it.
        OutputError: the temporary disk cannot hold the headers.
        EngineError: llama.cpp's library does not load.
    """
    from .runtime.files.projector_file import check_projector_file

    n_embd = _check_text(checkpoint, text) if text else None
    if projector:
        with _planned_file(projector) as path:
            try:
                check_projector_file(path, n_embd=n_embd, whole=False)
            except ModelFileError as error:
                raise _of_checkpoint(error, checkpoint, path) from None


def _check_text(checkpoint: Path, parts: Sequence[Part]) -> int:
    """The text model's part of it, and the width of what it takes."""
    from .chat.prompt import Prompts
    from .chat.vocabulary import Vocabulary
    from .convert.chat_templates import template_file
    from .runtime.files.model_file import check_model_file

    with _planned_file(parts) as path:
        try:
            info = check_model_file(path, whole=False)
            prompts = Prompts(Vocabulary(info.gguf.metadata), info.chat_template)
            if info.chat_template is not None:
                prompts.template.close()
        except TemplateError as error:
            raise VocabularyError(
                f"{template_file(checkpoint)} cannot be used: {error.problem}",
                found=error.found,
                expected=error.expected,
                hint="Correct it, or remove it to convert the model without one.",
            ) from None
        except (ModelFileError, VocabularyError) as error:
            raise _of_checkpoint(error, checkpoint, path) from None
    return info.hparams.n_embd


def _of_checkpoint(error: Llama4EdgeError, checkpoint: Path, path: Path) -> Llama4EdgeError:
    """The same error about the checkpoint that the file at `path` was planned from."""
    problem = error.problem.removeprefix(f"{path} ")
    in_vocabulary = isinstance(error, VocabularyError) or any(
        word in problem for word in ("vocabulary", "tokenizer.")
    )
    problem = problem.removeprefix("has a damaged vocabulary: ")
    found = problem if error.found is None else f"{problem}: {error.found}"
    if in_vocabulary:
        return VocabularyError(
            f"{checkpoint} has a tokenizer of which no usable model can be made",
            found=found,
            expected=error.expected,
            hint="Compare tokenizer.json, tokenizer_config.json and generation_config.json with "
            "those of the model that it was trained from.",
        )
    return UnsupportedError(
        f"{checkpoint} would become a file that llama.cpp cannot run",
        found=found,
        expected=error.expected,
    )


@contextmanager
def _planned_file(parts: Sequence[Part]) -> Iterator[Path]:
    """The first of the parts, which all end with their headers."""
    from .system.temporary import temporary_directory, temporary_path

    prefix = "llama4-convert-"
    if len(parts) == 1:
        with temporary_path(prefix) as path:
            yield _write_header(path, parts[0])
        return
    # Parts are found by their names.
    with temporary_directory(prefix) as directory:
        paths = [_write_header(directory / part.path.name, part) for part in parts]
        yield paths[0]


def _write_header(path: Path, part: Part) -> Path:
    try:
        path.write_bytes(part.header)
    except OSError as error:
        raise OutputError(
            f"the header of {part.path.name} cannot be written to a temporary file",
            found=error.strerror,
            hint="Set TMPDIR to a directory with room for it.",
        ) from None
    return path
