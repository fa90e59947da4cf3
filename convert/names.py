"""Which tensors a Llama 4 checkpoint must hold, and what each becomes in a GGUF.

Literal tables, and their layout over a model's layers. Knows no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from enum import Enum

from ..architecture import Hyperparameters
from .config import ModelConfig

# Axis sizes by name, as the tables below use them; see `sizes_of`.
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Rule:
    """One tensor of the checkpoint: its name, its shape, and the GGUF tensors it becomes.

    Where `experts`, the tensor is [expert, in, out] and GGUF wants [expert, out, in]; several
    targets share the `out` axis evenly, in order. Where it is of one `expert`, by number, it is
    that expert's share of its target.
    """

    name: str
    shape: tuple[str, ...]
    targets: tuple[str, ...]
    experts: bool = False
    expert: int | None = None


class ExpertLayout(Enum):
    """How a layer's routed experts are stored; the value says it in a report."""

    FUSED = "fused"
    STACKED = "stacked"
    SEPARATE = "one by one"


@dataclass(frozen=True)
class LayerExperts:
    """The layout of each of a layer's matrices: gate and up go together."""

    gate_up: ExpertLayout = ExpertLayout.FUSED
    down: ExpertLayout = ExpertLayout.FUSED


ExpertLayouts = Mapping[int, LayerExperts]
"""By layer; one that is not in it has `LayerExperts()`."""

MODEL_RULES = (
    Rule("model.embed_tokens.weight", ("vocab", "embd"), ("token_embd.weight",)),
    Rule("model.norm.weight", ("embd",), ("output_norm.weight",)),
)
OUTPUT_RULE = Rule("lm_head.weight", ("vocab", "embd"), ("output.weight",))

_ATTENTION = "model.layers.{layer}.self_attn"
_FFN = "model.layers.{layer}.feed_forward"
_EXPERTS = _FFN + ".experts"
LAYER_RULES = (
    Rule(
        "model.layers.{layer}.input_layernorm.weight", ("embd",), ("blk.{layer}.attn_norm.weight",)
    ),
    Rule(_ATTENTION + ".q_proj.weight", ("heads", "embd"), ("blk.{layer}.attn_q.weight",)),
    Rule(_ATTENTION + ".k_proj.weight", ("kv_heads", "embd"), ("blk.{layer}.attn_k.weight",)),
    Rule(_ATTENTION + ".v_proj.weight", ("kv_heads", "embd"), ("blk.{layer}.attn_v.weight",)),
    Rule(_ATTENTION + ".o_proj.weight", ("embd", "heads"), ("blk.{layer}.attn_output.weight",)),
    Rule(
        "model.layers.{layer}.post_attention_layernorm.weight",
        ("embd",),
        ("blk.{layer}.ffn_norm.weight",),
    ),
)
ROUTER_RULE = Rule(
    _FFN + ".router.weight", ("expert", "embd"), ("blk.{layer}.ffn_gate_inp.weight",)
)
# Routed experts, in the layouts that a layer may have. All experts of a matrix are one tensor, as
# transformers saves them (fused) or as MLX does (stacked), or each is a linear layer of its own.
GATE_UP_RULES = {
    ExpertLayout.FUSED: (
        Rule(
            _EXPERTS + ".gate_up_proj",
            ("expert", "embd", "gate_up"),
            ("blk.{layer}.ffn_gate_exps.weight", "blk.{layer}.ffn_up_exps.weight"),
            experts=True,
        ),
    ),
    ExpertLayout.STACKED: (
        Rule(
            _EXPERTS + ".gate_proj.weight",
            ("expert", "ff_expert", "embd"),
            ("blk.{layer}.ffn_gate_exps.weight",),
        ),
        Rule(
            _EXPERTS + ".up_proj.weight",
            ("expert", "ff_expert", "embd"),
            ("blk.{layer}.ffn_up_exps.weight",),
        ),
    ),
    ExpertLayout.SEPARATE: (
        Rule(
            _EXPERTS + ".{expert}.gate_proj.weight",
            ("ff_expert", "embd"),
            ("blk.{layer}.ffn_gate_exps.weight",),
        ),
        Rule(
            _EXPERTS + ".{expert}.up_proj.weight",
            ("ff_expert", "embd"),
            ("blk.{layer}.ffn_up_exps.weight",),
        ),
    ),
}
DOWN_RULES = {
    ExpertLayout.FUSED: (
        Rule(
            _EXPERTS + ".down_proj",
            ("expert", "ff_expert", "embd"),
            ("blk.{layer}.ffn_down_exps.weight",),
            experts=True,
        ),
    ),
    ExpertLayout.STACKED: (
        Rule(
            _EXPERTS + ".down_proj.weight",
            ("expert", "embd", "ff_expert"),
            ("blk.{layer}.ffn_down_exps.weight",),
        ),
    ),
    ExpertLayout.SEPARATE: (
        Rule(
            _EXPERTS + ".{expert}.down_proj.weight",
            ("embd", "ff_expert"),
            ("blk.{layer}.ffn_down_exps.weight",),
        ),
    ),
}
SHARED_EXPERT_RULES = (
    Rule(
        _FFN + ".shared_expert.gate_proj.weight",
        ("ff_expert", "embd"),
        ("blk.{layer}.ffn_gate_shexp.weight",),
    ),
    Rule(
        _FFN + ".shared_expert.up_proj.weight",
        ("ff_expert", "embd"),
        ("blk.{layer}.ffn_up_shexp.weight",),
    ),
    Rule(
        _FFN + ".shared_expert.down_proj.weight",
        ("embd", "ff_expert"),
        ("blk.{layer}.ffn_down_shexp.weight",),
    ),
)
DENSE_RULES = (
    Rule(_FFN + ".gate_proj.weight", ("ff_dense", "embd"), ("blk.{layer}.ffn_gate.weight",)),
    Rule(_FFN + ".up_proj.weight", ("ff_dense", "embd"), ("blk.{layer}.ffn_up.weight",)),
    Rule(_FFN + ".down_proj.weight", ("embd", "ff_dense"), ("blk.{layer}.ffn_down.weight",)),
)


@dataclass(frozen=True)
class Target:
    """A GGUF tensor: its name, and its shape with rows along the last axis."""

    name: str
    shape: tuple[int, ...]


def rules_for(
    config: ModelConfig, layouts: ExpertLayouts | None = None
) -> Iterator[tuple[Rule, int]]:
    """Every rule that a model of this configuration needs, with its layer, in GGUF order.

    Args:
        layouts: how its routed experts are stored; by default fused.
    """
    hparams = config.hparams
    yield from ((rule, 0) for rule in MODEL_RULES)
    if not config.tied:
        yield OUTPUT_RULE, 0
    for layer in range(hparams.n_layer):
        feed_forward: tuple[Rule, ...] = DENSE_RULES
        if hparams.has_experts(layer):
            experts = _expert_rules(_layout(layouts, layer), hparams.n_expert)
            feed_forward = (ROUTER_RULE, *experts, *SHARED_EXPERT_RULES)
        yield from ((rule, layer) for rule in (*LAYER_RULES, *feed_forward))


def count_rules(config: ModelConfig, layouts: ExpertLayouts) -> int:
    """How many there are: up to a million, where few tensors may be stored."""
    hparams = config.hparams
    routed = [layer for layer in range(hparams.n_layer) if hparams.has_experts(layer)]
    experts = sum(
        len(rules[layout]) * (hparams.n_expert if layout is ExpertLayout.SEPARATE else 1)
        for layer in routed
        for rules, layout in _chosen(_layout(layouts, layer))
    )
    return (
        len(MODEL_RULES)
        + (not config.tied)
        + hparams.n_layer * len(LAYER_RULES)
        + len(routed) * (1 + len(SHARED_EXPERT_RULES))
        + experts
        + (hparams.n_layer - len(routed)) * len(DENSE_RULES)
    )


def expert_layouts(names: Iterable[str], config: ModelConfig) -> dict[int, LayerExperts]:
    """How the routed experts of each layer are stored.

    Args:
        names: those of the stored weights, in the tables' spelling.
        config: says which layers have experts; one that stores none of them is taken for like the
            first that does.
    """
    routed = {layer for layer in range(config.hparams.n_layer) if config.hparams.has_experts(layer)}
    parts: dict[int, set[str]] = {}
    for match in filter(None, map(_EXPERT_NAME.match, names)):
        if (layer := int(match["layer"])) in routed:
            number = "E." if match["expert"] else ""
            parts.setdefault(layer, set()).add(number + match["matrix"])
    found = {layer: _layout_of(stored) for layer, stored in sorted(parts.items())}
    default = next(iter(found.values()), LayerExperts())
    return {layer: found.get(layer, default) for layer in sorted(routed)}


# As far as a name says the layout: what follows says which part of a matrix is stored.
_EXPERT_NAME = re.compile(
    r"model\.layers\.(?P<layer>\d{1,4})\.feed_forward\.experts\.(?P<expert>\d{1,4}\.)?"
    r"(?P<matrix>gate_up_proj|(?:gate|up|down)_proj\.weight|down_proj)"
)


def _layout_of(stored: Set[str]) -> LayerExperts:
    """The layout of a layer with these matrices; ``E.`` is before those of one expert."""
    gate_up = down = ExpertLayout.FUSED
    if "gate_up_proj" not in stored:
        if {"gate_proj.weight", "up_proj.weight"} <= stored:
            gate_up = ExpertLayout.STACKED
        elif stored & {"E.gate_proj.weight", "E.up_proj.weight"}:
            gate_up = ExpertLayout.SEPARATE
    if "down_proj" not in stored:
        if "down_proj.weight" in stored:
            down = ExpertLayout.STACKED
        elif "E.down_proj.weight" in stored:
            down = ExpertLayout.SEPARATE
    return LayerExperts(gate_up, down)


def _layout(layouts: ExpertLayouts | None, layer: int) -> LayerExperts:
    return LayerExperts() if layouts is None else layouts.get(layer, LayerExperts())


def _chosen(
    layout: LayerExperts,
) -> tuple[tuple[Mapping[ExpertLayout, tuple[Rule, ...]], ExpertLayout], ...]:
    """The tables of a layer's experts, each with the layout to look up in it."""
    return (GATE_UP_RULES, layout.gate_up), (DOWN_RULES, layout.down)


def _expert_rules(layout: LayerExperts, count: int) -> Iterator[Rule]:
    """A rule for each tensor of a layer's experts, all of a target together."""
    for rules, chosen in _chosen(layout):
        for rule in rules[chosen]:
            if chosen is not ExpertLayout.SEPARATE:
                yield rule
                continue
            for expert in range(count):
                name = rule.name.replace("{expert}", str(expert))
                yield replace(rule, name=name, expert=expert)


def targets_for(config: ModelConfig) -> list[Target]:
    """The GGUF tensors of a model of this configuration, in GGUF order."""
    sizes = sizes_of(config)
    return [
        target for rule, layer in rules_for(config) for target in rule_targets(rule, layer, sizes)
    ]


def sizes_of(config: ModelConfig) -> Sizes:
    """The axes of the tables."""
    return axis_sizes(config.hparams)


def axis_sizes(hparams: Hyperparameters) -> Sizes:
    """The axes of the tables, of a model that is known by its hyperparameters alone."""
    return {
        "vocab": hparams.n_vocab,
        "embd": hparams.n_embd,
        "heads": hparams.n_head * hparams.head_dim,
        "kv_heads": hparams.n_head_kv * hparams.head_dim,
        "expert": hparams.n_expert,
        "ff_expert": hparams.n_ff_expert,
        "gate_up": 2 * hparams.n_ff_expert,
        "ff_dense": hparams.n_ff,
    }


def rule_targets(rule: Rule, layer: int, sizes: Sizes) -> tuple[Target, ...]:
    """What a tensor of the checkpoint becomes."""
    shape = tuple(sizes[axis] for axis in rule.shape)
    if rule.experts:
        experts, inputs, outputs = shape
        shape = (experts, outputs // len(rule.targets), inputs)
    elif rule.expert is not None:
        shape = (sizes["expert"], *shape)
    return tuple(Target(name.format(layer=layer), shape) for name in rule.targets)
