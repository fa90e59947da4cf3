"""A GGUF becomes another: `convert` with a GGUF as its source, `split` and `merge`.

Joins the room that reads a GGUF and the one that writes it: headers are read and checked by the code
that opens models, and the planned ones are too, before a byte is written. Promises that importing it
loads neither.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ModelFileError, SettingError
from .ranges import as_path, check_callback, check_flag, check_whole

if TYPE_CHECKING:
    from .convert.from_gguf import GGUFSource
    from .convert.job import Job, Request
    from .convert.output import Part
    from .convert.report import Report
    from .progress import Progress
    from .runtime.files.gguf_file import GGUFFile


def is_gguf(source: str | os.PathLike[str]) -> bool:
    """Whether a GGUF is meant: a file that is called or begins like one."""
    from .runtime.files.gguf_file import MAGIC
    from .system.files import is_file

    path = Path(source)
    if not is_file(path):
        return path.suffix == ".gguf" and not os.path.isdir(path)
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def convert_gguf(
    source: Path,
    output: str | os.PathLike[str] | None,
    request: Request,
    *,
    requantize: bool,
    force: bool,
    dry_run: bool,
    threads: int | None,
    progress: Callable[[Progress], None] | None,
) -> Report:
    """The conversion that `llama4_edge.convert` describes, of a GGUF.

    Args:
        request: for the text model or the projector, whichever the file is.

    Raises:
        ModelFileError: it is neither, or not whole, or the other one was asked for.
        RecipeError: tensors of few bits would be rounded again, without `requantize`.
    """
    from .convert.converter import execute
    from .convert.from_gguf import plan_model, plan_projector
    from .runtime.files.gguf_file import read_gguf
    from .runtime.files.model_file import check_parts
    from .runtime.files.projector_file import check_projector, is_projector

    started = time.monotonic()
    check_whole("threads", threads, 1, or_none=True)
    gguf = read_gguf(source)
    if is_projector(gguf):
        if not request.vision:
            raise _other_kind(source, "a projector alone", "a text model, as vision=False needs")
        model = _source((gguf,))
        job = plan_projector(model, request, output, requantize=requantize)
        check = check_projector
    else:
        pass
