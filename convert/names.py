"""Which tensors a Llama 4 checkpoint must hold, and what each becomes in a GGUF.

Literal tables; `plan_tensors` lays them out over a model's layers and holds them against what is
really there. An unknown, missing or misshapen tensor is an error before a byte is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..errors import CheckpointError
from . import fp8
from .checkpoint import StoredTensor
from .config import ModelConfig

# Axis sizes by name, as the tables below use them; see `_sizes`.
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
# The same where a checkpoint is quantized; there is one of each for every expert.
QUANTIZED_EXPERT_RULES = (
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

# The prefix that a multimodal checkpoint puts before the text model's names.
LANGUAGE_PREFIX = "language_model."
# Parts of a multimodal checkpoint that are not the text model.
VISION_PREFIXES = ("vision_model.", "multi_modal_projector.")

# Dtypes whose numbers a conversion takes as they are.
FLOAT_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Target:
    """A GGUF tensor: its name, and its shape with rows along the last axis."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class MappedTensor:
    """A stored tensor and what becomes of it; see `Rule`. In FP8 it has a `scale` for each row."""

    stored: StoredTensor
    targets: tuple[Target, ...]
    experts: bool
    expert: int | None = None
    scale: StoredTensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the checkpoint."""
        return self.stored.nbytes + (self.scale.nbytes if self.scale else 0)


def rules_for(config: ModelConfig) -> list[tuple[Rule, int]]:
    """Every rule that a model of this configuration needs, with its layer, in GGUF order."""
    hparams = config.hparams
    rules = [(rule, 0) for rule in MODEL_RULES]
    if not config.tied:
        rules.append((OUTPUT_RULE, 0))
    experts = _separate_experts(hparams.n_expert) if config.fp8 else EXPERT_RULES
    for layer in range(hparams.n_layer):
        routed = (ROUTER_RULE, *experts, *SHARED_EXPERT_RULES)
        feed_forward = routed if hparams.has_experts(layer) else DENSE_RULES
        rules.extend((rule, layer) for rule in (*LAYER_RULES, *feed_forward))
    return rules


def _separate_experts(count: int) -> tuple[Rule, ...]:
    """A rule for each matrix of each expert, all experts of a target together."""
    return tuple(
        replace(rule, name=rule.name.replace("{expert}", str(expert)), expert=expert)
        for rule in QUANTIZED_EXPERT_RULES
        for expert in range(count)
    )


def targets_for(config: ModelConfig) -> list[Target]:
    """The GGUF tensors of a model of this configuration, in GGUF order."""
    sizes = _sizes(config)
    # Separate experts share a target.
    shapes = {
        target.name: target
        for rule, layer in rules_for(config)
        for target in _targets(rule, layer, sizes)
    }
    return list(shapes.values())


def plan_tensors(config: ModelConfig, stored: Mapping[str, StoredTensor]) -> list[MappedTensor]:
    """Hold the stored tensors against the tables.

    Args:
        config: the text model's.
        stored: every tensor of the checkpoint, by its name there.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, or not of floats.
    """
    sizes = _sizes(config)
    prefix = LANGUAGE_PREFIX if config.multimodal else ""
    expected = {
        prefix + rule.name.format(layer=layer): (rule, layer) for rule, layer in rules_for(config)
    }
    scales = _scales(expected, stored) if config.fp8 else {}
    companions = {scale.name for scale in scales.values()}
    _check_names(
        expected.keys(), stored.keys() - companions - set(left_out_tensors(config, stored))
    )
    return [
        _map(stored[name], scales.get(name), rule, layer, sizes)
        for name, (rule, layer) in expected.items()
    ]


def left_out_tensors(config: ModelConfig, stored: Iterable[str]) -> list[str]:
    """The names of tensors that are not needed: the vision tower's, and those of `fp8.LEFT_OUT`."""
    return [
        name
        for name in stored
        if (config.multimodal and name.startswith(VISION_PREFIXES))
        or (config.fp8 and fp8.left_out(name))
    ]


def _scales(names: Iterable[str], stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The scales of each FP8 tensor, by that tensor's name."""
    scales = {}
    for name in names:
        weight, scale = stored.get(name), stored.get(fp8.scale_name(name))
        if weight is None or weight.dtype != fp8.DTYPE:
            continue
        if scale is None:
            raise CheckpointError(
                f"tensor {fp8.scale_name(name)} is missing",
                found=f"{name} stored as {weight.dtype}",
                hint="The shards and config.json must be of the same model, and all of it.",
            )
        shape = (*weight.shape[:-1], 1)
        if scale.shape != shape or scale.dtype not in fp8.SCALE_DTYPES:
            raise CheckpointError(
                f"{scale.name} in {scale.file.name} cannot be the scales of {name}",
                found=f"{scale.dtype} {list(scale.shape)}",
                expected=f"{' or '.join(fp8.SCALE_DTYPES)} {list(shape)}",
            )
        scales[name] = scale
    return scales


def _sizes(config: ModelConfig) -> Sizes:
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


def _check_names(expected: Iterable[str], present: set[str]) -> None:
    wanted = list(expected)
    missing = [name for name in wanted if name not in present]
    if missing:
        raise CheckpointError(
            f"tensor {missing[0]} is missing",
            found=f"{len(missing)} of {len(wanted)} missing, {len(present)} present",
            hint="The shards and config.json must be of the same model, and all of it.",
        )
    extra = sorted(present.difference(wanted))
    if extra:
        raise CheckpointError(
            f"tensor {extra[0]} is not part of a Llama 4 model with this config.json",
            found=f"{len(extra)} unexpected tensors",
            hint="The shards and config.json must be of the same model.",
        )


def _map(
    stored: StoredTensor, scale: StoredTensor | None, rule: Rule, layer: int, sizes: Sizes
) -> MappedTensor:
    shape = tuple(sizes[axis] for axis in rule.shape)
    if stored.shape != shape:
        raise CheckpointError(
            f"{stored.name} in {stored.file.name} has another shape than config.json says",
            found=list(stored.shape),
            expected=f"{list(shape)} ({', '.join(rule.shape)})",
        )
    if stored.dtype not in FLOAT_DTYPES and scale is None:
        raise CheckpointError(
            f"{stored.name} in {stored.file.name} is stored in an unsupported dtype",
            found=stored.dtype,
            expected=", ".join(FLOAT_DTYPES),
        )
    targets = _targets(rule, layer, sizes)
    return MappedTensor(stored, targets, rule.experts, rule.expert, scale)


def _targets(rule: Rule, layer: int, sizes: Sizes) -> tuple[Target, ...]:
    """What a tensor of the checkpoint becomes."""
    shape = tuple(sizes[axis] for axis in rule.shape)
    if rule.experts:
        experts, inputs, outputs = shape
        shape = (experts, outputs // len(rule.targets), inputs)
    elif rule.expert is not None:
        shape = (sizes["expert"], *shape)
    return tuple(Target(name.format(layer=layer), shape) for name in rule.targets)
