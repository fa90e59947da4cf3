"""Which room reads a file that a person named. Knows no format itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, ModelFileError

if TYPE_CHECKING:
    from ..quant import FileSummary
    from ..runtime.files.damage import Checked, Damage

_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")


def summary_of(file: Path, *, whole: bool = True) -> FileSummary:
    """What a GGUF or a checkpoint directory holds; without `whole`, a GGUF may be cut off.

    Raises:
        CheckpointError: the directory is no whole checkpoint, or `file` is one of its parts.
        ModelFileError: the file is no GGUF, or not a whole one, or of another architecture.
    """
    if file.is_dir():
        from ..convert import inspect_checkpoint

        return inspect_checkpoint(file)
    if file.suffix == ".safetensors":
        raise CheckpointError(
            f"{file} is one file of a checkpoint",
            hint=f"Give its directory: llama4 inspect {file.parent}",
        )
    from ..quant import summarize
    from ..runtime.files.gguf_file import read_gguf
    from ..runtime.files.model_file import check_architecture

    gguf = read_gguf(file, whole=whole)
    # A projector and the later parts of a model are for looking at, too.
    if gguf.metadata.get("general.architecture") != "clip" and not gguf.metadata.get("split.no"):
        check_architecture(gguf)
    # ggml names the contiguous axis first; a summary, like a checkpoint, names it last.
    tensors = ((one.name, one.shape[::-1], one.type, one.nbytes) for one in gguf.tensors)
    return summarize(str(file), "gguf", gguf.metadata, tensors)


def damage_of(file: Path, progress: Callable[[Checked], None] | None) -> list[Damage]:
    """What is wrong with the tensors of a GGUF; where it is one of several parts, of them all.

    Raises:
        ModelFileError: the file is no GGUF.
    """
    from ..runtime.files.damage import Damage, find_damage
    from ..runtime.files.gguf_file import read_gguf

    tensors, damage = [], []
    for part in _parts(file):
        try:
            header = read_gguf(part, whole=False)
        except ModelFileError as error:
            if part == file:
                raise
            damage.append(Damage(None, str(part), 0, str(error)))
            continue
        tensors += [(one.name, one.type, part, one.offset, one.nbytes) for one in header.tensors]
    return damage + find_damage(tensors, progress=progress)


def _parts(file: Path) -> list[Path]:
    """The file, or all the parts of the model of which its name says it is one."""
    match = _PART.fullmatch(file.name)
    if match is None:
        return [file]
    stem, count = match["stem"], match["count"]
    return [
        file.with_name(f"{stem}-{number:05d}-of-{count}.gguf")
        for number in range(1, int(count) + 1)
    ]
