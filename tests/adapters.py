"""LoRA adapters and control vectors for tests, and what llama.cpp itself computes with them."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.gguf_maker import EMBD, F32, LAYERS, STR, TinyModel, Value, tiny_model

RANK = 2


def tiny_adapter(targets: Sequence[str], *, rank: int = RANK, seed: int = 1) -> TinyModel:
    """An adapter of these tensors of `tiny_model`, as llama.cpp's converter writes one."""
    keys = {
        "general.architecture": Value("llama4", STR),
        "general.type": Value("adapter", STR),
        "general.name": Value("Tiny adapter", STR),
        "adapter.type": Value("lora", STR),
        "adapter.lora.alpha": Value(4.0, F32),
    }
    random, model, tensors = np.random.default_rng(seed), tiny_model(), {}
    for target in targets:
        *experts, out, inner = model.tensors[target].shape
        shapes = [(*experts, rank, inner), (*experts, out, rank)]
        if target == "token_embd.weight":
            shapes = [(out, rank), (inner, rank)]
        for suffix, shape in zip(("lora_a", "lora_b"), shapes, strict=True):
            tensors[f"{target}.{suffix}"] = random.normal(0, 0.3, shape).astype(np.float32)
    return TinyModel(keys, tensors)


def tiny_control_vector(*, seed: int = 2) -> TinyModel:
    """A direction for each layer of `tiny_model` but the first, as llama.cpp's tool writes them."""
    keys = {
        "general.architecture": Value("controlvector", STR),
        "controlvector.model_hint": Value("llama4", STR),
    }
    random = np.random.default_rng(seed)
    directions = {
        f"direction.{layer}": random.normal(0, 1, EMBD).astype(np.float32)
        for layer in range(1, LAYERS)
    }
    return TinyModel(keys, directions)


def adapter_of(model: Path) -> TinyModel:
    """An adapter of rank 2 for the attention of a model's file."""
    made, random = tiny_adapter([]), np.random.default_rng(3)
    for tensor in read_gguf(model).tensors:
        if ".attn_q." in tensor.name:
            inner, out = tensor.shape
            for suffix, shape in (("lora_a", (RANK, inner)), ("lora_b", (out, RANK))):
                numbers = random.normal(0, 0.01, shape).astype(np.float32)
                made.tensors[f"{tensor.name}.{suffix}"] = numbers
    return made


def control_vector_of(model: Path) -> TinyModel:
    """A small direction for each layer of a model's file but the first."""
    made, random = tiny_control_vector(), np.random.default_rng(4)
    shapes = {tensor.name: tensor.shape for tensor in read_gguf(model).tensors}
    (width,) = shapes["output_norm.weight"]
    n_layer = sum(name.endswith(".attn_norm.weight") for name in shapes)
    made.tensors = {
        f"direction.{layer}": random.normal(0, 0.01, width).astype(np.float32)
        for layer in range(1, n_layer)
    }
    return made


def peer_logits(
    model: Path, tokens: Sequence[int], adapters: Sequence[tuple[Path, float]] = ()
) -> npt.NDArray[np.float32]:
    """llama.cpp's logits behind each token, [tokens, vocabulary], on the CPU.

    Args:
        adapters: files with the scale of each; llama.cpp must take them.
    """
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    # Repacked weights are multiplied by activations of 8 bits.
    settings.use_extra_bufts = False
    native = llama_cpp.llama_model_load_from_file(str(model).encode(), settings)
    assert native is not None
    loaded = [llama_cpp.llama_adapter_lora_init(native, str(it).encode()) for it, _ in adapters]
    assert all(loaded)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(256, len(tokens))
    # In f16 the cache would round keys and values.
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_threads = params.n_threads_batch = 2
    context = llama_cpp.llama_init_from_model(native, params)
    assert context is not None
    pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(loaded))(*loaded)
    scales = (ctypes.c_float * len(loaded))(*(scale for _, scale in adapters))
    assert llama_cpp.llama_set_adapters_lora(context, pointers, len(loaded), scales) == 0
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place] = token, place
        batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
    assert llama_cpp.llama_decode(context, batch) == 0
    width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(native))
    pointer = llama_cpp.llama_get_logits(context)
    logits: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, (len(tokens), width)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(native)
    return logits


def write_peft(
    directory: Path, tensors: Mapping[str, npt.NDArray[Any]], **settings: object
) -> Path:
    """An adapter's directory as PEFT saves one, with these settings beside the usual ones."""
    directory.mkdir(exist_ok=True)
    save_file(dict(tensors), directory / "adapter_model.safetensors")
    usual = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "fan_in_fan_out": False,
        "use_dora": False, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {},
        "modules_to_save": None, "target_parameters": None, "peft_version": "0.21.0",
        "base_model_name_or_path": None, "init_lora_weights": True,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps({**usual, **settings}))
    return directory


def halves(
    module: str, inner: int, out: int, *, rank: int = 2, seed: int = 0
) -> dict[str, npt.NDArray[np.float32]]:
    """lora_A and lora_B of one linear layer, by PEFT's names."""
    random = np.random.default_rng(seed)
    return {
        f"base_model.model.{module}.lora_{letter}.weight": random.normal(0, 0.1, shape).astype("f4")
        for letter, shape in (("A", (rank, inner)), ("B", (out, rank)))
    }
