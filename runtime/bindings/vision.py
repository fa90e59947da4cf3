"""mtmd, the part of llama.cpp that computes features of pictures, one tile at a time.

Promises that mtmd's log goes where llama.cpp's goes, that it is given only tiles of the size that
it takes whole, and that what it returns is copied. Its calls belong into the thread that calls
llama.cpp. Knows nothing of grids and prompts, and leaves features in mtmd's own order.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import EngineError
from .build import LLAMA_CPP_PYTHON, build_command
from .devices import NativeDevice
from .library import captured_log, llama, on_log, refused, silent_callback

Tile = npt.NDArray[np.uint8]
"""A square of pixels, uint8 of [side, side, 3], RGB."""

_IMAGE_CHUNK = 1  # enum mtmd_input_chunk_type (mtmd.h)
_FLASH_ATTENTION_OFF = 0  # enum llama_flash_attn_type (llama.h)


@functools.cache
def mtmd() -> Any:
    """The module ``llama_cpp.mtmd_cpp``: mtmd's C functions and structs, ready to call.

    Raises:
        EngineError: the native library was built without mtmd, or does not load.
    """
    bindings = llama()
    try:
        module = importlib.import_module("llama_cpp.mtmd_cpp")
    except Exception as error:  # as for the library itself
        raise EngineError(
            "llama.cpp's library for pictures (libmtmd) cannot be loaded",
            found=f"{type(error).__name__}: {error}",
            expected=f"llama-cpp-python {LLAMA_CPP_PYTHON} with its native libraries",
            hint=f"Build it with: {build_command()}",
        ) from error
    module.mtmd_log_set(on_log(bindings), ctypes.c_void_p(0))
    # Before Python ends; see `library`.
    atexit.register(module.mtmd_log_set, silent_callback(bindings), ctypes.c_void_p(0))
    return module


def has_mtmd() -> bool:
    """Whether llama.cpp was built with what encodes pictures."""
    try:
        mtmd()
    except EngineError:
        return False
    return True


class TileEncoder:
    """A vision tower with its projector, loaded. Made, used and freed in the engine's thread.

    Args:
        path: a projector that was checked: mtmd ends the process on some that are damaged.
        model: the ``llama_model`` whose embeddings the features stand beside; it must outlive this.
        device: where it lies, with room for it: mtmd ends the process otherwise. None is the CPU.
        n_threads: on the CPU.
        on_progress: a ``llama_progress_callback``.

    Raises:
        EngineError: mtmd refuses it, or was not built.
    """

    def __init__(
        self,
        path: Path,
        model: Any,
        *,
        device: NativeDevice | None,
        n_threads: int,
        on_progress: Any,
    ) -> None:
        self._mtmd = mtmd()
        self._path = path
        params = self._mtmd.mtmd_context_params_default()
        params.use_gpu = device is not None
        params.device = None if device is None else device.handle
        params.print_timings = False
        params.n_threads = n_threads
        # On the CPU flash attention has twice the error (of the model in the box 8e-4 instead of
        # 4e-4, and 0.04 instead of 0.10 s of a processor for a tile).
        params.flash_attn_type = _FLASH_ATTENTION_OFF
        params.progress_callback = ctypes.cast(on_progress, self._mtmd.mtmd_progress_callback)
        with captured_log() as log:
            self._context = self._mtmd.mtmd_init_from_file(os.fsencode(path), model, params)
        if not self._context:
            raise refused(f"{path}: llama.cpp cannot load the projector", log)
        self.n_embd = int(llama().llama_model_n_embd_inp(model))

    def encode(self, tile: Tile) -> npt.NDArray[np.float32]:
        """The features of a tile, float32 of [n_features, n_embd], in mtmd's own order.

        Raises:
            EngineError: mtmd fails, or would cut or resize the tile.
        """
        height, width = tile.shape[:2]
        pixels = np.ascontiguousarray(tile)
        marker = self._mtmd.mtmd_default_marker()
        text = self._mtmd.mtmd_input_text(marker, len(marker), False, True)
        chunks = self._mtmd.mtmd_input_chunks_init()
        bitmap = self._mtmd.mtmd_bitmap_init(
            width, height, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        )
        try:
            with captured_log() as log:
                bitmaps = (ctypes.c_void_p * 1)(bitmap)
                code = self._mtmd.mtmd_tokenize(
                    self._context, chunks, ctypes.byref(text), bitmaps, 1
                )
                chunk = None if code else self._only_image(chunks)
                if chunk is None or self._mtmd.mtmd_encode_chunk(self._context, chunk):
                    raise refused(f"{self._path}: llama.cpp cannot encode a tile", log)
            shape = int(self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)), self.n_embd
            return np.array(
                np.ctypeslib.as_array(self._mtmd.mtmd_get_output_embd(self._context), shape)
            )
        finally:
            self._mtmd.mtmd_bitmap_free(bitmap)
            self._mtmd.mtmd_input_chunks_free(chunks)

    def close(self) -> None:
        """Free it; closing twice is harmless."""
        context, self._context = self._context, None
        if context:
            self._mtmd.mtmd_free(context)

    def _only_image(self, chunks: Any) -> Any:
        """The one chunk that is a picture; None where there are several, for it was cut then."""
        count = self._mtmd.mtmd_input_chunks_size(chunks)
        every = [self._mtmd.mtmd_input_chunks_get(chunks, index) for index in range(count)]
        images = [
            chunk for chunk in every if self._mtmd.mtmd_input_chunk_get_type(chunk) == _IMAGE_CHUNK
        ]
        return images[0] if len(images) == 1 else None
