"""A Hugging Face Llama 4 checkpoint becomes a GGUF, in one pass.

`convert` reads top-down as the job: open, check, name, type, describe, check the target, write.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from ..quant import (
    Assignment,
    FileSummary,
    Recipe,
    TensorSpec,
    TensorSummary,
    TensorType,
    assign_types,
    recipe_named,
    role_of,
    summarize,
    type_named,
)
from ..quant.summary import summarize_roles
from .checkpoint import Checkpoint, open_checkpoint
from .config import ModelConfig, parse_config
from .metadata import ROPE_FREQS, rope_factors, write_metadata
from .names import MappedTensor, plan_tensors, vision_tensors
from .output import build_header, check_target, place_tensors, room_shortage, write_whole
from .pipeline import Output, Slab, run_pipeline, slabs_of
from .report import Fallback, Progress, Report
from .tokenizer import Vocabulary, read_vocabulary

DEFAULT_RECIPE = "int4"


@dataclass(frozen=True)
class _Plan:
    """Everything that is known once the headers are read."""

    checkpoint: Checkpoint
    config: ModelConfig
    recipe: Recipe
    mapped: list[MappedTensor]
    assignments: list[Assignment]
    header: bytes
    outputs: dict[str, Output]
    nbytes: int
    left_out: list[str]
    notes: tuple[str, ...]


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    recipe: str = DEFAULT_RECIPE,
    types: Sequence[tuple[str, str]] = (),
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Convert the checkpoint in the directory `source` to the GGUF file `output`.

    Everything is checked, from the headers alone, before anything is written. The file gets its
    name only when it is whole; whatever stops the conversion leaves nothing behind.

    Args:
        source: directory with config.json, tokenizer.json and the safetensors.
        output: file to write, or a directory to write it into; by default
            ``<source's name>-<recipe>.gguf`` in the current directory.
        recipe: one of `llama4_edge.RECIPES`.
        types: (regex, type name) pairs that decide before the recipe, the first match first.
        force: replace an existing `output`.
        dry_run: check and plan everything, write nothing; too small a disk is a note then.
        threads: encoders that work at the same time; by default one for each core.
        progress: called after each slab with the bytes read so far.

    Returns:
        What was written, by role.

    Raises:
        CheckpointError: the checkpoint is not whole.
        UnsupportedError: it is whole, and llama.cpp could not run it.
        VocabularyError: llama.cpp would read the tokenizer differently.
        RecipeError: no such recipe or type, or an override that fits no tensor.
        OutputError: the target exists, its disk is too small, or writing failed.
    """
    started = time.monotonic()
    checkpoint = open_checkpoint(source)
    plan = _plan(
        checkpoint, recipe_named(recipe), [(regex, type_named(name)) for regex, name in types]
    )
    target = _target(checkpoint, output, plan.recipe)
    if dry_run:
        shortage = room_shortage(target, plan.nbytes) if target.parent.is_dir() else None
        return _report(plan, target, seconds=None, notes=[str(shortage)] if shortage else [])
    check_target(target, nbytes=plan.nbytes, force=force)
    workers = threads or os.cpu_count() or 1
    write_whole(
        target,
        plan.header,
        plan.nbytes,
        lambda descriptor: _write_tensors(plan, descriptor, workers, progress),
    )
    return _report(plan, target, seconds=time.monotonic() - started)


def inspect_checkpoint(source: str | os.PathLike[str]) -> FileSummary:
    """What the checkpoint in the directory `source` holds, by the names tensors get in a GGUF.

    Raises:
        CheckpointError: the checkpoint is not whole, or not one llama.cpp can run.
    """
    checkpoint = open_checkpoint(source)
    config = parse_config(checkpoint.config)
    tensors = []
    for mapped in plan_tensors(config, checkpoint.tensors):
        share = mapped.stored.nbytes // len(mapped.targets)
        tensors += [(to.name, to.shape, mapped.stored.dtype, share) for to in mapped.targets]
    left_out = (checkpoint.tensors[name] for name in vision_tensors(config, checkpoint.tensors))
    tensors += [(stored.name, stored.shape, stored.dtype, stored.nbytes) for stored in left_out]
    return summarize(str(checkpoint.path), "checkpoint", checkpoint.config, tensors)


def _plan(
    checkpoint: Checkpoint, recipe: Recipe, overrides: Sequence[tuple[str, TensorType]]
) -> _Plan:
    config = parse_config(checkpoint.config)
    mapped = plan_tensors(config, checkpoint.tensors)
    vocabulary = read_vocabulary(checkpoint, config)
    specs = [TensorSpec(to.name, to.shape) for tensor in mapped for to in tensor.targets]
    factors = rope_factors(config)
    if factors is not None:
        specs.insert(0, TensorSpec(ROPE_FREQS, factors.shape))
    assignments = assign_types(
        recipe, specs, n_layer=config.n_layer, n_expert=config.n_expert, overrides=overrides
    )
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA4])
    write_metadata(writer, checkpoint, config, vocabulary, recipe, specs)
    header = build_header(writer, assignments)
    outputs, nbytes = place_tensors(header, assignments)
    return _Plan(
        checkpoint=checkpoint,
        config=config,
        recipe=recipe,
        mapped=mapped,
        assignments=assignments,
        header=header,
        outputs={output.name: output for output in outputs},
        nbytes=nbytes,
        left_out=vision_tensors(config, checkpoint.tensors),
        notes=(*config.notes, *_notes(mapped, vocabulary)),
    )


def _notes(mapped: Sequence[MappedTensor], vocabulary: Vocabulary) -> list[str]:
    """What was decided without being asked for."""
    notes = []
    rounded = sorted({tensor.stored.dtype for tensor in mapped} - {"BF16"})
    if rounded:
        notes.append(f"weights stored as {', '.join(rounded)} are rounded to bf16 first")
    if vocabulary.chat_template is None:
        notes.append("the checkpoint has no chat template: a base model, which `chat` will refuse")
    return notes


def _target(checkpoint: Checkpoint, output: str | os.PathLike[str] | None, recipe: Recipe) -> Path:
    """The file to write."""
    name = f"{checkpoint.path.resolve().name}-{recipe.name}.gguf"
    if output is None:
        return Path(name)
    target = Path(output)
    return target / name if target.is_dir() else target


def _write_tensors(
    plan: _Plan, descriptor: int, threads: int, progress: Callable[[Progress], None] | None
) -> None:
    factors = rope_factors(plan.config)
    if factors is not None:
        os.pwrite(descriptor, factors.astype(np.float32).tobytes(), plan.outputs[ROPE_FREQS].offset)
    slabs = (
        slab
        for tensor in plan.mapped
        for slab in slabs_of(
            tensor.stored,
            [plan.outputs[to.name] for to in tensor.targets],
            experts=tensor.experts,
        )
    )
    total = sum(tensor.stored.nbytes for tensor in plan.mapped)
    done = 0

    def on_slab(slab: Slab) -> None:
        nonlocal done
        done += slab.source_bytes
        if progress is not None:
            progress(Progress(done, total, slab.output.name))

    run_pipeline(slabs, descriptor, threads=threads, on_slab=on_slab)


def _report(
    plan: _Plan, target: Path, *, seconds: float | None, notes: Sequence[str] = ()
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
        for assigned in plan.assignments
    ]
    return Report(
        source=str(plan.checkpoint.path),
        output=str(target),
        recipe=plan.recipe.name,
        dry_run=seconds is None,
        bytes=plan.nbytes,
        source_bytes=sum(tensor.stored.nbytes for tensor in plan.mapped),
        parameters=sum(tensor.parameters for tensor in tensors),
        seconds=seconds or 0.0,
        roles=summarize_roles(tensors),
        fallbacks=tuple(
            Fallback(assigned.tensor.name, assigned.wanted.name, assigned.type.name)
            for assigned in plan.assignments
            if assigned.wanted is not None
        ),
        left_out=tuple(plan.left_out),
        notes=(*plan.notes, *notes),
    )
