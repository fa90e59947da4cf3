"""Writes a small Llama 4 checkpoint like the published ones, with random weights.

Promises: the files, names, shapes, types and settings of Meta's repositories (sharded bf16
safetensors with their index, nested config, tokenizer, chat template), with random weights
scaled so that no logit, attention score or router decision is degenerate; the same bytes for the
same arguments. Needs numpy and tokenizers, nothing else.

Does not know GGUF, llama.cpp or the package: the converter reads these files like any others.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .tokenizer import (
    TemplatePlace,
    train_tokenizer,
    write_chat_template,
    write_json,
    write_tokenizer,
)


@dataclass(frozen=True)
class Rope:
    """Long-context scaling of the rotary frequencies, with the names of the published configs."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int = 8192
    rope_type: str = "llama3"


@dataclass(frozen=True)
class Vision:
    """Shape of the vision tower; ``projector`` is the width of its output.

    llama.cpp's converter knows no tower of fewer than three layers.
    """

    hidden: int = 64
    layers: int = 3
    heads: int = 4
    image_size: int = 56
    patch_size: int = 14
    projector: int = 96

    @property
    def intermediate(self) -> int:
        """Pixel shuffle by 0.5 quarters the patches and quadruples their width: the FFN width."""
        return 4 * self.hidden


@dataclass(frozen=True)
class Geometry:
    """The shape of a checkpoint; sizes are in elements.

    ``expert_ffn`` is transformers' ``intermediate_size`` and ``dense_ffn`` its
    ``intermediate_size_mlp``. ``attn_temperature_tuning`` is 4 in the oldest repositories, which
    transformers 5 no longer reads; it means the same as true. ``text_only`` drops the vision tower
    and the ``language_model.`` prefix, as ``Llama4ForCausalLM`` saves itself.
    """

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    expert_ffn: int = 256
    dense_ffn: int = 512
    experts: int = 16
    moe_step: int = 1
    vocabulary: int = 1024
    max_positions: int = 10_485_760
    rope_theta: float = 500_000.0
    rope: Rope | None = field(default_factory=lambda: Rope(16.0, 1.0, 1.0))
    qk_norm: bool = True
    attn_temperature_tuning: bool | int = True
    tied: bool = False
    vision: Vision | None = field(default_factory=Vision)
    text_only: bool = False
    config_form: Literal["rope_scaling", "rope_parameters"] = "rope_scaling"
    shards: int = 3

    @property
    def prefix(self) -> str:
        """The prefix of ``model.`` and ``lm_head.`` in tensor names."""
        return "" if self.text_only else "language_model."

    def is_moe(self, layer: int) -> bool:
        """Whether a layer routes to experts (every ``moe_step``-th does)."""
        return (layer + 1) % self.moe_step == 0


SCOUT_LIKE = Geometry()
SCOUT_BASE_LIKE = Geometry(
    max_positions=262_144, rope=Rope(8.0, 1.0, 4.0), config_form="rope_parameters", shards=2
)
MAVERICK_LIKE = Geometry(experts=128, moe_step=2, max_positions=1_048_576, rope=None, qk_norm=False)
TEXT_ONLY = Geometry(text_only=True, vision=None, config_form="rope_parameters", shards=1)
TIED = Geometry(tied=True, shards=1)
# llama.cpp has quantization rules of its own for models of eight experts.
EIGHT_EXPERTS = Geometry(experts=8, shards=1)
# Rows that 32 divides and 256 does not, so that every K-quant must fall back.
ODD = Geometry(hidden=160, head_dim=32, expert_ffn=96, dense_ffn=224, moe_step=2, shards=2)
# Rows of the experts' down projection that not even 32 divides.
UNEVEN = Geometry(expert_ffn=48, dense_ffn=208, moe_step=2, shards=1)


# Numbers that are made at a time.
_PIECE = 1 << 22


@dataclass(frozen=True)
class _Tensor:
    """One tensor to come: random around ``mean`` with standard deviation ``std``.

    Two tensors with the same ``stream`` begin with the same values.
    """

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    stream: str | None = None

    @property
    def nbytes(self) -> int:
        return 2 * math.prod(self.shape)


def write_checkpoint(
    directory: Path | str,
    geometry: Geometry = SCOUT_LIKE,
    *,
    seed: int = 0,
    tokenizer: Path | None = None,
    chat_template: TemplatePlace = "chat_template.jinja",
    holes: bool = False,
) -> Path:
    """Write a checkpoint into ``directory`` (made if absent) and return its path.

    Args:
        directory: where the files go; files of the same names are overwritten.
        geometry: the model's shape and the dialect of its files.
        seed: of the random weights; nothing else depends on it.
        tokenizer: a directory with a tokenizer to copy instead of training a small one. Its size
            must be ``geometry.vocabulary``.
        chat_template: the file of the chat template, which differs among versions of transformers.
        holes: write sparse shards of the full size without data. Every weight reads as zero.

    Raises:
        ValueError: the tokenizer's size is not the geometry's vocabulary.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    size = geometry.vocabulary
    source = train_tokenizer(size) if tokenizer is None else tokenizer
    ids = write_tokenizer(directory, source, size, geometry.max_positions)
    write_chat_template(directory, chat_template)
    write_json(directory / "config.json", config_of(geometry, ids))
    write_json(directory / "generation_config.json", generation_config(ids))
    (directory / "README.md").write_text(_MODEL_CARD, encoding="utf-8")
    _write_weights(directory, list(_tensors(geometry)), geometry.shards, None if holes else seed)
    return directory


_MODEL_CARD = """\
---
license: mit
tags:
- llama4
- random-weights
---
# A Llama 4 with random weights
For tests of a converter and a runtime. It has the shape of Llama 4 and is not trained.
"""


# Weights ----------------------------------------------------------------------------------------


def _tensors(g: Geometry) -> Iterator[_Tensor]:
    """Every tensor of the checkpoint, in the order of the layers."""
    root = f"{g.prefix}model"
    yield _Tensor(f"{root}.embed_tokens.weight", (g.vocabulary, g.hidden), _embedding_std(g))
    for layer in range(g.layers):
        yield from _layer(g, layer, f"{root}.layers.{layer}")
    yield _norm(f"{root}.norm", g.hidden)
    if not g.tied:
        yield _linear(f"{g.prefix}lm_head", g.hidden, g.vocabulary)
    if g.vision is not None:
        yield from _vision(g.vision, g.hidden)


def _layer(g: Geometry, layer: int, name: str) -> Iterator[_Tensor]:
    """One decoder layer. Linear weights are [out, in]; expert weights are [expert, in, out]."""
    queries, keys = g.heads * g.head_dim, g.kv_heads * g.head_dim
    # All layers together add as much to the residual stream as the embedding, and 1.5 times as much
    # with a tied embedding, which would otherwise make every token predict itself.
    gain = (1.5 * _embedding_std(g) if g.tied else 1) / math.sqrt(2 * g.layers)
    yield _norm(f"{name}.input_layernorm", g.hidden)
    yield _linear(f"{name}.self_attn.q_proj", g.hidden, queries)
    # The first head's keys equal its queries, so that it attends to equal tokens: heads that attend
    # uniformly would average the effect of positions away.
    yield _Tensor(
        f"{name}.self_attn.k_proj.weight",
        (keys, g.hidden),
        _fan_in(g.hidden),
        stream=f"{name}.self_attn.q_proj.weight",
    )
    yield _linear(f"{name}.self_attn.v_proj", g.hidden, keys)
    yield _linear(f"{name}.self_attn.o_proj", queries, g.hidden, gain)
    yield _norm(f"{name}.post_attention_layernorm", g.hidden)
    ffn = f"{name}.feed_forward"
    if not g.is_moe(layer):
        yield from _gated_ffn(ffn, g.hidden, g.dense_ffn, gain)
        return
    yield _linear(f"{ffn}.router", g.hidden, g.experts)
    # gate comes before up inside gate_up_proj, and neither expert tensor ends in ".weight".
    yield _Tensor(
        f"{ffn}.experts.gate_up_proj", (g.experts, g.hidden, 2 * g.expert_ffn), _fan_in(g.hidden)
    )
    yield _Tensor(
        f"{ffn}.experts.down_proj",
        (g.experts, g.expert_ffn, g.hidden),
        gain * _fan_in(g.expert_ffn),
    )
    yield from _gated_ffn(f"{ffn}.shared_expert", g.hidden, g.expert_ffn, gain)


def _gated_ffn(name: str, hidden: int, width: int, gain: float) -> Iterator[_Tensor]:
    yield _linear(f"{name}.gate_proj", hidden, width)
    yield _linear(f"{name}.up_proj", hidden, width)
    yield _linear(f"{name}.down_proj", width, hidden, gain)


def _vision(v: Vision, text_hidden: int) -> Iterator[_Tensor]:
    """The vision tower and its projector, as transformers' Llama4VisionModel names them."""
    patches = (v.image_size // v.patch_size) ** 2
    yield _linear("vision_model.patch_embedding.linear", 3 * v.patch_size**2, v.hidden)
    yield _Tensor("vision_model.class_embedding", (v.hidden,), _fan_in(v.hidden))
    yield _Tensor(
        "vision_model.positional_embedding_vlm", (patches + 1, v.hidden), _fan_in(v.hidden)
    )
    yield from _layer_norm("vision_model.layernorm_pre", v.hidden)
    yield from _layer_norm("vision_model.layernorm_post", v.hidden)
    for layer in range(v.layers):
        name = f"vision_model.model.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield from _biased(f"{name}.self_attn.{projection}", v.hidden, v.hidden)
        yield from _biased(f"{name}.mlp.fc1", v.hidden, v.intermediate)
        yield from _biased(f"{name}.mlp.fc2", v.intermediate, v.hidden)
        yield from _layer_norm(f"{name}.input_layernorm", v.hidden)
        yield from _layer_norm(f"{name}.post_attention_layernorm", v.hidden)
    yield _linear("vision_model.vision_adapter.mlp.fc1", v.intermediate, v.projector)
    yield _linear("vision_model.vision_adapter.mlp.fc2", v.projector, v.projector)
    yield _linear("multi_modal_projector.linear_1", v.projector, text_hidden)


def _fan_in(width: int) -> float:
    """Standard deviation that keeps the variance of a dot product of ``width`` terms at one."""
    return 1.0 / math.sqrt(width)


def _embedding_std(g: Geometry) -> float:
    """One, unless the same matrix makes the logits: then it is their variance that is one."""
    return _fan_in(g.hidden) if g.tied else 1.0


def _linear(name: str, inputs: int, outputs: int, gain: float = 1.0) -> _Tensor:
    return _Tensor(f"{name}.weight", (outputs, inputs), gain * _fan_in(inputs))


def _biased(name: str, inputs: int, outputs: int) -> Iterator[_Tensor]:
    yield _linear(name, inputs, outputs)
    yield _Tensor(f"{name}.bias", (outputs,), 0.1)


def _norm(name: str, width: int) -> _Tensor:
    # Not all ones: a norm weight in the wrong layer must change the logits.
    return _Tensor(f"{name}.weight", (width,), 0.2, mean=1.0)


def _layer_norm(name: str, width: int) -> Iterator[_Tensor]:
    yield _norm(name, width)
    yield _Tensor(f"{name}.bias", (width,), 0.1)


def _random_bf16(tensor: _Tensor, seed: int) -> Iterator[npt.NDArray[np.uint16]]:
    """The tensor's values as bf16 bit patterns, a function of its stream, shape and the seed.

    Yields pieces, because a full-size tensor has billions of values. Sums of four uniform 16-bit
    integers are close to normal; NumPy guarantees the raw bits of its generators across releases,
    but not its distributions.
    """
    source = np.random.PCG64([seed, zlib.crc32((tensor.stream or tensor.name).encode())])
    # Each term has variance (2^32 - 1) / 12.
    scale = tensor.std / math.sqrt(4 * (2**32 - 1) / 12)
    left = math.prod(tensor.shape)
    while left:
        count = min(left, _PIECE)
        left -= count
        uniform = source.random_raw(count).astype("<u8", copy=False).view("<u2").reshape(count, 4)
        centred = uniform.sum(axis=1, dtype=np.int32) - 2 * 65535
        bits = (centred * np.float32(scale) + np.float32(tensor.mean)).astype("<f4").view("<u4")
        # Round to nearest, ties to even.
        yield ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def _write_weights(directory: Path, tensors: list[_Tensor], shards: int, seed: int | None) -> None:
    """Write the tensors to one file, or to several of similar size with an index."""
    if shards == 1:
        _write_safetensors(directory / "model.safetensors", tensors, seed)
        return
    files = write_index(directory, {tensor.name: tensor.nbytes for tensor in tensors}, shards)
    for name, names in files.items():
        held = set(names)
        _write_safetensors(
            directory / name, [tensor for tensor in tensors if tensor.name in held], seed
        )


def write_index(directory: Path, sizes: Mapping[str, int], shards: int) -> dict[str, list[str]]:
    """Divide tensors among files of similar size, and write their index.

    Args:
        directory: of the index.
        sizes: the bytes of each tensor, in order.
        shards: the number of files.

    Returns:
        The names of each file's tensors, by file name.
    """
    total = sum(sizes.values())
    names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    files: dict[str, list[str]] = {name: [] for name in names}
    written = 0
    for tensor, size in sizes.items():
        files[names[min(shards - 1, written * shards // total)]].append(tensor)
        written += size
    weight_map = {tensor: name for name, held in files.items() for tensor in held}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / "model.safetensors.index.json", index)
    return files


def _write_safetensors(path: Path, tensors: list[_Tensor], seed: int | None) -> None:
    """Eight bytes of header length, a JSON header padded to 8 bytes, then the raw values.

    Without a seed the values are a hole of the right size.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    start = 8 + len(encoded)
    with path.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        file.flush()
        file.truncate(start + offset)
        if seed is None:
            return

        def write(tensor: _Tensor) -> None:
            at = start + header[tensor.name]["data_offsets"][0]
            for piece in _random_bf16(tensor, seed):
                os.pwrite(file.fileno(), piece.data, at)
                at += piece.nbytes

        list(pool.map(write, tensors))


# Settings ---------------------------------------------------------------------------------------


def config_of(g: Geometry, ids: dict[str, int]) -> dict[str, Any]:
    """``config.json`` as transformers saves it for either class."""
    new_form = g.config_form == "rope_parameters"
    dtype = {"dtype" if new_form else "torch_dtype": "bfloat16"}
    version = {"transformers_version": "5.0.0" if new_form else "4.51.0.dev0"}
    text = _text_config(g, ids) | dtype
    if g.text_only:
        return {"architectures": ["Llama4ForCausalLM"]} | text | version
    config: dict[str, Any] = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": ids["<|image_start|>"],
        "eoi_token_index": ids["<|image_end|>"],
        "image_token_index": ids["<|patch|>"],
        "model_type": "llama4",
        "text_config": text,
        "tie_word_embeddings": g.tied,
    }
    if g.vision is not None:
        config["vision_config"] = _vision_config(g.vision, new_form)
    return config | dtype | version


def _text_config(g: Geometry, ids: dict[str, int]) -> dict[str, Any]:
    rope_layers = [int((layer + 1) % 4 != 0) for layer in range(g.layers)]
    config: dict[str, Any] = {
        "attention_bias": False,
        "attention_chunk_size": 8192,
        "attention_dropout": 0.0,
        "attn_scale": 0.1,
        "attn_temperature_tuning": g.attn_temperature_tuning,
        "bos_token_id": ids["<|begin_of_text|>"],
        "cache_implementation": "hybrid",
        "eos_token_id": _eos(ids),
        "floor_scale": 8192,
        "for_llm_compressor": False,
        "head_dim": g.head_dim,
        "hidden_act": "silu",
        "hidden_size": g.hidden,
        "initializer_range": 0.02,
        "interleave_moe_layer_step": g.moe_step,
        "intermediate_size": g.expert_ffn,
        "intermediate_size_mlp": g.dense_ffn,
        "max_position_embeddings": g.max_positions,
        "model_type": "llama4_text",
        "moe_layers": [layer for layer in range(g.layers) if g.is_moe(layer)],
        # An empty list means every fourth layer.
        "no_rope_layers": [],
        "num_attention_heads": g.heads,
        "num_experts_per_tok": 1,
        "num_hidden_layers": g.layers,
        "num_key_value_heads": g.kv_heads,
        "num_local_experts": g.experts,
        "output_router_logits": False,
        "pad_token_id": ids["<|finetune_right_pad|>"],
        "rms_norm_eps": 1e-05,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "tie_word_embeddings": g.tied,
        "use_cache": True,
        "use_qk_norm": g.qk_norm,
        "vocab_size": g.vocabulary,
    }
    rope = asdict(g.rope) if g.rope else None
    if g.config_form == "rope_scaling":
        return config | {"rope_scaling": rope, "rope_theta": g.rope_theta}
    del config["for_llm_compressor"]
    return config | {
        "layer_types": [
            "chunked_attention" if rotary else "full_attention" for rotary in rope_layers
        ],
        "no_rope_layers": rope_layers,
        "rope_parameters": (rope or {"rope_type": "default"}) | {"rope_theta": g.rope_theta},
    }


def _vision_config(v: Vision, new_form: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": v.hidden,
        "image_size": v.image_size,
        "initializer_range": 0.02,
        "intermediate_size": v.intermediate,
        "model_type": "llama4_vision_model",
        "multi_modal_projector_bias": False,
        "norm_eps": 1e-05,
        "num_attention_heads": v.heads,
        "num_channels": 3,
        "num_hidden_layers": v.layers,
        "patch_size": v.patch_size,
        "pixel_shuffle_ratio": 0.5,
        "projector_dropout": 0.0,
        "projector_input_dim": v.projector,
        "projector_output_dim": v.projector,
        "vision_feature_select_strategy": "default",
        "vision_output_dim": v.projector,
    }
    if new_form:
        return config | {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    return config | {"rope_theta": 10000}


def generation_config(ids: dict[str, int]) -> dict[str, Any]:
    """``generation_config.json`` with the sampling that Meta recommends."""
    return {
        "bos_token_id": ids["<|begin_of_text|>"],
        "do_sample": True,
        "eos_token_id": _eos(ids),
        "pad_token_id": ids["<|finetune_right_pad|>"],
        "temperature": 0.6,
        "top_p": 0.9,
        "transformers_version": "4.51.0.dev0",
    }


def _eos(ids: dict[str, int]) -> list[int]:
    return [ids["<|end_of_text|>"], ids["<|eom|>"], ids["<|eot|>"]]
