"""The GGUF being written: its header, the room it needs, its temporary name and its final one.

Everything is checked before anything is written; the file carries its final name only when whole.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf.gguf_writer import WriterState

from ..errors import OutputError
from ..quant import Assignment
from .pipeline import Output

ALIGNMENT = int(gguf.GGUF_DEFAULT_ALIGNMENT)
PARTIAL_SUFFIX = ".partial"


def build_header(writer: gguf.GGUFWriter, tensors: Sequence[Assignment]) -> bytes:
    """Everything before the tensors' data, padded to where that begins.

    `writer` holds the metadata already; it never opens a file.
    """
    for assigned in tensors:
        writer.add_tensor_info(
            assigned.tensor.name,
            assigned.tensor.shape,
            np.dtype(np.float32),
            assigned.type.nbytes(assigned.tensor.shape),
            raw_dtype=gguf.GGMLQuantizationType(assigned.type.ggml_id),
        )
    buffer = io.BytesIO()
    writer.fout, writer.state = [buffer], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return _padded(buffer.getvalue())


def place_tensors(header: bytes, tensors: Sequence[Assignment]) -> tuple[list[Output], int]:
    """Where each tensor's data goes, in the order given, and the size of the whole file."""
    outputs, end = [], len(header)
    for assigned in tensors:
        shape = assigned.tensor.shape
        outputs.append(Output(assigned.tensor.name, assigned.type, shape, end))
        end += gguf.GGUFWriter.ggml_pad(assigned.type.nbytes(shape), ALIGNMENT)
    return outputs, end


def check_target(target: Path, *, nbytes: int, force: bool) -> None:
    """Refuse a target that exists, cannot be written, or does not fit on its disk.

    Raises:
        OutputError: says which.
    """
    if target.is_dir():
        raise OutputError(f"{target} is a directory", expected="the name of a file to write")
    if target.exists() and not force:
        raise OutputError(f"{target} exists", hint="Give --force to replace it, or another name.")
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent} is not a directory", hint="Make it first.")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target.parent} cannot be written to", expected="write permission")
    shortage = room_shortage(target, nbytes)
    if shortage is not None:
        raise shortage


def room_shortage(target: Path, nbytes: int) -> OutputError | None:
    """The error that writing `nbytes` to `target` would end in, if its disk has too little room."""
    free = shutil.disk_usage(target.parent).free
    if free >= nbytes:
        return None
    return OutputError(
        f"{target.parent} has too little room for {target.name}",
        found=f"{_readable(free)} free",
        expected=_readable(nbytes),
        hint="Make room, choose another disk, or a recipe with fewer bits.",
    )


def write_whole(target: Path, header: bytes, nbytes: int, fill: Callable[[int], None]) -> None:
    """Write a file of `nbytes` under a temporary name beside `target`, then rename it.

    Args:
        target: the final name.
        header: the file's first bytes.
        nbytes: the whole file's size.
        fill: writes the rest, given an open descriptor.

    Raises:
        OutputError: writing failed, or another conversion is writing the same target. Whatever
            `fill` raises passes through. In each case nothing is left behind.
    """
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    descriptor = _open_partial(partial)
    try:
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, nbytes)
        _write_all(descriptor, header)
        fill(descriptor)
        os.fsync(descriptor)
        partial.replace(target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"writing {partial} failed", found=error.strerror) from error
        raise
    finally:
        os.close(descriptor)


def _readable(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:,.1f} MB"


def _open_partial(partial: Path) -> int:
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"{partial} cannot be written", found=error.strerror) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise OutputError(f"another conversion is writing {partial}") from None
    return descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], done)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
