"""Bytes of tensors, and the formula of the KV cache against what llama.cpp reports."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from llama4_edge import convert
from llama4_edge.errors import CheckpointError, ModelFileError, RecipeError
from llama4_edge.planner.geometry import kv_cells, open_geometry
from llama4_edge.planner.gpus import gpus_named
from llama4_edge.planner.machine import described_machine
from llama4_edge.quant.roles import ROLES
from llama4_edge.runtime.bindings.memory import measure
from llama4_edge.runtime.placement import Placement
from llama4_edge.runtime.settings import EngineSettings, KVType, KVTypes
from llama4_edge.runtime.workers.simulated_gpus import simulated_gpus
from tests.fixtures import MakeGGUF

KIB, GIB = 2**10, 2**30


def test_scout_in_int4_weighs_what_its_file_does(tmp_path: Path) -> None:
    with open_geometry("scout") as scout:
        # 60.29 GiB, as llama4 inspect says of the converted file.
        assert scout.nbytes == 64_737_341_696
        assert {weight.role for weight in scout.weights} <= set(ROLES)
        experts = sum(one.nbytes for one in scout.weights if one.role == "expert")
        assert experts == 48 * 3 * 16 * 5120 * 8192 // 256 * 144  # Q4_K: 144 bytes for 256


def test_scouts_cache_takes_48_kib_a_token_on_the_full_layers() -> None:
    with open_geometry("scout") as scout:
        one, more = (EngineSettings(n_ctx=tokens) for tokens in (32_768, 65_536))
        layers = range(scout.hparams.n_layer)
        full = [layer for layer in layers if scout.hparams.is_full(layer)]
        chunked = [layer for layer in layers if not scout.hparams.is_full(layer)]
        assert (len(full), len(chunked)) == (12, 36)
        grown = sum(scout.kv_bytes(i, more) - scout.kv_bytes(i, one) for i in layers)
        assert grown == 32_768 * 48 * KIB
        # One chunk of 8192 and one ubatch of 512, whatever the context: 1.2 GiB.
        assert sum(scout.kv_bytes(i, more) for i in chunked) == 36 * 8704 * 4096


@pytest.mark.parametrize("model", ["scout", "maverick"])
@pytest.mark.parametrize("kv_type", ["f16", "q4_0", ("q8_0", "q4_0")])
@pytest.mark.parametrize(
    ("n_ctx", "n_ubatch", "n_parallel"),
    [
        (1, 512, 1),
        (300, 512, 3),
        (8192, 512, 1),
        (8193, 512, 1),
        (20_000, 64, 2),
        (262_144, 2048, 1),
    ],
)
def test_the_formula_of_the_cache_is_llama_cpps(
    model: str, kv_type: KVTypes, n_ctx: int, n_ubatch: int, n_parallel: int
) -> None:
    settings = EngineSettings(
        n_ctx=n_ctx,
        n_ubatch=n_ubatch,
        n_parallel=n_parallel,
        kv_type=kv_type,
        use_extra_bufts=False,  # repacked for AMX, weights take more than they do in the file
    )
    with open_geometry(model) as geometry:
        reported = measure(geometry.path, settings).on("CPU")
        layers = range(geometry.hparams.n_layer)
        assert sum(geometry.kv_bytes(layer, settings) for layer in layers) == reported.kv
        assert geometry.nbytes == reported.weights


TYPES: tuple[KVType, ...] = get_args(KVType)
PAIRS = tuple(product(TYPES, TYPES))
SAMPLE = (("bf16", "q5_1"), ("q5_0", "f16"), ("q4_1", "iq4_nl"), ("iq4_nl", "q8_0"))


@pytest.mark.parametrize(
    "pair",
    [pair if pair in SAMPLE else pytest.param(pair, marks=pytest.mark.heavy) for pair in PAIRS],
)
def test_the_cache_of_every_pair_of_types_is_llama_cpps(pair: tuple[KVType, KVType]) -> None:
    settings = EngineSettings(n_ctx=20_000, kv_type=pair, use_extra_bufts=False)
    with open_geometry("scout") as scout:
        layers = range(scout.hparams.n_layer)
        reported = measure(scout.path, settings).on("CPU")
        assert sum(scout.kv_bytes(layer, settings) for layer in layers) == reported.kv


def test_keys_and_values_are_counted_each_in_its_type() -> None:
    with open_geometry("scout") as scout:
        row = 8 * 128  # heads of keys or values, numbers of each
        settings = EngineSettings(n_ctx=256, kv_type=("q8_0", "q4_0"))
        assert scout.kv_bytes(3, settings) == 256 * (row * 34 // 32 + row * 18 // 32)
        assert scout.kv_read_per_token(3, settings, 100) == 100 * (row * 34 // 32 + row * 18 // 32)


def test_a_small_batch_makes_a_small_cache_of_the_chunked_layers() -> None:
    settings = EngineSettings(n_ctx=100_000, n_batch=128, n_ubatch=512)
    assert kv_cells(False, settings) == 8192 + 256  # 128 rounded up to 256
    assert kv_cells(True, settings) == 100_096


def test_a_gguf_weighs_the_same_whole_and_in_parts(scout_checkpoint: Path, tmp_path: Path) -> None:
    convert(scout_checkpoint, tmp_path / "whole.gguf")
    convert(scout_checkpoint, tmp_path / "parts.gguf", split_size=3_000_000)
    first = next(tmp_path.glob("parts-00001-of-*.gguf"))
    with open_geometry(tmp_path / "whole.gguf") as whole, open_geometry(first) as parts:
        assert sorted(parts.weights, key=str) == sorted(whole.weights, key=str)
        # llama.cpp finds the other parts itself.
        report = measure(parts.path, EngineSettings(n_ctx=256, use_extra_bufts=False))
        assert report.on("CPU").weights == whole.nbytes


def test_a_checkpoint_is_drawn_as_it_would_be_converted(
    scout_checkpoint: Path, scout_int4: Path
) -> None:
    with open_geometry(scout_checkpoint, "int4") as drawing, open_geometry(scout_int4) as made:
        assert sorted(drawing.weights, key=str) == sorted(made.weights, key=str)
        assert drawing.hparams == made.hparams


def test_a_tied_embedding_is_counted_where_llama_cpp_holds_it(
    tied_checkpoint: Path, make_gguf: MakeGGUF
) -> None:
    from llama4_edge.planner.layout import device_loads

    settings = EngineSettings(n_ctx=256, use_extra_bufts=False)
    with open_geometry(make_gguf(tied_checkpoint, "int4")) as tied:
        assert tied.tied
        (host,) = device_loads(tied, settings, [])
        # In main memory llama.cpp uses one tensor for both, and a token reads all of it.
        assert host.weights_bytes == measure(tied.path, settings).on("CPU").weights == tied.nbytes
        assert host.bytes_of("output") == 0
        assert host.read_bytes > host.bytes_of("embedding")
        gpus = described_machine(gpus_named("h100")).gpus
        placed = replace(settings, placement=Placement(devices=("H100",)))
        gpu, host = device_loads(tied, placed, gpus)
        assert gpu.bytes_of("output") == host.bytes_of("embedding") > 0
        report = measure(tied.path, placed, simulated_gpus(["H100"]))
        assert gpu.weights_bytes == report.on("H100").weights
        assert host.weights_bytes == report.on("CPU").weights


def test_a_gguf_takes_no_recipe(scout_int4: Path) -> None:
    with (
        pytest.raises(RecipeError, match="whose types are given, found the recipe int8"),
        open_geometry(scout_int4, "int8"),
    ):
        pass


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nonsense is not a model"), open_geometry("nonsense"):
        pass
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match="is truncated"), open_geometry(tmp_path / "x.gguf"):
        pass


def test_a_token_reads_one_expert_and_one_row_of_the_embedding() -> None:
    with open_geometry("maverick") as maverick:
        by_role = {one.role: one for one in maverick.weights}
        expert, embedding, output = (by_role[role] for role in ("expert", "embedding", "output"))
        assert maverick.read_per_token(expert) == expert.nbytes // 128
        four = maverick.with_experts_used(4)
        assert four.read_per_token(expert) == 4 * expert.nbytes // 128
        assert four.read_per_token(output) == output.nbytes
        assert maverick.read_per_token(embedding) == embedding.nbytes // 202_048
        assert maverick.read_per_token(output) == output.nbytes
        assert maverick.kv_read_per_token(3, EngineSettings(), 100_000) == 100_000 * 4096
        assert maverick.kv_read_per_token(2, EngineSettings(), 100_000) == 8192 * 4096


def test_settings_stay_hashable() -> None:
    # The search keeps what llama.cpp said by the settings that it was asked with.
    assert len({EngineSettings(), replace(EngineSettings(), n_ctx=32_768)}) == 1


def test_a_planner_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    program = """
import time
from llama4_edge.planner.geometry import open_geometry
with open_geometry("scout") as scout:
    print(scout.path.stat().st_size, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 64_737_341_696
        process.kill()
    assert list(tmp_path.iterdir()) == []


def test_without_proc_the_header_has_a_name_until_the_plan_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: "proc" not in path.parts and exists(path))
    with open_geometry("scout") as scout:
        assert [path / "header.gguf" for path in tmp_path.iterdir()] == [scout.path]
        settings = EngineSettings(n_ctx=256, use_extra_bufts=False)
        assert measure(scout.path, settings).on("CPU").weights == scout.nbytes
    assert list(tmp_path.iterdir()) == []
