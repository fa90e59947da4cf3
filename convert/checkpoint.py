"""What is in a checkpoint directory: configuration files, and where each tensor's bytes lie.

Reads headers only. Every shard's header is checked against the file's length, and the shards
against their index, so that whoever reads tensor data later finds it where it was promised. Knows
nothing of Llama 4 and nothing of GGUF.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .shards import LocalShards, Shards

# Bytes a number takes, for each dtype of the safetensors format that a weight can have.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# The safetensors format itself sets this limit.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a shard: `nbytes` bytes from `offset` of `file`, rows along the last axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    @property
    def parameters(self) -> int:
        """How many numbers the tensor holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory; `tensors` in shard order, `config` as config.json has it.

    `shards` gives access to the tensors' data.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    shards: Shards

    def json(self, name: str) -> dict[str, Any] | None:
        """The object in the JSON file `name`, or None when there is no such file.

        Raises:
            CheckpointError: the file is not a JSON object.
        """
        path = self.path / name
        return read_json_object(path) if path.is_file() else None

    def text(self, name: str) -> str | None:
        """The text of the file `name`, or None when there is no such file."""
        path = self.path / name
        if not path.is_file():
            return None
        return _read_text(path)


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Read the headers of the checkpoint in the directory `source`.

    Raises:
        CheckpointError: no such directory, no config.json, or shards that are damaged, missing, or
            not what their index says.
    """
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", expected="a checkpoint directory")
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is a file",
            expected="the directory that holds config.json and the safetensors",
            hint=f"Give {path.parent} instead." if path.suffix == ".safetensors" else None,
        )
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} has no config.json",
            found=_meta_layout(path) or "no Hugging Face checkpoint",
            expected="config.json beside the safetensors",
            hint="Use the same model in Hugging Face's layout: "
            f"{published_name(str(path.resolve()))}",
        )
    shards = LocalShards()
    config = read_json_object(path / "config.json")
    return Checkpoint(path, config, read_tensors(path, shards), shards)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in the JSON file `path`.

    Raises:
        CheckpointError: the file cannot be read, or holds no JSON object.
    """
    try:
        value = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON", found=str(error)) from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} is damaged", found=type(value).__name__, expected="an object"
        )
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text", found=str(error)) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read", found=error.strerror) from None


def _meta_layout(path: Path) -> str | None:
    """Says so when the directory is Meta's own layout."""
    return "Meta's consolidated.*.pth" if any(path.glob("consolidated.*.pth")) else None


def published_name(text: str) -> str:
    """The repository in Hugging Face's layout of the model that a path or a name speaks of.

    Scout Instruct's where it speaks of none.
    """
    names = re.findall(r"Llama-4-[A-Z][a-z]+-17B-\d+E(?:-Instruct(?:-FP8)?)?", text)
    return f"meta-llama/{names[-1] if names else 'Llama-4-Scout-17B-16E-Instruct'}"


def read_tensors(path: Path, shards: Shards) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint whose index, if it has one, lies in the directory `path`.

    Args:
        path: the directory in which the shards lie, or will lie.
        shards: reads their headers.

    Raises:
        CheckpointError: a shard is damaged or missing, or not what the index says.
    """
    single = shards.size(path / SINGLE_NAME) is not None
    if (path / INDEX_NAME).is_file():
        weight_map = _read_index(path / INDEX_NAME)
        if single and SINGLE_NAME not in weight_map.values():
            raise CheckpointError(
                f"{path} holds two sets of weights",
                found=f"{SINGLE_NAME}, and {INDEX_NAME} with its shards",
                expected="one of them",
                hint=f"Move one away; transformers would load {SINGLE_NAME}.",
            )
        return _read_indexed(path, weight_map, shards)
    if single:
        return {tensor.name: tensor for tensor in read_shard(path / SINGLE_NAME, shards)}
    shards_here = sorted(path.glob("*.safetensors"))
    if shards_here:
        raise CheckpointError(
            f"{path} has shards but no index",
            found=f"{len(shards_here)} .safetensors files",
            expected=INDEX_NAME,
            hint="Download the index from the same repository.",
        )
    raise CheckpointError(
        f"{path} holds no weights",
        found=_meta_layout(path),
        expected=f"{INDEX_NAME} and its shards, or {SINGLE_NAME}",
    )


def _read_index(index: Path) -> dict[str, str]:
    """The index's weight_map: tensor name to shard name."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map", hint="Download the index again.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in (".", ".."):
            raise CheckpointError(
                f"{index} names an invalid file for {name}",
                found=repr(shard),
                expected="a file in the same directory",
            )
    return weight_map


def _read_indexed(
    path: Path, weight_map: Mapping[str, str], shards: Shards
) -> dict[str, StoredTensor]:
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if shards.size(path / name) is None]
    if absent:
        raise CheckpointError(
            f"{path / INDEX_NAME} names missing files",
            found=f"{len(absent)} of {len(names)} missing, first {absent[0]}",
            hint="Download the missing shards.",
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in names:
        for tensor in read_shard(path / shard, shards):
            if tensor.name in tensors:
                raise CheckpointError(
                    f"{tensor.name} is stored twice",
                    found=f"in {tensors[tensor.name].file.name} and {shard}",
                )
            listed = weight_map.get(tensor.name)
            if listed != shard:
                raise CheckpointError(
                    f"{path / shard} holds {tensor.name}",
                    found=f"{'no entry' if listed is None else listed} in the index",
                    expected=f"{shard} in the index",
                )
            tensors[tensor.name] = tensor
    lost = sorted(weight_map.keys() - tensors.keys())
    if lost:
        raise CheckpointError(
            f"{path / weight_map[lost[0]]} lacks {lost[0]}",
            found=f"{len(lost)} tensors in the index that no shard holds",
            hint="Download that shard again.",
        )
    return tensors


def read_shard(path: Path, shards: Shards) -> list[StoredTensor]:
    """The tensors that the safetensors file `path` says it holds, in the order of their bytes.

    Layout: 8 bytes with the header's length, the header as JSON, then the tensors' bytes.

    Raises:
        CheckpointError: the file is truncated, or its header is damaged or lies about the bytes.
    """
    size = shards.size(path) or 0
    length = int.from_bytes(shards.read(path, 0, 8), "little")
    if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{path} is truncated, or not a safetensors file",
            found=f"{size} bytes and a header length of {length}",
            hint="Download it again.",
        )
    raw = shards.read(path, 8, length)
    tensors = [
        _stored_tensor(path, name, entry, start=8 + length)
        for name, entry in _parse_header(path, raw).items()
        if name != "__metadata__"
    ]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_extents(path, tensors, start=8 + length, size=size)
    return tensors


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{path} lists {twice} twice in its header")
        return entries

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has a damaged header", found=str(error), hint="Download it again."
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path} has a damaged header", found=type(header).__name__, expected="a JSON object"
        )
    return header


def _stored_tensor(path: Path, name: str, entry: object, *, start: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    dtype = fields.get("dtype")
    shape = _whole_numbers(fields.get("shape"))
    span = _whole_numbers(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2:
        raise CheckpointError(
            f"{path} has a malformed entry for {name}",
            found=re.sub(r"\s+", " ", repr(entry))[:120],
            expected="dtype, shape and data_offsets",
        )
    if dtype not in DTYPE_BYTES:
        raise CheckpointError(
            f"{path} stores {name} in an unknown dtype",
            found=dtype,
            expected=", ".join(DTYPE_BYTES),
        )
    nbytes = prod(shape) * DTYPE_BYTES[dtype]
    if span[1] - span[0] != nbytes:
        raise CheckpointError(
            f"{path} gives a wrong extent for {name}",
            found=f"data_offsets {span[0]} to {span[1]}",
            expected=f"{nbytes} bytes for {dtype} {list(shape)}",
        )
    return StoredTensor(name, dtype, tuple(shape), path, start + span[0], nbytes)


def _whole_numbers(value: object) -> list[int] | None:
    """The list, when it is one of whole numbers."""
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return value
    return None


def _check_extents(path: Path, tensors: list[StoredTensor], *, start: int, size: int) -> None:
    """Tensors must cover the data exactly: the format allows neither gap nor overlap."""
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            raise CheckpointError(
                f"{path} gives a wrong offset for {tensor.name}",
                found=f"byte {tensor.offset}",
                expected=f"byte {end}, where the tensor before it ends",
            )
        end += tensor.nbytes
    if end != size:
        raise CheckpointError(
            f"{path} is {'truncated' if size < end else 'longer than its header says'}",
            found=f"{size} bytes",
            expected=f"{end} bytes",
            hint="Download it again.",
        )
