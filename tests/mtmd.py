"""A picture's features as llama.cpp's mtmd computes them.

Takes pixels that are one tile already, so that mtmd's own preprocessing does not matter, and puts
the features in order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import mtmd_cpp

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@contextmanager
def opened(text: Path, projector: Path) -> Iterator[ctypes.c_void_p]:
    """mtmd's context of a projector, on the CPU."""
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = False
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(text).encode(), params)
    assert model is not None
    settings = mtmd_cpp.mtmd_context_params_default()
    settings.use_gpu = False
    settings.print_timings = False
    settings.n_threads = 2
    context = mtmd_cpp.mtmd_init_from_file(str(projector).encode(), model, settings)
    assert context is not None
    try:
        yield context
    finally:
        mtmd_cpp.mtmd_free(context)
        llama_cpp.llama_model_free(model)


def mtmd_features(context: ctypes.c_void_p, tile: Bytes, n_embd: int) -> Floats:
    """Features of one tile, [rows, columns, n_embd], in the order of the picture.

    Args:
        context: see `opened`.
        tile: [side, side, 3], of the side that the projector takes.
        n_embd: the text model's width.
    """
    side = tile.shape[0]
    data = np.ascontiguousarray(tile)
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    bitmap = mtmd_cpp.mtmd_bitmap_init(side, side, pointer)
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    marker = mtmd_cpp.mtmd_default_marker()
    text = mtmd_cpp.mtmd_input_text()
    text.text, text.add_special, text.parse_special = marker, False, True
    text.text_len = len(marker)
    bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0
    count = mtmd_cpp.mtmd_input_chunks_size(chunks)
    every = [mtmd_cpp.mtmd_input_chunks_get(chunks, index) for index in range(count)]
    pictures = [chunk for chunk in every if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == 1]
    assert len(pictures) == 1
    assert mtmd_cpp.mtmd_encode_chunk(context, pictures[0]) == 0
    n_tokens = mtmd_cpp.mtmd_input_chunk_get_n_tokens(pictures[0])
    output = mtmd_cpp.mtmd_get_output_embd(context)
    features = np.ctypeslib.as_array(output, (n_tokens, n_embd)).copy()
    mtmd_cpp.mtmd_input_chunks_free(chunks)
    mtmd_cpp.mtmd_bitmap_free(bitmap)
    grid = round(n_tokens**0.5)
    # mtmd leaves out pixel shuffle's last permutation.
    ordered: Floats = features.reshape(grid, grid, n_embd).transpose(1, 0, 2)
    return ordered
