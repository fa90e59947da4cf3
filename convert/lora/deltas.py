"""An adapter's tensors, held against a model: which matrix each pair adds to.

PEFT names a pair by the module that it adapts, nests one for each parameter of a module
(``base_layer``), and lays a fused parameter's experts side by side; which parameter and which way
round is told by the shapes. Promises that every tensor of the file is accounted for: in a delta, in
`replaced`, named in `unused`, or refused by name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

from ...errors import CheckpointError, UnsupportedError
from ...untrusted import brief
from ..names import (
    DENSE_RULES,
    DOWN_RULES,
    GATE_UP_RULES,
    LAYER_RULES,
    MODEL_RULES,
    OUTPUT_RULE,
    ROUTER_RULE,
    SHARED_EXPERT_RULES,
    ExpertLayout,
    Rule,
    Target,
    rule_targets,
)
from ..shard_header import StoredTensor
from ..spelling import VISION_PREFIXES, table_name
from .adapter import Adapter
from .base import Base
from .settings import AdapterSettings

FLOAT_DTYPES = ("F32", "F16", "BF16")

_FUSED_RULES, _SEPARATE_RULES = (
    (*GATE_UP_RULES[layout], *DOWN_RULES[layout])
    for layout in (ExpertLayout.FUSED, ExpertLayout.SEPARATE)
)
_ROUTED = (ROUTER_RULE, *_FUSED_RULES, *_SEPARATE_RULES, *SHARED_EXPERT_RULES)
_RULES = {
    rule.name: rule for rule in (*MODEL_RULES, OUTPUT_RULE, *LAYER_RULES, *_ROUTED, *DENSE_RULES)
}
_EMBEDDING_RULE = MODEL_RULES[0]
_EXPERTS = _FUSED_RULES[0].name.removesuffix(".gate_up_proj")
_OF_MODEL = "Take the adapter's own base: base says which model its shapes are held against."

# A stored name: the adapted module, which half, and the adapter's name where it was not taken off.
_HALF = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<linear>[AB])(?:\.[^.]+)?\.weight"
    r"|embedding_(?P<embedding>[AB])(?:\.[^.]+)?)"
)
_SAVED = re.compile(r"\.(?:modules_to_save|original_module)\.(?:[^.]+\.)?")
# Tensors that only another kind of adapter has, and what that is.
_OTHER_KINDS = {
    "lora_magnitude_vector": "DoRA",
    "lora_B.bias": "a bias behind lora_B",
    "trainable_tokens": "rows of the embedding that were trained",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "lora_E": "AdaLoRA",
    "ia3_l": "IA3",
}


@dataclass(frozen=True)
class Pair:
    """The two halves that PEFT stored for one module or parameter.

    `module` is its stored name, without the wrappers for parameters; the product of `b` and `a`
    counts `scale` times.
    """

    module: str
    a: StoredTensor
    b: StoredTensor
    embedding: bool
    scale: float = 1.0


@dataclass(frozen=True)
class Delta:
    """What a pair adds to one matrix of the checkpoint, which its `name` in the tables names.

    `rank` is that of one expert. Where `swapped`, ``a`` has the outputs and ``b`` the inputs, as
    PEFT from 0.19.1 on has it for fused experts.
    """

    name: str
    rule: Rule
    layer: int
    pair: Pair
    rank: int
    targets: tuple[Target, ...]
    expert: int | None = None
    swapped: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """Where its tensors come in a GGUF: the embedding and the output before the layers."""
        place = list(_RULES).index(self.rule.name)
        return (-1 if "{layer}" not in self.rule.name else self.layer), place


@dataclass(frozen=True)
class Deltas:
    """All that an adapter does to a model.

    `deltas` are its products, by the tables' names of the matrices; `vision` those for the vision
    tower, by theirs. `replaced` are whole tensors that stand in for the model's (modules_to_save),
    `unused` the stored names of those that only repeat the model's. `pairs` is how many there are
    for the text model.
    """

    deltas: Mapping[str, Delta]
    vision: Mapping[str, Pair]
    replaced: Mapping[str, StoredTensor]
    unused: tuple[str, ...]
    pairs: int


@dataclass
class _Halves:
    """What is found of one module: its halves by letter, of linear layers or of an embedding."""

    linear: dict[str, StoredTensor] = field(default_factory=dict)
    embedding: dict[str, StoredTensor] = field(default_factory=dict)


def read_deltas(adapter: Adapter, base: Base | None) -> Deltas:
    """Hold an adapter's tensors against its base's shapes.

    Args:
        adapter: the adapter.
        base: the text model; None where there is none, and what is for it does not count.

    Raises:
        UnsupportedError: a tensor is of another kind of adapter, or of a part that cannot be
            changed.
        CheckpointError: a tensor is of no part of the model, of another shape, or lacks its other
            half.
    """
    halves: dict[str, _Halves] = {}
    replaced: dict[str, StoredTensor] = {}
    unused = []
    for name, stored in adapter.tensors.items():
        _check_kind(adapter, stored)
        match = _HALF.fullmatch(name)
        if match is not None:
            kind = "linear" if match["linear"] else "embedding"
            letter = match["linear"] or match["embedding"]
            found = getattr(halves.setdefault(match["module"], _Halves()), kind)
            if letter in found:
                raise _error(adapter, stored, f"{found[letter].name} is the same half of a pair")
            found[letter] = stored
        elif ".base_layer." in name or ".original_module." in name:
            if base is not None:
                _check_repeated(adapter, stored, base)
            unused.append(name)
        else:
            _replace(replaced, adapter, stored)
    if not halves and not replaced:
        raise CheckpointError(f"{adapter.weights} holds no LoRA", expected="lora_A and lora_B")
    pairs = [_pair(adapter, module, found) for module, found in halves.items()]
    deltas: dict[str, Delta] = {}
    vision: dict[str, Pair] = {}
    claimed: defaultdict[str, set[int | None]] = defaultdict(set)
    for pair in pairs:
        name = table_name(pair.module)
        if name.startswith(VISION_PREFIXES):
            vision[f"{name}.weight"] = pair
            continue
        if base is None:
            continue
        delta = _delta(adapter, pair, name, base)
        for target in delta.targets:
            # All experts of a tensor at once, or one at a time.
            others = claimed[target.name]
            if delta.expert in others or (others and None in {delta.expert, *others}):
                raise _error(adapter, pair.a, f"{target.name} is changed by another pair too")
            others.add(delta.expert)
        if delta.name in replaced:
            raise _error(adapter, pair.a, f"{replaced[delta.name].name} stands in for all of it")
        deltas[delta.name] = delta
    return Deltas(deltas, vision, replaced, tuple(unused), len(pairs) - len(vision))


@dataclass(frozen=True)
class Place:
    """Where a whole tensor of the text model goes, and the shape that it must have."""

    shape: tuple[int, ...]
    targets: tuple[Target, ...]
    experts: bool
    expert: int | None


def place_of(name: str, base: Base) -> Place:
    """The place of a tensor of `Deltas.replaced` that is of the text model."""
    template, layer, expert = _template(name)
    rule = replace(_RULES[template], expert=expert)
    targets = rule_targets(rule, layer, base.sizes)
    return Place(tuple(base.sizes[axis] for axis in rule.shape), targets, rule.experts, expert)


def _check_kind(adapter: Adapter, stored: StoredTensor) -> None:
    for part, kind in _OTHER_KINDS.items():
        if part in stored.name:
            raise UnsupportedError(
                f"{adapter.path} is more than a plain LoRA: {brief(stored.name)}",
                found=kind,
                expected="lora_A and lora_B alone",
                hint="Merge it into its base with PEFT (merge_and_unload), and convert that.",
            )
    if stored.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{brief(stored.name)} in {stored.file.name} is stored in an unsupported dtype",
            found=stored.dtype,
            expected=", ".join(FLOAT_DTYPES),
        )


def _check_repeated(adapter: Adapter, stored: StoredTensor, base: Base) -> None:
    """Whether a tensor of the model that is stored beside the adapter can be the base's."""
    rule = _RULES.get(_template(table_name(_SAVED.sub(".", stored.name)))[0])
    shape = None if rule is None else tuple(base.sizes[axis] for axis in rule.shape)
    if shape is not None and stored.shape != shape:
        # A vocabulary that was resized: the tensor is stored because the base has another.
        found, expected = str(list(stored.shape)), str(list(shape))
        raise _other_model(adapter, stored, found, expected, base)


def _replace(replaced: dict[str, StoredTensor], adapter: Adapter, stored: StoredTensor) -> None:
    """Note a whole tensor, by the name in the tables of what it stands in for."""
    name = table_name(_SAVED.sub(".", stored.name))
    in_tower = name.startswith(VISION_PREFIXES)
    if name.endswith(".bias") and not in_tower:
        raise _error(adapter, stored, "a bias, of which a Llama 4's layers have none")
    if name in replaced:
        raise _error(adapter, stored, f"{replaced[name].name} stands in for the same tensor")
    if not in_tower and _template(name)[0] not in _RULES:
        raise _error(adapter, stored, "no tensor of a Llama 4")
    replaced[name] = stored


def _pair(adapter: Adapter, module: str, found: _Halves) -> Pair:
    """The two halves of one module, with its scale."""
    for halves in (found.linear, found.embedding):
        if len(halves) == 1:
            ((letter, stored),) = halves.items()
            other = "B" if letter == "A" else "A"
            raise _error(adapter, stored, f"no lora_{other} beside it")
    if found.linear and found.embedding:
        raise _error(adapter, found.linear["A"], "an embedding's halves beside it")
    halves = found.linear or found.embedding
    for stored in halves.values():
        if len(stored.shape) != 2 or not prod(stored.shape):
            shown = f"the shape {list(stored.shape)}"
            raise _error(adapter, stored, shown, "two axes, none of them empty")
    a, b = halves["A"], halves["B"]
    if a.shape[0] != b.shape[1]:
        shapes = f"{list(a.shape)} and lora_B {list(b.shape)}"
        raise _error(adapter, a, shapes, "as many rows as lora_B has columns")
    # Each parameter of a module that is adapted by name is one wrapper more.
    return Pair(module.replace(".base_layer", ""), a, b, bool(found.embedding))


def _delta(adapter: Adapter, pair: Pair, name: str, base: Base) -> Delta:
    """Which matrix of the model a pair adds to."""
    if name == _template_path(_EXPERTS, name):
        return _fused(adapter, pair, name, base)
    rule, layer, expert = _rule(adapter, pair, f"{name}.weight", base)
    if (rule is _EMBEDDING_RULE) != pair.embedding or len(rule.shape) != 2:
        expected = "lora_embedding_A" if rule is _EMBEDDING_RULE else "a linear layer's"
        raise _error(adapter, pair.a, f"a pair for {rule.name}", expected)
    # An embedding's product is [embd, vocab], and the table looks its columns up.
    out, inner = (
        base.sizes[axis] for axis in (reversed(rule.shape) if pair.embedding else rule.shape)
    )
    _check_shape(adapter, pair, (inner, out), base)
    by_name = adapter.settings.targets(f"{_key(pair)}.weight")
    pair, rank = _scaled(adapter, pair, f"{_key(pair)}.weight" if by_name else _key(pair), 1)
    # One expert's share is of a tensor for all of them.
    targets = rule_targets(replace(rule, expert=expert), layer, base.sizes)
    return Delta(f"{name}.weight", rule, layer, pair, rank, targets, expert)


def _fused(adapter: Adapter, pair: Pair, name: str, base: Base) -> Delta:
    """The parameter of fused experts that a pair adds to, as the shapes say."""
    experts = base.sizes["expert"]
    fits = []
    for rule in _FUSED_RULES:
        _, inner, out = (base.sizes[axis] for axis in rule.shape)
        for swapped in (False, True):
            sides = (out, inner) if swapped else (inner, out)
            if (pair.a.shape[1], pair.b.shape[0]) == sides:
                fits.append((rule, swapped))
    if not fits or pair.a.shape[0] % experts:
        sizes = base.sizes
        raise _other_model(
            adapter,
            pair.a,
            f"{list(pair.a.shape)} and lora_B {list(pair.b.shape)}",
            f"the rank times {experts} experts, between {sizes['embd']} and {sizes['gate_up']}, "
            f"or {sizes['ff_expert']}",
            base,
        )
    # Of a square parameter either way round has the same shape.
    rule, swapped = next((it for it in fits if it[1] == adapter.settings.swapped), fits[0])
    parameter = rule.name.rsplit(".", 1)[1]
    _, layer, _ = _rule(adapter, pair, f"{name}.{parameter}", base)
    pair, rank = _scaled(adapter, pair, f"{_key(pair)}.{parameter}", experts)
    targets = rule_targets(rule, layer, base.sizes)
    return Delta(f"{name}.{parameter}", rule, layer, pair, rank, targets, swapped=swapped)


def _scaled(adapter: Adapter, pair: Pair, key: str, experts: int) -> tuple[Pair, int]:
    """The pair with its scale, and its rank, which is what adapter_config.json says."""
    settings: AdapterSettings = adapter.settings
    rank, said = pair.a.shape[0] // experts, settings.rank_of(key)
    if rank != said:
        raise _error(adapter, pair.a, f"rank {rank}", f"{said}, as adapter_config.json has it")
    return Pair(pair.module, pair.a, pair.b, pair.embedding, settings.scale_of(key)), rank


def vision_pair(adapter: Adapter, pair: Pair) -> Pair:
    """A pair of the vision tower with its scale."""
    return _scaled(adapter, pair, _key(pair), 1)[0]


def _key(pair: Pair) -> str:
    """What PEFT calls a module when it looks for patterns."""
    return pair.module.removeprefix("base_model.model.")


def _template(name: str) -> tuple[str, int, int | None]:
    """A name of the tables with its numbers taken out: of the layer, 0 without, and the expert."""
    layer = re.search(r"^model\.layers\.(\d{1,4})\.", name)
    expert = re.search(r"\.experts\.(\d{1,4})\.", name)
    template = re.sub(r"^model\.layers\.\d{1,4}\.", "model.layers.{layer}.", name)
    template = re.sub(r"\.experts\.\d{1,4}\.", ".experts.{expert}.", template)
    return template, int(layer[1]) if layer else 0, int(expert[1]) if expert else None


def _template_path(template: str, name: str) -> str:
    """A template with the layer of a name."""
    return template.format(layer=_template(name)[1])


def _rule(adapter: Adapter, pair: Pair, name: str, base: Base) -> tuple[Rule, int, int | None]:
    """The rule of a name, with its layer and expert, which the model has."""
    template, layer, expert = _template(name)
    rule = _RULES.get(template)
    hparams = base.hparams
    if rule is None or "norm" in template:
        raise _error(adapter, pair.a, "no matrix of a Llama 4")
    if layer >= hparams.n_layer or (expert or 0) >= hparams.n_expert:
        has = f"{hparams.n_layer} layers and {hparams.n_expert} experts"
        found = f"layer {layer}" + ("" if expert is None else f", expert {expert}")
        raise _other_model(adapter, pair.a, found, has, base)
    other = DENSE_RULES if hparams.has_experts(layer) else _ROUTED
    if rule in other:
        kind = "experts" if hparams.has_experts(layer) else "a dense feed-forward network"
        raise _other_model(adapter, pair.a, brief(name), f"{kind} in layer {layer}", base)
    if base.tied and rule in (OUTPUT_RULE, _EMBEDDING_RULE):
        raise UnsupportedError(
            f"{brief(pair.module)} cannot be changed alone: {base.name} ties its output to its "
            "embedding",
            hint="Use a base whose output is a tensor of its own (tie_word_embeddings: false).",
        )
    return rule, layer, expert


def _check_shape(adapter: Adapter, pair: Pair, sides: tuple[int, int], base: Base) -> None:
    """Whether a pair goes from so many inputs to so many outputs."""
    if (pair.a.shape[1], pair.b.shape[0]) != sides:
        rank = pair.a.shape[0]
        raise _other_model(
            adapter,
            pair.a,
            f"{list(pair.a.shape)} and lora_B {list(pair.b.shape)}",
            f"[{rank}, {sides[0]}] and [{sides[1]}, {rank}]",
            base,
        )


def _error(
    adapter: Adapter, stored: StoredTensor, found: str, expected: str | None = None
) -> CheckpointError:
    return CheckpointError(
        f"{brief(stored.name)} in {stored.file} cannot be used", found=found, expected=expected
    )


def _other_model(
    adapter: Adapter, stored: StoredTensor, found: str, expected: str, base: Base
) -> CheckpointError:
    return CheckpointError(
        f"{adapter.path} is an adapter of another model than {base.name}: {brief(stored.name)}",
        found=found,
        expected=expected,
        hint=_OF_MODEL,
    )
