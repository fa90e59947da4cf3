from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gguf import MODEL_ARCH, get_tensor_name_map

from llama4_edge.convert.checkpoint import open_checkpoint
from llama4_edge.convert.config import ModelConfig, parse_config
from llama4_edge.convert.names import rules_for
from llama4_edge.convert.shard_header import StoredTensor
from llama4_edge.convert.text_model import MappedTensor, read_text_model
from llama4_edge.errors import CheckpointError

from .test_config import MAVERICK, SCOUT


@pytest.mark.parametrize("published", [SCOUT, MAVERICK])
def test_the_tables_agree_with_the_gguf_package(published: dict[str, object]) -> None:
    """Its map knows the experts by a `.weight` they lack, and gate and up apart."""
    config = parse_config(published)
    known = get_tensor_name_map(MODEL_ARCH.LLAMA4, config.hparams.n_layer)
    for rule, layer in rules_for(config):
        name = rule.name.format(layer=layer)
        for target in rule.targets:
            part = name.replace("gate_up", "up" if "up_exps" in target else "gate")
            found = known.get_name(part, try_suffixes=(".weight",)) or known.get_name(part)
            assert found is not None, name
            assert found.removesuffix(".weight") + ".weight" == target.format(layer=layer)


@pytest.mark.parametrize(("published", "count"), [(SCOUT, 48 * 12 + 3), (MAVERICK, 24 * 21 + 3)])
def test_no_tensor_is_claimed_twice(published: dict[str, object], count: int) -> None:
    rules = rules_for(parse_config(published))
    sources = [rule.name.format(layer=layer) for rule, layer in rules]
    targets = [target.format(layer=layer) for rule, layer in rules for target in rule.targets]
    assert len(sources) == len(set(sources)) == count
    assert len(targets) == len(set(targets))


def mapped(checkpoint: Path) -> tuple[ModelConfig, dict[str, MappedTensor]]:
    opened = open_checkpoint(checkpoint)
    config = parse_config(opened.config)
    return config, {item.stored.name: item for item in read_text_model(opened).tensors}


def test_experts_are_split_and_turned(checkpoint: Path) -> None:
    config, tensors = mapped(checkpoint)
    hparams = config.hparams
    item = tensors["language_model.model.layers.1.feed_forward.experts.gate_up_proj"]
    shape = (hparams.n_expert, hparams.n_ff_expert, hparams.n_embd)
    assert item.stored.shape == (
        hparams.n_expert,
        hparams.n_embd,
        2 * hparams.n_ff_expert,
    )
    assert [(to.name, to.shape) for to in item.targets] == [
        ("blk.1.ffn_gate_exps.weight", shape),
        ("blk.1.ffn_up_exps.weight", shape),
    ]


def altered(checkpoint: Path, ending: str, **changes: object) -> dict[str, StoredTensor]:
    """The checkpoint's tensors with one of them described otherwise."""
    tensors = dict(open_checkpoint(checkpoint).tensors)
    name = next(name for name in tensors if name.endswith(ending))
    tensors[name] = replace(tensors[name], **changes)  # type: ignore[arg-type]
    return tensors


def plan(checkpoint: Path, tensors: dict[str, StoredTensor]) -> None:
    read_text_model(replace(open_checkpoint(checkpoint), tensors=tensors))


def test_a_missing_tensor_is_named(checkpoint: Path) -> None:
    tensors = dict(open_checkpoint(checkpoint).tensors)
    del tensors["language_model.model.layers.2.self_attn.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn\.k_proj\.weight is missing"):
        plan(checkpoint, tensors)


def test_an_extra_tensor_is_named(checkpoint: Path) -> None:
    tensors = dict(open_checkpoint(checkpoint).tensors)
    name = "language_model.model.layers.2.self_attn.q_proj.bias"
    tensors[name] = replace(next(iter(tensors.values())), name=name)
    with pytest.raises(CheckpointError, match=r"q_proj\.bias is not part of a Llama 4 model"):
        plan(checkpoint, tensors)


def test_a_misshapen_tensor_shows_both_shapes(checkpoint: Path) -> None:
    tensors = altered(checkpoint, "layers.0.self_attn.v_proj.weight", shape=(64, 32))
    with pytest.raises(CheckpointError, match=r"v_proj.* found \[64, 32\], expected \[32, 64\]"):
        plan(checkpoint, tensors)


def test_a_tensor_of_whole_numbers_is_refused(checkpoint: Path) -> None:
    tensors = altered(checkpoint, "lm_head.weight", dtype="I8")
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight.*found I8, expected BF16, F16, F32"
    ):
        plan(checkpoint, tensors)
