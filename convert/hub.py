"""A checkpoint that lies on the Hugging Face Hub, as if it lay in a directory.

Promises: opening it moves headers only (configuration, tokenizer, index, and the first bytes of
each shard); after that, shards come in the order in which they are expected, the next while one is
worked on, and never more than two of them lie on the disk at a time unless they are to be kept.
What was in huggingface_hub's cache before is used from there and stays.

Files lie where huggingface_hub keeps them, in the repository's snapshot at one commit. A shard that
will be dropped again is a link to a blob of its own name ending, by which a later run knows it.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from ..errors import CheckpointError, HubError
from ..hub.cache import RepositoryCache
from ..hub.listing import check_distinct, is_file_name
from ..hub.repository import (
    Repository,
    StoppedError,
    cache_directory,
    cached_commit,
    find_repository,
    is_offline,
)
from ..system.files import is_file
from .chat_templates import MORE_TEMPLATES
from .checkpoint import (
    INDEX_NAME,
    MODELOPT_CONFIG,
    Checkpoint,
    open_checkpoint,
    read_config,
    read_json_object,
    read_tensors,
)
from .config import parse_config
from .directories import is_of_meta, published_name
from .shards import DiskNeed
from .vision_metadata import PROCESSOR_FILES

SHARDS_AT_A_TIME = 2

# Covers the header of every shard that is published; a longer one costs one more request.
_HEAD_BYTES = 128 << 10
_HEADS_AT_A_TIME = 8
# What a conversion reads beside the shards, and how many bytes of each its reader takes.
SMALL_FILES = {
    "config.json": 16 << 20,
    MODELOPT_CONFIG: 16 << 20,
    "generation_config.json": 1 << 20,
    "tokenizer_config.json": 16 << 20,
    "special_tokens_map.json": 16 << 20,
    "added_tokens.json": 16 << 20,
    "tokenizer.json": 256 << 20,
    "chat_template.json": 16 << 20,
    "chat_template.jinja": 2 << 20,
    **dict.fromkeys(PROCESSOR_FILES, 1 << 20),
    INDEX_NAME: 64 << 20,
    "README.md": 16 << 20,
}
_MOST_SHARDS = 5000
_MOST_TEMPLATES = 100
_TEMPLATE_NAME = re.compile(re.escape(MORE_TEMPLATES) + r"/[^/]+\.jinja")
# How long a transfer that is no longer wanted may take to notice. Only a network that says
# nothing at all makes it longer.
_PARTING_SECONDS = 3.0


def open_repository(
    repository: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    keep_source: bool = False,
) -> Checkpoint:
    """Read the headers of the checkpoint in the hub's repository `repository`.

    In offline mode the cache must hold all of it, and nothing is ever dropped.

    Args:
        repository: ``org/name``.
        revision: branch, tag or commit; by default the main branch. Resolved to a commit once.
        token: to use instead of the one that ``hf auth login`` or HF_TOKEN has set.
        keep_source: leave the shards in huggingface_hub's cache.

    Raises:
        HubError: the repository cannot be had, or is in Meta's own layout.
        UnsupportedError: it is another kind of model.
        CheckpointError: its files are damaged, missing, or not what their index says.
    """
    if is_offline():
        return _open_cached(repository, revision)
    remote = find_repository(repository, revision=revision, token=token)
    if "config.json" not in remote.files or not _has_weights(remote):
        raise _no_checkpoint(remote)
    cache = RepositoryCache(remote)
    config = read_json_object(cache.fetch("config.json", limit=SMALL_FILES["config.json"]))
    # Another model's files need not even be asked for.
    parse_config(config)
    small = _small_files(remote)
    for name, limit in small.items():
        cache.fetch(name, limit=limit)
    cache.remember(revision)
    shards = HubShards(remote, keep=keep_source)
    names = [name for name in _shard_names(cache.snapshot) if name in remote.files]
    check_distinct(remote.id, [*small, *names])
    shards.fetch_heads(names)
    tensors = read_tensors(cache.snapshot, shards)
    return Checkpoint(cache.snapshot, read_config(cache.snapshot), tensors, shards)


def _small_files(remote: Repository) -> dict[str, int]:
    """The files beside the shards that are there, each with the bytes that it may have."""
    present = {name: limit for name, limit in SMALL_FILES.items() if name in remote.files}
    templates = [name for name in sorted(remote.files) if _TEMPLATE_NAME.fullmatch(name)]
    if len(templates) > _MOST_TEMPLATES:
        raise HubError(
            f"{remote.id} has too many chat templates",
            found=f"{len(templates)} in {MORE_TEMPLATES}",
            expected=f"at most {_MOST_TEMPLATES}",
        )
    return present | dict.fromkeys(templates, SMALL_FILES["chat_template.jinja"])


def _open_cached(repository: str, revision: str | None) -> Checkpoint:
    commit = cached_commit(repository, revision)
    snapshot = cache_directory(repository) / "snapshots" / (commit or "")
    if commit is None or not is_file(snapshot / "config.json"):
        raise HubError(
            f"{repository} is not in the cache, and offline mode allows nothing else",
            expected=snapshot / "config.json" if commit else cache_directory(repository),
            hint="Unset HF_HUB_OFFLINE, or run `hf download` for it where there is a network.",
        )
    names = _shard_names(snapshot)
    absent = [name for name in names if not is_file(snapshot / name)]
    if absent:
        raise HubError(
            f"{repository} is not whole in the cache, and offline mode allows nothing else",
            found=f"{len(absent)} of {len(names)} shards missing, first {absent[0]}",
            hint="Unset HF_HUB_OFFLINE, or run `hf download` for it where there is a network.",
        )
    return open_checkpoint(snapshot)


def _shard_names(snapshot: Path) -> list[str]:
    """The shards that the index names, if there is one."""
    index = snapshot / INDEX_NAME
    listed = read_json_object(index).get("weight_map") if is_file(index) else None
    values = listed.values() if isinstance(listed, dict) else ()
    names = sorted({name for name in values if isinstance(name, str) and is_file_name(name)})
    if len(names) > _MOST_SHARDS:
        raise HubError(
            f"{index} names too many shards", found=len(names), expected=f"at most {_MOST_SHARDS}"
        )
    return names


def _has_weights(remote: Repository) -> bool:
    return any(
        "/" not in name and name.endswith(".safetensors") and not name.startswith("adapter_model.")
        for name in remote.files
    )


def _no_checkpoint(remote: Repository) -> CheckpointError:
    """Why a repository without config.json or weights cannot be converted, and what to use."""
    names = [name.rsplit("/", 1)[-1] for name in remote.files]
    meta = next(filter(is_of_meta, names), None)
    if meta is not None:
        return HubError(
            f"{remote.id} is in Meta's own layout",
            found=f"consolidated.*{Path(meta).suffix}",
            expected="safetensors with config.json",
            hint=f"Use the same model in Hugging Face's layout: {published_name(remote.id)}",
        )
    if any(name.endswith(".gguf") for name in names):
        return HubError(
            f"{remote.id} holds GGUF files, which need no conversion",
            hint=f"Fetch one: llama4 pull {remote.id}",
        )
    if any(name.startswith("adapter_model.") for name in names):
        return HubError(
            f"{remote.id} holds an adapter, not a model",
            hint="Merge it while its base is converted: llama4 convert BASE --merge-lora "
            f"{remote.id}, or make a file of it alone: llama4 convert-lora {remote.id}",
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return HubError(
            f"{remote.id} holds PyTorch's pickled weights",
            expected="safetensors",
            hint="Look for a revision or a repository of the same model with safetensors.",
        )
    lacks = "weights (*.safetensors)" if "config.json" in remote.files else "config.json"
    return HubError(f"{remote.id} has no {lacks}", expected="a checkpoint")


class HubShards:
    """Shards that travel when they are needed: one is fetched while another is worked on.

    `acquire` may block until a shard that was acquired earlier is released, so whoever releases
    must not wait for whoever acquires. `close` wakes and refuses a blocked `acquire`.

    Args:
        remote: the repository, at one commit.
        keep: leave every shard in the cache, and let any number lie there.
    """

    def __init__(self, remote: Repository, *, keep: bool) -> None:
        self._remote = remote
        self._keep = keep
        self._cache = RepositoryCache(remote)
        self._heads: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._lock: BinaryIO | None = None
        self._worker: threading.Thread | None = None
        self._failure: Exception | None = None
        # All of these hold file names. `held` counts: fetched, or on the way, and to be dropped.
        self._queue: deque[str] = deque()
        self._held: set[str] = set()

    def names(self, directory: Path) -> list[str]:
        """The repository's safetensors files, but for those in folders of it."""
        names = (name for name in self._remote.files if name.endswith(".safetensors"))
        return sorted(name for name in names if "/" not in name)

    def size(self, path: Path) -> int | None:
        """Bytes of the shard, or None when the repository has none of that name."""
        file = self._remote.files.get(path.name)
        return None if file is None else file.size

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer where the shard ends; for headers.

        Raises:
            CheckpointError: they could not be had.
        """
        try:
            # It may be dropped between a look and the opening, so there is no look.
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return self._read_remote(path, offset, length)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read", found=error.strerror) from None
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(descriptor).st_size != self._remote.files[path.name].size:
                return self._read_remote(path, offset, length)
            file.seek(offset)
            return file.read(length)

    def _read_remote(self, path: Path, offset: int, length: int) -> bytes:
        head = self._heads.get(path.name) or self._fetch_head(path.name)
        data = head[offset : offset + length]
        missing = min(offset + length, self._remote.files[path.name].size) - offset - len(data)
        if missing > 0:
            data += self._remote.read(path.name, offset + len(data), missing)
        return data

    def fetch_heads(self, names: Iterable[str]) -> None:
        """Fetch the first bytes of several shards at a time."""
        absent = [name for name in names if not self._cache.is_there(name)]
        with ThreadPoolExecutor(_HEADS_AT_A_TIME, "heads") as pool:
            try:
                list(pool.map(self._fetch_head, absent))
            except BaseException:
                # The others need not be patient any more.
                self._remote.stop.set()
                raise

    def _fetch_head(self, name: str) -> bytes:
        self._heads[name] = self._remote.read(name, 0, _HEAD_BYTES)
        return self._heads[name]

    def disk_need(self, paths: Iterable[Path]) -> DiskNeed:
        """What fetching these shards in this order takes at most."""
        sizes = [
            self._remote.files[path.name].size for path in paths if not self._is_there(path.name)
        ]
        pairs = [sum(sizes[at : at + SHARDS_AT_A_TIME]) for at in range(len(sizes))]
        nbytes = sum(sizes) if self._keep else max(pairs, default=0)
        blobs = self._cache.blobs
        directory = next(path for path in (blobs, *blobs.parents) if path.is_dir())
        return DiskNeed(directory, nbytes)

    def identity(self, path: Path) -> str:
        """Changes whenever the shard's bytes do, and never otherwise."""
        return self._remote.files[path.name].etag

    def expect(self, paths: list[Path]) -> None:
        """Begin to fetch what the cache lacks of these shards, in this order.

        Raises:
            HubError: another conversion is fetching the same repository.
        """
        names = [path.name for path in paths]
        try:
            self._lock = self._lock or self._cache.lock()
        except HubError:
            if all(self._is_there(name) and not self._is_staged(name) for name in names):
                return  # nothing will be fetched, and nothing dropped
            raise
        if self._keep:
            for name in names:
                self._cache.keep(name)
            self._cache.sweep(())
        else:
            self._take_over(names)
        with self._changed:
            self._queue.extend(name for name in names if not self._is_there(name))
            self._held.update(name for name in names if self._is_staged(name))
            self._start()

    def _take_over(self, names: Iterable[str]) -> None:
        """Use what an earlier run was to drop of the shards that come next, and drop the rest.

        A later shard would hold the place of those before it, which are then waited for for ever.
        """
        passing = [name for name in names if self._is_staged(name) or not self._is_there(name)]
        nearest = passing[:SHARDS_AT_A_TIME]
        self._cache.sweep(nearest)
        for name in nearest:
            if self._is_staged(name):
                self._cache.fetch(name, staged=True)

    def acquire(self, path: Path) -> None:
        """Return once all of the shard lies at `path`.

        Raises:
            HubError: it could not be had, or `close` was called.
        """
        with self._changed:
            if path.name in self._queue:
                self._queue.remove(path.name)
            if not self._is_there(path.name) and path.name not in self._held:
                # Whoever asks out of order is served before those who wait in order.
                self._queue.appendleft(path.name)
            self._start()
            self._changed.wait_for(
                lambda: self._is_there(path.name) or self._failure or self._remote.stop.is_set()
            )
            if not self._is_there(path.name):
                raise self._failure or HubError(f"{path.name} is no longer wanted")

    def release(self, path: Path) -> None:
        """Drop the shard, if it came only for this."""
        with self._changed:
            if not self._keep:
                self._cache.drop(path.name)
            self._held.discard(path.name)
            self._changed.notify_all()

    def close(self) -> None:
        """Fetch nothing more; a blocked `acquire` ends. What came in part stays for another run."""
        self._remote.stop.set()
        with self._changed:
            self._changed.notify_all()
            worker = self._worker
        if worker is not None:
            worker.join(_PARTING_SECONDS)
        with self._changed:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _is_there(self, name: str) -> bool:
        return self._cache.is_there(name)

    def _is_staged(self, name: str) -> bool:
        return self._cache.is_staged(name)

    def _start(self) -> None:
        if self._queue and self._worker is None and self._failure is None:
            self._worker = threading.Thread(target=self._fetch_all, name="fetch", daemon=True)
            self._worker.start()

    def _fetch_all(self) -> None:
        """Work through the queue; a thread of its own."""
        while (name := self._next()) is not None:
            try:
                self._cache.fetch(name, staged=not self._keep)
            except StoppedError:
                return
            except Exception as error:  # belongs to whoever asks for the shard
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                if not self._is_staged(name):
                    self._held.discard(name)
                self._changed.notify_all()

    def _next(self) -> str | None:
        """The next shard to fetch, once there is room for it; None when none is left."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._remote.stop.is_set() or not self._queue or self._has_room()
            )
            if self._remote.stop.is_set() or not self._queue:
                self._worker = None
                return None
            name = self._queue.popleft()
            self._held.add(name)
            return name

    def _has_room(self) -> bool:
        return self._keep or len(self._held) < SHARDS_AT_A_TIME
