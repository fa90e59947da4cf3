"""A projector beside a model: loaded where there is room for it, and freed before the model.

Promises that mtmd, which ends the process where a device is short of memory, is only given one with
room. Knows nothing of pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import AllocationError, EngineError
from ..system.cores import usable_threads
from ..system.memory import host_memory
from ..units import bytes_text
from .bindings.devices import NativeDevice, list_devices
from .bindings.parameters import progress_callback
from .bindings.vision import Tile, TileEncoder
from .files.projector_file import check_projector_file
from .handles import Handles
from .placement import CPU
from .settings import EngineSettings

logger = logging.getLogger(__name__)


class Encoder:
    """A vision tower with its projector, in the thread of a model's engine.

    It lies on the first GPU of this machine that has layers of the model, or in main memory.
    ``device`` is the name of where it lies, ``n_embd`` how wide its features are.

    Args:
        path: a projector that was checked.
        on_progress: called with the fraction loaded, 0.0 to 1.0; returning False cancels.

    Raises:
        AllocationError: there is no room for it.
        EngineError: llama.cpp refuses it, or loading was cancelled.
        ModelFileError: it has changed since, and is not one any more.
    """

    def __init__(
        self,
        handles: Handles,
        path: Path,
        settings: EngineSettings,
        on_progress: Callable[[float], object] | None,
    ) -> None:
        device = _device_with_room(handles, path, settings)
        self.device = CPU if device is None else device.name
        cancelled = False

        def progress(fraction: float) -> bool:
            nonlocal cancelled
            cancelled = on_progress is not None and on_progress(fraction) is False
            return not cancelled

        callback = progress_callback(handles.thread, progress)

        def load() -> TileEncoder:
            encoder = TileEncoder(
                path,
                handles.model,
                device=device,
                n_threads=settings.n_threads_batch or settings.n_threads or usable_threads(),
                on_progress=callback,
            )
            handles.beside.append(encoder)
            return encoder

        try:
            self._encoder = handles.thread.call(load)
        except EngineError:
            if cancelled:
                raise EngineError(f"{path}: loading was cancelled") from None
            raise
        self.n_embd = self._encoder.n_embd

    def encode(self, tile: Tile) -> npt.NDArray[np.float32]:
        """See `TileEncoder.encode`; called in the engine's thread."""
        return self._encoder.encode(tile)


def _device_with_room(
    handles: Handles, path: Path, settings: EngineSettings
) -> NativeDevice | None:
    """Where a projector goes; None is main memory.

    Raises:
        AllocationError: it has no room either.
    """
    info = check_projector_file(path)
    need = info.weight_bytes + info.shape.compute_bytes
    placed = handles.params.devices if settings.placement.n_gpu_layers != 0 else ()
    for device in placed:
        if device.endpoint is not None:
            continue  # mtmd would send it every tile over the network
        free = next((one.free_bytes for one in list_devices() if one.name == device.name), None)
        if free is not None and free >= need:
            return device
        logger.warning(
            "%s: pictures are encoded on the CPU: %s has %s free, and the projector takes %s",
            path, device.name, "an unknown number of bytes" if free is None else bytes_text(free),
            bytes_text(need),
        )  # fmt: skip
        break
    free = host_memory().free
    if free < need:
        raise AllocationError(
            f"{path}: main memory is too short for the projector",
            found=bytes_text(free),
            expected=bytes_text(need),
            hint="Close other programs, or convert it with --vision-type q8_0.",
        )
    return None
