"""Adapters' files, held against the model that they are to change.

Promises that what it lets through is of the model at hand, and finite. Loads nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError
from .files.adapter_file import AdapterInfo, check_adapter_file
from .files.control_vector_file import read_control_vector
from .files.model_file import ModelInfo
from .settings import EngineSettings

_PIECE = 1 << 20  # bytes that are read at a time


@dataclass(frozen=True)
class CheckedAdapters:
    """Files of adapters and control vectors that go with a model.

    Args:
        adapters: in the order of the settings.
        direction: what is added to the output of each layer but the first, float32 of
            [n_layer - 1, n_embd], row 0 being that of layer 1; None without control vectors.
    """

    adapters: tuple[AdapterInfo, ...] = ()
    direction: npt.NDArray[np.float32] | None = None

    @classmethod
    def of(cls, settings: EngineSettings, model: ModelInfo) -> CheckedAdapters | None:
        """Read the files that settings name, and hold them against the model; None for none.

        Raises:
            ModelFileError: a file is none of these, is damaged, or is of another model; or the
                control vectors add up to infinity.
        """
        infos = tuple(check_adapter_file(adapter.path, model) for adapter in settings.adapters)
        if not settings.control_vectors:
            return cls(infos) if infos else None
        hparams = model.hparams
        direction = np.zeros((hparams.n_layer - 1, hparams.n_embd), np.float32)
        for vector in settings.control_vectors:
            read = read_control_vector(vector.path, hparams)
            with np.errstate(over="ignore", invalid="ignore"):
                direction += np.float32(vector.scale) * read.directions
        if not np.isfinite(direction).all():
            raise ModelFileError(f"the control vectors of {model.path} add up to NaN or infinity")
        return cls(infos, direction)

    def direction_digest(self, layers: tuple[int, int] | None) -> str:
        """What the control vectors are told by: the numbers that are added; "" where all are 0.

        Args:
            layers: the first and the last after which they are added; None is all.
        """
        if self.direction is None:
            return ""
        first, last = layers or (1, len(self.direction))
        added = np.zeros_like(self.direction)
        added[first - 1 : last] = self.direction[first - 1 : last]
        return hashlib.sha256(added.tobytes()).hexdigest() if added.any() else ""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of all adapters for each tensor of the model that they change."""
        sizes: dict[str, int] = {}
        for adapter in self.adapters:
            for name, pair in adapter.matrices.items():
                sizes[name] = sizes.get(name, 0) + pair.nbytes
        return sizes


def digest_of(adapter: AdapterInfo) -> str:
    """What an adapter is told by, wherever its file lies: its alpha and all bytes of its matrices.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256(repr(adapter.alpha).encode())
    with adapter.path.open("rb", buffering=0) as source:
        for _, pair in sorted(adapter.matrices.items()):
            for tensor in (pair.a, pair.b):
                digest.update(repr((tensor.name, tensor.shape, tensor.type)).encode())
                source.seek(tensor.offset)
                left = tensor.nbytes
                while left and (piece := source.read(min(left, _PIECE))):
                    digest.update(piece)
                    left -= len(piece)
    return digest.hexdigest()
