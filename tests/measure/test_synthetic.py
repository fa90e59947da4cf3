"""A synthetic file has the layout of a conversion, sound numbers, and leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, dequantize

from llama4_edge.convert.blueprint import Blueprint, blueprint
from llama4_edge.convert.metadata import ROPE_FREQS, rope_factors
from llama4_edge.convert.presets import PRESETS
from llama4_edge.errors import OutputError
from llama4_edge.measure import synthetic
from llama4_edge.measure.synthetic import synthetic_file
from llama4_edge.progress import Progress
from llama4_edge.quant import RECIPES
from llama4_edge.runtime.files.damage import find_damage

SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "intermediate_size_mlp": 512,
    "vocab_size": 1024,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**PRESETS["scout"].config, **SMALL}))
    return path


@pytest.fixture
def drawn(config: Path) -> Blueprint:
    return blueprint(config, synthetic=True)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# IQ3, IQ2 and IQ1 are encoded by ggml, slowly.
EVERY = [
    pytest.param(name, marks=[pytest.mark.heavy] * name.startswith(("iq3", "iq2", "iq1")))
    for name in RECIPES
]


@pytest.mark.parametrize("recipe", EVERY)
def test_every_recipe_s_file_is_what_its_blueprint_says_and_sound(
    config: Path, tmp_path: Path, recipe: str
) -> None:
    drawn = blueprint(config, recipe=recipe, synthetic=True)
    with synthetic_file(drawn, tmp_path / "out") as path:
        assert path.read_bytes()[: len(drawn.header)] == drawn.header
        assert path.stat().st_size == drawn.nbytes
        placed = [(t.name, t.type.name, path, t.offset, t.nbytes) for t in drawn.tensors]
        assert find_damage(placed) == []


@pytest.mark.parametrize("recipe", ["int4", "q4_0", "bf16"])
def test_weights_are_spread_so_that_activations_keep_their_size(
    config: Path, tmp_path: Path, recipe: str
) -> None:
    drawn = blueprint(config, recipe=recipe, synthetic=True)
    with synthetic_file(drawn, tmp_path / "out") as path:
        tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        weights = {
            name: dequantize(tensor.data, tensor.tensor_type) for name, tensor in tensors.items()
        }
    layers = 4
    expected = {
        "token_embd.weight": 1.0,
        "output.weight": 256**-0.5,
        "blk.1.ffn_gate_inp.weight": 256**-0.5,
        "blk.2.ffn_up_exps.weight": 256**-0.5,
        "blk.2.ffn_down_exps.weight": (512 * 2 * layers) ** -0.5,
        "blk.3.attn_output.weight": (256 * 2 * layers) ** -0.5,
    }
    for name, spread in expected.items():
        # A router is 4096 numbers; their deviation is known to one part in 90.
        assert weights[name].std() == pytest.approx(spread, rel=0.05), name
        assert abs(weights[name].mean()) < 0.05 * spread, name
    assert (weights["blk.0.attn_norm.weight"] == 1).all()
    factors = rope_factors(drawn.config)
    assert factors is not None and np.array_equal(weights[ROPE_FREQS], factors)


def test_no_two_experts_are_the_same(drawn: Blueprint, tmp_path: Path) -> None:
    with synthetic_file(drawn, tmp_path / "out") as path:
        (experts,) = [
            tensor.data.copy()
            for tensor in GGUFReader(path).tensors
            if tensor.name == "blk.0.ffn_up_exps.weight"
        ]
    assert len({expert.tobytes() for expert in experts}) == len(experts) == 16


def test_the_same_blueprint_gives_the_same_bytes(drawn: Blueprint, tmp_path: Path) -> None:
    digests = set()
    for threads in (1, 3):
        with synthetic_file(drawn, tmp_path / str(threads), threads=threads) as path:
            digests.add(digest(path))
    assert len(digests) == 1


def test_a_tensor_larger_than_a_tile_is_laid_out_of_different_places(
    drawn: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "TILE_NUMBERS", 1 << 13)
    monkeypatch.setattr(synthetic, "_CHUNK_BYTES", 100_000)
    with synthetic_file(drawn, tmp_path) as path:
        tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        rows = tensors["blk.0.ffn_up_exps.weight"].data.reshape(-1, 144)
        # 32 rows of a tile, repeated from anywhere, are 32 kinds of rows in ever new orders.
        assert len({row.tobytes() for row in rows}) == 32
        orders = rows.reshape(-1, 32 * 144)
        assert len({order.tobytes() for order in orders}) > 20


def test_a_file_goes_when_the_block_ends_and_stays_where_it_is_kept(
    drawn: Blueprint, tmp_path: Path
) -> None:
    with synthetic_file(drawn, tmp_path / "out") as path:
        assert path.is_file()
    assert list((tmp_path / "out").iterdir()) == []
    with synthetic_file(drawn, tmp_path / "out", keep=True) as kept:
        before = kept.stat().st_mtime_ns
    # Found again, and not removed by a call that does not keep.
    with synthetic_file(drawn, tmp_path / "out") as again:
        assert again == kept and again.stat().st_mtime_ns == before
    assert list((tmp_path / "out").iterdir()) == [kept]
    assert kept.name.startswith(tmp_path.name.lower().replace("_", "-"))


def test_another_recipe_s_file_is_not_taken_for_it(config: Path, tmp_path: Path) -> None:
    names = set()
    for types in ([], [("ffn_down_exps", "q8_0")]):
        drawn = blueprint(config, types=types, synthetic=True)
        with synthetic_file(drawn, tmp_path / "out", keep=True) as path:
            names.add(path.name)
            assert path.stat().st_size == drawn.nbytes
    assert len(names) == 2


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("anything")])
def test_an_interrupted_call_leaves_nothing(
    drawn: Blueprint, tmp_path: Path, failure: BaseException
) -> None:
    def interrupt(at: Progress) -> None:
        raise failure

    with (
        pytest.raises(type(failure)),
        synthetic_file(drawn, tmp_path / "out", keep=True, progress=interrupt),
    ):
        pytest.fail("the block is not entered")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_call_left_is_swept_away_and_what_is_in_use_is_not(
    drawn: Blueprint, tmp_path: Path
) -> None:
    dead, alive = tmp_path / ".synthetic-dead.gguf", tmp_path / ".synthetic-alive.gguf"
    dead.write_bytes(b"dead")
    with alive.open("wb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        with synthetic_file(drawn, tmp_path):
            assert not dead.exists() and alive.exists()


def test_a_disk_that_is_too_small_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behemoth = blueprint("behemoth", recipe="bf16", synthetic=True)
    refused = pytest.raises(OutputError, match="too little free space")
    with refused, synthetic_file(behemoth, tmp_path):
        pytest.fail("the block is not entered")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing(
    drawn: Blueprint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.pwrite, []

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with (
        pytest.raises(OutputError, match="has no room left"),
        synthetic_file(drawn, tmp_path / "out"),
    ):
        pytest.fail("the block is not entered")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_directory_that_cannot_be_made_is_an_error(drawn: Blueprint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot be written to"),
        synthetic_file(drawn, tmp_path / "file" / "below"),
    ):
        pytest.fail("the block is not entered")


def test_progress_ends_at_the_whole(drawn: Blueprint, tmp_path: Path) -> None:
    seen: list[Progress] = []
    with synthetic_file(drawn, tmp_path, progress=seen.append):
        pass
    assert seen[-1].bytes_done == seen[-1].bytes_total == sum(t.nbytes for t in drawn.tensors)
    assert [at.bytes_done for at in seen] == sorted(at.bytes_done for at in seen)
