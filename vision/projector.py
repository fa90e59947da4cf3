"""Features of pictures: the rows that stand in a prompt where the patches' tokens are.

Promises features in reading order, which llama.cpp does not give; NaN is an error; what a picture
was encoded to is kept, bounded, and others may use the model between two tiles. Knows nothing of
messages.

llama.cpp's graph for Llama 4 (tools/mtmd/models/llama4.cpp) leaves out the last step of the pixel
shuffle, so that the feature of row r and column c of a tile comes at c·12 + r. As it comes, it is
what nobody trained the model on.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import EngineError
from ..ranges import as_path
from ..runtime.embedding import TokenEmbedding
from ..runtime.engine import Engine
from ..runtime.files.model_file import ModelInfo
from .finding import check_projector, no_projector, projector_beside
from .images import ImageTiles
from .layout import PATCHES_PER_TILE

FeatureRows = npt.NDArray[np.float32]

_SIDE = math.isqrt(PATCHES_PER_TILE)
_KEPT_BYTES = 256 * 2**20  # five pictures of 17 tiles of Scout's


class Projector:
    """The vision tower of a loaded model, with its projector; llama.cpp calls the file mmproj.

    Args:
        engine: the model's, which frees it.
        embedding: the model's, for the tokens among a picture's features.
        path: a projector file that was checked.
        on_progress: called with the fraction loaded; returning False cancels.

    Raises:
        AllocationError: main memory is too short for it.
        EngineError: llama.cpp refuses it, or loading was cancelled.
    """

    def __init__(
        self,
        engine: Engine,
        embedding: TokenEmbedding,
        path: str | os.PathLike[str],
        *,
        on_progress: Callable[[float], object] | None = None,
    ) -> None:
        self.path = Path(path)
        self.embedding = embedding
        self._engine = engine
        self._encoder = engine.open_encoder(self.path, on_progress)
        self._kept: OrderedDict[bytes, _Picture] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def device(self) -> str:
        """The name of the device that it lies on, such as CPU or CUDA0."""
        return self._encoder.device

    def features(
        self, tiles: ImageTiles, *, on_progress: Callable[[float], object] | None = None
    ) -> FeatureRows:
        """The features of a picture, float32 of [tiles, 144, n_embd], in reading order.

        Args:
            on_progress: called with the fraction encoded after each tile; returning False cancels.

        Raises:
            EngineError: it was cancelled, the features are NaN, or the model was closed.
        """
        picture = self._picture(tiles)
        for number in range(1, len(tiles) + 1):
            self._engine.in_thread(partial(self._encode, picture, number))
            fraction = number / len(tiles)
            if on_progress is not None and on_progress(fraction) is False and fraction < 1:
                raise EngineError("encoding the picture was cancelled")
        return np.array(picture.rows)

    def of_prompt(self, pictures: Sequence[ImageTiles]) -> PromptFeatures:
        """What makes the features of a prompt's pictures when they are decoded."""
        return PromptFeatures(self, pictures)

    def _picture(self, tiles: ImageTiles) -> _Picture:
        """The one that is kept, or a new one."""
        with self._lock:
            picture = self._kept.pop(tiles.digest, None) or _Picture(tiles, self._encoder.n_embd)
            self._kept[tiles.digest] = picture
            while sum(one.rows.nbytes for one in self._kept.values()) > _KEPT_BYTES:
                if len(self._kept) == 1:
                    break
                self._kept.popitem(last=False)
        return picture

    def _encode(self, picture: _Picture, count: int) -> None:
        """Encode tiles until so many are; called in the engine's thread."""
        for index in range(picture.n_done, count):
            features = self._encoder.encode(picture.tiles.levels[index])
            picture.rows[index] = in_reading_order(features)
            if not np.isfinite(features).all():
                raise EngineError(
                    f"{self.path}: the features of a picture are not finite numbers",
                    found="NaN or infinity",
                    hint="The projector file may be damaged: llama4 inspect --check",
                )
            picture.n_done = index + 1


class _Picture:
    """A picture's features, as far as they are encoded."""

    def __init__(self, tiles: ImageTiles, n_embd: int) -> None:
        self.tiles = tiles
        self.rows: FeatureRows = np.empty((len(tiles), PATCHES_PER_TILE, n_embd), np.float32)
        self.n_done = 0  # tiles


class PromptFeatures:
    """The features that a prompt names; a `runtime.features.Features`."""

    def __init__(self, projector: Projector, pictures: Sequence[ImageTiles]) -> None:
        self._projector = projector
        self._pictures = [projector._picture(tiles) for tiles in pictures]
        self._places: dict[int, tuple[_Picture, int]] = {
            name: (picture, row)
            for picture in self._pictures
            for row, name in enumerate(row_names(picture.tiles))
        }

    def is_ready(self, names: Sequence[int]) -> bool:
        """Whether the rows of these names are encoded."""
        return self._missing(names) is None

    def step(self, names: Sequence[int]) -> None:
        """Encode one tile that these names need."""
        if (missing := self._missing(names)) is not None:
            picture, _ = missing
            self._projector._encode(picture, picture.n_done + 1)

    def rows(self, positions: Sequence[int]) -> FeatureRows:
        """The rows of names, and the embeddings of tokens; float32 of [n_positions, n_embd]."""
        tokens = [one for one in positions if one >= 0]
        embedded = iter(self._projector.embedding.rows(tokens) if tokens else ())
        return np.array(
            [next(embedded) if one >= 0 else self._row(one) for one in positions], dtype=np.float32
        )

    def _row(self, name: int) -> FeatureRows:
        picture, row = self._places[name]
        features: FeatureRows = picture.rows[divmod(row, PATCHES_PER_TILE)]
        return features

    def _missing(self, names: Sequence[int]) -> tuple[_Picture, int] | None:
        for name in names:
            picture, row = self._places[name]
            if row >= picture.n_done * PATCHES_PER_TILE:
                return picture, row
        return None


def row_names(tiles: ImageTiles) -> list[int]:
    """Names of a picture's features, for positions of a prompt: numbers below 0, of 64 bits.

    Each is drawn from the picture's digest and the row, so that the same picture has the same
    names everywhere, and no two pictures have several in common.
    """
    count = len(tiles) * PATCHES_PER_TILE
    drawn = np.frombuffer(hashlib.shake_256(tiles.digest).digest(8 * count), dtype="<i8")
    return [int(name) for name in np.bitwise_or(drawn, np.int64(-(2**63)))]


def in_reading_order(features: FeatureRows) -> FeatureRows:
    """A tile's features row by row, from what llama.cpp returns: column by column."""
    n_embd = features.shape[-1]
    columns = features.reshape(_SIDE, _SIDE, n_embd)
    rows: FeatureRows = columns.swapaxes(0, 1).reshape(-1, n_embd)
    return rows


class Pictures:
    """What a model can be shown: its projector, loaded when it is first needed.

    Args:
        model: the model's file, which was checked.
        named: the projector's; None looks beside the model.

    Raises:
        ModelFileError: the one that was named is not one for this model.
    """

    def __init__(self, model: ModelInfo, named: str | os.PathLike[str] | None) -> None:
        self._model = model
        self._named = None if named is None else Path(as_path("projector", named))
        if self._named is not None:
            check_projector(self._named, model.hparams.n_embd)
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._projector: Projector | None = None

    def open(self, engine: Engine) -> None:
        """Take the model's engine; load a projector that was named."""
        self._engine = engine
        if self._named is not None:
            self.loaded()

    def path(self) -> Path | None:
        """The projector's file; None where there is none.

        Raises:
            ModelFileError: there are several.
        """
        return self._named or projector_beside(self._model.path)

    def loaded(self) -> Projector:
        """The projector.

        Raises:
            AllocationError: there is no room for it.
            EngineError: there is none, or llama.cpp refuses it.
            ModelFileError: it is not one for this model, or there are several.
        """
        assert self._engine is not None
        with self._lock:
            if self._projector is None:
                path = self.path()
                if path is None:
                    raise no_projector(self._model.path)
                if self._named is None:
                    check_projector(path, self._model.hparams.n_embd)
                self._projector = Projector(self._engine, TokenEmbedding(self._model), path)
            return self._projector
