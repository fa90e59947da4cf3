"""llama.cpp with a converted adapter predicts what PEFT on transformers predicts with it.

Both compute in float32, where a sum's order costs a KL divergence of 1e-9 at most. An adapter of
the tests moves the predictions by 1e-3 to 1e-1. Where two experts tie, rounding chooses between
them: the tokens are ones for which no router comes near to that.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Llama4ForConditionalGeneration

from demo.checkpoint import SCOUT_LIKE, Geometry
from llama4_edge import convert, convert_lora
from tests.adapters import peer_logits
from tests.fixtures import MakeCheckpoint, Once
from tests.reference.test_logits import kl_divergence, random_tokens

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import LoraConfig, get_peft_model

MAX_KL, LEAST_EFFECT, MIN_MARGIN = 1e-8, 3e-4, 1e-4
DEMO = Path(__file__).parents[2] / "demo" / "Llama-4-Tiny"
# Experts of which no parameter is square, and every second layer dense.
SMALL = replace(
    SCOUT_LIKE, hidden=64, heads=2, kv_heads=1, head_dim=32, expert_ffn=96, dense_ffn=160,
    experts=4, moe_step=2, shards=1,
)  # fmt: skip
SQUARE = replace(SMALL, expert_ffn=64, moe_step=1)

GATE_UP, DOWN = "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"
TEXT = r".*language_model\.model\.layers.*\."
KINDS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": TEXT + "(q_proj|k_proj|v_proj|o_proj)"},
    "shared expert": {"target_modules": r".*shared_expert\.(gate_proj|up_proj|down_proj)"},
    "dense": {"target_modules": r".*feed_forward\.(gate_proj|up_proj|down_proj)"},
    "router": {"target_modules": [], "target_parameters": ["feed_forward.router.weight"]},
    "experts": {"target_modules": [], "target_parameters": [GATE_UP, DOWN]},
    "gate and up": {"target_modules": [], "target_parameters": [GATE_UP]},
    "down": {"target_modules": [], "target_parameters": [DOWN]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "output": {"target_modules": ["lm_head"]},
    "rslora": {"target_modules": TEXT + "(q_proj|o_proj)", "use_rslora": True},
    "patterns": {
        "target_modules": TEXT + "(q_proj|v_proj|shared_expert.up_proj)",
        "target_parameters": [GATE_UP],
        "rank_pattern": {"q_proj": 7, "experts.gate_up_proj": 2},
        "alpha_pattern": {r"layers\.1\..*v_proj": 3.0, "up_proj": 5, "experts.gate_up_proj": 11},
    },
    "some layers": {"target_modules": ["o_proj"], "layers_to_transform": [1, 3]},
}


@dataclass(frozen=True)
class Trained:
    """An adapter, and the logits of PEFT with and without it."""

    adapter: Path
    logits: np.ndarray
    plain: np.ndarray


def train(checkpoint: Path, directory: Path, tokens: list[int], **settings: Any) -> Trained:
    """An adapter of random numbers, as `save_pretrained` saves it."""
    model = Llama4ForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
        torch.manual_seed(0)
        for name, parameter in adapted.named_parameters():
            # Without pictures, lora_B of the vision tower stays what it begins with: zero.
            if "lora_" in name and ("vision_model" not in name or "lora_A" in name):
                parameter.data.normal_(0, 0.08)
        adapted.save_pretrained(str(directory))
    adapted.eval()
    logits = predictions(adapted, tokens)
    with adapted.disable_adapter():
        return Trained(directory, logits, predictions(adapted, tokens))


def predictions(model: Any, tokens: list[int]) -> np.ndarray:
    margins: list[float] = []

    def note_margin(_router: object, _inputs: object, outputs: tuple[Any, torch.Tensor]) -> None:
        first, second = outputs[1].topk(2, dim=-1).values.unbind(-1)
        margins.append(float((first - second).min()))

    routers = [part for part in model.modules() if type(part).__name__ == "Llama4Router"]
    hooks = [router.register_forward_hook(note_margin) for router in routers]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    assert len(margins) == len(routers) > 0
    assert min(margins) > MIN_MARGIN, min(margins)
    return np.asarray(logits)


def in_f32(checkpoint: Path, once: Once) -> Path:
    """The checkpoint as a GGUF whose products lose nothing."""
    name = f"f32-{checkpoint.name}"
    every = [(".", "f32")]
    return (
        once(
            name,
            lambda directory: convert(
                checkpoint, directory / "model.gguf", recipe="bf16", types=every, vision=False
            ),
        )
        / "model.gguf"
    )


def assert_same(trained: Trained, gguf: Path, tokens: list[int], adapter: Path) -> None:
    assert kl_divergence(trained.logits, trained.plain).max() > LEAST_EFFECT
    ours = peer_logits(gguf, tokens, [(adapter, 1.0)])
    assert kl_divergence(trained.logits, ours).max() < MAX_KL


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_module_adds_what_peft_adds(
    make_checkpoint: MakeCheckpoint, once: Once, tmp_path: Path, kind: str
) -> None:
    checkpoint, tokens = make_checkpoint(SMALL), random_tokens(SMALL, 20, 3)
    trained = train(checkpoint, tmp_path / "adapter", tokens, **KINDS[kind])
    convert_lora(trained.adapter, tmp_path / "adapter.gguf", base=checkpoint)
    assert_same(trained, in_f32(checkpoint, once), tokens, tmp_path / "adapter.gguf")


@pytest.mark.parametrize("geometry", [SMALL, SQUARE], ids=["narrow", "square"])
def test_experts_as_older_releases_of_peft_laid_them_out(
    make_checkpoint: MakeCheckpoint, once: Once, tmp_path: Path, geometry: Geometry
) -> None:
    """Until 0.19.0 lora_A had the inputs of a fused parameter [expert, in, out]."""
    checkpoint, tokens = make_checkpoint(geometry), random_tokens(geometry, 20, 3)
    trained = train(checkpoint, tmp_path / "adapter", tokens, **KINDS["experts"])
    file = trained.adapter / "adapter_model.safetensors"
    tensors, older = load_file(file), {}
    for name, a in tensors.items():
        if ".lora_A." not in name:
            continue
        b = tensors[name.replace("lora_A", "lora_B")]
        ours, theirs = b.reshape(b.shape[0], 4, 4), a.reshape(4, 4, a.shape[1])
        older[name] = ours.permute(2, 1, 0).reshape(16, -1).contiguous()
        older[name.replace("lora_A", "lora_B")] = (
            theirs.permute(2, 1, 0).reshape(-1, 16).contiguous()
        )
    save_file(older, file)
    settings = json.loads((trained.adapter / "adapter_config.json").read_text())
    for version in ("0.18.1", "0.17.1", None):
        written = {**settings, "peft_version": version}
        (trained.adapter / "adapter_config.json").write_text(json.dumps(written))
        convert_lora(trained.adapter, tmp_path / "adapter.gguf", base=checkpoint, force=True)
        assert_same(trained, in_f32(checkpoint, once), tokens, tmp_path / "adapter.gguf")


def test_experts_one_by_one_add_to_their_share_of_the_fused_ones(
    make_checkpoint: MakeCheckpoint, once: Once, tmp_path: Path
) -> None:
    """As Axolotl trains them, some with another rank and some not at all."""
    checkpoint, tokens = make_checkpoint(SMALL), random_tokens(SMALL, 20, 3)
    model = Llama4ForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    plain, tensors = predictions(model, tokens), {}
    generator = torch.Generator().manual_seed(0)
    half = SMALL.expert_ffn
    for layer in (1, 3):
        experts = model.get_submodule(f"language_model.model.layers.{layer}.feed_forward.experts")
        for expert, rank in ((0, 3), (2, 5), (3, 5)):
            for part, (out, inner) in {
                "gate": (half, 64), "up": (half, 64), "down": (64, half)
            }.items():  # fmt: skip
                a = torch.randn(rank, inner, generator=generator) * 0.1
                b = torch.randn(out, rank, generator=generator) * 0.1
                before = (
                    f"base_model.model.language_model.model.layers.{layer}.feed_forward.experts"
                )
                tensors[f"{before}.{part}_projs.{expert}.lora_A.weight"] = a
                tensors[f"{before}.{part}_projs.{expert}.lora_B.weight"] = b
                delta = (b @ a).T * 12 / rank
                stored = experts.down_proj if part == "down" else experts.gate_up_proj
                first = half if part == "up" else 0
                stored.data[expert, :, first : first + out] += delta
    trained = Trained(tmp_path / "adapter", predictions(model, tokens), plain)
    trained.adapter.mkdir()
    save_file(tensors, trained.adapter / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "r": 5, "lora_alpha": 12,
        "rank_pattern": {r".*_projs\.0": 3}, "base_model_name_or_path": str(checkpoint),
    }  # fmt: skip
    (trained.adapter / "adapter_config.json").write_text(json.dumps(settings))
    convert_lora(trained.adapter, tmp_path / "adapter.gguf")
    assert_same(trained, in_f32(checkpoint, once), tokens, tmp_path / "adapter.gguf")


@pytest.mark.parametrize("outtype", ["f16", "bf16"])
def test_smaller_types_cost_what_their_rounding_costs(
    make_checkpoint: MakeCheckpoint, once: Once, tmp_path: Path, outtype: str
) -> None:
    checkpoint, tokens = make_checkpoint(SMALL), random_tokens(SMALL, 20, 3)
    trained = train(checkpoint, tmp_path / "adapter", tokens, **KINDS["attention"])
    convert_lora(trained.adapter, tmp_path / "adapter.gguf", outtype=outtype, base=checkpoint)
    ours = peer_logits(in_f32(checkpoint, once), tokens, [(tmp_path / "adapter.gguf", 1.0)])
    divergence = kl_divergence(trained.logits, ours).max()
    assert 1e-9 < divergence < (1e-6 if outtype == "f16" else 3e-5)


def test_an_adapter_of_the_demo_model(once: Once, tmp_path: Path) -> None:
    tokens = [*range(300, 330)]
    trained = train(
        DEMO, tmp_path / "adapter", tokens,
        target_modules=TEXT + "(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        target_parameters=[GATE_UP, DOWN, "feed_forward.router.weight"],
    )  # fmt: skip
    convert_lora(trained.adapter, tmp_path / "adapter.gguf")
    assert_same(trained, in_f32(DEMO, once), tokens, tmp_path / "adapter.gguf")
