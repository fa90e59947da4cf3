"""The models of the family by name: their configurations, as published.

The numbers are those of each repository's config.json, which differ from some of the cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A model: its name, the text part of its config.json, and what one should know of it.

    ``repository`` is where it is published, None for a model that never was; ``vision`` is the
    vision part, None where nobody knows it.
    """

    name: str
    repository: str | None
    config: Mapping[str, Any]
    vision: Mapping[str, Any] | None = None
    note: str | None = None


def _llama3_rope(factor: float, low: float, high: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": 8192,
    }


_SCOUT: dict[str, Any] = {
    "model_type": "llama4_text",
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
    "max_position_embeddings": 10_485_760,
    "vocab_size": 202_048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": _llama3_rope(16.0, 1.0, 1.0),
    "use_qk_norm": True,
}

_VISION: dict[str, Any] = {
    "model_type": "llama4_vision_model",
    "hidden_size": 1408,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "intermediate_size": 5632,
    "image_size": 336,
    "patch_size": 14,
    "num_channels": 3,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "vision_output_dim": 4096,
}

PRESETS: dict[str, Preset] = {
    "scout": Preset(
        "Llama 4 Scout 17B 16E Instruct",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        _SCOUT,
        _VISION,
    ),
    "scout-base": Preset(
        "Llama 4 Scout 17B 16E",
        "meta-llama/Llama-4-Scout-17B-16E",
        {**_SCOUT, "max_position_embeddings": 262_144, "rope_scaling": _llama3_rope(8.0, 1.0, 4.0)},
        _VISION,
    ),
    "maverick": Preset(
        "Llama 4 Maverick 17B 128E Instruct",
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        {
            **_SCOUT,
            "num_local_experts": 128,
            "interleave_moe_layer_step": 2,
            "max_position_embeddings": 1_048_576,
            "rope_scaling": None,
            "use_qk_norm": False,
        },
        _VISION,
    ),
    "behemoth": Preset(
        "Llama 4 Behemoth 288B 16E",
        None,
        {
            **_SCOUT,
            "hidden_size": 18_432,
            "num_hidden_layers": 72,
            "num_attention_heads": 144,
            "intermediate_size": 28_672,
            "intermediate_size_mlp": 57_344,
        },
        note="Behemoth was never released. Its card gives 2T parameters, 288B of them active, and "
        "16 experts; its widths and layers are an assumption of ours that comes to these totals. "
        "Of its vision tower nothing is known, and none is counted.",
    ),
}
