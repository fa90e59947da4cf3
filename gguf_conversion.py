"""A GGUF becomes another: `convert` with a GGUF as its source, `split` and `merge`.

Joins the room that reads a GGUF and the one that writes it: headers are checked by the code that
opens models, those that are read and those that are planned. Promises that importing it loads
neither.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ModelFileError, SettingError
from .ranges import as_path, check_callback, check_flag, check_whole

if TYPE_CHECKING:
    from .architecture import Hyperparameters
    from .convert.from_gguf import GGUFSource
    from .convert.job import Job
    from .convert.part_layout import Part
    from .convert.report import Report
    from .convert.request import Request
    from .progress import Progress
    from .runtime.files.gguf_file import GGUFFile


def is_gguf(source: str | os.PathLike[str]) -> bool:
    """Whether a GGUF is meant: a file that is called or begins like one."""
    path = Path(source)
    try:
        if path.suffix == ".gguf":
            return not path.is_dir()
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except (OSError, ValueError):
        return False


def convert_gguf(
    source: Path,
    output: str | os.PathLike[str] | None,
    request: Request,
    *,
    revision: str | None,
    requantize: bool,
    force: bool,
    dry_run: bool,
    threads: int | None,
    progress: Callable[[Progress], None] | None,
    merge_lora: Sequence[tuple[str, float]],
    planned_file: Callable[[Sequence[Part]], AbstractContextManager[Path]],
    types_follow: bool = False,
) -> Report:
    """The conversion that `llama4_edge.convert` describes, of a GGUF.

    Args:
        merge_lora: adapters with the scale of each, in the order in which they are added.
        types_follow: as of `converter.execute`.
        planned_file: writes the headers of planned parts into temporary files, and is the first of
            them while its block runs.
    """
    from .convert.converter import execute
    from .convert.from_gguf import check_merged, plan_model, plan_projector
    from .convert.lora.base import Base
    from .convert.lora.merge import merge_into, open_adapters
    from .runtime.files.gguf_file import read_gguf
    from .runtime.files.projector_file import is_projector, misnamed_tensors

    started = time.monotonic()
    adapters = open_adapters(merge_lora)
    gguf = read_gguf(source)
    given = {**request.given, "revision": revision}
    vision_type = given.pop("vision_type", None)
    if is_projector(gguf):
        _check_unused(source, "a projector", given)
        if not request.vision:
            raise _other_kind(source, "a projector", "a text model", "vision=False")
        if misnamed_tensors(gguf) and vision_type is None and not adapters:
            return _mended(source, output, force=force, dry_run=dry_run)
        base, model = None, _projector_source(gguf)
        job = plan_projector(model, request, output, requantize=requantize)
    else:
        unused = {"vision_type": vision_type, "revision": revision}
        _check_unused(source, "a text model", unused)
        if not request.text:
            raise _other_kind(source, "a text model", "a projector", "text=False")
        model, hparams = model_source(gguf)
        job = plan_model(
            model, request, output,
            n_layer=hparams.n_layer, n_expert=hparams.n_expert, requantize=requantize,
        )  # fmt: skip
        base = Base(str(source), hparams, tied="output.weight" not in job.outputs)
    job = check_merged(model, merge_into(job, adapters, base), requantize=requantize)
    _check_planned(job, planned_file)
    return execute(
        job, force=force, dry_run=dry_run, threads=threads, progress=progress, started=started,
        beside=[*(it.adapter.path for it in adapters), *request.files], types_follow=types_follow,
    )  # fmt: skip


def _check_unused(source: Path, kind: str, settings: Mapping[str, object]) -> None:
    """Raise where a setting was given that says nothing about a file of this kind."""
    unused = [name for name, value in settings.items() if value is not None]
    if unused:
        raise SettingError(
            f"{unused[0]} is of no effect",
            found=f"{source}, a GGUF of {kind}",
            hint="Leave it out.",
        )


def _other_kind(source: Path, kind: str, expected: str, setting: str) -> ModelFileError:
    return ModelFileError(
        f"{source} is not what is to be converted",
        found=kind,
        expected=f"{expected}, as {setting} needs",
    )


def split(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    split_size: int | None = None,
    parts: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Divide a GGUF into parts, which llama.cpp loads as one model: the first of them is given.

    Tensors and metadata stay as they are, and the parts are those that ``llama-gguf-split`` writes.
    They get their names when all are whole; a call that was interrupted goes on when it is
    repeated.

    Args:
        source: a text model in one file, or any part of one that is split already.
        output: what the parts are called, ``OUTPUT-00001-of-00003.gguf``, or a directory to write
            them into; by default they are called like `source`, in the current directory.
        split_size: bytes of tensors that one part may hold; a larger tensor has one of its own.
        parts: how many parts there are to be, as even as tensors allow; instead of `split_size`.
        force: replace existing files.
        dry_run: check and plan everything, write nothing.
        progress: called with the bytes read so far.

    Returns:
        What was written; ``outputs`` names the parts.

    Raises:
        ModelFileError: `source` is not a whole text model of a Llama 4.
        SettingError: both or neither of `split_size` and `parts`, or what is given leaves one part,
            or more parts than tensors.
        OutputError: a target exists, its disk is too small, or writing failed.
    """
    from .convert.from_gguf import MAX_PARTS, plan_copy

    check_whole("split_size", split_size, 1, or_none=True)
    check_whole("parts", parts, 2, MAX_PARTS, or_none=True)
    if (split_size is None) == (parts is None):
        raise SettingError(
            "split_size or parts says how a model is divided",
            found="neither" if parts is None else "both",
            expected="one of them",
        )
    return _copied(
        source, output, force=force, dry_run=dry_run, progress=progress,
        plan=lambda model, target: plan_copy(model, target, split_size=split_size, parts=parts),
    )  # fmt: skip


def merge(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Put the parts of a GGUF together into one file: after `split`, the bytes of before.

    Args:
        source: any of the parts, which lie beside each other under their names.
        output: the file to write, or a directory to write it into; by default it is called like the
            parts, in the current directory.
        force: replace an existing file.
        dry_run: check and plan everything, write nothing.
        progress: called with the bytes read so far.

    Returns:
        What was written.

    Raises:
        ModelFileError: a part is missing or damaged, or `source` is not a part of a Llama 4.
        OutputError: the target exists, its disk is too small, or writing failed.
    """
    from .convert.from_gguf import plan_copy
    from .parts import part_named

    if part_named(Path(as_path("source", source)).name) is None and is_gguf(source):
        raise ModelFileError(
            f"{os.fspath(source)} is not a part of a model",
            found="a name without a number",
            expected="any of NAME-00001-of-00003.gguf and so on",
        )
    return _copied(source, output, force=force, dry_run=dry_run, progress=progress, plan=plan_copy)


def _copied(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    *,
    plan: Callable[[GGUFSource, str | os.PathLike[str] | None], Job],
    force: bool,
    dry_run: bool,
    progress: Callable[[Progress], None] | None,
) -> Report:
    """Copy a model into the files that are planned for it."""
    from .convert.converter import execute
    from .runtime.files.gguf_file import read_gguf
    from .runtime.files.model_file import check_architecture

    started = time.monotonic()
    check_callback("progress", progress)
    check_flag("force", force)
    check_flag("dry_run", dry_run)
    path = Path(as_path("source", source))
    target = None if output is None else as_path("output", output)
    parts = _parts(read_gguf(path))
    check_architecture(parts[0])
    return execute(
        plan(_as_source(parts), target),
        force=force, dry_run=dry_run, threads=None, progress=progress, started=started,
    )  # fmt: skip


# --- what is read, and what is planned


def _parts(gguf: GGUFFile) -> tuple[GGUFFile, ...]:
    """The headers of all parts of a model, in order."""
    from .runtime.files.split import read_parts

    parts, faults = read_parts(gguf)
    if faults:
        raise faults[0]
    return parts


def model_source(gguf: GGUFFile) -> tuple[GGUFSource, Hyperparameters]:
    """A whole text model, of any of its parts, and what it is."""
    from .runtime.files.model_file import check_architecture, check_parts

    if "split.no" not in gguf.metadata:
        check_architecture(gguf)
    parts = _parts(gguf)
    check_architecture(parts[0])
    return _as_source(parts), check_parts(parts, needs_tokenizer=False).hparams


def _projector_source(gguf: GGUFFile) -> GGUFSource:
    """A projector, its tensors called as llama.cpp's loader reads them."""
    from .runtime.files.projector_file import check_projector, mended_name, misnamed_tensors

    if not misnamed_tensors(gguf):
        check_projector(gguf)
    return _as_source((gguf,), name_of=mended_name)


def _as_source(parts: tuple[GGUFFile, ...], name_of: Callable[[str], str] = str) -> GGUFSource:
    """The same as the converter takes it."""
    from .convert.from_gguf import BlockTensor, GGUFSource
    from .runtime.files.gguf_file import packed_metadata

    return GGUFSource(
        files=tuple(part.path for part in parts),
        metadata=packed_metadata(parts[0]),
        alignment=parts[0].alignment,
        tensors=tuple(
            BlockTensor(
                name=name_of(tensor.name),
                shape=tensor.shape[::-1],
                type=tensor.encoding,
                file=part.path,
                offset=tensor.offset,
                nbytes=tensor.nbytes,
            )
            for part in parts
            for tensor in part.tensors
        ),
    )


def _check_planned(
    job: Job, planned_file: Callable[[Sequence[Part]], AbstractContextManager[Path]]
) -> None:
    """Open the files that are planned, as they are opened to be used.

    Raises:
        ModelFileError: what is wrong with them, which is wrong with their source.
    """
    from .runtime.files.model_file import check_model_file
    from .runtime.files.projector_file import check_projector_file

    with planned_file(job.parts) as path:
        if job.text:
            check_model_file(path, needs_tokenizer=False, whole=False)
        else:
            check_projector_file(path, whole=False)


def _mended(
    source: Path, output: str | os.PathLike[str] | None, *, force: bool, dry_run: bool
) -> Report:
    """Write a projector again with the names that llama.cpp's loader reads."""
    from .convert.report import Report
    from .quant import summarize
    from .runtime.files.gguf_file import read_gguf
    from .runtime.files.mending import mend_projector

    name = f"{source.stem}-mended.gguf"
    target = Path(name) if output is None else Path(output)
    target = target / name if target.is_dir() else target
    started = time.monotonic()
    gguf = read_gguf(source) if dry_run else mend_projector(source, target, force=force)
    seconds = 0.0 if dry_run else time.monotonic() - started
    summary = summarize(
        str(target),
        "gguf",
        {},
        ((it.name, it.shape[::-1], it.type, it.nbytes) for it in gguf.tensors),
    )
    return Report(
        source=str(source),
        output=str(target),
        recipe="mended",
        dry_run=dry_run,
        bytes=gguf.size,
        source_bytes=summary.bytes,
        parameters=summary.parameters,
        seconds=seconds,
        roles=summary.roles,
        stage_seconds={},
        outputs=(str(target),),
        resumed_at=0.0,
        projector=str(target),
        fallbacks=(),
        left_out=(),
        notes=("ln2 for attn_post_norm, as llama.cpp reads it; the old file can be removed",),
    )
