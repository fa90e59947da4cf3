"""A Hugging Face Llama 4 checkpoint becomes a GGUF, in one pass.

`run` reads top-down as the job: open, check, name, type, describe, check the target, write.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._version import __version__
from ..errors import CheckpointError, DamagedTensorError, OutputError, did_you_mean
from ..hub.names import parse_hub_name
from ..progress import Progress
from ..quant import (
    Assignment,
    FileSummary,
    Recipe,
    TensorSummary,
    TensorType,
    recipe_named,
    role_of,
    summarize,
    type_overrides,
)
from ..quant.encode import encoder_version
from ..quant.summary import summarize_roles
from ..ranges import check_whole
from ..system.cores import usable_threads
from . import fp8
from .checkpoint import Checkpoint, open_checkpoint
from .directories import cached_repository, is_listed
from .layout import lay_out
from .metadata import ROPE_FREQS, rope_factors
from .output import (
    Part,
    PartialOutput,
    finish_interrupted,
    header_digest,
    plan_parts,
)
from .pipeline import StageSeconds, run_pipeline
from .presets import PRESETS
from .report import Fallback, Report
from .slabs import ROW_SLAB_BYTES, SLAB_BYTES, Output, Slab, slabs_of
from .target import check_target, room_shortage
from .text_model import MappedTensor, TextModel, read_text_model
from .tokenizer import Vocabulary, read_vocabulary


@dataclass(frozen=True)
class _Job:
    """Everything that is known once the headers are read."""

    checkpoint: Checkpoint
    model: TextModel
    recipe: Recipe
    assignments: list[Assignment]
    parts: list[Part]
    outputs: dict[str, Output]
    slabs: list[Slab]
    identity: dict[str, str]
    notes: tuple[str, ...]

    @property
    def shards(self) -> list[Path]:
        """The shards that are converted, in order."""
        return list(dict.fromkeys(slab.stored.file for slab in self.slabs))

    @property
    def source_files(self) -> list[Path]:
        """All files that numbers come from, those of scales included."""
        return _source_files(self.model.tensors)

    @property
    def source_bytes(self) -> int:
        """Bytes of the tensors that are converted, as stored."""
        return sum(tensor.stored.nbytes for tensor in self.model.tensors)


def run(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    *,
    recipe: str,
    types: Sequence[tuple[str, str]],
    split_size: int | None,
    revision: str | None,
    keep_source: bool,
    force: bool,
    dry_run: bool,
    threads: int | None,
    progress: Callable[[Progress], None] | None,
    check_headers: Callable[[Path, Sequence[Part]], None],
) -> Report:
    """The conversion that `llama4_edge.convert` describes.

    Args:
        check_headers: is given the checkpoint's path and the planned parts, and raises an error
            where the file could not be opened.
    """
    started = time.monotonic()
    check_whole("split_size", split_size, 1, or_none=True)
    check_whole("threads", threads, 1, or_none=True)
    chosen = recipe_named(recipe)
    overrides = type_overrides(types)
    checkpoint = _open(source, revision=revision, keep_source=keep_source)
    try:
        job = _prepare(
            checkpoint, chosen, overrides, _target(checkpoint, output, chosen), split_size
        )
        check_headers(checkpoint.path, job.parts)
        if dry_run:
            shortage = room_shortage(job.parts, checkpoint.shards.disk_need(job.shards))
            return _report(job, notes=[str(shortage)] if shortage else [])
        if finish_interrupted(job.parts, job.identity, force=force):
            return _report(job, resumed_at=1.0, seconds=time.monotonic() - started)
        check_target(
            job.parts,
            source=checkpoint.path,
            force=force,
            sources=checkpoint.shards.disk_need(job.shards),
        )
        spent = StageSeconds()
        with PartialOutput(job.parts, job.identity, force=force) as partial:
            before = _write_tensors(job, partial, threads or usable_threads(), spent, progress)
            _check_unchanged(job)
    finally:
        checkpoint.shards.close()
    return _report(job, resumed_at=before, seconds=time.monotonic() - started, spent=spent)


def _open(source: str | os.PathLike[str], *, revision: str | None, keep_source: bool) -> Checkpoint:
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
        to.name: (to.shape, tensor.stored.dtype)
        for tensor in model.tensors
        for to in tensor.targets
    }
    tensors = [(name, *described, nbytes[name]) for name, described in stored_as.items()]
    left_out = (checkpoint.tensors[name] for name in model.left_out)
    tensors += [(stored.name, stored.shape, stored.dtype, stored.nbytes) for stored in left_out]
    return summarize(str(checkpoint.path), "checkpoint", checkpoint.config, tensors)


def _prepare(
    checkpoint: Checkpoint,
    recipe: Recipe,
    overrides: Sequence[tuple[str, TensorType]],
    target: Path,
    split_size: int | None,
) -> _Job:
    model = read_text_model(checkpoint)
    vocabulary = read_vocabulary(checkpoint, model.config)
    layout = lay_out(model.config, recipe, overrides, checkpoint, vocabulary)
    parts, outputs = plan_parts(layout.writer, layout.assignments, target, split_size)
    return _Job(
        checkpoint=checkpoint,
        model=model,
        recipe=recipe,
        assignments=layout.assignments,
        parts=parts,
        outputs=outputs,
        slabs=_slabs(model.tensors, outputs),
        identity=_identity(checkpoint, model.tensors, parts),
        notes=(*model.notes, *_notes(model.tensors, vocabulary)),
    )


def _slabs(mapped: Sequence[MappedTensor], outputs: Mapping[str, Output]) -> list[Slab]:
    """All slabs, shard by shard and in the order of their bytes, so that disks read on."""
    in_order = sorted(mapped, key=lambda tensor: (tensor.stored.file, tensor.stored.offset))
    return [
        slab
        for tensor in in_order
        for slab in slabs_of(
            tensor.stored,
            [outputs[to.name] for to in tensor.targets],
            experts=tensor.experts,
            expert=tensor.expert,
            scale=tensor.scale,
        )
    ]


def _identity(
    checkpoint: Checkpoint, mapped: Sequence[MappedTensor], parts: Sequence[Part]
) -> dict[str, str]:
    """What must be the same for a conversion to go on where another stopped.

    The header holds all that recipe, overrides, config and tokenizer decide.
    """
    return {
        "llama4-edge": __version__,
        "ggml": encoder_version(),
        "slab sizes": f"{SLAB_BYTES}, {ROW_SLAB_BYTES}",
        "recipe, types, config or tokenizer": header_digest(parts),
        **{file.name: checkpoint.shards.identity(file) for file in _source_files(mapped)},
    }


def _source_files(mapped: Sequence[MappedTensor]) -> list[Path]:
    stored = {part for tensor in mapped for part in (tensor.stored, tensor.scale) if part}
    return sorted({tensor.file for tensor in stored})


def _check_unchanged(job: _Job) -> None:
    """Whether the shards that were read are still those whose headers were.

    Raises:
        DamagedTensorError: one was replaced meanwhile, and what was written is of two checkpoints.
    """
    shards = job.checkpoint.shards
    changed = [
        path.name for path in job.source_files if shards.identity(path) != job.identity[path.name]
    ]
    if changed:
        raise DamagedTensorError(
            f"{job.checkpoint.path} changed while it was converted",
            found=f"{len(changed)} shards of another size or time, first {changed[0]}",
            hint="Wait until the download or the copy is complete, then convert it again.",
        )


def _notes(mapped: Sequence[MappedTensor], vocabulary: Vocabulary) -> list[str]:
    """What was decided without being asked for."""
    notes = list(vocabulary.notes)
    if any(tensor.stored.dtype == fp8.DTYPE for tensor in mapped):
        notes.append(f"weights stored as {fp8.DTYPE} are decoded to bf16 first")
    if vocabulary.chat_template is None:
        notes.append("the checkpoint has no chat template: a base model, which `chat` will refuse")
    if vocabulary.further_ends:
        names = ", ".join(vocabulary.tokens[end] for end in vocabulary.further_ends)
        notes.append(f"an answer ends at {names} too, here but not in llama.cpp's own tools")
    return notes


def _target(checkpoint: Checkpoint, output: str | os.PathLike[str] | None, recipe: Recipe) -> Path:
    """The file to write."""
    repository = cached_repository(checkpoint.path)
    model = repository.split("/")[1] if repository else checkpoint.path.resolve().name
    name = f"{model}-{recipe.name}.gguf"
    if output is None:
        return Path(name)
    target = Path(output)
    try:
        nameable = b"\0" not in os.fsencode(target)
    except UnicodeEncodeError:
        nameable = False
    if not nameable:
        raise OutputError(f"{os.fspath(output)!a} cannot be the name of a file")
    # "models/" is a directory, also where there is none.
    is_directory = target.is_dir() or os.fspath(output).endswith(os.sep)
    target = target / name if is_directory else target
    # A link is written through: what it points to is replaced, on the disk where that lies. What
    # /dev/stdout points to has no name.
    leads_on = target.is_symlink() and (target.is_file() or not target.exists())
    return Path(os.path.realpath(target)) if leads_on else target


def _write_tensors(
    job: _Job,
    partial: PartialOutput,
    threads: int,
    spent: StageSeconds,
    progress: Callable[[Progress], None] | None,
) -> float:
    """Convert what is not done yet; the share of the source that was."""
    factors = rope_factors(job.model.config)
    if factors is not None:
        place = job.outputs[ROPE_FREQS]
        partial.write(place.part, place.offset, factors.data.cast("B"))
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
        job.checkpoint.shards,
        partial,
        threads=threads,
        seconds=spent,
        on_slab=on_slab,
    )
    return before / total


def _report(
    job: _Job,
    *,
    resumed_at: float = 0.0,
    seconds: float | None = None,
    spent: StageSeconds | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """What was done, or where `seconds` is None what would be."""
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
        source=str(job.checkpoint.path),
        output=str(job.parts[0].path),
        outputs=tuple(str(part.path) for part in job.parts),
        recipe=job.recipe.name,
        dry_run=seconds is None,
        bytes=sum(part.nbytes for part in job.parts),
        source_bytes=job.source_bytes,
        parameters=sum(tensor.parameters for tensor in tensors),
        resumed_at=resumed_at,
        seconds=seconds or 0.0,
        roles=summarize_roles(tensors),
        stage_seconds=_by_role(spent or StageSeconds()),
        fallbacks=tuple(
            Fallback(assigned.tensor.name, assigned.wanted.name, assigned.type.name)
            for assigned in job.assignments
            if assigned.wanted is not None
        ),
        left_out=job.model.left_out,
        notes=(*job.notes, *notes),
    )


def _by_role(spent: StageSeconds) -> dict[str, dict[str, float]]:
    """Role to stage to seconds."""
    roles: dict[str, dict[str, float]] = {}
    for name, stages in spent.by_tensor().items():
        totals = roles.setdefault(role_of(name), dict.fromkeys(StageSeconds.STAGES, 0.0))
        for stage, value in stages.items():
            totals[stage] += value
    return roles
