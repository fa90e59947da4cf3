"""Every recipe that bears a llama.cpp name holds the bytes that llama.cpp itself would write.

llama.cpp takes two steps. The first, convert_hf_to_gguf.py, is not in any wheel, so it is written
here a second time, straight from the safetensors with NumPy and the `gguf` package. The second is
llama.cpp's own ``llama_model_quantize``.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch

from demo.checkpoint import (
    EIGHT_EXPERTS,
    MAVERICK_LIKE,
    ODD,
    SCOUT_BASE_LIKE,
    SCOUT_LIKE,
    TEXT_ONLY,
    TIED,
    UNEVEN,
    Geometry,
)
from tests.fixtures import MakeCheckpoint, MakeGGUF

BF16 = gguf.GGMLQuantizationType.BF16
F32 = gguf.GGMLQuantizationType.F32

# enum llama_ftype in llama.h
FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "bf16": 32}
LATER_FILE_TYPES = {
    "q4_1": 3, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13,
    "q4_k_s": 14, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq3_s": 26, "iq3_m": 27,
    "iq4_xs": 30, "mxfp4_moe": 38,
}  # fmt: skip

# Q4_K_M gives the first and last eighth of the layers, and every third between, more bits: four
# layers cannot show that.
DEEP = replace(SCOUT_LIKE, layers=24, experts=2, vision=None, shards=1)

# A type is a type: these have few experts, and four heads that share a key, as some rules ask.
SHARED_KEYS = replace(SCOUT_LIKE, experts=2, kv_heads=1, vision=None, shards=1)

GEOMETRIES = {
    "shared keys": SHARED_KEYS,
    "scout": SCOUT_LIKE,
    "scout base": SCOUT_BASE_LIKE,
    "maverick": MAVERICK_LIKE,
    "text only": TEXT_ONLY,
    "tied": TIED,
    "eight experts": EIGHT_EXPERTS,
    "odd rows": ODD,
    "uneven rows": UNEVEN,
}
# Each geometry with the recipes for which it makes a difference.
RECIPES = {
    "scout": tuple(FILE_TYPES),
    "scout base": ("bf16",),
    "maverick": ("bf16", "q4_k_m"),
    "text only": ("bf16",),
    "tied": ("bf16", "q4_0", "q4_k_m"),
    "eight experts": ("q4_0", "q4_k_m"),
    "odd rows": tuple(FILE_TYPES),
    "uneven rows": tuple(FILE_TYPES),
}
MakeReference = Callable[[Path, Geometry], Path]
CASES = [
    *((name, recipe) for name, recipes in RECIPES.items() for recipe in recipes),
    *(
        pytest.param("shared keys", recipe, marks=[pytest.mark.heavy] * recipe.startswith("iq3"))
        for recipe in LATER_FILE_TYPES
    ),
]


@pytest.fixture(scope="module")
def reference_bf16(tmp_path_factory: pytest.TempPathFactory) -> MakeReference:
    """The first step's output, made once a checkpoint."""
    made: dict[Path, Path] = {}

    def make(checkpoint: Path, geometry: Geometry) -> Path:
        if checkpoint not in made:
            path = tmp_path_factory.mktemp("reference") / "bf16.gguf"
            write_reference_bf16(checkpoint, geometry, path)
            made[checkpoint] = path
        return made[checkpoint]

    return make


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_a_recipe_of_llama_cpp_has_its_bytes(
    name: str,
    recipe: str,
    make_checkpoint: MakeCheckpoint,
    make_gguf: MakeGGUF,
    reference_bf16: MakeReference,
    tmp_path: Path,
) -> None:
    geometry = GEOMETRIES[name]
    checkpoint = make_checkpoint(geometry)
    expected = tmp_path / "expected.gguf"
    number = {**FILE_TYPES, **LATER_FILE_TYPES}[recipe]
    quantize(reference_bf16(checkpoint, geometry), expected, number)
    assert_same_tensors(make_gguf(checkpoint, recipe), expected)


def test_q4_k_m_gives_more_bits_to_the_layers_llama_cpp_gives_them_to(
    make_checkpoint: MakeCheckpoint,
    make_gguf: MakeGGUF,
    reference_bf16: MakeReference,
    tmp_path: Path,
) -> None:
    checkpoint = make_checkpoint(DEEP)
    expected = tmp_path / "expected.gguf"
    quantize(reference_bf16(checkpoint, DEEP), expected, FILE_TYPES["q4_k_m"])
    assert_same_tensors(make_gguf(checkpoint, "q4_k_m"), expected)


def assert_same_tensors(ours: Path, expected: Path) -> None:
    """The same names, and for each the same type, shape and bytes."""
    our_tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(ours).tensors}
    their_tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(expected).tensors}
    assert sorted(our_tensors) == sorted(their_tensors)
    types = {name: tensor.tensor_type.name for name, tensor in our_tensors.items()}
    assert types == {name: tensor.tensor_type.name for name, tensor in their_tensors.items()}
    shapes = {name: tensor.shape.tolist() for name, tensor in our_tensors.items()}
    assert shapes == {name: tensor.shape.tolist() for name, tensor in their_tensors.items()}
    different = [
        name
        for name, tensor in our_tensors.items()
        if tensor.data.tobytes() != their_tensors[name].data.tobytes()
    ]
    assert different == []


def quantize(
    source: Path, target: Path, file_type: int, weights: Mapping[str, np.ndarray] | None = None
) -> None:
    """llama-quantize SOURCE TARGET TYPE, with what it makes of an importance matrix."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = 2
    if weights is not None:
        entry, pointer = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
        entries = [
            entry(name.encode(), data.ctypes.data_as(pointer), data.size)
            for name, data in weights.items()
        ]
        params.imatrix = (entry * (len(entries) + 1))(*entries, entry())
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert failed == 0


def write_reference_bf16(checkpoint: Path, geometry: Geometry, path: Path) -> None:
    """What convert_hf_to_gguf.py makes of a Llama 4: bf16, but F32 norms and router."""
    g = geometry
    writer = gguf.GGUFWriter(path, "llama4")
    # Only what llama_model_quantize asks for before it looks at tensors.
    writer.add_block_count(g.layers)
    writer.add_context_length(g.max_positions)
    writer.add_embedding_length(g.hidden)
    writer.add_feed_forward_length(g.dense_ffn)
    writer.add_expert_feed_forward_length(g.expert_ffn)
    writer.add_head_count(g.heads)
    writer.add_head_count_kv(g.kv_heads)
    writer.add_key_length(g.head_dim)
    writer.add_value_length(g.head_dim)
    writer.add_rope_dimension_count(g.head_dim)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(g.experts)
    writer.add_expert_used_count(1)
    writer.add_interleave_moe_layer_step(g.moe_step)
    writer.add_vocab_size(g.vocabulary)
    writer.add_file_type(FILE_TYPES["bf16"])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA4, g.layers)
    for hf_name, bits in read_safetensors(checkpoint):
        name = hf_name.removeprefix("language_model.")
        if name.startswith(("vision_model.", "multi_modal_projector.")):
            continue
        for split_name, split_bits in split_experts(name, bits):
            gguf_name = names.get_name(split_name, try_suffixes=(".weight",))
            assert gguf_name is not None, split_name
            if split_bits.ndim == 1 or gguf_name.endswith("ffn_gate_inp.weight"):
                writer.add_tensor(gguf_name, as_float32(split_bits))
            else:
                data = np.ascontiguousarray(split_bits)
                writer.add_tensor(gguf_name, data.view(np.uint8), raw_dtype=BF16)
    if g.rope is not None:
        writer.add_tensor("rope_freqs.weight", llama3_rope_factors(g))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_safetensors(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor's name and bf16 bit patterns."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:start]).items():
            if name == "__metadata__":
                continue
            assert entry["dtype"] == "BF16"
            first, last = entry["data_offsets"]
            bits = np.frombuffer(raw, np.uint16, (last - first) // 2, start + first)
            yield name, bits.reshape(entry["shape"])


def split_experts(name: str, bits: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """[expert, in, out] becomes [expert, out, in], and gate and up go apart."""
    if name.endswith(".gate_up_proj"):
        gate, up = np.split(bits, 2, axis=-1)
        yield name.replace("gate_up_proj", "gate_proj.weight"), gate.swapaxes(-1, -2)
        yield name.replace("gate_up_proj", "up_proj.weight"), up.swapaxes(-1, -2)
    elif name.endswith(".experts.down_proj"):
        yield f"{name}.weight", bits.swapaxes(-1, -2)
    else:
        yield name, bits


def as_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def llama3_rope_factors(geometry: Geometry) -> np.ndarray:
    """By how much llama3 scaling slows each pair of dimensions down.

    In PyTorch's float32 throughout, as convert_hf_to_gguf.py does it: another library's power
    function, or a detour through float64, ends in other last bits.
    """
    rope = geometry.rope
    assert rope is not None
    exponents = torch.arange(0, geometry.head_dim, 2, dtype=torch.float32) / geometry.head_dim
    wavelengths = 2 * math.pi / (1.0 / (500000.0**exponents))
    original = rope.original_max_position_embeddings
    smooth = (original / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    factors = 1 / ((1 - smooth) / rope.factor + smooth)
    factors[wavelengths > original / rope.low_freq_factor] = rope.factor
    factors[wavelengths < original / rope.high_freq_factor] = 1.0
    return factors.numpy()
