"""A small checkpoint on the hub of the tests, and how they look at what has come of it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants

from llama4_edge.convert.checkpoint import Checkpoint
from llama4_edge.convert.hub import HubShards, open_repository

NAME = "meta-llama/Llama-4-Small"
SHARDS = 6


def cached_files() -> list[str]:
    """What the cache holds of shards: blobs by their size class, and links by their name."""
    root = Path(constants.HF_HUB_CACHE)
    return sorted(path.name for path in root.glob("models--*/snapshots/*/*.safetensors"))


def blobs(pattern: str = "*") -> list[Path]:
    return list(Path(constants.HF_HUB_CACHE).glob(f"models--*/blobs/{pattern}"))


def shard(number: int) -> str:
    return f"model-{number:05d}-of-{SHARDS:05d}.safetensors"


def opened(
    name: str = NAME, *, keep_source: bool = False
) -> tuple[Checkpoint, HubShards, list[Path]]:
    checkpoint = open_repository(name, keep_source=keep_source)
    assert isinstance(checkpoint.shards, HubShards)
    return (
        checkpoint,
        checkpoint.shards,
        sorted({tensor.file for tensor in checkpoint.tensors.values()}),
    )
