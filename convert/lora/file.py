"""A PEFT adapter becomes the GGUF that llama.cpp takes with ``--lora``.

Promises what `..converter` promises of a model: everything is checked before anything is written,
and the file gets its name when it is whole. Nothing that the adapter does is left out without a
word: what llama.cpp cannot apply is refused by name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from ..._version import __version__
from ...errors import DamagedTensorError, UnsupportedError
from ...progress import Progress
from ...quant import Assignment, TensorSpec, TensorSummary, TensorType, role_of
from ...quant.encode import Floats
from ...quant.summary import summarize_roles
from ...quant.types import BF16, F16, F32
from ...ranges import check_choice
from ...untrusted import brief
from ..gguf_writer import GGUFWriter
from ..job import target_file
from ..numbers import encode_stored
from ..output import PartialOutput
from ..part_layout import Part, plan_parts
from ..report import Report
from ..slabs import Output
from ..target import check_target, room_shortage
from .adapter import Adapter, open_adapter, read
from .base import Base, base_of
from .deltas import Deltas, read_deltas
from .factors import Factors, common_alpha, factors_of

OUT_TYPES = {"f32": F32, "f16": F16, "bf16": BF16}
DEFAULT_OUT_TYPE = "f32"
# llama.cpp's numbers for files of one type (``llama_ftype``).
_FILE_TYPES = {F32: 0, F16: 1, BF16: 32}
_MERGE = "Merge it instead: llama4 convert BASE --merge-lora ADAPTER"


@dataclass(frozen=True)
class _Job:
    """An adapter's file, planned."""

    adapter: Adapter
    base: Base
    factors: list[Factors]
    alpha: float
    part: Part
    outputs: dict[str, Output]
    notes: tuple[str, ...]


def run(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None,
    *,
    base: str | None,
    outtype: str | None,
    revision: str | None,
    force: bool,
    dry_run: bool,
    progress: Callable[[Progress], None] | None,
    find_base: Callable[[str], Base],
    check_header: Callable[[Path, Part], None],
) -> Report:
    """What `llama4_edge.convert_lora` describes.

    Args:
        find_base: the shapes of the model that `base` names.
        check_header: is given the adapter's path and the planned file, and raises an error where it
            could not be opened.
    """
    started = time.monotonic()
    name = DEFAULT_OUT_TYPE if outtype is None else outtype
    check_choice("outtype", name, tuple(OUT_TYPES))
    adapter = open_adapter(source, revision=revision)
    found = base_of(adapter, find_base) if base is None else find_base(base)
    job = _prepare(adapter, found, OUT_TYPES[name], output)
    check_header(adapter.path, job.part)
    if dry_run:
        shortage = room_shortage([job.part], None, encodes=False)
        return _report(job, name, seconds=None, notes=[str(shortage)] if shortage else [])
    check_target(
        [job.part],
        source=adapter.path,
        beside=[Path(found.name)],
        force=force,
        sources=None,
        encodes=False,
    )
    _write(job, force=force, progress=progress)
    return _report(job, name, seconds=time.monotonic() - started)


def _prepare(
    adapter: Adapter, base: Base, tensor_type: TensorType, output: str | os.PathLike[str] | None
) -> _Job:
    """Plan the file.

    Raises:
        CheckpointError: the adapter is of another model, or damaged.
        UnsupportedError: llama.cpp cannot apply all of it.
        OutputError: `output` cannot be the name of a file.
    """
    deltas = read_deltas(adapter, base)
    notes = _check_applicable(adapter, deltas)
    factors = factors_of(deltas.deltas)
    alpha = common_alpha(factors)
    assignments = [
        Assignment(TensorSpec(f"{it.target.name}.{suffix}", shape), tensor_type)
        for it in factors
        for suffix, shape in zip(("lora_a", "lora_b"), it.shapes, strict=True)
    ]
    writer = GGUFWriter()
    _write_metadata(writer, adapter, base, alpha, tensor_type)
    target = target_file(output, f"{adapter.name}-{tensor_type.name.lower()}.gguf")
    (part,), outputs = plan_parts(writer, assignments, target, None)
    ranks = sorted({delta.rank for it in factors for delta in it.deltas})
    notes.insert(0, f"held against {base.name}; rank {', '.join(map(str, ranks))}, alpha {alpha:g}")
    return _Job(adapter, base, factors, alpha, part, outputs, tuple(notes))


def _check_applicable(adapter: Adapter, deltas: Deltas) -> list[str]:
    """Refuse what llama.cpp cannot apply; what has no effect is left out, with a note.

    Raises:
        UnsupportedError: names the first tensor of those.
    """
    if deltas.replaced:
        stored = next(iter(deltas.replaced.values()))
        raise UnsupportedError(
            f"{adapter.path} replaces tensors of the model, which llama.cpp's adapters cannot",
            found=f"{len(deltas.replaced)} of them (modules_to_save), first {brief(stored.name)}",
            hint=_MERGE,
        )
    for pair in deltas.vision.values():
        if np.any(read(pair.b)) and np.any(read(pair.a)):
            raise UnsupportedError(
                f"{adapter.path} changes the vision tower, to which llama.cpp applies no adapter",
                found=f"{len(deltas.vision)} of its matrices, first {brief(pair.module)}",
                hint=_MERGE,
            )
    notes = []
    if deltas.vision:
        notes.append(f"{len(deltas.vision)} pairs of the vision tower were left out: they are zero")
    if not deltas.deltas:
        raise UnsupportedError(f"{adapter.path} changes nothing in the text model")
    if deltas.unused:
        notes.append(
            f"{deltas.unused[0]} was left out: it repeats the base, of which it must be unchanged"
        )
    return notes


def _write_metadata(
    writer: GGUFWriter, adapter: Adapter, base: Base, alpha: float, tensor_type: TensorType
) -> None:
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(_as_text(adapter.name))
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, _as_text(adapter.settings.base or base.name))
    writer.add_file_type(_FILE_TYPES[tensor_type])
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)


def _as_text(name: str) -> str:
    """A name in Unicode and without NUL, whatever its bytes are."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text.replace("\0", "")[:1000]


def _write(job: _Job, *, force: bool, progress: Callable[[Progress], None] | None) -> None:
    """Fill the file, tensor by tensor.

    Raises:
        DamagedTensorError: a number is NaN, infinite, or too large for the type.
        OutputError: the disk is full, or fails.
    """
    total = sum(output.type.nbytes(output.shape) for output in job.outputs.values())
    done = 0
    identity = {"llama4-edge": __version__}
    with PartialOutput([job.part], identity, force=force) as partial:
        for it in job.factors:
            for suffix, numbers in zip(
                ("lora_a", "lora_b"), it.numbers(read, job.alpha), strict=True
            ):
                output = job.outputs[f"{it.target.name}.{suffix}"]
                data = _encoded(numbers, output, it)
                partial.write(output.part, output.offset, data)
                done += len(data)
                if progress is not None:
                    progress(Progress(done, total, output.name, 0))


def _encoded(numbers: Floats, output: Output, factors: Factors) -> memoryview:
    place = np.empty(output.type.nbytes(output.shape), np.uint8)
    try:
        encode_stored(numbers.reshape(-1, numbers.shape[-1]), output.type, place)
    except ValueError as error:
        raise DamagedTensorError(
            f"{brief(factors.deltas[0].pair.b.name)} cannot be converted",
            found=str(error),
            hint="Choose a type of a larger range: outtype=f32",
        ) from None
    return place.data


def _report(job: _Job, outtype: str, *, seconds: float | None, notes: Sequence[str] = ()) -> Report:
    """What was done, or where `seconds` is None what would be."""
    tensors = [
        TensorSummary(
            name=output.name,
            role=role_of(output.name),
            shape=output.shape,
            type=output.type.name,
            bytes=output.type.nbytes(output.shape),
        )
        for output in job.outputs.values()
    ]
    stored = {
        half.name: half for it in job.factors for d in it.deltas for half in (d.pair.a, d.pair.b)
    }
    return Report(
        source=str(job.adapter.path),
        output=str(job.part.path),
        outputs=(str(job.part.path),),
        projector=None,
        recipe=outtype,
        dry_run=seconds is None,
        bytes=job.part.nbytes,
        source_bytes=sum(half.nbytes for half in stored.values()),
        parameters=sum(tensor.parameters for tensor in tensors),
        resumed_at=0.0,
        seconds=seconds or 0.0,
        roles=summarize_roles(tensors),
        stage_seconds={},
        fallbacks=(),
        left_out=tuple(sorted(job.adapter.tensors.keys() - stored.keys())),
        notes=(*job.notes, *notes),
    )
