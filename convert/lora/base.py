"""The model that an adapter was trained on, as far as an adapter's shapes need it: its config.json.

Promises that an adapter whose base cannot be had is refused with what to give. Reads no weight.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...architecture import Hyperparameters
from ...errors import CheckpointError, HubError, UnsupportedError, did_you_mean
from ...hub.names import parse_hub_name
from ...system.files import is_directory, is_file
from ..checkpoint import Checkpoint, read_json_object
from ..config import parse_config
from ..directories import CONFIG_NAME, find_checkpoint
from ..names import Sizes, axis_sizes
from ..presets import PRESETS, Preset
from .adapter import Adapter

_CONFIG_LIMIT = 16 << 20


@dataclass(frozen=True)
class Base:
    """A model's shapes.

    `name` is what it was called by, `tied` whether its output is its embedding.
    """

    name: str
    hparams: Hyperparameters
    tied: bool

    @property
    def sizes(self) -> Sizes:
        """The axes of the tables."""
        return axis_sizes(self.hparams)


def read_base(name: str) -> Base:
    """The shapes of one of `PRESETS`, of a directory's config.json, or of a repository on the hub.

    Raises:
        CheckpointError: there is no such model.
        HubError: the repository cannot be had.
        UnsupportedError: it is not a Llama 4.
    """
    preset = PRESETS.get(name) or _published(name)
    if preset is not None and not is_directory(Path(name)):
        return _of_config(name, preset.config)
    path = Path(name)
    if is_file(path):
        return _of_config(name, read_json_object(path))
    if is_directory(path):
        return _of_config(name, read_json_object(find_checkpoint(path) / CONFIG_NAME))
    named = parse_hub_name(name)
    if named is None or not named.is_repository:
        raise CheckpointError(
            f"{name} is not a model",
            expected=f"a checkpoint directory, a config.json, a GGUF, one of {', '.join(PRESETS)}, "
            "or org/name on the Hugging Face Hub",
            hint=did_you_mean(name, PRESETS),
        )
    return _of_config(name, _fetched_config(named.repository, named.revision))


def base_in(checkpoint: Checkpoint, outputs: Container[str]) -> Base:
    """A checkpoint that is converted, as a base.

    Args:
        outputs: the names of its tensors in a GGUF, which say whether the output is one.
    """
    config = parse_config(checkpoint.config)
    tied = config.tied and "output.weight" not in outputs
    return Base(str(checkpoint.path), config.hparams, tied)


def base_of(adapter: Adapter, find: Callable[[str], Base]) -> Base:
    """The model that an adapter names as its base, as `find` finds it.

    Raises:
        CheckpointError: it names none, or one that cannot be had.
    """
    named = adapter.settings.base
    if named is None:
        raise CheckpointError(
            f"{adapter.path} does not say which model it is of",
            found="no base_model_name_or_path in adapter_config.json",
            hint="Give its base, whose shapes it is held against: base=MODEL",
        )
    try:
        return find(named)
    except CheckpointError as error:
        known = isinstance(error, UnsupportedError)
        raise type(error)(
            f"the base of {adapter.path}, whose shapes it is held against, cannot be "
            f"{'used' if known else 'had'}",
            found=f"{named[:200]}: {error.problem}",
            expected=error.expected,
            hint=None
            if known
            else "Give it: base=MODEL, which is a checkpoint's directory, a GGUF, or one of "
            f"{', '.join(PRESETS)}.",
        ) from None


def _published(name: str) -> Preset | None:
    """The preset that is published in the repository of this name."""
    return next((it for it in PRESETS.values() if it.repository and it.repository == name), None)


def _of_config(name: str, settings: Mapping[str, Any]) -> Base:
    config = parse_config(settings)
    return Base(name, config.hparams, config.tied)


def _fetched_config(repository: str, revision: str | None) -> Mapping[str, Any]:
    """The config.json of a repository on the hub."""
    # Only here, because the hub's client takes longer to import than everything else together.
    from ...hub.cache import RepositoryCache
    from ...hub.repository import cache_directory, cached_commit, find_repository, is_offline

    if is_offline():
        commit = cached_commit(repository, revision)
        path = cache_directory(repository) / "snapshots" / (commit or "") / CONFIG_NAME
        if commit is None or not is_file(path):
            raise HubError(
                f"{repository} is not in the cache, and offline mode allows nothing else",
                hint="Unset HF_HUB_OFFLINE, or run `hf download` for it where there is a network.",
            )
        return read_json_object(path)
    remote = find_repository(repository, revision=revision)
    if CONFIG_NAME not in remote.files:
        raise HubError(f"{repository} has no {CONFIG_NAME}", expected="a checkpoint")
    cache = RepositoryCache(remote)
    settings = read_json_object(cache.fetch(CONFIG_NAME, limit=_CONFIG_LIMIT))
    cache.remember(revision)
    return settings
