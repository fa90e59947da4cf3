"""A model before anyone has it: every tensor, type and byte of the GGUF that it would become.

Follows from a configuration alone, through the same code as a conversion, so that a blueprint and
the converted file agree to the byte. Opens headers; reads no weight. Knows nothing of the machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from ..architecture import MIN_LAYERS
from ..errors import CheckpointError, OutputError, RecipeError, UnsupportedError, did_you_mean
from ..hub.names import parse_hub_name
from ..quant import (
    DEFAULT_RECIPE,
    KEEP,
    Recipe,
    TensorType,
    as_recipe,
    recipe_named,
    role_of,
    type_overrides,
)
from ..ranges import check_whole
from ..system.files import is_file
from ..units import bytes_text
from .checkpoint import Checkpoint, open_checkpoint, read_json_object
from .config import ModelConfig, parse_config
from .directories import cached_repository, is_listed
from .kept import settle_recipe
from .layout import lay_out
from .part_layout import plan_parts
from .presets import PRESETS, Preset
from .text_model import read_text_model
from .tokenizer import read_vocabulary
from .vision import VisionWeights, vision_shapes, vision_weights
from .vision_config import parse_vision

# How files end that are no configuration, but lie beside one.
_WEIGHTS = (".safetensors", ".bin", ".pth", ".gguf")

SYNTHETIC_KEY = "llama4_edge.synthetic"


@dataclass(frozen=True)
class BlueprintTensor:
    """A tensor of the file: rows along the last axis, data from byte `offset` of the file on."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def role(self) -> str:
        """What part of the model it plays, one of `llama4_edge.quant.roles.ROLES`."""
        return role_of(self.name)

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its data, without what pads it."""
        return self.type.nbytes(self.shape)


@dataclass(frozen=True)
class Blueprint:
    """A GGUF that nobody has written: `header` is its first bytes, `nbytes` its length.

    `metadata` holds its key-value pairs, `note` what is to be known about where it comes from.
    `vision` is what the file does not hold: the weights for pictures, None where there are none.
    """

    name: str
    recipe: str
    config: ModelConfig
    metadata: Mapping[str, Any]
    tensors: tuple[BlueprintTensor, ...]
    header: bytes
    nbytes: int
    note: str | None = None
    vision: VisionWeights | None = None

    @property
    def parameters(self) -> int:
        """How many numbers the model's tensors hold."""
        return sum(tensor.parameters for tensor in self.tensors)

    def write_header(self, path: str | os.PathLike[str]) -> Path:
        """Write the file with a hole in place of each tensor, and return its path.

        It has its true length and takes no more room than its header. llama.cpp loads it with
        ``no_alloc``, which reads no weights.

        Raises:
            OutputError: it cannot be written, or the disk's file system has no such large files.
        """
        target = Path(path)
        try:
            with target.open("wb") as file:
                file.write(self.header)
                file.truncate(self.nbytes)
        except OSError as error:
            raise OutputError(
                f"{target} cannot be written",
                found=error.strerror,
                expected=f"room for a sparse file of {bytes_text(self.nbytes)}",
            ) from error
        return target


@dataclass(frozen=True)
class _Source:
    """What is known of a model: its checkpoint if there is one, its config in any case.

    `recipe` is the one that was asked for, or the one that suits the checkpoint's weights.
    """

    name: str
    config: ModelConfig
    checkpoint: Checkpoint | None = None
    note: str | None = None
    vision: VisionWeights | None = None
    recipe: Recipe | None = None


def blueprint(
    model: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    types: Sequence[tuple[str, str]] = (),
    layers: int | None = None,
    synthetic: bool = False,
) -> Blueprint:
    """Draw the GGUF that `model` becomes in `recipe`.

    Args:
        model: one of `PRESETS`; a config.json or a directory with a checkpoint; or the name of a
            repository on the Hugging Face Hub, of which the headers are fetched. A file or
            directory that is called like a preset is meant by ``"./scout"``, or by a path.
        recipe: one of `llama4_edge.RECIPES`, or a recipe file; None is what suits the checkpoint's
            weights, and int4 where there are none.
        types: (regex, type name) pairs that decide before the recipe, the first match first.
        layers: only the first so many layers; by default all.
        synthetic: the file will hold random weights; its metadata says so.

    Raises:
        CheckpointError: no such model, or a checkpoint that is not whole.
        HubError: the repository cannot be had.
        UnsupportedError: llama.cpp could not run it, or not with so few layers.
        VocabularyError: llama.cpp would read the checkpoint's tokenizer differently.
        RecipeError: no such recipe or type, or an override that fits no tensor.
        SettingError: layers that are no whole number.
    """
    asked = None if recipe is None else as_recipe(recipe)
    overrides = type_overrides(types)
    preset = PRESETS.get(model) if isinstance(model, str) else None
    source = _of_preset(preset) if preset else _find(os.fspath(model), asked)
    chosen = source.recipe or asked or recipe_named(DEFAULT_RECIPE)
    config = _first_layers(source, layers)
    if layers is not None:
        chosen = chosen.first_layers(layers)
    vocabulary = read_vocabulary(source.checkpoint, config) if source.checkpoint else None
    origin = source.checkpoint or source.name
    layout = lay_out(config, chosen, overrides, origin, vocabulary)
    if synthetic:
        layout.writer.add_bool(SYNTHETIC_KEY, True)
    metadata = {name: value.value for name, value in layout.writer.kv_data[0].items()}
    (part,), places = plan_parts(layout.writer, layout.assignments, Path(source.name), None)
    return Blueprint(
        name=source.name,
        recipe=chosen.name,
        config=config,
        metadata=metadata,
        tensors=tuple(
            BlueprintTensor(place.name, place.shape, place.type, place.offset)
            for place in places.values()
        ),
        header=part.header,
        nbytes=part.nbytes,
        note=source.note,
        vision=source.vision,
    )


def _of_preset(preset: Preset) -> _Source:
    config = parse_config(preset.config)
    vision = _described({"vision_config": preset.vision}, config)
    return _Source(preset.name, config, note=preset.note, vision=vision)


def _find(model: str, recipe: Recipe | None) -> _Source:
    """The file, directory or repository that `model` names, and the recipe for its weights."""
    path = Path(model)
    if is_file(path) and path.suffix not in _WEIGHTS:
        described = read_json_object(path)
        config = parse_config(described)
        config.check_quantization()
        if recipe is not None and recipe.name == KEEP and config.quantization is not None:
            raise RecipeError(
                f"{path} does not say which weights are stored in which form",
                found=f"recipe {KEEP} and a quantization_config",
                expected="the checkpoint's directory or repository, whose headers do",
            )
        # A config.json says less of what it is than the directory it lies in.
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
        return _Source(name or model, config, vision=_described(described, config))
    named = parse_hub_name(model)
    if is_listed(path):
        checkpoint = open_checkpoint(path)
        name = cached_repository(checkpoint.path) or path.resolve().name
    elif named is not None and named.is_repository:
        # Only here, because the hub's client takes longer to import than everything else together.
        from .hub import open_repository

        checkpoint = open_repository(named.repository, revision=named.revision)
        name = named.repository
    else:
        raise CheckpointError(
            f"{model} is not a model",
            expected=f"one of {', '.join(PRESETS)}, a config.json, a checkpoint directory, or "
            "org/name on the Hugging Face Hub",
            hint=did_you_mean(model, PRESETS),
        )
    try:
        # Held against its tensors.
        contents, recipe = settle_recipe(read_text_model(checkpoint), recipe, checkpoint.shards)
    finally:
        checkpoint.shards.close()
    vision = _described(checkpoint.config, contents.config) if contents.vision else None
    return _Source(name, contents.config, checkpoint, vision=vision, recipe=recipe)


def _described(settings: Mapping[str, Any], config: ModelConfig) -> VisionWeights | None:
    """What the vision tower weighs that a config.json describes."""
    vision = parse_vision(settings)
    n_embd = config.hparams.n_embd
    return vision_weights(vision_shapes(vision, n_embd), vision, n_embd) if vision else None


def _first_layers(source: _Source, layers: int | None) -> ModelConfig:
    check_whole("layers", layers, 1, or_none=True)
    if layers is None:
        return source.config
    if not MIN_LAYERS <= layers <= source.config.hparams.n_layer:
        raise UnsupportedError(
            f"{source.name} cannot be cut to {layers} layers",
            expected=f"{MIN_LAYERS} to {source.config.hparams.n_layer}: with fewer than "
            f"{MIN_LAYERS} llama.cpp aborts",
        )
    return replace(source.config, hparams=replace(source.config.hparams, n_layer=layers))
