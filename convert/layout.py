"""What a GGUF of a given configuration holds: its tensors in order, their types, its metadata.

A configuration is enough for that; no checkpoint need be at hand. The converter fills the layout,
and a blueprint describes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..quant import Assignment, Recipe, TensorSpec, TensorType, assign_types, file_type_of
from .checkpoint import Checkpoint
from .config import ModelConfig
from .gguf_writer import GGUFWriter
from .importance import ImportanceMatrix
from .metadata import (
    ROPE_FREQS,
    origin_named,
    origin_of,
    projector_origin,
    rope_factors,
    write_metadata,
)
from .names import targets_for
from .tokenizer import Vocabulary
from .vision import assign_vision_types, vision_targets
from .vision_config import VisionConfig
from .vision_metadata import ARCHITECTURE, write_vision_metadata


@dataclass(frozen=True)
class Layout:
    """Tensors with their types, in file order, and a writer that holds the metadata."""

    assignments: list[Assignment]
    writer: GGUFWriter


def lay_out(
    config: ModelConfig,
    recipe: Recipe,
    overrides: Sequence[tuple[str, TensorType]],
    origin: Checkpoint | str,
    vocabulary: Vocabulary | None,
    *,
    matrix: ImportanceMatrix | None = None,
) -> Layout:
    """The layout of one model in one recipe.

    Args:
        config: the model's.
        recipe: decides each tensor's type.
        overrides: (regex, type) pairs that decide before the recipe.
        origin: where the model comes from, for ``general.*``: a checkpoint, or just a name.
        vocabulary: the tokenizer, or None for a file without one.
        matrix: the importance matrix that it will be encoded with.

    Raises:
        RecipeError: an override that is no regular expression, or fits no tensor.
        CheckpointError: the checkpoint's model card cannot be read.
    """
    hparams = config.hparams
    specs = [TensorSpec(target.name, target.shape) for target in targets_for(config)]
    factors = rope_factors(config)
    if factors is not None:
        specs.insert(0, TensorSpec(ROPE_FREQS, factors.shape))
    assignments = assign_types(
        recipe,
        specs,
        n_layer=hparams.n_layer,
        n_expert=hparams.n_expert,
        overrides=overrides,
        has_importance=matrix is not None,
    )
    described = (
        origin_named(origin, config, specs)
        if isinstance(origin, str)
        else origin_of(origin, config, specs)
    )
    writer = GGUFWriter()
    file_type = file_type_of(recipe, assignments)
    write_metadata(writer, described, config, vocabulary, recipe, file_type)
    for key, value in (matrix.metadata() if matrix else {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    return Layout(assignments, writer)


def lay_out_vision(
    config: VisionConfig,
    n_embd: int,
    matrices: TensorType,
    origin: Checkpoint,
    processor: Mapping[str, tuple[float, ...]],
) -> Layout:
    """The layout of a projector file.

    Args:
        config: the vision tower's.
        n_embd: the text model's width.
        matrices: the type that matrices get.
        origin: the checkpoint, for ``general.*``.
        processor: how pixels are scaled; see `read_processor`.

    Raises:
        CheckpointError: the checkpoint's model card cannot be read.
    """
    assignments = assign_vision_types(vision_targets(config, n_embd), matrices)
    described = projector_origin(origin, [assigned.tensor for assigned in assignments])
    writer = GGUFWriter(ARCHITECTURE)
    write_vision_metadata(writer, described, config, n_embd, matrices.name, processor)
    return Layout(assignments, writer)
