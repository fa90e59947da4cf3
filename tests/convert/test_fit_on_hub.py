"""A repository that is fitted: fetched once, and to the recipe of its directory."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from llama4_edge import convert, fit
from llama4_edge.errors import OutputError
from tests.hub_server import HubServer

from .on_hub import NAME, SHARDS, cached_files, shard


def test_each_shard_is_fetched_once_and_stays(published: HubServer, tmp_path: Path) -> None:
    convert(NAME, tmp_path / "hub.gguf", target_bpw=5, vision=False, threads=1)
    entries = published.repositories[NAME].entries
    for number in range(1, SHARDS + 1):
        whole = f"bytes=0-{len(entries[shard(number)].data) - 1}"
        # The last two have the vision tower alone.
        expected = 1 if number <= SHARDS - 2 else 0
        assert published.ranges(f"/cdn/.*{shard(number)}").count(whole) == expected
    assert cached_files() == [shard(number) for number in range(1, SHARDS - 1)]
    local = snapshot_download(NAME, cache_dir=tmp_path / "elsewhere")
    convert(local, tmp_path / "local.gguf", recipe=fit(local, target_bpw=5).recipe, vision=False)
    assert (tmp_path / "hub.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()


def test_a_disk_that_cannot_hold_all_shards_is_refused_before_any_is_fetched(
    published: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(OutputError, match=f"too little free space for all of {NAME}"):
        fit(NAME, target_bpw=5)
