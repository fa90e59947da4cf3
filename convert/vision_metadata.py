"""What a projector file says before its tensors: the tower's sizes, and how pixels are scaled.

Keys and their spelling are the ``gguf`` package's, as llama.cpp's loader reads them
(tools/mtmd/clip-impl.h).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from ..errors import CheckpointError
from ..untrusted import Reader, shown
from .gguf_writer import GGUFWriter
from .vision_config import LAYER_NORM_EPS, VisionConfig

ARCHITECTURE = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ]
PROJECTOR_KEY = gguf.Keys.Clip.PROJECTOR_TYPE
PROJECTOR_TYPE = str(gguf.VisionProjectorType.LLAMA4)

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Where transformers keeps an image processor's settings; what the later one says wins."""

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
"""``general.file_type`` by the type of the matrices."""
_HINT = "Download it from the same repository again, or correct it."
_READER = Reader(CheckpointError, limit=1 << 20, hint=_HINT)
_DEFAULT_SCALE = (0.5, 0.5, 0.5)  # transformers' Llama4ImageProcessor


def write_vision_metadata(
    writer: GGUFWriter,
    origin: gguf.Metadata,
    config: VisionConfig,
    n_embd: int,
    matrices: str,
    processor: Mapping[str, tuple[float, ...]],
) -> None:
    """Give `writer` every key-value pair of a projector file, in a fixed order.

    Args:
        writer: of the architecture `ARCHITECTURE`.
        origin: ``general.*``.
        config: the tower's.
        n_embd: the text model's width.
        matrices: the name of the type of the matrices.
        processor: what `read_processor` returns.
    """
    writer.add_type(gguf.GGUFType.MMPROJ)
    origin.set_gguf_meta_model(writer)
    writer.add_file_type(FILE_TYPES[matrices])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(PROJECTOR_TYPE)
    writer.add_vision_projection_dim(n_embd)
    writer.add_vision_image_size(config.image_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.width)
    writer.add_vision_feed_forward_length(config.n_ff)
    writer.add_vision_block_count(config.n_layer)
    writer.add_vision_head_count(config.n_head)
    writer.add_vision_image_mean(list(processor["image_mean"]))
    writer.add_vision_image_std(list(processor["image_std"]))
    writer.add_vision_attention_layernorm_eps(LAYER_NORM_EPS)
    writer.add_vision_projector_scale_factor(config.merge)
    writer.add_vision_use_gelu(True)


def read_processor(directory: Path, image_size: int) -> dict[str, tuple[float, ...]]:
    """How pixels from 0 to 1 are scaled: ``image_mean`` and ``image_std``, each for three channels.

    A checkpoint without an image processor's settings gets those of transformers' class.

    Args:
        directory: the checkpoint's.
        image_size: the side of a picture that the tower takes, which the settings must agree with.

    Raises:
        CheckpointError: the settings cannot be read, or fit no picture of this size.
    """
    settings: dict[str, Any] = {}
    where = directory / PROCESSOR_FILES[0]
    for path in (directory / name for name in PROCESSOR_FILES):
        if not os.path.lexists(path):
            continue
        record: Mapping[str, Any] = _READER.record(path)
        inner = record.get("image_processor")
        stated = {**record, **inner} if isinstance(inner, Mapping) else dict(record)
        if stated.keys() & {"image_mean", "image_std", "size"}:
            where = path
        settings |= stated
    size = settings.get("size")
    if size is not None and size not in (
        image_size,
        {"height": image_size, "width": image_size},
    ):
        raise _wrong(where, "size", size, f"{image_size} by {image_size}, as in config.json")
    return {
        name: _scale(where, name, settings.get(name), positive=name == "image_std")
        for name in ("image_mean", "image_std")
    }


def _scale(path: Path, name: str, value: object, *, positive: bool) -> tuple[float, ...]:
    if value is None:
        return _DEFAULT_SCALE
    numbers = value if isinstance(value, list) else []
    if len(numbers) != len(_DEFAULT_SCALE) or not all(
        type(number) in (int, float) and (0 < number <= 1 or (number == 0 and not positive))
        for number in numbers
    ):
        least = "above 0" if positive else "from 0"
        raise _wrong(path, name, value, f"three numbers {least} to 1")
    return tuple(float(number) for number in numbers)


def _wrong(path: Path, name: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path} has an unusable {name}", found=shown(value), expected=expected, hint=_HINT
    )
