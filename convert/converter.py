"""A Hugging Face Llama 4 checkpoint becomes a GGUF, in one pass.

`run` reads top-down as the job: open, check, name, type, describe, check the target, write.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError, DamagedTensorError, did_you_mean
from ..hub.names import parse_hub_name
from ..progress import Progress
from ..quant import (
    FileSummary,
    TensorSummary,
    role_of,
    summarize,
)
from ..quant.summary import summarize_roles
from ..system.cores import usable_threads
from .checkpoint import Checkpoint, open_checkpoint
from .directories import is_listed
from .job import Job, prepare, source_keys
from .kept import rounded_notes
from .lora.base import base_in
from .lora.merge import merge_into, open_adapters
from .output import PartialOutput, finish_interrupted, may_lack_names
from .part_layout import Part
from .pipeline import Tally, run_pipeline
from .presets import PRESETS
from .report import Fallback, Report
from .request import Request
from .slabs import Slab
from .target import check_target, room_shortage
from .text_model import read_text_model
from .vision import described_vision
from .vision_config import parse_vision


def run(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    request: Request,
    *,
    revision: str | None,
    keep_source: bool,
    force: bool,
    dry_run: bool,
    threads: int | None,
    progress: Callable[[Progress], None] | None,
    check_headers: Callable[[Path, Sequence[Part], Sequence[Part]], None],
    merge_lora: Sequence[tuple[str, float]] = (),
    types_follow: bool = False,
) -> Report:
    """The conversion that `llama4_edge.convert` describes, of a checkpoint.

    Args:
        types_follow: as of `execute`.
        merge_lora: adapters with the scale of each, in the order in which they are added.
        check_headers: is given the checkpoint's path and the planned parts of the text model and of
            the projector, and raises an error where either could not be opened.
    """
    started = time.monotonic()
    adapters = open_adapters(merge_lora)
    checkpoint = open_source(source, revision=revision, keep_source=keep_source)
    try:
        job = prepare(checkpoint, request, output)
        job = merge_into(job, adapters, base_in(checkpoint, job.outputs)).with_form_notes()
        check_headers(checkpoint.path, job.text, job.projector)
        return execute(
            job, force=force, dry_run=dry_run, threads=threads, progress=progress, started=started,
            beside=[*(it.adapter.path for it in adapters), *request.files],
            types_follow=types_follow,
        )  # fmt: skip
    finally:
        checkpoint.shards.close()


def execute(
    job: Job,
    *,
    force: bool,
    dry_run: bool,
    threads: int | None,
    progress: Callable[[Progress], None] | None,
    started: float,
    beside: Collection[Path] = (),
    types_follow: bool = False,
) -> Report:
    """Write what a job has planned, or in a `dry_run` say what would be written.

    Args:
        types_follow: the job has the fewest bits in place of types that are not chosen yet: nothing
            is written, and refused is what would be with any types.
        started: when the conversion began, on ``time.monotonic``'s clock.
        beside: directories whose files are read too, and are not replaced.

    Raises:
        OutputError: a target exists, its disk is too small, or writing failed.
        DamagedTensorError: a number is NaN, infinite or too large, or a file changed meanwhile.
        CheckpointError: a file cannot be read.
    """
    need = job.shards.disk_need(job.files)
    if dry_run:
        shortage = room_shortage(job.parts, need, encodes=job.encodes)
        return _report(job, notes=[str(shortage)] if shortage else [])
    if types_follow:
        force = force or may_lack_names(job.parts)
    elif finish_interrupted(job.parts, job.identity, force=force):
        return _report(job, resumed_at=1.0, seconds=time.monotonic() - started)
    check_target(
        job.parts,
        source=job.read,
        beside=beside,
        projector=job.projector if job.text else (),
        force=force,
        sources=need,
        encodes=job.encodes,
    )
    if types_follow:
        return _report(job)
    spent = Tally()
    with PartialOutput(job.parts, job.identity, force=force) as partial:
        before = _write_tensors(job, partial, threads or usable_threads(), spent, progress)
        _check_unchanged(job)
    return _report(job, resumed_at=before, seconds=time.monotonic() - started, spent=spent)


def open_source(
    source: str | os.PathLike[str], *, revision: str | None, keep_source: bool
) -> Checkpoint:
    """A directory where there is one, else a repository where the name can be one's."""
    is_here = is_listed(Path(source))
    if is_here and revision is not None:
        raise CheckpointError(
            f"{os.fspath(source)} is a local directory, and has no revisions",
            found=f"revision {revision}",
            hint="Leave it out, or put hf:// before the name if a repository is meant.",
        )
    if is_here:
        return open_checkpoint(source)
    named = parse_hub_name(os.fspath(source))
    if named is None or not named.is_repository:
        raise _no_source(os.fspath(source))
    # Only here, because the hub's client takes longer to import than everything else together.
    from .hub import open_repository

    return open_repository(
        named.repository, revision=revision or named.revision, keep_source=keep_source
    )


def _no_source(name: str) -> CheckpointError:
    """The error that there is no checkpoint of this name; a preset is published somewhere."""
    preset = PRESETS.get(name)
    published = None if preset is None else preset.repository
    named = parse_hub_name(name)
    if named is not None:
        return CheckpointError(
            f"{name} is not all of a repository",
            expected=f"{named.repository}, which is converted as a whole",
            hint=f"For a GGUF: llama4 pull {named.repository} {named.file or named.quantization}",
        )
    return CheckpointError(
        f"{name} does not exist",
        expected="a checkpoint directory, or org/name on the Hugging Face Hub",
        hint=f"Convert its repository: {published}" if published else did_you_mean(name, PRESETS),
    )


def inspect_checkpoint(source: str | os.PathLike[str]) -> FileSummary:
    """What the checkpoint in the directory `source` holds, by the names tensors get in a GGUF.

    Raises:
        CheckpointError: the checkpoint is not whole, or not one llama.cpp can run.
    """
    checkpoint = open_checkpoint(source)
    model = read_text_model(checkpoint)
    nbytes: Counter[str] = Counter()
    for tensor in model.tensors:
        nbytes.update({to.name: tensor.nbytes // len(tensor.targets) for to in tensor.targets})
    stored_as = {
        to.name: (to.shape, tensor.label) for tensor in model.tensors for to in tensor.targets
    }
    tensors = [(name, *described, nbytes[name]) for name, described in stored_as.items()]
    tensors += described_vision(
        model.vision, parse_vision(checkpoint.config), model.config.hparams.n_embd,
        model.config.forms,
    )  # fmt: skip
    unused = (checkpoint.tensors[name] for name in model.left_out)
    tensors += [(stored.name, stored.shape, stored.dtype, stored.nbytes) for stored in unused]
    summary = summarize(str(checkpoint.path), "checkpoint", checkpoint.config, tensors)
    return replace(summary, layout=model.layout, left_out=model.left_out, notes=model.notes)


def _check_unchanged(job: Job) -> None:
    """Whether the files that were read are still those whose headers were.

    Raises:
        DamagedTensorError: one was replaced meanwhile, and what was written is of two checkpoints.
    """
    changed = [
        path.name
        for path, key in source_keys(job.source_files).items()
        if job.shards.identity(path) != job.identity[key]
    ]
    if changed:
        raise DamagedTensorError(
            f"{job.source} changed while it was converted",
            found=f"{len(changed)} files of another size or time, first {changed[0]}",
            hint="Wait until the download or the copy is complete, then convert it again.",
        )


def _write_tensors(
    job: Job,
    partial: PartialOutput,
    threads: int,
    spent: Tally,
    progress: Callable[[Progress], None] | None,
) -> float:
    """Convert what is not done yet; the share of the source that was."""
    for name, data in job.computed.items():
        place = job.outputs[name]
        partial.write(place.part, place.offset, data)
    skipped = partial.slabs_done
    total = job.source_bytes
    before = done = sum(slab.source_bytes for slab in job.slabs[:skipped])

    def on_slab(slab: Slab) -> None:
        nonlocal done
        done += slab.source_bytes
        if progress is not None:
            progress(Progress(done, total, slab.shares[0].output.name, before))

    run_pipeline(
        job.slabs[skipped:],
        job.shards,
        partial,
        threads=threads,
        seconds=spent,
        on_slab=on_slab,
    )
    return before / total


def _report(
    job: Job,
    *,
    resumed_at: float = 0.0,
    seconds: float | None = None,
    spent: Tally | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """What was done, or where `seconds` is None what would be."""
    counted = spent or Tally()
    rounded = rounded_notes(counted.rounded, resumed=resumed_at > 0)
    tensors = [
        TensorSummary(
            name=assigned.tensor.name,
            role=role_of(assigned.tensor.name),
            shape=assigned.tensor.shape,
            type=assigned.type.name,
            bytes=assigned.type.nbytes(assigned.tensor.shape),
        )
        for assigned in job.assignments
    ]
    return Report(
        source=str(job.source),
        output=str(job.parts[0].path),
        outputs=tuple(str(part.path) for part in job.parts),
        projector=next((str(part.path) for part in job.projector), None),
        recipe=job.recipe,
        dry_run=seconds is None,
        bytes=sum(part.nbytes for part in job.parts),
        source_bytes=job.source_bytes,
        parameters=sum(tensor.parameters for tensor in tensors),
        resumed_at=resumed_at,
        seconds=seconds or 0.0,
        roles=summarize_roles(tensors),
        stage_seconds=_by_role(counted),
        fallbacks=tuple(
            Fallback(assigned.tensor.name, assigned.wanted.name, assigned.type.name)
            for assigned in job.assignments
            if assigned.wanted is not None
        ),
        left_out=job.left_out,
        notes=(*job.notes, *rounded, *notes),
        layout=job.layout,
        importance=job.importance,
    )


def _by_role(spent: Tally) -> dict[str, dict[str, float]]:
    """Role to stage to seconds."""
    roles: dict[str, dict[str, float]] = {}
    for name, stages in spent.by_tensor().items():
        totals = roles.setdefault(role_of(name), dict.fromkeys(Tally.STAGES, 0.0))
        for stage, value in stages.items():
            totals[stage] += value
    return roles
