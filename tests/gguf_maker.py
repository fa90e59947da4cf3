"""Tiny Llama 4 GGUFs, key by key and tensor by tensor, so that a test can damage any part."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

U16, U32, I32, F32 = (
    GGUFValueType.UINT16,
    GGUFValueType.UINT32,
    GGUFValueType.INT32,
    GGUFValueType.FLOAT32,
)
STR, BOOL = GGUFValueType.STRING, GGUFValueType.BOOL

LAYERS, EMBD, HEADS, KV_HEADS, HEAD_DIM = 4, 64, 4, 2, 16
FF, EXPERT_FF, EXPERTS = 96, 32, 4
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eom|>", "<|eot|>")


@dataclass(frozen=True)
class Value:
    """A value with its type in the file; `element` is set for an array."""

    value: object
    type: GGUFValueType
    element: GGUFValueType | None = None


@dataclass
class TinyModel:
    """Keys and tensors (numpy order: the row length is last) of a file that is not yet written."""

    keys: dict[str, Value]
    tensors: dict[str, np.ndarray]
    types: dict[str, GGMLQuantizationType] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        writer = gguf.GGUFWriter(path, "llama4")
        del writer.kv_data[0]["general.architecture"]
        if "general.alignment" in self.keys:
            writer.data_alignment = int(str(self.keys["general.alignment"].value))
        for key, value in self.keys.items():
            if value.element is None:
                writer.add_key_value(key, value.value, value.type)
            else:
                writer.add_key_value(key, value.value, GGUFValueType.ARRAY, sub_type=value.element)
        for name, data in self.tensors.items():
            writer.add_tensor(name, data, raw_dtype=self.types.get(name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def byte_letters() -> list[str]:
    """The letter of byte-level BPE for each byte, in the order of the bytes (GPT-2's table)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = dict(zip(kept, map(chr, kept), strict=True))
    for byte in range(256):
        letters.setdefault(byte, chr(256 + sum(b not in kept for b in range(byte))))
    return [letters[byte] for byte in range(256)]


def tiny_vocabulary() -> dict[str, Value]:
    words, merges = ["th", "the", "Ġthe"], ["t h", "th e", "Ġ the"]
    tokens = [*byte_letters(), *words, *SPECIAL]
    first = len(tokens) - len(SPECIAL)
    types = [1] * first + [3] * len(SPECIAL)
    return {
        "tokenizer.ggml.model": Value("gpt2", STR),
        "tokenizer.ggml.pre": Value("llama4", STR),
        "tokenizer.ggml.tokens": Value(tokens, STR, STR),
        "tokenizer.ggml.token_type": Value(types, I32, I32),
        "tokenizer.ggml.merges": Value(merges, STR, STR),
        "tokenizer.ggml.bos_token_id": Value(first, U32),
        "tokenizer.ggml.eos_token_id": Value(first + 1, U32),
        "tokenizer.ggml.eom_token_id": Value(first + 2, U32),
        "tokenizer.ggml.eot_token_id": Value(first + 3, U32),
        "tokenizer.chat_template": Value("{{ messages[0].content }}", STR),
    }


N_VOCAB = 256 + 3 + len(SPECIAL)


def tiny_model(*, moe_step: int = 1, layers: int = LAYERS, seed: int = 0) -> TinyModel:
    """A whole, random Llama 4: every key and tensor that llama.cpp asks for."""
    keys = {
        "general.architecture": Value("llama4", STR),
        "general.name": Value("Tiny", STR),
        "general.file_type": Value(0, U32),
        "llama4.block_count": Value(layers, U32),
        "llama4.context_length": Value(32768, U32),
        "llama4.embedding_length": Value(EMBD, U32),
        "llama4.feed_forward_length": Value(FF, U32),
        "llama4.attention.head_count": Value(HEADS, U32),
        "llama4.attention.head_count_kv": Value(KV_HEADS, U32),
        "llama4.attention.key_length": Value(HEAD_DIM, U32),
        "llama4.attention.value_length": Value(HEAD_DIM, U32),
        "llama4.attention.layer_norm_rms_epsilon": Value(1e-5, F32),
        "llama4.rope.freq_base": Value(500000.0, F32),
        "llama4.rope.dimension_count": Value(HEAD_DIM, U32),
        "llama4.expert_count": Value(EXPERTS, U32),
        "llama4.expert_used_count": Value(1, U32),
        "llama4.expert_feed_forward_length": Value(EXPERT_FF, U32),
        "llama4.interleave_moe_layer_step": Value(moe_step, U32),
    }
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return random.normal(0, 0.1, shape).astype(np.float32)

    tensors = {
        "token_embd.weight": weights(N_VOCAB, EMBD),
        "output_norm.weight": np.ones(EMBD, np.float32),
        "output.weight": weights(N_VOCAB, EMBD),
        "rope_freqs.weight": np.ones(HEAD_DIM // 2, np.float32),
    }
    for layer in range(layers):
        block = {
            "attn_norm": np.ones(EMBD, np.float32),
            "attn_q": weights(HEADS * HEAD_DIM, EMBD),
            "attn_k": weights(KV_HEADS * HEAD_DIM, EMBD),
            "attn_v": weights(KV_HEADS * HEAD_DIM, EMBD),
            "attn_output": weights(EMBD, HEADS * HEAD_DIM),
            "ffn_norm": np.ones(EMBD, np.float32),
        }
        if (layer + 1) % moe_step == 0:
            block |= {
                "ffn_gate_inp": weights(EXPERTS, EMBD),
                "ffn_gate_exps": weights(EXPERTS, EXPERT_FF, EMBD),
                "ffn_up_exps": weights(EXPERTS, EXPERT_FF, EMBD),
                "ffn_down_exps": weights(EXPERTS, EMBD, EXPERT_FF),
                "ffn_gate_shexp": weights(EXPERT_FF, EMBD),
                "ffn_up_shexp": weights(EXPERT_FF, EMBD),
                "ffn_down_shexp": weights(EMBD, EXPERT_FF),
            }
        else:
            block |= {
                "ffn_gate": weights(FF, EMBD),
                "ffn_up": weights(FF, EMBD),
                "ffn_down": weights(EMBD, FF),
            }
        tensors |= {f"blk.{layer}.{name}.weight": data for name, data in block.items()}
    return TinyModel(keys | tiny_vocabulary(), tensors)


VISION_LAYERS, VISION_WIDTH, VISION_HEADS, IMAGE_SIZE, PATCH_SIZE, ADAPTER = 3, 16, 2, 16, 4, 24


def tiny_projector(*, seed: int = 0) -> TinyModel:
    """A whole, random projector for `tiny_model`: pictures of 16 by 16, four embeddings of each."""
    vision = {
        "embedding_length": VISION_WIDTH,
        "feed_forward_length": 4 * VISION_WIDTH,
        "block_count": VISION_LAYERS,
        "attention.head_count": VISION_HEADS,
        "projection_dim": EMBD,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "projector.scale_factor": 2,
    }
    keys = {
        "general.architecture": Value("clip", STR),
        "general.name": Value("Tiny", STR),
        "clip.has_vision_encoder": Value(True, BOOL),
        "clip.projector_type": Value("llama4", STR),
        "clip.use_gelu": Value(True, BOOL),
        "clip.vision.attention.layer_norm_epsilon": Value(1e-5, F32),
        "clip.vision.image_mean": Value([0.5] * 3, GGUFValueType.ARRAY, F32),
        "clip.vision.image_std": Value([0.5] * 3, GGUFValueType.ARRAY, F32),
        **{f"clip.vision.{key}": Value(value, U32) for key, value in vision.items()},
    }
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return random.normal(0, 0.1, shape).astype(np.float32)

    def biased(name: str, *shape: int) -> dict[str, np.ndarray]:
        weight = weights(*shape) if len(shape) > 1 else 1 + weights(*shape)
        return {f"{name}.weight": weight, f"{name}.bias": weights(shape[0])}

    width, ff = VISION_WIDTH, 4 * VISION_WIDTH
    tensors = {
        "v.class_embd": weights(width),
        "v.patch_embd.weight": weights(width, 3 * PATCH_SIZE**2),
        "v.position_embd.weight": weights((IMAGE_SIZE // PATCH_SIZE) ** 2 + 1, width),
        **biased("v.pre_ln", width),
    }
    for block in (f"v.blk.{layer}" for layer in range(VISION_LAYERS)):
        for name in ("ln1", "ln2"):
            tensors |= biased(f"{block}.{name}", width)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensors |= biased(f"{block}.{name}", width, width)
        tensors |= biased(f"{block}.ffn_up", ff, width) | biased(f"{block}.ffn_down", width, ff)
    tensors |= biased("v.post_ln", width) | {
        "mm.model.mlp.1.weight": weights(ADAPTER, ff),
        "mm.model.mlp.2.weight": weights(ADAPTER, ADAPTER),
        "mm.model.fc.weight": weights(EMBD, ADAPTER),
    }
    return TinyModel(keys, tensors)
