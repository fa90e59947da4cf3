"""Which tensors lie in which file of a GGUF, where, and what comes before them.

Writes nothing: `output` does.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf.gguf_writer import WriterState

from ..parts import PartName
from ..quant import Assignment
from .gguf_writer import GGUFWriter
from .slabs import Output

ALIGNMENT = int(gguf.GGUF_DEFAULT_ALIGNMENT)
PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class Part:
    """One file of the output: its final name, its first bytes, its size in bytes."""

    path: Path
    header: bytes
    nbytes: int

    @property
    def partial(self) -> Path:
        """Its name until all parts are whole."""
        return self.path.with_name(self.path.name + PARTIAL_SUFFIX)


def plan_parts(
    writer: GGUFWriter,
    tensors: Sequence[Assignment],
    target: Path,
    split_bytes: int | None,
    *,
    first: int = 0,
) -> tuple[list[Part], dict[str, Output]]:
    """Lay the tensors out over one file, or over several of at most `split_bytes` of tensors.

    Args:
        writer: holds the metadata already, which all goes into the first part; opens no file.
        tensors: in the order in which they are to lie.
        target: the file's final name; parts are called ``NAME-00001-of-00003.gguf``, as llama.cpp
            finds them.
        split_bytes: a tensor larger than this has a part of its own.
        first: the number of the first part, where those of another model come before.

    Returns:
        The parts, and each tensor's place by its name.
    """
    return place_groups(writer, groups_of(tensors, split_bytes), target, first=first)


def place_groups(
    writer: GGUFWriter,
    groups: Sequence[Sequence[Assignment]],
    target: Path,
    *,
    first: int = 0,
    later: Callable[[], GGUFWriter] = GGUFWriter,
) -> tuple[list[Part], dict[str, Output]]:
    """The same for tensors whose parts are chosen already: a part for each of `groups`.

    Args:
        writer: of the first part.
        groups: the tensors of each part.
        target: as for `plan_parts`.
        first: the same.
        later: makes the writers of all parts but the first.
    """
    count = sum(map(len, groups))
    parts, outputs = [], {}
    for number, group in enumerate(groups):
        if number:
            writer = later()
        if len(groups) > 1:
            _add_split(writer, number, len(groups), count)
        header = _header(writer, group)
        end = len(header)
        for assigned in group:
            shape = assigned.tensor.shape
            name = assigned.tensor.name
            outputs[name] = Output(name, assigned.type, shape, first + number, end)
            end += GGUFWriter.ggml_pad(assigned.type.nbytes(shape), writer.data_alignment)
        parts.append(Part(_part_name(target, number, len(groups)), header, end))
    return parts, outputs


def groups_of(tensors: Sequence[Assignment], split_bytes: int | None) -> list[list[Assignment]]:
    """Tensors in their order, so many together as take `split_bytes` with their padding.

    Counted as llama-gguf-split does; a larger tensor is alone.
    """
    groups: list[list[Assignment]] = [[]]
    filled = 0
    for assigned in tensors:
        nbytes = padded_bytes(assigned)
        if split_bytes is not None and groups[-1] and filled + nbytes > split_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(assigned)
        filled += nbytes
    return groups


def padded_bytes(assigned: Assignment) -> int:
    """What a tensor takes in a file."""
    nbytes = assigned.type.nbytes(assigned.tensor.shape)
    return int(GGUFWriter.ggml_pad(nbytes, ALIGNMENT))


def _add_split(writer: GGUFWriter, number: int, count: int, tensors: int) -> None:
    # In llama-gguf-split's order.
    keys = gguf.Keys.Split
    writer.add_uint16(keys.LLM_KV_SPLIT_NO, number)
    writer.add_int32(keys.LLM_KV_SPLIT_TENSORS_COUNT, tensors)
    writer.add_uint16(keys.LLM_KV_SPLIT_COUNT, count)


def _part_name(target: Path, number: int, count: int) -> Path:
    if count == 1:
        return target
    return target.with_name(str(PartName(target.name.removesuffix(".gguf"), number + 1, count)))


def _header(writer: GGUFWriter, tensors: Sequence[Assignment]) -> bytes:
    """Everything before the tensors' data, padded to where that begins."""
    for assigned in tensors:
        writer.add_tensor_info(
            assigned.tensor.name,
            assigned.tensor.shape,
            np.dtype(np.float32),
            assigned.type.nbytes(assigned.tensor.shape),
            raw_dtype=assigned.type.ggml_id,
        )
    buffer = io.BytesIO()
    writer.fout, writer.state = [buffer], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    header = buffer.getvalue()
    return header + bytes(-len(header) % writer.data_alignment)


def header_digest(parts: Sequence[Part]) -> str:
    """One hash over every header: names, types, places and all metadata."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.header)
    return digest.hexdigest()
