"""Adapter files: what is read of a sound one, and that llama.cpp never sees any other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from llama4_edge.errors import ModelFileError
from llama4_edge.runtime.files.adapter_file import check_adapter_file, is_adapter
from llama4_edge.runtime.files.gguf_file import read_gguf
from llama4_edge.runtime.files.model_file import check_model_file
from tests.adapters import RANK, peer_logits, tiny_adapter
from tests.gguf_maker import (
    EMBD,
    EXPERT_FF,
    EXPERTS,
    F32,
    N_VOCAB,
    STR,
    U32,
    TinyModel,
    Value,
    tiny_model,
)

ALL = (
    *("token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.1.attn_k.weight"),
    *("blk.1.attn_v.weight", "blk.3.attn_output.weight", "blk.0.ffn_gate_inp.weight"),
    *("blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight", "blk.2.ffn_down_exps.weight"),
    *("blk.0.ffn_gate_shexp.weight", "blk.0.ffn_up_shexp.weight", "blk.3.ffn_down_shexp.weight"),
)
QUERY, EXPERT = "blk.0.attn_q.weight", "blk.0.ffn_gate_exps.weight"
TOKENS = [1, 5, 70, 200, 3, 9]


@pytest.fixture
def tied_path(tmp_path: Path) -> Path:
    model = tiny_model()
    del model.tensors["output.weight"]
    return model.write(tmp_path / "tied.gguf")


def test_a_sound_file_is_read(tiny_path: Path, tmp_path: Path) -> None:
    path = tiny_adapter(ALL).write(tmp_path / "adapter.gguf")
    info = check_adapter_file(path, check_model_file(tiny_path))
    assert is_adapter(read_gguf(path))
    assert (info.name, info.alpha, info.bytes) == ("Tiny adapter", 4.0, path.stat().st_size)
    assert set(info.matrices) == set(ALL)
    assert {pair.rank for pair in info.matrices.values()} == {RANK}
    assert info.matrices[QUERY].nbytes == 4 * RANK * (EMBD + EMBD)
    assert info.matrices[EXPERT].nbytes == 4 * RANK * EXPERTS * (EMBD + EXPERT_FF)
    assert info.weight_bytes == sum(it.nbytes for it in tiny_adapter(ALL).tensors.values())


@pytest.mark.parametrize("target", ALL)
def test_llama_cpp_applies_each_tensor_that_is_accepted(
    tiny_path: Path, tmp_path: Path, target: str
) -> None:
    path = tiny_adapter([target]).write(tmp_path / "adapter.gguf")
    check_adapter_file(path, check_model_file(tiny_path))
    difference = peer_logits(tiny_path, TOKENS, [(path, 1.0)]) - peer_logits(tiny_path, TOKENS)
    assert np.abs(difference).max() > 1e-4


@pytest.mark.parametrize("rank", [1, 7, 32])
def test_every_rank_is_read(tiny_path: Path, tmp_path: Path, rank: int) -> None:
    path = tiny_adapter(ALL, rank=rank).write(tmp_path / "adapter.gguf")
    info = check_adapter_file(path, check_model_file(tiny_path))
    assert {pair.rank for pair in info.matrices.values()} == {rank}


def test_a_model_is_no_adapter(tiny_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"is not an adapter, found no general.type, expected"):
        check_adapter_file(tiny_path)


def drop(name: str) -> Callable[[TinyModel], object]:
    return lambda adapter: adapter.tensors.pop(name)


def key(name: str, value: Value) -> Callable[[TinyModel], object]:
    return lambda adapter: adapter.keys.update({name: value})


def tensor(name: str, *shape: int) -> Callable[[TinyModel], object]:
    return lambda adapter: adapter.tensors.update({name: np.ones(shape, np.float32)})


def quantized(adapter: TinyModel) -> None:
    name = f"{QUERY}.lora_a"
    adapter.tensors[name] = np.zeros((RANK, EMBD), np.int32)
    adapter.types[name] = GGMLQuantizationType.I32


DAMAGES: dict[str, tuple[Callable[[TinyModel], object], str]] = {
    "another type of adapter": (key("adapter.type", Value("control", STR)), "adapter.type control"),
    "another architecture": (
        key("general.architecture", Value("llama", STR)),
        "is not a LoRA adapter of a Llama 4, found general.architecture llama, expected llama4",
    ),
    "no kind": (lambda it: it.keys.pop("adapter.type"), "found no adapter.type, expected lora"),
    "a number for a kind": (key("general.type", Value(3, U32)), "general.type, found type u32"),
    "alpha as text": (key("adapter.lora.alpha", Value("4", STR)), "found type str, expected type"),
    "alpha NaN": (key("adapter.lora.alpha", Value(float("nan"), F32)), "found nan, expected a fin"),
    "activated": (
        key("adapter.alora.invocation_tokens", Value(1, U32)),
        "is an activated LoRA",
    ),
    "half a pair": (drop(f"{QUERY}.lora_b"), f"has no tensor {QUERY}.lora_b"),
    "no pair": (lambda it: it.tensors.clear(), "has no tensors"),
    "a norm": (tensor("blk.0.attn_norm.weight", EMBD), "does not apply: blk.0.attn_norm.weight"),
    "of a norm": (tensor("output_norm.weight.lora_a", 1, EMBD), "does not apply: output_norm"),
    "a whole matrix": (tensor("output.weight", N_VOCAB, EMBD), "does not apply: output.weight"),
    "integers": (quantized, "of a type that ggml does not compute with: blk.0.attn_q.weight.lora"),
    "two ranks": (tensor(f"{QUERY}.lora_a", 3, EMBD), "do not go together: blk.0.attn_q.weight"),
    "transposed": (tensor(f"{QUERY}.lora_a", EMBD, RANK), "do not go together"),
    "experts of one": (tensor(f"{EXPERT}.lora_b", 1, EXPERT_FF, RANK), "as many experts"),
    "four axes": (tensor(f"{QUERY}.lora_a", 2, 1, RANK, EMBD), "has misshapen tensors of blk.0"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_any_other_file_is_refused(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    adapter = tiny_adapter([QUERY, EXPERT])
    damage(adapter)
    path = adapter.write(tmp_path / "adapter.gguf")
    with pytest.raises(ModelFileError, match=re.escape(message)):
        check_adapter_file(path)


MISFITS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "wider": ({f"{QUERY}.lora_a": (RANK, 80)}, f"found {QUERY} [80, 64], expected [64, 64]"),
    "higher": ({f"{QUERY}.lora_b": (80, RANK)}, f"found {QUERY} [64, 80], expected [64, 64]"),
    "fewer experts": (
        {f"{EXPERT}.lora_a": (2, RANK, EMBD), f"{EXPERT}.lora_b": (2, EXPERT_FF, RANK)},
        f"found {EXPERT} [64, 32, 2], expected [64, 32, 4]",
    ),
    "experts for none": (
        {f"{QUERY}.lora_a": (4, RANK, EMBD), f"{QUERY}.lora_b": (4, EMBD, RANK)},
        f"found {QUERY} [64, 64, 4], expected [64, 64]",
    ),
    "a layer more": (
        {"blk.4.attn_q.weight.lora_a": (RANK, EMBD), "blk.4.attn_q.weight.lora_b": (EMBD, RANK)},
        "found blk.4.attn_q.weight [64, 64], expected no such tensor",
    ),
    "dense": (
        {"blk.0.ffn_up.weight.lora_a": (RANK, EMBD), "blk.0.ffn_up.weight.lora_b": (96, RANK)},
        "found blk.0.ffn_up.weight [64, 96], expected no such tensor",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_an_adapter_of_another_model_is_refused_by_its_shapes(
    tiny_path: Path, tmp_path: Path, name: str
) -> None:
    shapes, message = MISFITS[name]
    adapter = tiny_adapter([QUERY, EXPERT])
    adapter.tensors |= {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    path = adapter.write(tmp_path / "adapter.gguf")
    check_adapter_file(path)
    with pytest.raises(ModelFileError, match="is an adapter of another model") as caught:
        check_adapter_file(path, check_model_file(tiny_path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("token_embd.weight", "changes the embedding, which is the output too in"),
        ("output.weight", "changes the output, which is the embedding too in"),
    ],
)
def test_llama_cpp_cannot_change_an_embedding_that_is_the_output(
    tied_path: Path, tmp_path: Path, target: str, message: str
) -> None:
    path = tiny_adapter([target]).write(tmp_path / "adapter.gguf")
    with pytest.raises(ModelFileError, match=message):
        check_adapter_file(path, check_model_file(tied_path))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tiny_adapter(ALL).write(tmp_path / "adapter.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="is truncated"):
        check_adapter_file(path)
