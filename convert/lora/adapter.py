"""A PEFT adapter, in a directory or on the Hugging Face Hub: its settings, and where tensors lie.

Promises that what is no adapter, or one in another form, is refused with what it is. Reads headers
only; `read` gives a tensor's numbers. Knows nothing of Llama 4.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import CheckpointError, DamagedTensorError, HubError
from ...hub.names import parse_hub_name
from ...quant.encode import Floats, bf16_to_f32
from ..directories import cached_repository, is_listed
from ..shard_header import StoredTensor, read_shard
from ..shards import LocalShards, file_names
from .settings import CONFIG_NAME, AdapterSettings, read_settings

WEIGHTS_NAME = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_MAX_CHILDREN = 1000
# Bytes of an adapter_config.json on the hub. Of the weights nothing is known.
_CONFIG_LIMIT = 16 << 20
_WEIGHTS_LIMIT = 1 << 40


@dataclass(frozen=True)
class Adapter:
    """An opened adapter; `tensors` are those of adapter_model.safetensors by their stored names."""

    path: Path
    settings: AdapterSettings
    tensors: Mapping[str, StoredTensor]

    @property
    def name(self) -> str:
        """What it is called by its repository or its directory."""
        repository = cached_repository(self.path)
        return repository.split("/")[1] if repository else self.path.resolve().name

    @property
    def weights(self) -> Path:
        """The file with its tensors."""
        return self.path / WEIGHTS_NAME


def open_adapter(source: str | os.PathLike[str], *, revision: str | None = None) -> Adapter:
    """Open the adapter in a directory, or else in the hub's repository of that name.

    Raises:
        CheckpointError: there is none, or its files are damaged or in another form.
        HubError: the repository cannot be had, or holds no adapter.
        UnsupportedError: it is more than a plain LoRA.
    """
    path = Path(source)
    if is_listed(path):
        if revision is not None:
            raise CheckpointError(
                f"{os.fspath(source)} is a local directory, and has no revisions",
                found=f"revision {revision}",
            )
    else:
        path = _fetched(os.fspath(source), revision)
    _check_directory(path)
    settings = read_settings(path)
    stored = read_shard(path / WEIGHTS_NAME, LocalShards())
    return Adapter(path, settings, {tensor.name: tensor for tensor in stored})


def read(stored: StoredTensor) -> Floats:
    """A tensor's numbers, as float32 of its shape.

    Raises:
        CheckpointError: it cannot be read.
        DamagedTensorError: it holds NaN or infinity.
    """
    data = LocalShards().read(stored.file, stored.offset, stored.nbytes)
    if len(data) != stored.nbytes:
        raise CheckpointError(
            f"{stored.file} cannot be read where {stored.name} lies",
            found=f"the file ends at byte {stored.offset + len(data)}",
        )
    numbers = np.empty(stored.shape, np.float32)
    if stored.dtype == "BF16":
        bf16_to_f32(np.frombuffer(data, np.uint16), numbers.reshape(-1))
    else:
        numbers.reshape(-1)[:] = np.frombuffer(data, "<f4" if stored.dtype == "F32" else "<f2")
    if not np.isfinite(numbers).all():
        raise DamagedTensorError(
            f"{stored.name} in {stored.file.name} cannot be used",
            found="NaN or infinity",
            hint="Download it again, or train it with a lower learning rate.",
        )
    return numbers


def _check_directory(path: Path) -> None:
    """Whether a directory holds an adapter.

    Raises:
        CheckpointError: it does not, and says what it holds.
    """
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file",
            expected=f"the directory that holds {CONFIG_NAME} and {WEIGHTS_NAME}",
            hint=f"Give {path.parent} instead."
            if is_listed(path.parent / CONFIG_NAME)
            else "Of a GGUF that is an adapter already: llama4 run MODEL --lora FILE"
            if path.suffix == ".gguf"
            else None,
        )
    names = file_names(path)
    if CONFIG_NAME not in names:
        raise _no_adapter(path, names)
    if WEIGHTS_NAME not in names:
        pickled = _PICKLED in names
        raise CheckpointError(
            f"{path} has no {WEIGHTS_NAME}",
            found=f"{_PICKLED}, PyTorch's own format, which can run any program when read"
            if pickled
            else None,
            hint="If you trust it, save it as safetensors: load it with PEFT, and save_pretrained."
            if pickled
            else "Download it from the same repository.",
        )


def _no_adapter(path: Path, names: list[str]) -> CheckpointError:
    children = [name for name in names[:_MAX_CHILDREN] if is_listed(path / name / CONFIG_NAME)]
    hint = None
    if children:
        hint = f"Give one of the directories in it: {path / children[0]}"
    elif "config.json" in names:
        hint = f"Of a model, which this is: llama4 convert {path}"
    return CheckpointError(
        f"{path} holds no adapter", expected=f"{CONFIG_NAME} and {WEIGHTS_NAME}", hint=hint
    )


def _fetched(name: str, revision: str | None) -> Path:
    """The directory that holds the adapter of a repository on the hub."""
    named = parse_hub_name(name)
    if named is None or not named.is_repository:
        raise CheckpointError(
            f"{name} does not exist",
            expected="an adapter's directory, or org/name on the Hugging Face Hub",
        )
    # Only here, because the hub's client takes longer to import than everything else together.
    from ...hub.cache import RepositoryCache
    from ...hub.repository import cache_directory, cached_commit, find_repository, is_offline

    revision = revision or named.revision
    if is_offline():
        commit = cached_commit(named.repository, revision)
        snapshot = cache_directory(named.repository) / "snapshots" / (commit or "")
        if commit is None or not is_listed(snapshot / CONFIG_NAME):
            raise HubError(
                f"{named.repository} is not in the cache, and offline mode allows nothing else",
                hint="Unset HF_HUB_OFFLINE, or run `hf download` for it where there is a network.",
            )
        return snapshot
    remote = find_repository(named.repository, revision=revision)
    if CONFIG_NAME not in remote.files or WEIGHTS_NAME not in remote.files:
        raise HubError(
            f"{remote.id} holds no adapter", expected=f"{CONFIG_NAME} and {WEIGHTS_NAME}"
        )
    cache = RepositoryCache(remote)
    cache.fetch(CONFIG_NAME, limit=_CONFIG_LIMIT)
    # Whether it is of use is known before the large file moves.
    read_settings(cache.snapshot)
    cache.fetch(WEIGHTS_NAME, limit=_WEIGHTS_LIMIT)
    cache.remember(revision)
    return cache.snapshot
