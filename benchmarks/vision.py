"""What a model is shown of one picture: ours, and llama.cpp's own way, beside transformers.

    python -m benchmarks.vision CHECKPOINT MODEL PROJECTOR PICTURE

Prints how a picture is cut (ours as `Llama4ImageProcessor` does, mtmd's by its own rule, as
llama-mtmd-cli and llama-server have it), how far each tile's features are from those that
transformers computes of the same tile in float32, in reading order and in the order in which mtmd
returns them, and the seconds that each takes. PICTURE may be ``1920x1080``: noise of that size.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llama4_edge import Model, image_tiles
from llama4_edge.runtime.bindings.vision import mtmd
from tests.reference.pictures import noise
from tests.reference.vision_reference import reference_features

Floats = npt.NDArray[np.float32]


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("projector", type=Path)
    parser.add_argument("picture")
    arguments = parser.parse_args()
    size = re.fullmatch(r"(\d+)x(\d+)", arguments.picture)
    picture: Any = noise(*map(int, size.groups())) if size else arguments.picture

    began = time.perf_counter()
    tiles = image_tiles(picture)
    print(f"tiles: {tiles}, {time.perf_counter() - began:.3f} s")
    with Model(arguments.model, n_ctx=512, projector=arguments.projector) as model:
        model.image_features(noise(8, 8))  # what is done once
        began = time.perf_counter()
        ours = model._pictures.features(tiles)
        print(f"features: {time.perf_counter() - began:.3f} s on {device_of(model)}")
        began = time.perf_counter()
        shapes = theirs_of(model, np.ascontiguousarray(whole(picture)))
        print(f"llama.cpp's own way: {len(shapes)} tiles, {time.perf_counter() - began:.3f} s")
    began = time.perf_counter()
    exact = np.stack([reference_features(arguments.checkpoint, one) for one in tiles.levels])
    print(f"transformers in float32: {time.perf_counter() - began:.3f} s")
    exact = exact.reshape(ours.shape)
    n_embd = ours.shape[-1]
    mixed = ours.reshape(-1, 12, 12, n_embd).swapaxes(1, 2).reshape(ours.shape)
    print(f"{'tile':>4}  {'in reading order':>28}  {'in the order of mtmd':>28}")
    for number, (right, wrong, reference) in enumerate(zip(ours, mixed, exact, strict=True)):
        print(f"{number:>4}  {distance(right, reference):>28}  {distance(wrong, reference):>28}")


def device_of(model: Model) -> str:
    """Where the tower lies."""
    return model._pictures.loaded().device


def whole(picture: Any) -> npt.NDArray[np.uint8]:
    """The picture's pixels, uint8 of [rows, columns, 3]."""
    from llama4_edge.vision.opening import open_picture

    return open_picture(picture)


def theirs_of(model: Model, pixels: npt.NDArray[np.uint8]) -> list[int]:
    """How many features each tile has that mtmd cuts itself; all are encoded."""
    bindings = mtmd()
    context = model._pictures.loaded()._encoder._encoder._context

    def work() -> list[int]:
        marker = bindings.mtmd_default_marker()
        text = bindings.mtmd_input_text(marker, len(marker), False, True)
        chunks = bindings.mtmd_input_chunks_init()
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = bindings.mtmd_bitmap_init(pixels.shape[1], pixels.shape[0], data)
        bitmaps = (ctypes.c_void_p * 1)(bitmap)
        bindings.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1)
        counts = []
        for index in range(bindings.mtmd_input_chunks_size(chunks)):
            chunk = bindings.mtmd_input_chunks_get(chunks, index)
            if bindings.mtmd_input_chunk_get_type(chunk) == bindings.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                bindings.mtmd_encode_chunk(context, chunk)
                counts.append(int(bindings.mtmd_input_chunk_get_n_tokens(chunk)))
        bindings.mtmd_bitmap_free(bitmap)
        bindings.mtmd_input_chunks_free(chunks)
        return counts

    return model.engine.in_thread(work)


def distance(features: Floats, reference: Floats) -> str:
    """The relative error, and the least cosine of a feature."""
    error = np.linalg.norm(features - reference) / np.linalg.norm(reference)
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(reference, axis=1)
    cosine = ((features * reference).sum(axis=1) / norms).min()
    return f"error {error:.1e}, cosine {cosine:.7f}"


if __name__ == "__main__":
    main()
