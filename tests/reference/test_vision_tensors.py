"""The vision tower's tensors against those of transformers' own classes, at the published size."""

from __future__ import annotations

import torch
from transformers import Llama4Config, Llama4VisionModel
from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector

from llama4_edge.convert.presets import PRESETS
from llama4_edge.convert.vision import vision_shapes, vision_weights
from llama4_edge.convert.vision_config import parse_vision


def test_scouts_vision_tensors_are_those_of_transformers() -> None:
    settings = dict(PRESETS["scout"].vision or {})
    config = Llama4Config(vision_config=settings, text_config={"hidden_size": 5120})
    # No weight is made: there are 872 million numbers.
    with torch.device("meta"):
        parts = {
            "vision_model": Llama4VisionModel(config.vision_config),
            "multi_modal_projector": Llama4MultiModalProjector(config),
        }
    theirs = {
        f"{prefix}.{name}": tensor
        for prefix, part in parts.items()
        for name, tensor in part.named_parameters()
    }
    vision = parse_vision({"vision_config": settings})
    assert vision is not None
    ours = vision_shapes(vision, 5120)
    assert ours == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    # Four bytes for each number of a vector and of the positions, two for the rest.
    in_f32 = "positional_embedding_vlm"
    weighed = vision_weights(ours, vision, 5120)
    assert weighed is not None
    assert weighed.tower + weighed.projector == sum(
        tensor.numel() * (4 if tensor.ndim == 1 or name.endswith(in_f32) else 2)
        for name, tensor in theirs.items()
    )
    assert sum(tensor.numel() for tensor in theirs.values()) == 871_932_416
