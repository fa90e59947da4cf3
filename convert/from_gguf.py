"""A GGUF becomes another: of other types, or divided into other files.

`plan_model` and `plan_projector` choose types as a conversion from the checkpoint does, `plan_copy`
keeps every byte; `run_pipeline` fills what they plan. Metadata go over as they stand, unknown keys
too, but for what is said about types and files. Promises that whatever was rounded to fewer bits
than Q8_0 is rounded a second time on demand alone, and that this is said. Knows what headers say
from whoever read them; reads no file itself.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import gguf

from ..errors import RecipeError, SettingError
from ..parts import part_named
from ..quant import (
    DEFAULT_RECIPE,
    KEEP,
    RECIPES,
    Assignment,
    Recipe,
    TensorSpec,
    TensorType,
    assign_types,
    file_type_of,
    recipe_named,
    recipe_notes,
)
from ..quant.recipes import check_importance, is_typed, keeping
from ..quant.types import TYPES
from .forms import CODES, Weight
from .forms.blocks import Blocks
from .gguf_writer import GGUFWriter, packed
from .importance import MATRIX_KEYS, ImportanceMatrix, check_recipe, matrix_use
from .job import Job, all_slabs, identity_of, target_file
from .metadata import RECIPE_FILE_KEY, RECIPE_KEY
from .names import Target
from .part_layout import ALIGNMENT, Part, groups_of, padded_bytes, place_groups, plan_parts
from .request import Request
from .shard_header import StoredTensor
from .shards import LocalShards
from .slabs import Output
from .text_model import MappedTensor
from .vision import assign_vision_types
from .vision_metadata import FILE_TYPES

KEPT = "as stored"
"""What a report calls the types of a copy."""

MAX_PARTS = 2**16 - 1
"""What ``split.count`` can say."""

# Types that may be encoded anew without being asked for: they hold, nearly, what was trained.
_PRECISE = ("F32", "F16", "BF16", "Q8_0")
# Those whose numbers a conversion reads as they are.
_PLAIN = ("F32", "F16", "BF16")

_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class BlockTensor:
    """A tensor of a GGUF: its shape, rows last, and where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFSource:
    """A GGUF as its headers describe it: `files` has it whole, or all of its parts in order.

    `metadata` has for each key its value's type and bytes, as they stand in the file.
    """

    files: tuple[Path, ...]
    metadata: Mapping[str, bytes]
    alignment: int
    tensors: tuple[BlockTensor, ...]

    @property
    def path(self) -> Path:
        """What an error or a report calls it: the first file."""
        return self.files[0]

    @property
    def stem(self) -> str:
        """The name of its files, without the number of a part."""
        part = part_named(self.path.name)
        return part.stem if part else self.path.name.removesuffix(".gguf")


def plan_model(
    source: GGUFSource,
    request: Request,
    output: str | os.PathLike[str] | None,
    *,
    n_layer: int,
    n_expert: int,
    requantize: bool,
) -> Job:
    """Plan the conversion of a text model.

    Raises:
        RecipeError: tensors of few bits would be rounded again, without `requantize`; or an
            override fits no tensor.
        OutputError: `output` cannot be the name of a file.
    """
    specs = [TensorSpec(tensor.name, tensor.shape) for tensor in source.tensors]
    recipe = request.recipe or recipe_named(DEFAULT_RECIPE)
    if recipe.name == KEEP:
        recipe = keeping({tensor.name: tensor.type for tensor in source.tensors})
    matrix = request.matrix
    check_recipe(recipe, matrix)
    if matrix is not None:
        matrix.check(specs, n_layer)
    chosen = assign_types(
        recipe, specs, n_layer=n_layer, n_expert=n_expert, overrides=request.overrides,
        has_importance=matrix is not None,
    )  # fmt: skip
    # As with llama-quantize, what is never quantized stays as it is.
    assignments = [
        assigned if is_typed(assigned.tensor) else Assignment(assigned.tensor, tensor.type)
        for assigned, tensor in zip(chosen, source.tensors, strict=True)
    ]
    file_type = file_type_of(recipe, assignments)
    writer = _writer(source, file_type=file_type, recipe=recipe, matrix=matrix)
    target = target_file(output, f"{_model_name(source)}-{recipe.name}.gguf")
    parts, outputs = plan_parts(writer, assignments, target, request.split_size)
    outputs = outputs if matrix is None else matrix.weigh(outputs)
    decoded = _decoded(source, assignments)
    notes = [
        *recipe_notes(recipe, specs),
        *_rounding_notes(source, decoded, requantize=requantize),
    ]
    return _job(source, assignments, parts, outputs, recipe=recipe.name, notes=notes, matrix=matrix)


def plan_projector(
    source: GGUFSource,
    request: Request,
    output: str | os.PathLike[str] | None,
    *,
    requantize: bool,
) -> Job:
    """Plan the conversion of a projector, whose matrices become those of `request`.

    Raises:
        RecipeError, OutputError: as `plan_model`.
    """
    targets = [Target(tensor.name, tensor.shape) for tensor in source.tensors]
    matrices = request.matrices
    assignments = assign_vision_types(targets, matrices)
    writer = _writer(source, file_type=int(FILE_TYPES[matrices.name]), recipe=None)
    target = target_file(output, f"{_model_name(source)}-{matrices.name.lower()}.gguf")
    parts, outputs = plan_parts(writer, assignments, target, None)
    notes = _rounding_notes(source, _decoded(source, assignments), requantize=requantize)
    return _job(
        source, assignments, parts, outputs,
        recipe=matrices.name.lower(), notes=notes, is_projector=True,
    )  # fmt: skip


def plan_copy(
    source: GGUFSource,
    output: str | os.PathLike[str] | None,
    *,
    split_size: int | None = None,
    parts: int | None = None,
) -> Job:
    """Plan a copy of a text model, byte by byte: in parts, or else in one file.

    Args:
        source: the model.
        output: as of a conversion; parts are called ``NAME-00001-of-00003.gguf``.
        split_size: bytes of tensors that a part may hold, with their padding.
        parts: how many there are to be.

    Raises:
        SettingError: all tensors fit into one part, or there are fewer tensors than parts.
        OutputError: `output` cannot be the name of a file.
    """
    assignments = [
        Assignment(TensorSpec(tensor.name, tensor.shape), tensor.type) for tensor in source.tensors
    ]
    groups = groups_of(assignments, split_size)
    if parts is not None:
        groups = _even_groups(assignments, parts)
    elif split_size is not None and len(groups) == 1:
        raise SettingError(
            f"all of {source.path} fits into one part",
            found=f"{sum(map(padded_bytes, assignments)):,} bytes of tensors",
            hint="Give a smaller size, or how many parts there are to be.",
        )
    target = target_file(output, f"{source.stem}.gguf")
    files, outputs = place_groups(
        GGUFWriter.copying(_kept_metadata(source), source.alignment),
        groups,
        target,
        later=lambda: GGUFWriter.copying({}, ALIGNMENT),
    )
    return _job(source, assignments, files, outputs, recipe=KEPT, verbatim=True)


def _even_groups(assignments: Sequence[Assignment], count: int) -> list[list[Assignment]]:
    """So many groups, in order, of which the largest is as small as can be.

    Raises:
        SettingError: there are fewer tensors.
    """
    if len(assignments) < count:
        raise SettingError("parts is more than there are tensors", found=count,
                           expected=f"at most {len(assignments)}")  # fmt: skip
    sizes = [padded_bytes(assigned) for assigned in assignments]
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if len(groups_of(assignments, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    groups = groups_of(assignments, low)
    while len(groups) < count:
        largest = max((group for group in groups if len(group) > 1), key=_group_bytes)
        at = groups.index(largest)
        half = len(largest) // 2
        groups[at : at + 1] = [largest[:half], largest[half:]]
    return groups


def _group_bytes(group: Sequence[Assignment]) -> int:
    return sum(map(padded_bytes, group))


def _kept_metadata(source: GGUFSource) -> dict[str, bytes]:
    return {key: value for key, value in source.metadata.items() if key not in _SPLIT_KEYS}


def _writer(
    source: GGUFSource,
    *,
    file_type: int,
    recipe: Recipe | None,
    matrix: ImportanceMatrix | None = None,
) -> GGUFWriter:
    """A writer with the metadata of the source, renewed where they speak of types."""
    metadata = _kept_metadata(source)
    metadata[gguf.Keys.General.FILE_TYPE] = packed(file_type)
    metadata[gguf.Keys.General.QUANTIZATION_VERSION] = packed(gguf.GGML_QUANT_VERSION)
    if recipe is not None:
        metadata[RECIPE_KEY] = packed(recipe.name)
        metadata.pop(RECIPE_FILE_KEY, None)
        if recipe.text is not None:
            metadata[RECIPE_FILE_KEY] = packed(recipe.text)
        if recipe.name != KEEP:
            for key in MATRIX_KEYS:
                metadata.pop(key, None)
    if matrix is not None:
        metadata |= {key: packed(value) for key, value in matrix.metadata().items()}
    return GGUFWriter.copying(metadata, source.alignment)


def check_merged(source: GGUFSource, job: Job, *, requantize: bool) -> Job:
    """The job of a GGUF into which adapters were merged, with what is said of tensors they change.

    Raises:
        RecipeError: one that keeps its type is rounded a second time, without `requantize`; or it
            is of a type that needs an importance matrix, which has nothing for it.
    """
    read = {tensor.name for tensor in job.tensors}
    decoded = [
        tensor
        for tensor in source.tensors
        if tensor.name in read
        and job.outputs[tensor.name].merge is not None
        and job.outputs[tensor.name].type == tensor.type
        and tensor.type.name not in _PLAIN
    ]
    notes = _rounding_notes(source, decoded, requantize=requantize)
    names = {tensor.name for tensor in decoded}
    check_importance(
        [assigned for assigned in job.assignments if assigned.tensor.name in names],
        [name for name in names if job.outputs[name].columns is not None],
    )
    return replace(job, notes=(*job.notes, *notes))


def _decoded(source: GGUFSource, assignments: Sequence[Assignment]) -> list[BlockTensor]:
    """The tensors that become another type."""
    return [
        tensor
        for tensor, assigned in zip(source.tensors, assignments, strict=True)
        if tensor.type != assigned.type
    ]


def _rounding_notes(
    source: GGUFSource, decoded: Sequence[BlockTensor], *, requantize: bool
) -> list[str]:
    """From which types tensors are decoded, and what of it is rounded a second time.

    Raises:
        RecipeError: something is, without `requantize`.
    """
    again = [tensor for tensor in decoded if tensor.type.name not in _PRECISE]
    if again and not requantize:
        raise RecipeError(
            f"{source.path} has tensors that were rounded to fewer bits than Q8_0's already, and "
            "would be rounded a second time",
            found=_types_text(again),
            expected=f"{', '.join(_PRECISE)}, or the type that the recipe gives them",
            hint="Convert the checkpoint, or a GGUF of more bits; or accept the loss: "
            "requantize=True",
        )
    plain = [tensor for tensor in decoded if tensor.type.name == "Q8_0"]
    notes = [f"decoded first: {_types_text(plain)}"] if plain else []
    if again:
        notes.append(f"rounded a second time: {_types_text(again)}")
    return notes


def _types_text(tensors: Sequence[BlockTensor]) -> str:
    """How many tensors there are of which types, with the first of each."""
    first = {tensor.type.name: tensor.name for tensor in reversed(tensors)}
    counts = Counter(tensor.type.name for tensor in tensors)
    return ", ".join(
        f"{count} of {name} ({first[name]}{', …' if count > 1 else ''})"
        for name, count in counts.items()
    )


def _job(
    source: GGUFSource,
    assignments: Sequence[Assignment],
    parts: Sequence[Part],
    outputs: Mapping[str, Output],
    *,
    recipe: str,
    notes: Sequence[str] = (),
    is_projector: bool = False,
    verbatim: bool = False,
    matrix: ImportanceMatrix | None = None,
) -> Job:
    shards = LocalShards()
    tensors = tuple(_mapped(tensor, verbatim=verbatim) for tensor in source.tensors)
    return Job(
        source=source.path,
        read=source.files,
        shards=shards,
        recipe=recipe,
        computed={},
        tensors=tensors,
        assignments=tuple(assignments),
        text=() if is_projector else tuple(parts),
        projector=tuple(parts) if is_projector else (),
        outputs=outputs,
        slabs=all_slabs(tensors, outputs),
        identity={
            **identity_of(shards, tensors, parts),
            **({"importance matrix": matrix.digest} if matrix else {}),
        },
        left_out=(),
        notes=tuple(notes),
        layout={},
        encodes=not verbatim and not is_projector,
        importance=matrix_use(
            matrix, assignments, [tensor.name for tensor in _decoded(source, assignments)]
        ),
    )


def _mapped(tensor: BlockTensor, *, verbatim: bool) -> MappedTensor:
    """How a tensor is read: as its numbers, or as blocks."""
    targets = (Target(tensor.name, tensor.shape),)
    place = tensor.file, tensor.offset, tensor.nbytes
    if tensor.type.name in _PLAIN and not verbatim:
        stored = StoredTensor(tensor.name, tensor.type.name, tensor.shape, *place)
        return MappedTensor(stored, targets, experts=False)
    rows, length = prod(tensor.shape[:-1]), tensor.shape[-1]
    codes = StoredTensor(tensor.name, "U8", (rows, tensor.type.row_bytes(length)), *place)
    weight = Weight(Blocks(tensor.type, checked=not verbatim), (rows, length), {CODES: codes})
    return MappedTensor(codes, targets, experts=False, weight=weight)


_TYPE_ENDING = re.compile(
    rf"[-._]({'|'.join(sorted({*RECIPES, *map(str.lower, TYPES)}, key=len, reverse=True))})",
    re.IGNORECASE,
)


def _model_name(source: GGUFSource) -> str:
    """What the model is called by its file, without the type that ends such names."""
    stem = source.stem
    for match in _TYPE_ENDING.finditer(stem):
        if match.end() == len(stem) and match.start():
            return stem[: match.start()]
    return stem
