"""Recipe ``keep``: the types that hold a checkpoint's numbers as it stores them.

bf16, f16 and f32 stay what they are. A form says of each weight whether a type of ggml's has the
very numbers; where none has, they are encoded anew, in the type that it names. A GGUF tensor is of
one type, so that experts that are stored differently get the widest of theirs. Reads small parts
alone, and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..quant import DEFAULT_RECIPE, KEEP, Recipe, TensorType, recipe_named
from ..quant.recipes import keeping
from ..quant.types import BF16, F16, F32
from .forms import Form, ReadPart, Rounded, part_reader
from .shards import Shards
from .text_model import MappedTensor, TextModel

_SHOWN = 5  # tensors that a note lists
_STORED = {"BF16": BF16, "F16": F16, "F32": F32, "F64": F32}


def settle_recipe(
    text: TextModel, recipe: Recipe | None, shards: Shards
) -> tuple[TextModel, Recipe]:
    """The recipe that a checkpoint is converted with, and its tensors as that recipe takes them.

    Args:
        text: what is stored.
        recipe: the one that was asked for; None is what suits the forms that weights are stored in.
        shards: of the checkpoint.

    Raises:
        CheckpointError, DamagedTensorError: a part that says how codes lie cannot be read.
    """
    chosen = recipe_named(default_recipe(text)) if recipe is None else recipe
    if chosen.name != KEEP:
        return text, chosen
    tensors, types = _keep(text.tensors, shards)
    return replace(text, tensors=tensors), keeping(types)


def default_recipe(text: TextModel) -> str:
    """The recipe for a checkpoint where nobody says."""
    forms = (tensor.weight.form for tensor in text.tensors if tensor.weight is not None)
    return KEEP if any(form.kept_by_default for form in forms) else DEFAULT_RECIPE


def form_notes(tensors: Iterable[MappedTensor], types: Mapping[str, TensorType]) -> list[str]:
    """Which matrices are decoded from what, and which keep their numbers.

    Args:
        tensors: those that are converted.
        types: of the GGUF tensors, by name.
    """
    kept: Counter[tuple[str, str]] = Counter()
    decoded: Counter[tuple[str, str]] = Counter()
    for tensor in tensors:
        if tensor.weight is not None:
            final = types[tensor.targets[0].name]
            counts = kept if tensor.kept is final else decoded
            counts[tensor.weight.form.title, final.name] += 1
    return [
        f"{count:,} matrices of {title} keep their numbers, in {name}, as far as f16 holds their "
        "scales"
        for (title, name), count in kept.items()
    ] + [
        f"{count:,} matrices of {title} are decoded, and encoded anew in {name}"
        for (title, name), count in decoded.items()
    ]


def rounded_notes(rounded: Mapping[str, Rounded], *, resumed: bool) -> list[str]:
    """What was rounded of the numbers that were to be kept.

    Args:
        rounded: by GGUF tensor, what this run met.
        resumed: whether another run met some before.
    """
    if not rounded:
        return []
    total = sum(rounded.values(), Rounded(0, 0))
    since = ", since the conversion was taken up again" if resumed else ""
    groups = f"{total.groups:,} groups of numbers{since}"
    if not total.count:
        return [f"kept exactly: {groups}"]
    worst = sorted(rounded, key=lambda name: rounded[name].count, reverse=True)[:_SHOWN]
    where = ", ".join(f"{name} {rounded[name].count:,}" for name in worst if rounded[name].count)
    return [
        f"not kept exactly: {total.count:,} of {groups}, whose scale or minimum f16 does not hold, "
        f"was rounded to f16's nearest ({where})"
    ]


def _keep(
    tensors: Sequence[MappedTensor], shards: Shards
) -> tuple[tuple[MappedTensor, ...], dict[str, TensorType]]:
    """The tensors, each with the type that keeps it, and the types of the GGUF tensors by name."""
    asked = _Asked(part_reader(shards))
    own = [asked.type_of(tensor) for tensor in tensors]
    types: dict[str, TensorType] = {}
    for tensor, kept in zip(tensors, own, strict=True):
        wanted = kept or _encoded_as(tensor)
        for target in tensor.targets:
            known = types.get(target.name, wanted)
            types[target.name] = max(known, wanted, key=lambda one: one.bits_per_weight)
    with_types = (
        replace(tensor, kept=kept if tensor.weight is not None else None)
        for tensor, kept in zip(tensors, own, strict=True)
    )
    return tuple(with_types), types


def _encoded_as(tensor: MappedTensor) -> TensorType:
    assert tensor.weight is not None
    return tensor.weight.form.encoded_as(tensor.weight)


class _Asked:
    """Asks forms which type keeps a weight.

    Where a small part says that none does, no other of the form's weights with the same parts is
    read: each reading can be a request to the hub.
    """

    def __init__(self, read: ReadPart) -> None:
        self._read = read
        self._refused: set[tuple[Form, tuple[str, ...]]] = set()

    def type_of(self, tensor: MappedTensor) -> TensorType | None:
        """The type with the numbers of a tensor, None where there is none."""
        weight = tensor.weight
        if weight is None:
            return _STORED[tensor.stored.dtype]
        kept, kind = weight.form.kept_as(weight), (weight.form, tuple(weight.parts))
        if kept is None or kind in self._refused:
            return None
        if weight.form.in_order(weight, self._read):
            return kept
        self._refused.add(kind)
        return None
