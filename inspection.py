"""What a model file holds, whatever kind of file it is: `llama4_edge.inspect`.

Joins the rooms that read a GGUF and a checkpoint. Promises to read headers only, unless it is asked
to check. Knows no format itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, ModelFileError, SettingError
from .parts import part_named

if TYPE_CHECKING:
    from .progress import Progress
    from .quant.summary import FileSummary
    from .runtime.files.damage import Damage


@dataclass(frozen=True)
class Inspection:
    """What a GGUF or a checkpoint holds.

    ``damage`` is what is wrong with its tensors, empty where nothing is; None where nobody looked.
    """

    summary: FileSummary
    damage: tuple[Damage, ...] | None

    @property
    def damaged(self) -> bool:
        """Whether a damage was found that is certain."""
        return any(fault.certain for fault in self.damage or ())

    def as_dict(self) -> dict[str, Any]:
        """The summary's fields, and ``damage`` where it was looked for; ready for JSON."""
        record = self.summary.as_dict()
        if self.damage is not None:
            record["damage"] = [fault.as_dict() for fault in self.damage]
        return record


def inspect(
    path: str | os.PathLike[str],
    *,
    check: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Inspection:
    """Say what a GGUF or a checkpoint directory holds.

    Args:
        path: a GGUF, any part of one that is split, or a checkpoint directory.
        check: read every tensor of a GGUF, of all its parts, and find damage. A truncated file
            is then described instead of refused.
        progress: called with the bytes read so far while `check` reads.

    Raises:
        CheckpointError: the directory is not a whole checkpoint, or `path` is one of its files.
        ModelFileError: the file is not a GGUF, is truncated, or is of another architecture.
        SettingError: `check` for a checkpoint.
        EngineError: llama.cpp's library does not load.
    """
    path = Path(path)
    if path.is_dir():
        if check:
            raise SettingError(
                "check reads a GGUF",
                found=f"the directory {path}",
                hint="A checkpoint is checked as it is converted.",
            )
        from .convert.converter import inspect_checkpoint

        return Inspection(inspect_checkpoint(path), None)
    summary = _gguf_summary(path, whole=not check)
    return Inspection(summary, _damage(path, progress) if check else None)


def _gguf_summary(file: Path, *, whole: bool) -> FileSummary:
    if file.suffix == ".safetensors":
        raise CheckpointError(
            f"{file} is one file of a checkpoint",
            hint=f"Give its directory: llama4 inspect {file.parent}",
        )
    from .quant.summary import summarize
    from .runtime.files.gguf_file import read_gguf
    from .runtime.files.model_file import check_architecture

    gguf = read_gguf(file, whole=whole)
    # A projector and the later parts of a model can be inspected too.
    if gguf.metadata.get("general.architecture") != "clip" and not gguf.metadata.get("split.no"):
        check_architecture(gguf)
    # ggml names the contiguous axis first; a summary, like a checkpoint, names it last.
    tensors = (
        (tensor.name, tensor.shape[::-1], tensor.type, tensor.nbytes) for tensor in gguf.tensors
    )
    return summarize(str(file), "gguf", gguf.metadata, tensors)


def _damage(file: Path, progress: Callable[[Progress], None] | None) -> tuple[Damage, ...]:
    """What is wrong with the tensors of a GGUF; where it is one of several parts, of them all."""
    from .runtime.files.damage import Damage, find_damage
    from .runtime.files.gguf_file import read_gguf

    tensors, damage = [], []
    for part in _parts(file):
        try:
            header = read_gguf(part, whole=False)
        except ModelFileError as error:
            if part == file:
                raise
            damage.append(Damage(None, str(part), 0, str(error)))
            continue
        tensors += [
            (tensor.name, tensor.type, part, tensor.offset, tensor.nbytes)
            for tensor in header.tensors
        ]
    return (*damage, *find_damage(tensors, progress=progress))


def _parts(file: Path) -> list[Path]:
    """The file, or all the parts of the model of which its name says it is one."""
    name = part_named(file.name)
    return [file.with_name(str(part)) for part in name.siblings()] if name else [file]
