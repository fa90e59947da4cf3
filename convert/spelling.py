"""The names that tools give a Llama 4's tensors, and the one name for each that the tables have.

transformers spells the text model's names with ``language_model.`` or without, depending on the
class and the release that saved it; wrappers of a training run put names of their own among them.
Promises that two tensors never get the same name. Knows no shapes and no GGUF.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import CheckpointError
from .directories import published_name
from .shard_header import StoredTensor

# Parts of a name that say how the model was wrapped, and nothing about the tensor.
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning",
    "pretrained_model": "TRL",
    "base_model": "PEFT",
    "base_layer": "PEFT",
}

# What the text model is inside of; transformers has nested these in several ways.
_OUTER = ("model", "language_model")
_TEXT_ROOTS = ("layers", "embed_tokens", "norm")
# Parts of a multimodal checkpoint that are not the text model.
_VISION_ROOTS = ("vision_model", "multi_modal_projector")
VISION_PREFIXES = tuple(f"{root}." for root in _VISION_ROOTS)

# Axolotl's linear experts, by the part of the name that ours have instead.
_LINEARIZED = {"gate_projs": "gate_proj", "up_projs": "up_proj", "down_projs": "down_proj"}

# Names that Meta's own layout, and torchtune's, and an adapter that was not merged have.
_META_EMBEDDING = "tok_embeddings.weight"
_TORCHTUNE_PART = "sa_norm"
_ADAPTER_PARTS = frozenset({
    "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
    "modules_to_save",
})  # fmt: skip

EMBEDDING = "model.embed_tokens.weight"
_LAYERS = "model.layers."


@dataclass
class Spelling:
    """A checkpoint's tensors by their names in the tables.

    `text` has the text model's and whatever nobody knows, `vision` those of `VISION_PREFIXES`;
    `wrappers` which of `WRAPPERS` were found. `before` is what this checkpoint has in place of
    ``model.``.
    """

    text: dict[str, StoredTensor] = field(default_factory=dict)
    vision: dict[str, StoredTensor] = field(default_factory=dict)
    wrappers: set[str] = field(default_factory=set)
    before: str = "model."

    def spelled(self, name: str) -> str:
        """How this checkpoint would spell a name of the tables."""
        return self.before + name.removeprefix("model.") if name.startswith("model.") else name


def spell(stored: Mapping[str, StoredTensor]) -> Spelling:
    """Give each stored tensor the name that the tables have for it.

    Raises:
        CheckpointError: two get the same, or none is of a Llama 4, or an adapter is not merged.
    """
    _check_layout(stored)
    spelling = Spelling()
    is_llama4 = False
    for name, tensor in stored.items():
        parts = name.split(".")
        if not _ADAPTER_PARTS.isdisjoint(parts):
            raise _unmerged(name)
        spelling.wrappers.update(WRAPPERS.keys() & parts)
        ours = table_name(name)
        held = spelling.vision if ours.startswith(VISION_PREFIXES) else spelling.text
        if ours in held:
            raise CheckpointError(
                f"{name} and {held[ours].name} are the same tensor of the model",
                expected="one of them",
                hint="Save the model again without what wraps it.",
            )
        held[ours] = tensor
        tail = ours.removeprefix(_LAYERS)
        if not is_llama4 and len(tail) < len(ours):
            is_llama4 = True
            if name.endswith("layers." + tail):
                spelling.before = name.removesuffix("layers." + tail)
    if not is_llama4:
        raise _unknown(list(stored))
    return spelling


def table_name(name: str) -> str:
    """The name that the tables have for what is stored as `name`, or `name` without wrappers."""
    return _canonical([part for part in name.split(".") if part not in WRAPPERS])


def _canonical(parts: list[str]) -> str:
    """The name in the tables, or where they have none the name itself; without wrappers."""
    if not parts:
        return ""
    start = 0
    while start < len(parts) - 1 and parts[start] in _OUTER:
        start += 1
    root = parts[start]
    if root not in (*_TEXT_ROOTS, "lm_head", *_VISION_ROOTS):
        return ".".join(parts)
    inner = parts[start:]
    for place, part in enumerate(inner[:-1]):
        if part in _LINEARIZED:
            inner[place : place + 2] = [inner[place + 1], _LINEARIZED[part]]
    return ".".join(["model", *inner] if root in _TEXT_ROOTS else inner)


def _unmerged(name: str) -> CheckpointError:
    return CheckpointError(
        "the weights hold an adapter that is not merged into them",
        found=name,
        hint="Merge it before saving: model.merge_and_unload().save_pretrained(DIRECTORY)",
    )


def _check_layout(names: Iterable[str]) -> None:
    """Refuse names of a layout that is not Hugging Face's, of which some are spelled like those."""
    parts = [name.split(".") for name in names]
    found = next((name for name in parts if name[-2:] == _META_EMBEDDING.split(".")), None)
    if found is None:
        return
    owner = "Meta"
    hint = f"Use the same model in Hugging Face's layout, for example {published_name('')}"
    if any(_TORCHTUNE_PART in name for name in parts):
        owner = "torchtune"
        hint = "Save it with torchtune's FullModelHFCheckpointer, which writes Hugging Face's."
    raise CheckpointError(
        f"the tensors have the names of {owner}'s own layout",
        found=".".join(found),
        expected=EMBEDDING,
        hint=hint,
    )


def _unknown(names: list[str]) -> CheckpointError:
    """The error that no tensor has a name of a Llama 4's layers."""
    example = next((name for name in names if ".layers.0." in name), names[0] if names else None)
    before = example.partition("layers.0.")[0].removesuffix("model.") if example else ""
    return CheckpointError(
        "no tensor has the name of one in a Llama 4 model",
        found=example,
        expected=EMBEDDING,
        hint=f"Take the unknown prefix {before} off the names." if before != example else None,
    )
