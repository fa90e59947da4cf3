from __future__ import annotations

from typing import Any

import pytest

from llama4_edge.convert.config import RopeScaling, parse_config
from llama4_edge.errors import UnsupportedError

from .forms.test_fp8 import PUBLISHED

# The published text configurations, as far as they shape the model (see the models' config.json).
SCOUT: dict[str, Any] = {
    "model_type": "llama4_text",
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 10485760,
    "rms_norm_eps": 1e-05,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "interleave_moe_layer_step": 1,
    "use_qk_norm": True,
    "no_rope_layers": [1, 1, 1, 0] * 12,
    "attention_chunk_size": 8192,
    "attn_temperature_tuning": 4,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "attention_bias": False,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "vocab_size": 202048,
}
MAVERICK = {
    **SCOUT,
    "num_local_experts": 128,
    "interleave_moe_layer_step": 2,
    "use_qk_norm": False,
    "max_position_embeddings": 1048576,
    "rope_scaling": None,
    "moe_layers": list(range(1, 48, 2)),
}


def changed(**changes: object) -> dict[str, Any]:
    return {**SCOUT, **changes}


def test_scout_is_read_as_published() -> None:
    config = parse_config(SCOUT)
    hparams = config.hparams
    assert (hparams.n_layer, hparams.n_embd, hparams.n_head, hparams.n_head_kv) == (48, 5120, 40, 8)
    assert (hparams.n_expert, hparams.n_expert_used, hparams.moe_step) == (16, 1, 1)
    assert (hparams.n_ff_expert, hparams.n_ff, hparams.head_dim) == (8192, 16384, 128)
    assert config.rope_scaling == RopeScaling(16.0, 1.0, 1.0, 8192)
    assert hparams.rope_theta == 500000.0
    assert all(hparams.has_experts(layer) for layer in range(48))
    assert config.notes == ()


def test_maverick_alternates_dense_and_expert_layers() -> None:
    config = parse_config(MAVERICK)
    assert [layer for layer in range(6) if config.hparams.has_experts(layer)] == [1, 3, 5]
    assert config.rope_scaling is None


def test_both_forms_of_rope_settings_mean_the_same() -> None:
    new = changed(rope_parameters={**SCOUT["rope_scaling"], "rope_theta": 500000.0})
    del new["rope_scaling"], new["rope_theta"]
    assert parse_config(new) == parse_config(SCOUT)


def test_a_multimodal_config_holds_the_same_text_model() -> None:
    outer = {"model_type": "llama4", "text_config": SCOUT, "vision_config": {}}
    assert parse_config(outer) == parse_config(SCOUT)


def test_ties_are_read_from_either_level() -> None:
    assert parse_config(changed(tie_word_embeddings=True)).tied
    outer = {"model_type": "llama4", "text_config": SCOUT, "tie_word_embeddings": True}
    assert parse_config(outer).tied


def test_scouts_config_from_before_april_2025_is_noted() -> None:
    old = changed(rope_scaling={**SCOUT["rope_scaling"], "factor": 8.0, "high_freq_factor": 4.0})
    (note,) = parse_config(old).notes
    assert "RoPE factor 8" in note


def test_an_unknown_field_is_noted() -> None:
    assert parse_config(changed(attention_sinks=4)).notes == (
        "config.json: attention_sinks is not known here and was ignored",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_chunk_size": 4096}, "attention_chunk_size: 4096 .*8192"),
        ({"no_rope_layers": [1, 0] * 24}, "no_rope_layers.*0 at every 4th"),
        ({"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers"),
        ({"no_rope_layers": [], "no_rope_layer_interval": 6}, "no_rope_layer_interval: 6"),
        ({"layer_types": ["full_attention"] * 48}, "layer_types"),
        ({"attn_temperature_tuning": False}, "attn_temperature_tuning: False"),
        ({"floor_scale": 4096}, "floor_scale: 4096"),
        ({"attn_scale": 0.2}, r"attn_scale: 0\.2"),
        ({"use_qk_norm": False}, "use_qk_norm: False .*True with 16 experts"),
        ({"num_local_experts": 128}, "use_qk_norm: True .*False with 128 experts"),
        ({"num_hidden_layers": 3, "no_rope_layers": None}, "num_hidden_layers: 3 .*4 to 512"),
        ({"num_hidden_layers": 513, "no_rope_layers": None}, "num_hidden_layers: 513"),
        ({"num_local_experts": 0}, "num_local_experts: 0"),
        ({"attention_bias": True}, "attention_bias: True"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok: 17 .*1 to 16"),
        ({"num_local_experts": 32, "num_experts_per_tok": 17}, "num_experts_per_tok: 17 .*1 to 16"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok: 0"),
        ({"moe_layers": [3, 7]}, "moe_layers"),
        ({"interleave_moe_layer_step": 0}, "interleave_moe_layer_step: 0"),
        ({"interleave_moe_layer_step": 49}, "interleave_moe_layer_step: 49"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"num_key_value_heads": 7}, "num_key_value_heads: 7"),
        ({"head_dim": 127}, "head_dim: 127"),
        ({"hidden_size": "5120"}, "hidden_size: '5120'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: 0"),
        ({"rms_norm_eps": True}, "rms_norm_eps: True"),
        ({"rope_theta": float("nan")}, "rope_theta: nan"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type: 'yarn'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: 0.5"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor: nothing"),
    ],
)
def test_what_llama_cpp_cannot_represent_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        parse_config(changed(**changes))


@pytest.mark.parametrize(("qk_norm", "stated"), [(True, 16), (False, 128)])
def test_a_model_without_experts_is_stated_as_llama_cpp_takes_it(
    qk_norm: bool, stated: int
) -> None:
    """It refuses a model of zero experts, and normalizes by their number."""
    none = {"num_local_experts": 0, "num_experts_per_tok": 0, "interleave_moe_layer_step": 0}
    config = parse_config(changed(moe_layers=[], use_qk_norm=qk_norm, **none))
    hparams = config.hparams
    assert (hparams.n_expert, hparams.n_expert_used, hparams.moe_step) == (stated, 1, 49)
    assert not any(map(hparams.has_experts, range(hparams.n_layer)))
    assert any(note.startswith("no layer has experts") for note in config.notes)


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(UnsupportedError) as refusal:
        parse_config(changed(attention_chunk_size=1, attention_bias=True, attn_scale=1))
    assert "3 setting(s)" in str(refusal.value)
    for name in ("attention_chunk_size", "attention_bias", "attn_scale"):
        assert name in str(refusal.value)


@pytest.mark.parametrize("model_type", ["llama", "mixtral", None, "llama4"])
def test_another_architecture_is_refused(model_type: str | None) -> None:
    with pytest.raises(UnsupportedError, match=f"model_type {model_type!r}"):
        parse_config({**SCOUT, "model_type": model_type})


def test_another_quantization_is_refused_with_the_repository_to_use() -> None:
    config = parse_config(changed(quantization_config={"quant_method": "quark"}))
    assert not config.forms
    with pytest.raises(UnsupportedError, match=r"quantized in a way.*without a quantization"):
        config.check_quantization()


@pytest.mark.parametrize("outer", [False, True])
def test_the_published_fp8_is_taken(outer: bool) -> None:
    raw = {**MAVERICK, "quantization_config": PUBLISHED}
    if not outer:
        raw = changed(quantization_config=PUBLISHED)
    config = parse_config(raw)
    assert config.forms
    assert not any("quantization" in note for note in config.notes)
    assert not parse_config(MAVERICK).forms
