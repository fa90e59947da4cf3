"""Tensors of no use are left out and named; whatever else is not the model's is refused."""

from __future__ import annotations

import pytest

from llama4_edge import convert
from llama4_edge.errors import CheckpointError

from .saved import ONE_FILE, MakeForms, Stored


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "language_model.model.rotary_emb.original_inv_freq",
    ],
)
def test_rope_s_buffers_are_left_out_and_noted(forms: MakeForms, name: str) -> None:
    made = forms(ONE_FILE)
    made.write({**made.tensors, name: Stored("F32", (16,), bytes(64))})
    (note,) = made.notes_of_the_same_file()
    assert note == f"{name} was left out: it follows from config.json's RoPE settings"
    assert name in convert(made.other, dry_run=True).left_out


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (
            ["language_model.model.layers.0.self_attn.k_scale",
             "language_model.model.layers.0.self_attn.v_scale"],
            "language_model.model.layers.0.self_attn.k_scale and 1 more were left out: each scales "
            "the keys or values of a KV cache of 8 bits",
        ),
        (
            ["model.layers.3.self_attn.k_proj.output_scale", "model.layers.3.self_attn.kv_scale",
             "model.layers.3.self_attn.attn.v_scale", "model.layers.1.self_attn.v_proj.v_scale"],
            "model.layers.3.self_attn.k_proj.output_scale and 3 more were left out: each scales "
            "the keys or values of a KV cache of 8 bits",
        ),
        (
            ["model.layers.3.self_attn.q_scale"],
            "model.layers.3.self_attn.q_scale was left out: it scales the activations of attention "
            "in FP8",
        ),
        (
            ["model.layers.1.feed_forward.shared_expert.up_proj.input_scale",
             "model.layers.1.feed_forward.experts.gate_up_proj_input_scale",
             "model.layers.1.self_attn.o_proj.input_global_scale"],
            "model.layers.1.feed_forward.shared_expert.up_proj.input_scale and 2 more were left "
            "out: each scales the activations of an engine that computes in few bits",
        ),
        (
            ["v_head.summary.weight"],
            "v_head.summary.weight was left out: it is the value head of reinforcement learning, "
            "which writes no text",
        ),
    ],
)  # fmt: skip
def test_what_is_of_no_use_is_left_out_and_named(
    forms: MakeForms, names: list[str], note: str
) -> None:
    made = forms(ONE_FILE)
    made.write(made.tensors | dict.fromkeys(names, Stored("F32", (1,), bytes(4))))
    assert made.notes_of_the_same_file() == (note,)
    assert set(names) <= set(convert(made.other, dry_run=True).left_out)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
        "score.weight",
        "model.layers.0.feed_forward.router.bias",
        "model.layers.4.input_layernorm.weight",
    ],
)
def test_whatever_else_is_stored_is_refused(forms: MakeForms, name: str) -> None:
    made = forms(ONE_FILE)
    made.write({**made.tensors, name: Stored("F32", (1,), bytes(4))})
    with pytest.raises(CheckpointError, match=rf"tensor {name} is not part of a Llama 4 model"):
        convert(made.other, dry_run=True)
