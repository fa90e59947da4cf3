"""Which room reads a file that a person named. Knows no format itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError

if TYPE_CHECKING:
    from ..quant import FileSummary


def summary_of(file: Path) -> FileSummary:
    """What a GGUF or a checkpoint directory holds.

    Raises:
        CheckpointError: the directory is no whole checkpoint, or `file` is one of its parts.
        ModelFileError: the file is not a whole GGUF.
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
    from ..runtime.gguf_file import read_gguf

    gguf = read_gguf(file)
    # ggml names the contiguous axis first; a summary, like a checkpoint, names it last.
    tensors = ((one.name, one.shape[::-1], one.type, one.nbytes) for one in gguf.tensors)
    return summarize(str(file), "gguf", gguf.metadata, tensors)
