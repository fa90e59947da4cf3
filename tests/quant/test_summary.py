from __future__ import annotations

import json

import pytest

from llama4_edge.quant import ROLES, role_of, summarize

NAMES = {
    "token_embd.weight": "embedding",
    "output.weight": "output",
    "output_norm.weight": "norm",
    "rope_freqs.weight": "rope",
    "blk.0.attn_norm.weight": "norm",
    "blk.47.ffn_norm.weight": "norm",
    "blk.3.attn_q.weight": "attention",
    "blk.3.attn_k.weight": "attention",
    "blk.3.attn_v.weight": "attention",
    "blk.3.attn_output.weight": "attention",
    "blk.3.ffn_gate_inp.weight": "router",
    "blk.3.ffn_gate_exps.weight": "expert",
    "blk.3.ffn_down_exps.weight": "expert",
    "blk.3.ffn_up_shexp.weight": "shared_expert",
    "blk.2.ffn_down.weight": "dense_ffn",
    "v.blk.3.attn_q.weight": "vision_tower",
    "v.class_embd": "vision_tower",
    "mm.model.mlp.1.weight": "projector",
    "vision_model.model.layers.0.self_attn.q_proj.weight": "vision_tower",
    "model.vision_model.vision_adapter.mlp.fc1.weight": "projector",
    "multi_modal_projector.linear_1.weight": "projector",
    "blk.0.something.weight": "other",
}


@pytest.mark.parametrize(("name", "role"), NAMES.items())
def test_roles_are_told_from_names(name: str, role: str) -> None:
    assert role_of(name) == role
    assert role in ROLES


def test_bytes_and_bits_add_up_by_role() -> None:
    summary = summarize(
        "model.gguf",
        "gguf",
        {"general.name": "Tiny"},
        [
            ("blk.0.ffn_up_exps.weight", (2, 4, 256), "Q4_K", 1152),
            ("blk.0.attn_q.weight", (4, 256), "Q8_0", 1088),
            ("blk.1.attn_q.weight", (4, 256), "F16", 2048),
            ("output_norm.weight", (256,), "F32", 1024),
        ],
    )
    assert [role.role for role in summary.roles] == ["expert", "attention", "norm"]
    expert, attention, _ = summary.roles
    assert (expert.parameters, expert.bytes, expert.bits_per_weight) == (2048, 1152, 4.5)
    assert (attention.tensors, attention.bytes) == (2, 3136)
    assert attention.types == {"Q8_0": 1, "F16": 1}
    assert summary.expert_bits_per_weight == 4.5
    assert summary.parameters == 2048 + 2048 + 256
    assert summary.bits_per_weight == (1152 + 3136 + 1024) * 8 / 4352
    assert json.loads(json.dumps(summary.as_dict()))["roles"][0]["bits_per_weight"] == 4.5


def test_a_model_without_experts_has_no_expert_bits() -> None:
    summary = summarize("x", "checkpoint", {}, [("output.weight", (2, 2), "BF16", 8)])
    assert summary.expert_bits_per_weight is None
