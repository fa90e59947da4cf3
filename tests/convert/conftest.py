"""A checkpoint that a test may damage: small, whole, and its own; and one on a hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from demo.checkpoint import SCOUT_LIKE
from llama4_edge.convert import hub as hub_shards
from llama4_edge.quant.importance import Activations, Importance
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.fixtures import MakeCheckpoint
from tests.hub_server import HubServer, running_hub

from .on_hub import NAME, SHARDS

if TYPE_CHECKING:
    from .saved import MakeForms

SMALL = replace(
    SCOUT_LIKE, hidden=64, heads=2, kv_heads=1, head_dim=32, expert_ffn=64, dense_ffn=64, experts=4,
    shards=2, vision=None,
)  # fmt: skip
SMALL_WITH_TOWER = replace(SMALL, vision=SCOUT_LIKE.vision)

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def checkpoint(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A copy of a small checkpoint in two shards, to be damaged."""
    copy = tmp_path / "small"
    shutil.copytree(make_checkpoint(SMALL), copy)
    return copy


@pytest.fixture
def checkpoint_with_tower(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """The same with a vision tower, and without what `checkpoint` has in common with it."""
    copy = tmp_path / "source" / "small"
    shutil.copytree(make_checkpoint(SMALL_WITH_TOWER), copy)
    return copy


@pytest.fixture
def forms(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> MakeForms:
    """``forms(geometry)``: a checkpoint to be written again in another form."""
    from .saved import Forms

    return lambda geometry: Forms(make_checkpoint(geometry), tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with running_hub(monkeypatch, tmp_path / "home") as server:
        # As small beside these shards as a header is beside a published one.
        monkeypatch.setattr(hub_shards, "_HEAD_BYTES", 4096)
        yield server


@pytest.fixture
def published(hub: HubServer, make_checkpoint: MakeCheckpoint) -> HubServer:
    """The hub with a whole checkpoint in six shards, the last two with the vision tower alone."""
    hub.add(NAME, make_checkpoint(replace(SMALL_WITH_TOWER, shards=SHARDS)), tags=("v1",))
    return hub


def edit_json(path: Path, edit: Edit) -> None:
    """Change the object in a JSON file."""
    value = json.loads(path.read_text(encoding="utf-8"))
    edit(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_text_config(checkpoint: Path, **changes: object) -> None:
    """Set fields of the text model's config; None removes one."""

    def edit(config: dict[str, Any]) -> None:
        text = config.get("text_config", config)
        for name, value in changes.items():
            text.pop(name, None)
            if value is not None:
                text[name] = value

    edit_json(checkpoint / "config.json", edit)


def read_header(shard: Path) -> tuple[dict[str, Any], bytes]:
    """A safetensors file as its tensors' entries and its data."""
    raw = shard.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, raw[8 + length :]


def write_shard(shard: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    """Write a safetensors file, whatever the header says."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    shard.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def edit_header(shard: Path, edit: Edit) -> None:
    """Change a shard's header and leave its data."""
    header, data = read_header(shard)
    edit(header)
    write_shard(shard, header, data)


def shards_of(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.glob("*.safetensors"))


def shard_with(checkpoint: Path, ending: str) -> tuple[Path, str]:
    """The shard that holds the first tensor whose name ends so, and that name."""
    for shard in shards_of(checkpoint):
        for name in read_header(shard)[0]:
            if name.endswith(ending):
                return shard, name
    raise LookupError(ending)


def drop_tensor(checkpoint: Path, name: str) -> None:
    """Take a tensor out of its shard and the index, as if it had never been there."""
    shard = next(path for path in shards_of(checkpoint) if name in read_header(path)[0])
    header, data = read_header(shard)
    begin, end = header.pop(name)["data_offsets"]
    for entry in header.values():
        if entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]
    write_shard(shard, header, data[:begin] + data[end:])
    edit_json(
        checkpoint / "model.safetensors.index.json", lambda index: index["weight_map"].pop(name)
    )


def add_tensor(checkpoint: Path, name: str, shape: tuple[int, ...]) -> None:
    """Append a bf16 tensor of zeros to the first shard and list it in the index."""
    shard = shards_of(checkpoint)[0]
    header, data = read_header(shard)
    zeros = np.zeros(shape, np.uint16).tobytes()
    header[name] = {
        "dtype": "BF16", "shape": list(shape), "data_offsets": [len(data), len(data) + len(zeros)],
    }  # fmt: skip
    write_shard(shard, header, data + zeros)
    edit_json(
        checkpoint / "model.safetensors.index.json",
        lambda index: index["weight_map"].update({name: shard.name}),
    )


def random_importance(model: Path, seed: int = 1) -> Importance:
    """Statistics of random numbers for the layers of a GGUF, each expert's its own."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for tensor in read_gguf(model).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            shape = (1 if len(tensor.shape) == 2 else tensor.shape[2], tensor.shape[0])
            sums = rng.lognormal(0, 2, shape).astype(np.float32)
            tensors[tensor.name] = Activations(sums, rng.integers(1, 99, shape[0]))
    return Importance(tensors)
