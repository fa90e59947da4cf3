"""Nothing that a checkpoint says of itself is a traceback: config.json, index, shards' headers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

import llama4_edge
from demo.checkpoint import Geometry
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.convert.checkpoint import (
    INDEX_NAME,
    Checkpoint,
    open_checkpoint,
    read_json_object,
    read_tensors,
)
from llama4_edge.convert.shards import LocalShards
from llama4_edge.convert.text_model import read_text_model
from llama4_edge.errors import CheckpointError, Llama4EdgeError
from tests.fixtures import MakeCheckpoint
from tests.fuzzing import damaged_bytes, damaged_json, efforts, fuzz

from .conftest import SMALL, SMALL_WITH_TOWER, read_header, shards_of
from .forms.test_fp8 import PUBLISHED

GEOMETRIES = {
    "multimodal": SMALL_WITH_TOWER,
    "text": replace(SMALL, vision=None, text_only=True, config_form="rope_parameters"),
    "tied": replace(SMALL, tied=True, moe_step=2),
}


def as_json(value: Any) -> bytes:
    """Integers of any number of digits included."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode()
    finally:
        sys.set_int_max_str_digits(before)


def fuzz_one(
    check: Callable[[bytes], None], inputs: st.SearchStrategy[bytes], effort: settings
) -> None:
    """Each of the geometries gets its share of the effort."""
    fuzz(check, inputs, settings(effort, max_examples=effort.max_examples // len(GEOMETRIES)))


def every(count: int) -> Iterator[bool]:
    """True at each `count`th question."""
    while True:
        yield from [False] * (count - 1)
        yield True


@pytest.fixture(params=list(GEOMETRIES))
def sound(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A copy of a small checkpoint, to be damaged."""
    geometry: Geometry = GEOMETRIES[request.param]
    copy = tmp_path / "small"
    shutil.copytree(make_checkpoint(geometry), copy)
    return copy


def check_opened(checkpoint: Checkpoint) -> None:
    """What is read is consistent: each tensor's bytes are in its file, and each has its target."""
    model = read_text_model(checkpoint)
    hparams = model.config.hparams
    assert len(model.tensors) >= hparams.n_layer * 9
    for mapped in model.tensors:
        stored = mapped.stored
        size = checkpoint.shards.size(stored.file)
        assert size is not None
        assert 0 < stored.offset < stored.offset + stored.nbytes <= size
        shapes = [target.shape for target in mapped.targets]
        experts = hparams.n_expert if mapped.expert is not None else 1
        assert sum(map(prod, shapes)) == prod(stored.shape) * experts


def check_whole(directory: Path) -> None:
    """The same through everything that plans and converts."""
    with suppress(Llama4EdgeError):
        blueprint(directory / "config.json")
    with suppress(Llama4EdgeError):
        llama4_edge.convert(directory, directory / "out.gguf", dry_run=True)


def checker(sound: Path, name: str) -> Callable[[bytes], None]:
    """A check of the checkpoint with other bytes in the file `name`."""
    whole = every(50)

    def check(data: bytes) -> None:
        (sound / name).write_bytes(data)
        with suppress(CheckpointError):
            check_opened(open_checkpoint(sound))
        if next(whole):
            check_whole(sound)

    return check


@efforts
def test_no_config_is_a_traceback(sound: Path, effort: settings) -> None:
    config = read_json_object(sound / "config.json")
    quantized = {**config, "quantization_config": PUBLISHED}
    inputs = st.sampled_from([config, config, quantized]).flatmap(damaged_json).map(as_json)
    fuzz_one(checker(sound, "config.json"), inputs, effort)


@efforts
def test_no_bytes_of_a_config_are_a_traceback(sound: Path, effort: settings) -> None:
    data = (sound / "config.json").read_bytes()
    fuzz_one(checker(sound, "config.json"), damaged_bytes(data), effort)


@efforts
def test_no_index_is_a_traceback(sound: Path, effort: settings) -> None:
    index = read_json_object(sound / INDEX_NAME)
    fuzz_one(checker(sound, INDEX_NAME), damaged_json(index).map(as_json), effort)


class MemoryShards(LocalShards):
    """Shards whose beginnings are not those on the disk."""

    def __init__(self, heads: dict[str, bytes], tail: int) -> None:
        self._heads = heads
        self._tail = tail

    def size(self, path: Path) -> int | None:
        """With as many bytes of data as the file had."""
        head = self._heads.get(path.name)
        return super().size(path) if head is None else len(head) + self._tail

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Zeros behind the beginning."""
        head = self._heads.get(path.name)
        if head is None:
            return super().read(path, offset, length)
        end = min(offset + length, len(head) + self._tail)
        return head[offset:end].ljust(max(0, end - offset), b"\0")


def header_checker(sound: Path) -> tuple[dict[str, Any], Callable[[bytes], None]]:
    """The header of the first shard, and a check of the checkpoint with another beginning of it."""
    shard = shards_of(sound)[0]
    header, data = read_header(shard)
    config = read_json_object(sound / "config.json")
    # Any names: the index would know them all to be wrong.
    (sound / INDEX_NAME).unlink()
    whole = every(50)

    def check(beginning: bytes) -> None:
        shards = MemoryShards({shard.name: beginning}, len(data))
        with suppress(CheckpointError):
            check_opened(Checkpoint(sound, config, read_tensors(sound, shards), shards))
        if next(whole):
            shard.write_bytes(beginning + data)
            check_whole(sound)

    return header, check


def with_length(raw: bytes) -> bytes:
    return len(raw).to_bytes(8, "little") + raw


@efforts
def test_no_header_is_a_traceback(sound: Path, effort: settings) -> None:
    header, check = header_checker(sound)
    fuzz_one(check, damaged_json(header).map(as_json).map(with_length), effort)


@efforts
def test_no_bytes_of_a_header_are_a_traceback(sound: Path, effort: settings) -> None:
    header, check = header_checker(sound)
    fuzz_one(check, damaged_bytes(with_length(as_json(header))), effort)


@efforts
def test_no_names_are_a_traceback(sound: Path, effort: settings) -> None:
    """Parts of names taken out, put in and exchanged."""
    header, check = header_checker(sound)
    words = ["model", "language_model", "module", "_orig_mod", "base_model", "experts", "0", "-1"]
    words += ["layers", "gate_projs", "down_projs", "lora_A", "weight_scale", "", "lm_head", "²"]

    @st.composite
    def renamed(draw: st.DrawFn) -> dict[str, Any]:
        entries = dict(header)
        for name in draw(st.lists(st.sampled_from(list(header)), min_size=1, max_size=4)):
            parts = name.split(".")
            at = draw(st.integers(0, len(parts)))
            parts[at : at + draw(st.integers(0, 2))] = draw(
                st.lists(st.sampled_from(words), max_size=3)
            )
            if (entry := entries.pop(name, None)) is not None:
                entries[".".join(parts)] = entry
        return entries

    fuzz_one(check, renamed().map(as_json).map(with_length), effort)
