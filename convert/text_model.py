"""The text model in a checkpoint: which stored tensor is which, and what each becomes.

The stored tensors, by their names in the tables (`spelling`), are held against what the tables ask
for (`names`). Promises that an unknown, missing or misshapen tensor is an error before a byte is
written, and that whatever is left out or taken otherwise than config.json says is noted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..errors import CheckpointError
from . import fp8
from .checkpoint import Checkpoint
from .config import ModelConfig, parse_config
from .directories import is_listed
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
    is_quantized = any(tensor.dtype == fp8.DTYPE for tensor in spelling.text.values())
    if config.quantization is not None and not is_quantized:
        notes.append(
            "config.json has a quantization_config, but the weights are not quantized: they "
            "are taken as they are"
        )
    if config.tied and _HEAD in spelling.text:
        config, unneeded, note = _settle_head(config, spelling, checkpoint)
        left_out += unneeded
        notes.append(note)
    if is_listed(checkpoint.path / "adapter_config.json"):
        notes.append("the adapter in the same directory (adapter_config.json) is not applied")
    layouts = expert_layouts(spelling.text, config)
    return TextModel(
        config=config,
        tensors=tuple(_map_all(config, spelling, layouts)),
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
    stored = spelling.text
    count = count_rules(config, layouts)
    if count > len(stored):
        # Some are missing, so that not all rules need be looked at.
        names = (rule.name.format(layer=layer) for rule, layer in rules_for(config, layouts))
        raise _missing(next(name for name in names if name not in stored), count, spelling)
    rules = {
        rule.name.format(layer=layer): (rule, layer) for rule, layer in rules_for(config, layouts)
    }
    missing = [name for name in rules if name not in stored]
    if missing:
        raise _missing(missing[0], count, spelling)
    scales = _scales(rules, stored) if config.fp8 else {}
    sizes = sizes_of(config)
    mapped = [
        map_tensor(stored[name], scales.get(name), rule, layer, sizes)
        for name, (rule, layer) in rules.items()
    ]
    _check_unknown(stored, rules.keys() | {fp8.scale_name(name) for name in scales})
    return mapped


def _missing(name: str, wanted: int, spelling: Spelling) -> CheckpointError:
    """The error that a tensor is missing, with the most similar name of those that are there."""
    similar = max(spelling.text, key=lambda stored: len(os.path.commonprefix([stored, name])))
    hint = _HINT
    if name == _HEAD:
        hint = "A model whose output is its embedding has tie_word_embeddings: true in config.json."
    return CheckpointError(
        f"tensor {spelling.spelled(name)} is missing",
        found=f"{len(spelling.text)} tensors, such as {spelling.text[similar].name}",
        expected=wanted,
        hint=hint,
    )


def _scales(names: Iterable[str], stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The scales of each FP8 tensor, by that tensor's name."""
    scales = {}
    for name in names:
        weight, scale = stored[name], stored.get(fp8.scale_name(name))
        if weight.dtype != fp8.DTYPE:
            continue
        if scale is None:
            raise CheckpointError(
                f"tensor {fp8.scale_name(weight.name)} is missing",
                found=f"{weight.name} stored as {weight.dtype}",
                hint=_HINT,
            )
        shape = (*weight.shape[:-1], 1)
        if scale.shape != shape or scale.dtype not in fp8.SCALE_DTYPES:
            raise CheckpointError(
                f"{scale.name} in {scale.file.name} cannot be the scales of {weight.name}",
                found=f"{scale.dtype} {list(scale.shape)}",
                expected=f"{' or '.join(fp8.SCALE_DTYPES)} {list(shape)}",
            )
        scales[name] = scale
    return scales


def _check_unknown(stored: Mapping[str, StoredTensor], known: set[str]) -> None:
    extra = sorted(stored.keys() - known)
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


def map_tensor(
    stored: StoredTensor, scale: StoredTensor | None, rule: Rule, layer: int, sizes: Sizes
) -> MappedTensor:
    """A stored tensor and what a rule makes of it.

    Raises:
        CheckpointError: it is of another shape, or not of floats.
    """
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
    return MappedTensor(stored, rule_targets(rule, layer, sizes), rule.experts, rule.expert, scale)
