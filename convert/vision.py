"""What the vision tower and its projector weigh, which a GGUF of the text model does not hold.

llama.cpp keeps them in a file of their own, which its tools call mmproj. Promises the bytes of that
file's tensors as convert_hf_to_gguf.py writes them in bf16; a test compares. Converts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..quant.types import BF16, F32
from .config import VisionConfig
from .spelling import VISION_PREFIXES

Shape = tuple[int, ...]

_TOWER, _PROJECTOR = VISION_PREFIXES
# A part of the tower by its name in a checkpoint, which llama.cpp counts to the projector.
_ADAPTER = "vision_model.vision_adapter."

# Each with its axes; see `_sizes`. What has a bias has one as long as its first axis.
_BARE: dict[str, tuple[str, ...]] = {
    "vision_model.class_embedding": ("width",),
    "vision_model.positional_embedding_vlm": ("patches", "width"),
    "vision_model.patch_embedding.linear.weight": ("width", "pixels"),
    "vision_model.vision_adapter.mlp.fc1.weight": ("projector_in", "ffn"),
    "vision_model.vision_adapter.mlp.fc2.weight": ("projector_out", "projector_out"),
    "multi_modal_projector.linear_1.weight": ("embd", "vision_out"),
}
_BIASED: dict[str, tuple[str, ...]] = {
    "vision_model.layernorm_pre": ("width",),
    "vision_model.layernorm_post": ("width",),
}
_BIASED_IN_LAYERS: dict[str, tuple[str, ...]] = {
    "vision_model.model.layers.{layer}.input_layernorm": ("width",),
    "vision_model.model.layers.{layer}.self_attn.q_proj": ("width", "width"),
    "vision_model.model.layers.{layer}.self_attn.k_proj": ("width", "width"),
    "vision_model.model.layers.{layer}.self_attn.v_proj": ("width", "width"),
    "vision_model.model.layers.{layer}.self_attn.o_proj": ("width", "width"),
    "vision_model.model.layers.{layer}.post_attention_layernorm": ("width",),
    "vision_model.model.layers.{layer}.mlp.fc1": ("ffn", "width"),
    "vision_model.model.layers.{layer}.mlp.fc2": ("width", "ffn"),
}

# What the script keeps in F32 beside all that has one axis.
_EXACT = (
    "vision_model.positional_embedding_vlm",
    "vision_model.patch_embedding.linear.weight",
)


@dataclass(frozen=True)
class VisionWeights:
    """Bytes of the tensors that turn pictures into embeddings of the text model.

    ``tower`` is the encoder, ``projector`` what maps its patches to the text model's width.
    """

    tower: int
    projector: int


def vision_shapes(config: VisionConfig, n_embd: int) -> dict[str, Shape]:
    """Every tensor of the vision tower and the projector, by its name in a checkpoint.

    Args:
        config: the tower's.
        n_embd: the text model's width.
    """
    sizes = {
        "width": config.width,
        "ffn": config.n_ff,
        "patches": (config.image_size // config.patch_size) ** 2 + 1,  # and one for the whole
        "pixels": config.n_channel * config.patch_size**2,
        "projector_in": config.projector_in,
        "projector_out": config.projector_out,
        "vision_out": config.vision_out,
        "embd": n_embd,
    }
    biased = dict(_BIASED)
    for layer in range(config.n_layer):
        biased |= {name.format(layer=layer): axes for name, axes in _BIASED_IN_LAYERS.items()}
    shapes = dict(_BARE)
    for name, axes in biased.items():
        shapes |= {f"{name}.weight": axes, f"{name}.bias": axes[:1]}
    return {name: tuple(sizes[axis] for axis in axes) for name, axes in shapes.items()}


def vision_weights(shapes: Mapping[str, Shape]) -> VisionWeights | None:
    """What these weigh, None where there are none.

    Args:
        shapes: of tensors by their names in a checkpoint; those of the text model do not count.
    """
    tower = projector = 0
    for name, shape in shapes.items():
        kept = F32 if len(shape) < 2 or name in _EXACT else BF16
        if name.startswith((_ADAPTER, _PROJECTOR)):
            projector += kept.nbytes(shape)
        elif name.startswith(_TOWER):
            tower += kept.nbytes(shape)
    return VisionWeights(tower, projector) if tower or projector else None
