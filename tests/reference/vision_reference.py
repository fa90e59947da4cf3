"""A picture's features as transformers computes them: the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from transformers import Llama4Config, Llama4VisionModel
from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def reference_features(checkpoint: Path, tile: Bytes) -> Floats:
    """Features of one tile, [rows, columns, n_embd], in float32.

    Args:
        checkpoint: a directory with a multimodal model.
        tile: [side, side, 3], of the side that the vision tower takes.
    """
    config = Llama4Config.from_pretrained(checkpoint)
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        weights |= {name: value.float() for name, value in load_file(shard).items()}
    tower = Llama4VisionModel(config.vision_config).eval()
    projector = Llama4MultiModalProjector(config).eval()
    for prefix, part in (("vision_model.", tower), ("multi_modal_projector.", projector)):
        part.load_state_dict(
            {
                name.removeprefix(prefix): value
                for name, value in weights.items()
                if name.startswith(prefix)
            }
        )
    pixels = (torch.from_numpy(tile).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        hidden = tower(pixels).last_hidden_state
        features = projector(hidden.reshape(-1, hidden.shape[-1]))
    grid = round(features.shape[0] ** 0.5)
    ordered: Floats = features.reshape(grid, grid, -1).numpy()
    return ordered
