"""Which tensors a Llama 4 checkpoint must hold, and what each becomes in a GGUF.

Literal tables, and their layout over a model's layers. Knows no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

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


MODEL_RULES = (
    Rule("model.embed_tokens.weight", ("vocab", "embd"), ("token_embd.weight",)),
    Rule("model.norm.weight", ("embd",), ("output_norm.weight",)),
)
OUTPUT_RULE = Rule("lm_head.weight", ("vocab", "embd"), ("output.weight",))

_ATTENTION = "model.layers.{layer}.self_attn"
_FFN = "model.layers.{layer}.feed_forward"
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
EXPERT_RULES = (
    Rule(
        _FFN + ".experts.gate_up_proj",
        ("expert", "embd", "gate_up"),
        ("blk.{layer}.ffn_gate_exps.weight", "blk.{layer}.ffn_up_exps.weight"),
        experts=True,
    ),
    Rule(
        _FFN + ".experts.down_proj",
        ("expert", "ff_expert", "embd"),
        ("blk.{layer}.ffn_down_exps.weight",),
        experts=True,
    ),
)
# The same where a checkpoint has linear experts, one of each for every expert.
SEPARATE_EXPERT_RULES = (
    Rule(
        _FFN + ".experts.{expert}.gate_proj.weight",
        ("ff_expert", "embd"),
        ("blk.{layer}.ffn_gate_exps.weight",),
    ),
    Rule(
        _FFN + ".experts.{expert}.up_proj.weight",
        ("ff_expert", "embd"),
        ("blk.{layer}.ffn_up_exps.weight",),
    ),
    Rule(
        _FFN + ".experts.{expert}.down_proj.weight",
        ("embd", "ff_expert"),
        ("blk.{layer}.ffn_down_exps.weight",),
    ),
)
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


def rules_for(config: ModelConfig, *, separate: bool = False) -> Iterator[tuple[Rule, int]]:
    """Every rule that a model of this configuration needs, with its layer, in GGUF order.

    Args:
        separate: whether each expert's matrices are tensors of their own.
    """
    hparams = config.hparams
    yield from ((rule, 0) for rule in MODEL_RULES)
    if not config.tied:
        yield OUTPUT_RULE, 0
    experts = _separate_experts(hparams.n_expert) if separate else EXPERT_RULES
    for layer in range(hparams.n_layer):
        routed = (ROUTER_RULE, *experts, *SHARED_EXPERT_RULES)
        feed_forward = routed if hparams.has_experts(layer) else DENSE_RULES
        yield from ((rule, layer) for rule in (*LAYER_RULES, *feed_forward))


def count_rules(config: ModelConfig, *, separate: bool) -> int:
    """How many there are: up to a million, where few tensors may be stored."""
    hparams = config.hparams
    routed = sum(hparams.has_experts(layer) for layer in range(hparams.n_layer))
    experts = len(SEPARATE_EXPERT_RULES) * hparams.n_expert if separate else len(EXPERT_RULES)
    return (
        len(MODEL_RULES)
        + (not config.tied)
        + hparams.n_layer * len(LAYER_RULES)
        + routed * (1 + experts + len(SHARED_EXPERT_RULES))
        + (hparams.n_layer - routed) * len(DENSE_RULES)
    )


def _separate_experts(count: int) -> tuple[Rule, ...]:
    """A rule for each matrix of each expert, all experts of a target together."""
    return tuple(
        replace(rule, name=rule.name.replace("{expert}", str(expert)), expert=expert)
        for rule in SEPARATE_EXPERT_RULES
        for expert in range(count)
    )


def targets_for(config: ModelConfig) -> list[Target]:
    """The GGUF tensors of a model of this configuration, in GGUF order."""
    sizes = sizes_of(config)
    return [
        target for rule, layer in rules_for(config) for target in rule_targets(rule, layer, sizes)
    ]


def sizes_of(config: ModelConfig) -> Sizes:
    """The axes of the tables."""
    hparams = config.hparams
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
