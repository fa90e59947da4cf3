"""What pictures take: the vision tower and where it lies, and what one picture costs.

Promises the rule by which a model loads its tower: on the first GPU of this machine if there is
room, or in main memory. Opens no picture.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..ranges import check_whole, value_text
from ..runtime.files.projector_file import check_projector_file
from ..untrusted import Record
from ..vision.finding import projector_beside
from ..vision.layout import image_token_count, tile_count, tile_grid
from .geometry import Geometry
from .machine import Machine, matrix_rate

_MOST_PIXELS = 1 << 20  # of a side
# Of the rate at which NumPy multiplies matrices, mtmd reached so much on a Xeon of 2.5 GHz, with a
# tower as wide as the published one, in f16.
_MTMD_SHARE = 0.5


@dataclass(frozen=True)
class Images:
    """What pictures take beside the text model.

    Weights are bytes in f16 or, of a file that is here, as they are in it; the projector's count
    the adapter behind the tower too. Without ``device`` no room is kept for them: they go where
    there is some when the first picture comes.

    Args:
        path: of the projector's file, "" where it is not here.
        compute_bytes: what mtmd takes beside the weights, at most.
        operations: of one tile, in matrix products.
        device: where room is kept for all that.
        size: columns and rows of pixels of a picture.
        tiles: what it is cut into, with the one of the whole picture; 0 without a size.
        tokens: what it takes in a prompt.
        seconds: an estimate of how long encoding takes, by half the rate at which NumPy multiplies
            matrices on this processor; None for a GPU, and for another machine.
    """

    vision_tower_bytes: int
    projector_bytes: int
    compute_bytes: int
    operations: int
    path: str = ""
    device: str | None = None
    size: tuple[int, int] | None = None
    tiles: int = 0
    tokens: int = 0
    seconds: float | None = None

    @property
    def weights_bytes(self) -> int:
        """Those of tower and projector."""
        return self.vision_tower_bytes + self.projector_bytes

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and ``weights_bytes``."""
        return asdict(self) | {"weights_bytes": self.weights_bytes}

    @classmethod
    def from_record(cls, record: Record) -> Images:
        """What `as_dict` wrote.

        Raises:
            SettingError: an entry is missing, or of another type.
        """
        size = record.get("size")
        if size is not None:
            _check_size(tuple(record.elements("size")))
        return cls(
            vision_tower_bytes=record.integer("vision_tower_bytes"),
            projector_bytes=record.integer("projector_bytes"),
            compute_bytes=record.integer("compute_bytes"),
            operations=record.integer("operations"),
            path=record.text("path"),
            device=None if record.get("device") is None else record.text("device"),
            size=None if size is None else tuple(size),
            tiles=record.integer("tiles"),
            tokens=record.integer("tokens"),
            seconds=None if record.get("seconds") is None else record.number("seconds"),
        )


def images_of(geometry: Geometry, projector: Path | None) -> Images | None:
    """The vision tower that was named, that a model has, or the one beside its file.

    Raises:
        ModelFileError: the one that was named is not this model's, or several are beside it.
    """
    path = projector
    if path is None and (vision := geometry.vision) is not None:
        shape = vision.shape
        return Images(vision.tower, vision.projector, shape.compute_bytes, shape.operations)
    if path is None and geometry.recipe is None:
        path = projector_beside(geometry.source)
    if path is None:
        return None
    info = check_projector_file(path, n_embd=geometry.hparams.n_embd)
    tower = sum(tensor.nbytes for tensor in info.gguf.tensors if tensor.name.startswith("v."))
    return Images(
        tower,
        info.weight_bytes - tower,
        info.shape.compute_bytes,
        info.shape.operations,
        os.fspath(path),
    )


def with_room(
    machine: Machine, images: Images | None, size: Sequence[int], model: str
) -> tuple[Machine, Images]:
    """The machine with room kept for pictures, and what one of this size costs.

    Args:
        size: columns and rows of pixels.

    Raises:
        SettingError: no picture has this size, or the model cannot be shown any.
    """
    _check_size(size)
    if images is None:
        raise SettingError(
            f"{model} cannot be shown pictures",
            found="no vision tower",
            expected="mmproj-*.gguf beside the model",
            hint="Convert it from the model's checkpoint: llama4 convert --vision-only",
        )
    need = images.weights_bytes + images.compute_bytes
    local = next((gpu for gpu in machine.gpus if gpu.endpoint is None), None)
    device = machine.host if local is None or local.usable_bytes < need else local
    is_here = device is machine.host and not machine.described
    less = replace(device, kept_free_bytes=device.kept_free_bytes + need)
    machine = replace(
        machine,
        gpus=tuple(less if gpu is device else gpu for gpu in machine.gpus),
        host=less if device is machine.host else machine.host,
    )
    columns, rows = size
    grid = tile_grid(columns, rows)
    tiles = tile_count(grid)
    return machine, replace(
        images,
        device=device.name,
        size=(columns, rows),
        tiles=tiles,
        tokens=image_token_count(grid),
        seconds=tiles * images.operations / (_MTMD_SHARE * matrix_rate()) if is_here else None,
    )


def _check_size(size: Sequence[int]) -> None:
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise SettingError(
            "image_size is not a size",
            found=value_text(size),
            expected="columns and rows of pixels",
        )
    for pixels in size:
        check_whole("image_size", pixels, 1, _MOST_PIXELS)
