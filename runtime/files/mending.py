"""Writes a projector again that llama.cpp's converter misnamed, with the names its loader reads.

Promises the same numbers and metadata, that the new file passes the check of those that are loaded,
and that it has its name only when it is whole. The old file stays as it is.
"""

from __future__ import annotations

import shutil
import struct
from contextlib import suppress
from pathlib import Path

from ...errors import ModelFileError, OutputError
from ...system.files import disk_hint, sync
from .gguf_file import GGUFFile, end_of_tensors, read_gguf
from .projector_file import check_projector_file, mended_name, misnamed_tensors

_COPIED_BYTES = 16 << 20  # at a time


def is_misnamed(path: Path) -> bool:
    """Whether a file is a Llama 4's projector whose tensors have wrong names; reads its header.

    Raises:
        ModelFileError: it is no GGUF, or a damaged one.
    """
    return bool(misnamed_tensors(read_gguf(path)))


def mend_projector(path: Path, output: Path, *, force: bool = False) -> GGUFFile:
    """Write the projector at `path` to `output` with the right names.

    Args:
        path: a misnamed projector; see `is_misnamed`.
        output: another file, which gets its name when it is whole.
        force: replace it if it exists.

    Returns:
        The header of the new file.

    Raises:
        ModelFileError: there is more wrong with it than names.
        OutputError: `output` exists, or cannot be written.
    """
    gguf = read_gguf(path)
    if output.exists() and (not force or output.samefile(path)):
        raise OutputError(f"{output} exists", hint="Give --force to replace it, or another name.")
    header = _mended_header(gguf)
    partial = output.with_name(output.name + ".partial")
    try:
        with partial.open("xb") as target, path.open("rb") as source:
            target.write(header)
            source.seek(gguf.data_offset)
            shutil.copyfileobj(source, target, _COPIED_BYTES)
            target.flush()
            sync(target.fileno())
        check_projector_file(partial)
        partial.replace(output)
    except FileExistsError:
        raise OutputError(f"{partial} exists", hint="Move it away.") from None
    except OSError as error:
        _remove(partial)
        raise OutputError(
            f"{partial} cannot be written", found=error.strerror, hint=disk_hint(error)
        ) from None
    except BaseException:
        _remove(partial)
        raise
    return read_gguf(output)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _mended_header(gguf: GGUFFile) -> bytes:
    """The first bytes of the new file, up to its data."""
    with gguf.path.open("rb") as file:
        header = file.read(gguf.data_offset)
    first = _text(gguf.tensors[0].name)
    start = header.index(first)
    if header.count(first) != 1 or end_of_tensors(gguf) > gguf.size:
        raise _unclear(gguf)
    at, records = start, b""
    for tensor in gguf.tensors:
        name = _text(tensor.name)
        axes = at + len(name)
        if not header.startswith(name, at):
            raise _unclear(gguf)
        (count,) = struct.unpack_from("<I", header, axes)
        at = axes + 4 + 8 * count + 4 + 8  # the axes, the type, the offset
        records += _text(mended_name(tensor.name)) + header[axes:at]
    if at + -at % gguf.alignment != len(header):
        raise _unclear(gguf)
    mended = header[:start] + records
    return mended + bytes(-len(mended) % gguf.alignment)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _unclear(gguf: GGUFFile) -> ModelFileError:
    return ModelFileError(
        f"{gguf.path} cannot be mended",
        found="a header that can be read in two ways",
        hint="Fetch the projector from another repository.",
    )
