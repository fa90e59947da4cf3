"""What is in a checkpoint: configuration files, and where each tensor's bytes lie.

Reads headers only. The shards are held against their index, where they have one, and against each
other's numbers. Knows nothing of Llama 4 and nothing of GGUF.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..system.files import is_file
from ..untrusted import Reader, brief, shown
from .directories import CONFIG_NAME, find_checkpoint, is_listed, is_of_meta, no_weights, of_meta
from .shard_header import StoredTensor, read_shard
from .shards import LocalShards, Shards

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MODELOPT_CONFIG = "hf_quant_config.json"

# Published ones have 6 kB and at most 3 MB.
_CONFIG_LIMIT = 16 << 20
_INDEX_LIMIT = 64 << 20

# A file's name on common disks; see also `_is_file_name`.
_MAX_FILE_NAME = 255

_NUMBERED = re.compile(
    r"(?P<stem>.*?)[-_.]?(?P<number>\d{1,5})[-_]of[-_](?P<total>\d{1,5})\.safetensors"
)
_ADAPTER = re.compile(r"adapter_model.*\.safetensors")
_INDEX_HINT = (
    f"If the shards were written again, {INDEX_NAME} is of those before: move it away, and they "
    "are read by their names."
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory; `tensors` in shard order, `config` as config.json has it.

    `shards` gives access to the tensors' data.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    shards: Shards


def open_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Read the headers of the checkpoint in the directory `source`.

    Args:
        source: the directory, or the root of a repository in huggingface_hub's cache.

    Raises:
        CheckpointError: no such directory, no config.json, or shards that are damaged, missing, or
            not what their index says.
    """
    path = find_checkpoint(Path(source))
    shards = LocalShards()
    return Checkpoint(path, read_config(path), read_tensors(path, shards), shards)


def read_config(path: Path) -> dict[str, Any]:
    """config.json in the directory `path`.

    Where it says nothing of how weights are quantized, it gets what ModelOpt's own file beside it
    says, if that is there.

    Raises:
        CheckpointError: a file cannot be read, or holds no JSON object.
    """
    config = read_json_object(path / CONFIG_NAME)
    text = config.get("text_config")
    described = any(
        isinstance(part, dict) and part.get("quantization_config") for part in (config, text)
    )
    if not described and is_file(path / MODELOPT_CONFIG):
        beside = read_json_object(path / MODELOPT_CONFIG)
        config["quantization_config"] = {"quant_method": "modelopt", **beside}
    return config


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in the JSON file `path`.

    Raises:
        CheckpointError: the file cannot be read, or holds no JSON object.
    """
    limit = _INDEX_LIMIT if path.name == INDEX_NAME else _CONFIG_LIMIT
    return dict(Reader(CheckpointError, limit, hint="Download it again.").record(path))


def read_tensors(path: Path, shards: Shards) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in the directory `path`.

    Args:
        path: the directory in which the shards lie, or will lie, and their index, if they have one.
        shards: reads their headers.

    Raises:
        CheckpointError: a shard is damaged or missing, or not what the index says.
    """
    names = shards.names(path)
    if is_listed(path / INDEX_NAME):
        weight_map = _read_index(path / INDEX_NAME)
        if SINGLE_NAME in names and SINGLE_NAME not in weight_map.values():
            raise CheckpointError(
                f"{path} holds two sets of weights",
                found=f"{SINGLE_NAME}, and {INDEX_NAME} with its shards",
                expected="one of them",
                hint=f"Move one away; transformers would load {SINGLE_NAME}.",
            )
        _check_present(path, sorted(set(weight_map.values())), shards, f"{path / INDEX_NAME} names")
        return _read_indexed(path, weight_map, shards)
    chosen = [SINGLE_NAME] if SINGLE_NAME in names else _without_index(path, names, shards)
    _check_present(path, chosen, shards, f"{path} has")
    return _read_all(path, chosen, shards)


def _without_index(path: Path, names: Sequence[str], shards: Shards) -> list[str]:
    """The shards that make up a checkpoint whose index is missing.

    A whole set of numbered files; or all files, where none has a number of a total and no tensor is
    in two of them.
    """
    weights = [name for name in names if not _ADAPTER.fullmatch(name)]
    sets: dict[tuple[str, int], dict[int, str]] = {}
    for name in weights:
        if match := _NUMBERED.fullmatch(name):
            stem, number, total = match["stem"], int(match["number"]), int(match["total"])
            sets.setdefault((stem, total), {})[number] = name
    # transformers and llama.cpp look for this stem only.
    own = {key: numbered for key, numbered in sets.items() if key[0] == "model"} or sets
    if len(own) == 1:
        (((_, total), numbered),) = own.items()
        return _whole_set(path, total, numbered)
    if not weights:
        raise no_weights(path)
    if not sets and (len(weights) == 1 or _are_disjoint(path, weights, shards)):
        return weights
    if all(map(is_of_meta, weights)):
        raise of_meta(path, weights[0])
    examples = [next(iter(numbered.values())) for numbered in own.values()] or weights
    raise CheckpointError(
        f"{path} has several sets of weights and no index",
        found=f"{examples[0]}, {examples[1]}" + (", …" if len(examples) > 2 else ""),
        expected=f"{INDEX_NAME}, or one set",
        hint="Download the index from the same repository, or move the others away.",
    )


def _are_disjoint(path: Path, names: Sequence[str], shards: Shards) -> bool:
    """Whether no tensor is in two of these files."""
    _check_present(path, names, shards, f"{path} has")
    seen: set[str] = set()
    for name in names:
        stored = {tensor.name for tensor in read_shard(path / name, shards)}
        if seen & stored:
            return False
        seen |= stored
    return True


def _whole_set(path: Path, total: int, numbered: Mapping[int, str]) -> list[str]:
    """The files of a numbered set, in order, none of which may be missing."""
    absent = sorted(set(range(1, total + 1)).difference(numbered))
    strange = sorted(numbered.keys() - set(range(1, total + 1)))
    if not absent and not strange:
        return [numbered[number] for number in sorted(numbered)]
    example = next(iter(numbered.values()))
    if strange:
        raise CheckpointError(
            f"{path} has a shard that its own name excludes",
            found=numbered[strange[0]],
            expected=f"numbers 1 to {total}",
        )
    match = _NUMBERED.fullmatch(example)
    begin, end = match.span("number") if match else (0, 0)
    missing = f"{example[:begin]}{absent[0]:0{end - begin}d}{example[end:]}"
    raise CheckpointError(
        f"{path} lacks shards",
        found=f"{len(absent)} of {total} missing, first {missing}",
        hint="Download the missing shards.",
    )


def _check_present(path: Path, names: Sequence[str], shards: Shards, who: str) -> None:
    """Raise if one of the files is not there, or is a link to nothing."""
    absent = [name for name in names if shards.size(path / name) is None]
    if not absent:
        return
    first = path / absent[0]
    link = f", a link to {first.readlink()} that leads nowhere" if first.is_symlink() else ""
    raise CheckpointError(
        f"{who} missing files",
        found=f"{len(absent)} of {len(names)} missing, first {absent[0]}{link}",
        hint="Download the missing shards.",
    )


def _read_index(index: Path) -> dict[str, str]:
    """The index's weight_map: tensor name to shard name."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map", hint="Download the index again.")
    for name, shard in weight_map.items():
        if not _is_file_name(shard):
            raise CheckpointError(
                f"{index} names an invalid file for {brief(name)}",
                found=shown(shard),
                expected="a file in the same directory",
            )
    return weight_map


def _is_file_name(name: object) -> bool:
    """Whether it can name a file that lies in the directory where it is looked for."""
    return (
        isinstance(name, str)
        and Path(name).name == name
        and name not in ("", ".", "..")
        and "\0" not in name
        and len(os.fsencode(name)) <= _MAX_FILE_NAME
    )


def _read_all(path: Path, names: Sequence[str], shards: Shards) -> dict[str, StoredTensor]:
    """The tensors of all these shards, each of which only one of them may hold."""
    tensors: dict[str, StoredTensor] = {}
    for shard in names:
        for tensor in read_shard(path / shard, shards):
            if tensor.name in tensors:
                raise CheckpointError(
                    f"{tensor.name} is stored twice",
                    found=f"in {tensors[tensor.name].file.name} and {shard}",
                )
            tensors[tensor.name] = tensor
    return tensors


def _read_indexed(
    path: Path, weight_map: Mapping[str, str], shards: Shards
) -> dict[str, StoredTensor]:
    tensors = _read_all(path, sorted(set(weight_map.values())), shards)
    for tensor in tensors.values():
        listed = weight_map.get(tensor.name)
        if listed != tensor.file.name:
            raise CheckpointError(
                f"{tensor.file} holds {tensor.name}",
                found=f"{'no entry' if listed is None else listed} in the index",
                expected=f"{tensor.file.name} in the index",
                hint=_INDEX_HINT,
            )
    lost = sorted(weight_map.keys() - tensors.keys())
    if lost:
        raise CheckpointError(
            f"{path / weight_map[lost[0]]} lacks {brief(lost[0])}",
            found=f"{len(lost)} tensors in the index that no shard holds",
            hint=f"Download that shard again. {_INDEX_HINT}",
        )
    return tensors
