"""The text model in a checkpoint: which stored tensor is which, and what each becomes.

The stored tensors, by their names in the tables (`spelling`), are held against what the tables ask
for (`names`). Promises that an unknown, missing or misshapen tensor is an error before a byte is
written, and that whatever is left out or taken otherwise than config.json says is noted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import CheckpointError
from ..quant.types import TensorType
from .checkpoint import Checkpoint
from .config import ModelConfig, parse_config
from .directories import is_listed
from .forms import CODES, Form, Weight, find_in_any
from .names import (
    OUTPUT_RULE,
    ExpertLayouts,
    Rule,
    Sizes,
    Target,
    count_rules,
    expert_layouts,
    rule_targets,
    rules_for,
    sizes_of,
)
from .shard_header import StoredTensor
from .spelling import EMBEDDING, WRAPPERS, Spelling, spell
from .stored_layout import describe_layout
from .unused import take_unused

# Dtypes whose numbers a conversion takes as they are.
FLOAT_DTYPES = ("BF16", "F16", "F32", "F64")

_HEAD = OUTPUT_RULE.name
_COMPARED_BYTES = 16 << 20  # at a time
_HINT = "The shards and config.json must be of the same model, and all of it."


@dataclass(frozen=True)
class MappedTensor:
    """A stored tensor and what becomes of it; see `Rule`.

    Where it is stored in a form, `weight` says how, and `stored` is the part with the codes; those
    are put into blocks of the type `kept`, where there is one and the GGUF's is no other.
    """

    stored: StoredTensor
    targets: tuple[Target, ...]
    experts: bool
    expert: int | None = None
    weight: Weight | None = None
    kept: TensorType | None = None

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        """All stored tensors that it is made of."""
        return (self.stored,) if self.weight is None else tuple(self.weight.parts.values())

    @property
    def name(self) -> str:
        """Its stored name, without what a form adds."""
        return self.stored.name if self.weight is None else self.weight.name

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the checkpoint."""
        return sum(part.nbytes for part in self.parts)

    @property
    def label(self) -> str:
        """How its numbers are stored: a dtype, or what the form calls it."""
        return self.stored.dtype if self.weight is None else self.weight.form.label


@dataclass(frozen=True)
class TextModel:
    """What a checkpoint holds of a text model, in GGUF order.

    `config` is config.json's, but `tied` says what the stored tensors say. `left_out` names the
    tensors that are not needed; `notes` says what deserves a line in the report, `layout` how the
    tensors are stored. `vision` has those that turn pictures into embeddings, by their names in
    `vision`'s tables.
    """

    config: ModelConfig
    tensors: tuple[MappedTensor, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    layout: Mapping[str, str]
    vision: Mapping[str, StoredTensor]


def read_text_model(checkpoint: Checkpoint) -> TextModel:
    """Hold the checkpoint's tensors against its configuration.

    Raises:
        UnsupportedError: a configuration that llama.cpp cannot represent, or weights that are
            quantized in a way that is not known.
        CheckpointError: a tensor is missing, unknown, of another shape, or not of floats.
    """
    config = parse_config(checkpoint.config)
    spelling = spell(checkpoint.tensors)
    left_out, unused = take_unused(spelling.text)
    if any(tensor.dtype not in FLOAT_DTYPES for tensor in spelling.text.values()):
        config.check_quantization()
    notes = [*config.notes, *_wrapper_notes(spelling), *unused]
    if config.tied and _HEAD in spelling.text:
        config, unneeded, note = _settle_head(config, spelling, checkpoint)
        left_out += unneeded
        notes.append(note)
    if is_listed(checkpoint.path / "adapter_config.json"):
        notes.append("the adapter in the same directory (adapter_config.json) is not applied")
    layouts = expert_layouts(spelling.text, config)
    tensors = _map_all(config, spelling, layouts)
    if config.quantization is not None and all(tensor.weight is None for tensor in tensors):
        notes.append(
            "config.json has a quantization_config, but the weights are not quantized: they "
            "are taken as they are"
        )
    return TextModel(
        config=config,
        tensors=tuple(tensors),
        left_out=tuple(left_out),
        notes=tuple(notes),
        layout=describe_layout(checkpoint, spelling.text, layouts),
        vision=spelling.vision,
    )


def _settle_head(
    config: ModelConfig, spelling: Spelling, checkpoint: Checkpoint
) -> tuple[ModelConfig, list[str], str]:
    """What transformers does where config.json ties the output to the embedding and both are there.

    Equal ones are one; different ones stay two. Where only the output's is stored, it is both.

    Returns:
        The configuration with `tied` as it is, what is left out, and a note.
    """
    head, embedding = spelling.text[_HEAD], spelling.text.get(EMBEDDING)
    if embedding is None:
        spelling.text[EMBEDDING] = spelling.text.pop(_HEAD)
        return config, [], f"{head.name} is the embedding too: config.json ties them"
    if _equal(head, embedding, checkpoint):
        del spelling.text[_HEAD]
        note = f"{head.name} was left out: it equals {embedding.name}, to which config.json ties it"
        return config, [head.name], note
    note = (
        f"config.json ties {head.name} to {embedding.name}, but they differ: "
        "both are kept, as transformers does"
    )
    return replace(config, tied=False), [], note


def _equal(one: StoredTensor, other: StoredTensor, checkpoint: Checkpoint) -> bool:
    """Whether two tensors have the same bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    read = checkpoint.shards.read
    for at in range(0, one.nbytes, _COMPARED_BYTES):
        count = min(_COMPARED_BYTES, one.nbytes - at)
        if read(one.file, one.offset + at, count) != read(other.file, other.offset + at, count):
            return False
    return True


def _wrapper_notes(spelling: Spelling) -> list[str]:
    return [
        f"{wrapper} in the tensors' names, which {WRAPPERS[wrapper]} put there, was left out"
        for wrapper in sorted(spelling.wrappers)
    ]


def _map_all(config: ModelConfig, spelling: Spelling, layouts: ExpertLayouts) -> list[MappedTensor]:
    """A mapped tensor for each rule.

    Raises:
        CheckpointError: see `read_text_model`.
    """
    stored, forms = spelling.text, config.forms
    count = count_rules(config, layouts)
    if count > len(stored):
        # Some are missing, so that not all rules need be looked at.
        names = (rule.name.format(layer=layer) for rule, layer in rules_for(config, layouts))
        absent = next(name for name in names if not _is_stored(name, forms, stored))
        raise _missing(absent, count, spelling)
    rules = {
        rule.name.format(layer=layer): (rule, layer) for rule, layer in rules_for(config, layouts)
    }
    sizes = sizes_of(config)
    weights = _weights(rules, sizes, forms, stored)
    missing = [name for name in rules if name not in stored and name not in weights]
    if missing:
        raise _missing(missing[0], count, spelling)
    mapped = [
        map_tensor(stored.get(name), rule, layer, sizes, weights.get(name))
        for name, (rule, layer) in rules.items()
    ]
    _check_unknown(stored, mapped)
    return mapped


def _is_stored(name: str, forms: Sequence[Form], stored: Mapping[str, StoredTensor]) -> bool:
    """Whether there is a tensor of this name, or one with its codes."""
    return name in stored or any(form.part_name(name, CODES) in stored for form in forms)


def _weights(
    rules: Mapping[str, tuple[Rule, int]],
    sizes: Sizes,
    forms: Sequence[Form],
    stored: Mapping[str, StoredTensor],
) -> dict[str, Weight]:
    """The weights that are stored in one of the forms, by their names in the tables."""
    weights = {}
    for name, (rule, _) in rules.items():
        weight = find_in_any(forms, name, shape_of(rule, sizes), stored)
        if weight is not None:
            weights[name] = weight
    return weights


def _missing(name: str, wanted: int, spelling: Spelling) -> CheckpointError:
    """The error that a tensor is missing, with the most similar name of those that are there."""
    similar = max(spelling.text, key=lambda stored: len(os.path.commonprefix([stored, name])))
    for codes in (f"{name}_packed", f"{name.removesuffix('weight')}qweight"):
        if codes in spelling.text:
            stored = spelling.text[codes]
            raise CheckpointError(
                f"{stored.name} in {stored.file.name} is quantized, but config.json has no "
                "quantization_config for it",
                hint="Take config.json from the repository that the shards are of.",
            )
    hint = _HINT
    if name == _HEAD:
        hint = "A model whose output is its embedding has tie_word_embeddings: true in config.json."
    return CheckpointError(
        f"tensor {spelling.spelled(name)} is missing",
        found=f"{len(spelling.text)} tensors, such as {spelling.text[similar].name}",
        expected=wanted,
        hint=hint,
    )


def _check_unknown(stored: Mapping[str, StoredTensor], mapped: Sequence[MappedTensor]) -> None:
    known = {part.name for tensor in mapped for part in tensor.parts}
    extra = sorted(name for name, tensor in stored.items() if tensor.name not in known)
    if not extra:
        return
    hint = "The shards and config.json must be of the same model."
    if ".feed_forward.experts." in extra[0]:
        hint = (
            "Each matrix of a layer's experts must be stored once: fused with the other experts', "
            "or one by one."
        )
    raise CheckpointError(
        f"tensor {stored[extra[0]].name} is not part of a Llama 4 model with this config.json",
        found=f"{len(extra)} unexpected tensors",
        hint=hint,
    )


def shape_of(rule: Rule, sizes: Sizes) -> tuple[int, ...]:
    """The shape that a rule's tensor must have."""
    return tuple(sizes[axis] for axis in rule.shape)


def map_tensor(
    stored: StoredTensor | None,
    rule: Rule,
    layer: int,
    sizes: Sizes,
    weight: Weight | None = None,
) -> MappedTensor:
    """A stored tensor, or a `weight` in a form, and what a rule makes of it.

    Raises:
        CheckpointError: it is of another shape, or not of floats.
    """
    targets = rule_targets(rule, layer, sizes)
    if weight is not None:
        return MappedTensor(weight.codes, targets, rule.experts, rule.expert, weight)
    assert stored is not None
    shape = shape_of(rule, sizes)
    if stored.shape != shape:
        raise CheckpointError(
            f"{stored.name} in {stored.file.name} has another shape than config.json says",
            found=list(stored.shape),
            expected=f"{list(shape)} ({', '.join(rule.shape)})",
            hint=_resized(stored, rule, shape),
        )
    if stored.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{stored.name} in {stored.file.name} is stored in an unsupported dtype",
            found=stored.dtype,
            expected=", ".join(FLOAT_DTYPES),
        )
    return MappedTensor(stored, targets, rule.experts, rule.expert)


def _resized(stored: StoredTensor, rule: Rule, shape: tuple[int, ...]) -> str | None:
    """What to do about an embedding that has more or fewer rows than config.json says."""
    if rule.shape[0] != "vocab" or stored.shape[1:] != shape[1:]:
        return None
    return (
        f"If the embedding was resized, vocab_size in config.json must be {stored.shape[0]}: save "
        "the model with its config, model.save_pretrained(DIRECTORY)."
    )
