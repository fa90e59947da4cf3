"""What a file holds, whatever kind of file it is: `llama4_edge.inspect`.

Joins the rooms that read a GGUF, a checkpoint, a session and activation statistics. Promises to
read headers, what was said in a session, and statistics, unless it is asked to check. Knows no
format itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, ModelFileError, SessionError, SettingError
from .ranges import as_path, check_callback, check_flag

if TYPE_CHECKING:
    from .chat.session import SessionSummary
    from .progress import Progress
    from .quant.importance_summary import ImportanceSummary
    from .quant.summary import FileSummary
    from .runtime.files.damage import Damage
    from .runtime.files.gguf_file import GGUFFile

MAX_DAMAGE = 100
"""Faults of tensors that are listed one by one."""


@dataclass(frozen=True)
class Inspection:
    """What a GGUF, a checkpoint, a session or activation statistics hold.

    ``damage`` is what is wrong with its tensors and parts, empty where nothing is; None where
    nobody looked. ``session`` is what a session holds, and ``importance`` what statistics do, whose
    ``summary`` is empty; None for others.
    """

    summary: FileSummary
    damage: tuple[Damage, ...] | None
    session: SessionSummary | None = None
    importance: ImportanceSummary | None = None

    @property
    def damaged(self) -> bool:
        """Whether a damage was found that is certain."""
        return any(fault.certain for fault in self.damage or ())

    def as_dict(self) -> dict[str, Any]:
        """The summary's fields, and ``damage`` where it was looked for; ready for JSON."""
        record = (self.session or self.importance or self.summary).as_dict()
        if self.damage is not None:
            record["damage"] = [fault.as_dict() for fault in self.damage]
        return record


def inspect(
    path: str | os.PathLike[str],
    *,
    check: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Inspection:
    """Say what a GGUF, a checkpoint directory, a session or activation statistics hold.

    Args:
        path: a GGUF, any part of one that is split, a checkpoint directory, a session, or what
            `calibrate` or llama-imatrix wrote, in either form.
        check: read every tensor of a GGUF, of all its parts, or all of a session, and find damage;
            and whether the parts are those of one whole model. A truncated file is then described
            instead of refused.
        progress: called with the bytes read so far while `check` reads.

    Raises:
        CheckpointError: the directory is not a whole checkpoint, or `path` is one of its files.
        ModelFileError: the file is not a GGUF, is truncated, or is of another architecture;
            statistics are damaged.
        SessionError: the conversation in a session is damaged.
        SettingError: `check` for a checkpoint.
        EngineError: llama.cpp's library does not load.
    """
    path = Path(as_path("path", path))
    check_callback("progress", progress)
    check_flag("check", check)
    if is_checkpoint(path):
        if check:
            raise SettingError(
                "check reads a GGUF",
                found=f"the directory {path}",
                hint="A checkpoint is checked as it is converted.",
            )
        from .convert.converter import inspect_checkpoint

        return Inspection(inspect_checkpoint(path), None)
    from .runtime.files.session_file import is_session

    if is_session(path):
        return _session(path, progress, check=check)
    from .quant.importance_file import is_importance

    if is_importance(path):
        return _statistics(path, check=check)
    gguf = gguf_header(path, whole=not check)
    return Inspection(_gguf_summary(gguf), _damage(gguf, progress) if check else None)


def _session(path: Path, progress: Callable[[Progress], None] | None, *, check: bool) -> Inspection:
    from .chat.session import SessionSummary
    from .quant.summary import FileSummary
    from .runtime.files.damage import Damage
    from .runtime.files.session_file import SessionFile

    with SessionFile(path) as file:
        session = SessionSummary.of(file)
        fault = file.fault
        if fault is None and check:
            try:
                file.read_state(progress)
            except SessionError as error:
                fault = error
    damage = None if fault is None else (Damage(None, str(path), 0, str(fault)),)
    return Inspection(
        FileSummary(str(path), "session", {}, (), ()), damage or (() if check else None), session
    )


def _statistics(path: Path, *, check: bool) -> Inspection:
    from .quant.importance_file import read_importance
    from .quant.importance_summary import ImportanceSummary
    from .quant.summary import FileSummary

    importance = ImportanceSummary.of(read_importance(path))
    summary = FileSummary(str(path), "imatrix", {}, (), ())
    # (What is damaged was refused.)
    return Inspection(summary, () if check else None, importance=importance)


def is_checkpoint(path: Path) -> bool:
    """Whether it is a directory, and not one that has GGUFs instead of a checkpoint."""
    from .runtime.files.foreign import has_models

    if not path.is_dir():
        return False
    is_one = (path / "config.json").exists() or any(path.glob("*.safetensors"))
    return is_one or not has_models(path)


def gguf_header(file: Path, *, whole: bool) -> GGUFFile:
    """The header of a GGUF of a Llama 4: a text model, a part of one, or a projector.

    Raises:
        CheckpointError: it is a file of a checkpoint.
        ModelFileError: it is no such GGUF, or with `whole` ends before its tensors do.
        EngineError: llama.cpp's library does not load.
    """
    if file.suffix == ".safetensors":
        raise CheckpointError(
            f"{file} is one file of a checkpoint",
            hint=f"Give its directory: llama4 inspect {file.parent}",
        )
    from .runtime.files.gguf_file import read_gguf
    from .runtime.files.model_file import check_architecture

    gguf = read_gguf(file, whole=whole)
    # A projector and the later parts of a model can be inspected too.
    if gguf.metadata.get("general.architecture") != "clip" and not gguf.metadata.get("split.no"):
        check_architecture(gguf)
    return gguf


def _gguf_summary(gguf: GGUFFile) -> FileSummary:
    from .quant.summary import summarize

    # ggml names the contiguous axis first; a summary, like a checkpoint, names it last.
    tensors = (
        (tensor.name, tensor.shape[::-1], tensor.type, tensor.nbytes) for tensor in gguf.tensors
    )
    metadata = {key: plain_value(value) for key, value in gguf.metadata.items()}
    return summarize(str(gguf.path), "gguf", metadata, tensors)


def plain_value(value: object) -> object:
    """A value of metadata, ready for JSON, which has no infinities and no NaN."""
    from .gguf_header import LongArray

    if isinstance(value, LongArray):
        return value.as_dict()
    if isinstance(value, tuple) and value and isinstance(value[0], float):
        finite = all(map(math.isfinite, value))
        return value if finite else tuple(plain_value(item) for item in value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _damage(gguf: GGUFFile, progress: Callable[[Progress], None] | None) -> tuple[Damage, ...]:
    """What is wrong with a GGUF; where it is one of several parts, with them all."""
    from .runtime.files.damage import Damage, find_damage
    from .runtime.files.split import read_parts

    parts, faults = read_parts(gguf, whole=False)
    damage = [Damage(None, str(gguf.path), 0, str(fault)) for fault in faults]
    damage += [fault for part in parts if (fault := _bytes_after(part))]
    if not faults:
        damage += _missing(parts)
    tensors = [
        (tensor.name, tensor.type, part.path, tensor.offset, tensor.nbytes)
        for part in parts
        for tensor in part.tensors
    ]
    return (*damage, *_bounded(find_damage(tensors, progress=progress)))


def _bytes_after(part: GGUFFile) -> Damage | None:
    """What follows the last tensor of a file, where that is more than padding."""
    from .runtime.files.damage import Damage
    from .runtime.files.gguf_file import bytes_after_tensors, gguf_begins_at

    count = bytes_after_tensors(part)
    if not count:
        return None
    offset = part.size - count
    what = f"{count:,} bytes after the last tensor"
    if gguf_begins_at(part.path, offset):
        what += ": another GGUF begins there, as where parts were put together with cat"
    return Damage(None, str(part.path), offset, f"{part.path} has {what}")


def _missing(parts: Sequence[GGUFFile]) -> list[Damage]:
    """Why parts that are sound each, and belong together, are no whole model or projector."""
    from .runtime.files.damage import Damage
    from .runtime.files.model_file import check_parts
    from .runtime.files.projector_file import PROJECTOR_TYPE, check_projector, projector_type

    kind = parts[0].metadata.get("general.architecture")
    try:
        if kind == "llama4":
            check_parts(parts, needs_tokenizer=False)
        elif projector_type(parts[0]) == PROJECTOR_TYPE:
            check_projector(parts[0])
    except ModelFileError as error:
        return [Damage(None, str(parts[0].path), 0, str(error))]
    return []


def _bounded(damage: list[Damage]) -> list[Damage]:
    """The first of what is wrong with tensors, and in how many more something is."""
    from .runtime.files.damage import Damage

    rest = damage[MAX_DAMAGE:]
    if not rest:
        return damage
    certain = any(fault.certain for fault in rest)
    what = f"{len(rest):,} more faults of tensors, the next in {rest[0].tensor}"
    return [*damage[:MAX_DAMAGE], Damage(None, rest[0].file, rest[0].offset, what, certain)]
