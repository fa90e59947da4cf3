"""Whole checkpoints of every form: bounded, resumed to the same bytes, described in either file."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader

from benchmarks.form_writers import FORMS, write_form
from demo.checkpoint import SCOUT_LIKE
from llama4_edge import convert
from llama4_edge.convert import slabs
from llama4_edge.errors import CheckpointError, UnsupportedError
from llama4_edge.quant.importance_file import importance_bytes
from tests.convert.conftest import edit_json, random_importance
from tests.convert.test_resume import interrupted, small_slabs  # noqa: F401
from tests.fixtures import MakeCheckpoint
from tests.hub_server import running_hub

SMALL = replace(
    SCOUT_LIKE, hidden=128, heads=2, kv_heads=1, head_dim=64, expert_ffn=256, dense_ffn=256,
    experts=4, shards=1, vision=None,
)  # fmt: skip
FUSED = "modelopt-nvfp4"
MIB = 1 << 20


@pytest.fixture(scope="module")
def tokenizer(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(SMALL)


@pytest.fixture
def fused(tokenizer: Path, tmp_path: Path) -> Path:
    """Experts in ModelOpt's NVFP4."""
    write_form(tmp_path / "model", FUSED, SMALL, tokenizer)
    return tmp_path / "model"


@pytest.mark.parametrize("name", FORMS)
def test_an_interrupted_conversion_goes_on_to_the_same_bytes_in_small_slabs(
    name: str, tokenizer: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of each form, with every recipe that it is converted with."""
    write_form(tmp_path / "model", name, SMALL, tokenizer)
    whole = {}
    for recipe in FORMS[name].recipes:
        convert(tmp_path / "model", tmp_path / "whole.gguf", recipe=recipe, force=True)
        whole[recipe] = (tmp_path / "whole.gguf").read_bytes()
    request.getfixturevalue("small_slabs")
    for recipe, expected in whole.items():
        target = tmp_path / f"{recipe}.gguf"
        interrupted(tmp_path / "model", target, recipe=recipe)
        report = convert(tmp_path / "model", target, recipe=recipe)
        assert 0.5 <= report.resumed_at < 1
        assert target.read_bytes() == expected


@pytest.mark.parametrize("name", FORMS)
def test_with_an_importance_matrix_it_is_what_its_numbers_become(
    name: str, tokenizer: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    write_form(tmp_path / "model", name, SMALL, tokenizer)
    exact = "keep" if name in ("f16", "f32") else "bf16"
    numbers = Path(convert(tmp_path / "model", tmp_path / "numbers.gguf", recipe=exact).output)
    matrix = tmp_path / "imatrix.gguf"
    matrix.write_bytes(importance_bytes(random_importance(numbers)))
    convert(numbers, tmp_path / "expected.gguf", recipe="q4_0", imatrix=matrix)
    request.getfixturevalue("small_slabs")
    convert(tmp_path / "model", tmp_path / "out.gguf", recipe="q4_0", imatrix=matrix)
    expected = (tmp_path / "expected.gguf").read_bytes()
    assert (tmp_path / "out.gguf").read_bytes() == expected
    convert(numbers, tmp_path / "plain.gguf", recipe="q4_0")
    assert (tmp_path / "plain.gguf").read_bytes() != expected


@pytest.mark.parametrize("name", ["fp8", "nf4", "modelopt-fp8", FUSED])
def test_memory_is_that_of_slabs_however_large_a_matrix_is(
    name: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate and up of one expert alone, which ModelOpt fuses, are 8 MiB in float32."""
    wide = replace(SMALL, expert_ffn=8192, experts=1)
    write_form(tmp_path / "model", name, wide, tokenizer)
    monkeypatch.setattr(slabs, "SLAB_BYTES", MIB // 4)
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", MIB // 4)
    convert(tmp_path / "model", tmp_path / "first.gguf", recipe="int4", threads=1)  # imports
    tracemalloc.start()
    try:
        convert(tmp_path / "model", tmp_path / "out.gguf", recipe="int4", threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * MIB


def test_modelopt_s_own_file_says_what_config_json_does_not(
    fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory, and in a repository on the hub."""
    convert(fused, tmp_path / "before.gguf", recipe="int4")
    settings = json.loads((fused / "config.json").read_text())["quantization_config"]
    own = {
        "producer": {"name": "modelopt", "version": "0.47.0"},
        "quantization": {"quant_algo": settings["quant_algo"], "kv_cache_quant_algo": None},
    }
    (fused / "hf_quant_config.json").write_text(json.dumps(own))
    edit_json(fused / "config.json", lambda config: config.pop("quantization_config"))
    report = convert(fused, tmp_path / "directory.gguf", recipe="int4")
    assert any("NVFP4" in note and "decoded" in note for note in report.notes), report.notes
    name = "nvidia/model"
    with running_hub(monkeypatch, tmp_path / "home") as hub:
        hub.add(name, fused)
        convert(name, tmp_path / "hub.gguf", recipe="int4")
    before = (tmp_path / "before.gguf").read_bytes()
    assert (tmp_path / "directory.gguf").read_bytes() == before
    assert same_but_for_its_origin(tmp_path / "hub.gguf", before)
    own["quantization"]["quant_algo"] = "INT3"
    (fused / "hf_quant_config.json").write_text(json.dumps(own))
    with pytest.raises(UnsupportedError, match="quant_algo 'INT3'"):
        convert(fused, tmp_path / "out.gguf")


def test_fused_experts_under_the_settings_of_linear_layers_are_refused(
    tokenizer: Path, tmp_path: Path
) -> None:
    """transformers' ``fp8`` has linear layers, with their inverse scales, and no fused experts."""
    write_form(tmp_path / "model", "modelopt-fp8", SMALL, tokenizer)
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    edit_json(
        tmp_path / "model" / "config.json",
        lambda config: config.update(quantization_config=settings),
    )
    with pytest.raises(CheckpointError, match=r"unsupported dtype, found F8_E4M3"):
        convert(tmp_path / "model", tmp_path / "out.gguf", recipe="int4")
    assert not list(tmp_path.glob("out*"))


def same_but_for_its_origin(file: Path, expected: bytes) -> bool:
    """A file says of which repository it is, and of none where it is of a directory."""
    other = file.with_name("expected.gguf")
    other.write_bytes(expected)
    ours, theirs = (
        {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}
        for path in (file, other)
    )
    return ours == theirs
