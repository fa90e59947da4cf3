"""Writes picture_goldens.json: the tiles and tokens of transformers and of Meta's code.

Needs what the product and its other tests do without: torch, torchvision, transformers and
llama-models in one environment.

    $ python -m tests.reference.make_picture_goldens

The pixels are those of transformers' float path: `Llama4ImageProcessor` with its last step, which
scales and normalizes, in float32 instead of bfloat16. They come back to whole levels, of which the
file keeps a digest, the sum of each tile, and some.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_models.llama4.args import Size, VisionArgs
from llama_models.llama4.chat_format import ChatFormat, TransformedImage
from llama_models.llama4.tokenizer import Tokenizer
from PIL import Image
from transformers import Llama4ImageProcessor, Llama4Processor, PreTrainedTokenizerFast

from tests.reference.pictures import (
    GOLDENS,
    SIZES,
    name_of,
    noise,
    run_lengths,
    sample_places,
)
from tests.reference.real_tokenizer import write_real_tokenizer


class FloatImageProcessor(Llama4ImageProcessor):  # type: ignore[misc]
    """The same, but that the last step computes in float32."""

    def rescale_and_normalize(
        self, images: Any, _rescale: bool, factor: float, _normalize: bool, mean: Any, std: Any
    ) -> Any:
        return self.normalize(images.to(torch.float32) * factor, mean, std)


class Judges:
    """transformers' processor and Meta's."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = write_real_tokenizer(Path(directory))
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
        self.rounded = Llama4ImageProcessor()
        self.processor = Llama4Processor(FloatImageProcessor(), tokenizer)
        vision = VisionArgs(
            image_size=Size(height=336, width=336), patch_size=Size(height=14, width=14),
            dim=1, n_layers=1, n_heads=1, mlp_ratio=4.0, output_dim=1, pixel_shuffle_ratio=0.5,
        )  # fmt: skip
        self.meta = ChatFormat(Tokenizer.get_instance(), vision)

    def transformers(self, picture: np.ndarray) -> tuple[np.ndarray, tuple[int, int], list[int]]:
        """Levels of [tiles, 336, 336, 3], the grid, and the token ids."""
        made = self.processor(
            images=[Image.fromarray(picture)], text=["<|image|>"], add_special_tokens=False
        )
        grid = self.processor.image_processor([Image.fromarray(picture)])["aspect_ratios"][0]
        levels = self._levels(made["pixel_values"])
        ids = made["input_ids"]
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        return levels, (int(grid[0]), int(grid[1])), [int(token) for token in ids[0]]

    def bfloat16_error(self, picture: np.ndarray) -> float:
        """How far the published processor's values are from the float path's."""
        image = Image.fromarray(picture)
        rounded = torch.stack(list(self.rounded([image])["pixel_values"]))
        exact = torch.stack(list(self.processor.image_processor([image])["pixel_values"]))
        return float((rounded.float() - exact).abs().max())

    def of_meta(self, picture: np.ndarray) -> tuple[np.ndarray, tuple[int, int], list[int]]:
        image = Image.fromarray(picture)
        tiles, grid = self.meta.dynamic_image_transform(image, max_num_chunks=16)
        if tiles.shape[0] > 1:
            tiles = torch.cat([tiles, self.meta.image_transform(image)[None]])
        ids = self.meta._encode_image(TransformedImage(image_tiles=tiles, aspect_ratio=grid))
        return self._levels(tiles), (int(grid[0]), int(grid[1])), ids

    @staticmethod
    def _levels(pixels: Any) -> np.ndarray:
        """Whole levels, from values between -1 and 1 that are nothing else."""
        stacked = pixels if torch.is_tensor(pixels) else torch.stack(list(pixels))
        values = (stacked.float() + 1) * 127.5
        levels = values.round()
        assert float((values - levels).abs().max()) < 1e-3
        return levels.reshape(-1, *levels.shape[-3:]).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def golden(judges: Judges, columns: int, rows: int) -> dict[str, Any]:
    picture = noise(columns, rows)
    levels, grid, ids = judges.transformers(picture)
    meta_levels, meta_grid, meta_ids = judges.of_meta(picture)
    assert (grid, ids) == (meta_grid, meta_ids), (columns, rows)
    apart = np.abs(levels.astype(np.int16) - meta_levels)
    data = levels.tobytes()
    places = sample_places(len(data))
    return {
        "grid": grid,
        "sha256": hashlib.sha256(data).hexdigest(),
        "sums": levels.sum(axis=(1, 2, 3), dtype=np.int64).tolist(),
        "samples": np.frombuffer(data, np.uint8)[places].tolist(),
        "tokens": run_lengths(ids),
        "meta_levels_apart": int(apart.max()),
        "meta_share_apart": round(float(np.mean(apart > 0)), 5),
    }


def main() -> None:
    judges = Judges()
    packages = ("torch", "torchvision", "transformers", "llama-models", "pillow", "numpy")
    record = {
        "versions": {name: version(name) for name in packages},
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bfloat16_error": judges.bfloat16_error(noise(1000, 1000)),
        "pictures": {name_of(*size): golden(judges, *size) for size in SIZES},
    }
    text = json.dumps(record, separators=(",", ":")).replace('},"', '},\n"')
    GOLDENS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
