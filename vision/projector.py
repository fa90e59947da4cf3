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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import EngineError, ModelFileError
from ..ranges import as_path
from ..runtime.embedding import TokenEmbedding
from ..runtime.engine import Engine
from ..runtime.files.model_file import ModelInfo
from ..runtime.fingerprint import sampled_digest
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
        path: a projector file that was checked.
        on_progress: called with the fraction loaded; returning False cancels.

    Raises:
        AllocationError: main memory is too short for it.
        EngineError: llama.cpp refuses it, or loading was cancelled.
    """

    def __init__(
        self,
        engine: Engine,
        path: Path,
        *,
        on_progress: Callable[[float], object] | None = None,
    ) -> None:
        self.path = path
        self._encoder = engine.open_encoder(path, on_progress)

    @property
    def device(self) -> str:
        """The name of the device that it lies on, such as CPU or CUDA0."""
        return self._encoder.device

    def encode(self, tile: npt.NDArray[np.uint8]) -> FeatureRows:
        """The features of a tile, [144, n_embd], in reading order; called in the engine's thread.

        Raises:
            EngineError: mtmd fails, or gives NaN.
        """
        features = self._encoder.encode(tile)
        if not np.isfinite(features).all():
            raise EngineError(
                f"{self.path}: the features of a picture are not finite numbers",
                found="NaN or infinity",
                hint="The projector file may be damaged: llama4 inspect --check",
            )
        return in_reading_order(features)


class _Encoded:
    """A picture's features, as far as they are encoded."""

    def __init__(self, n_tiles: int, n_embd: int) -> None:
        self.rows: FeatureRows = np.empty((n_tiles, PATCHES_PER_TILE, n_embd), np.float32)
        self.n_done = 0  # tiles


class PromptFeatures:
    """The features that a prompt names; a `runtime.features.Features`.

    Nothing is loaded, cut or encoded before a row is missing.
    """

    def __init__(
        self, source: Pictures, pictures: Sequence[ImageTiles], names: Sequence[int]
    ) -> None:
        self._source = source
        self._pictures = pictures
        every = (
            (number, row)
            for number, tiles in enumerate(pictures)
            for row in range(len(tiles) * PATCHES_PER_TILE)
        )
        self._places = dict(zip(names, every, strict=True))
        self._encoded: dict[int, _Encoded] = {}  # held until the prompt is forgotten

    def is_ready(self, names: Sequence[int]) -> bool:
        """Whether the rows of these names are encoded."""
        return self._missing(names) is None

    def step(self, names: Sequence[int]) -> None:
        """Encode one tile that these names need."""
        if (number := self._missing(names)) is not None:
            tiles = self._pictures[number]
            encoded = self._encoded.get(number) or self._source.encoded(tiles)
            self._encoded[number] = encoded
            self._source.encode_next(tiles, encoded)

    def rows(self, positions: Sequence[int]) -> FeatureRows:
        """The rows of names, and the embeddings of tokens; float32 of [n_positions, n_embd]."""
        tokens = [one for one in positions if one >= 0]
        embedded = iter(self._source.embedding.rows(tokens) if tokens else ())
        return np.array(
            [next(embedded) if one >= 0 else self._row(one) for one in positions], dtype=np.float32
        )

    def _row(self, name: int) -> FeatureRows:
        number, row = self._places[name]
        features: FeatureRows = self._encoded[number].rows[divmod(row, PATCHES_PER_TILE)]
        return features

    def _missing(self, names: Sequence[int]) -> int | None:
        """The picture of the first name whose row is not encoded."""
        for name in names:
            number, row = self._places[name]
            if number not in self._encoded:
                if (kept := self._source.kept(self._pictures[number])) is None:
                    return number
                self._encoded[number] = kept
            if row >= self._encoded[number].n_done * PATCHES_PER_TILE:
                return number
        return None


def row_names(picture: bytes, projector: bytes, n_tiles: int) -> list[int]:
    """Names of a picture's features, for positions of a prompt: numbers below 0, of 64 bits.

    Each is drawn from the digests of the picture and of the projector and from the row, so that the
    same features have the same names everywhere, and no two pictures have several in common.
    """
    count = n_tiles * PATCHES_PER_TILE
    drawn = np.frombuffer(hashlib.shake_256(projector + picture).digest(8 * count), dtype="<i8")
    return [int(name) for name in np.bitwise_or(drawn, np.int64(-(2**63)))]


def in_reading_order(features: FeatureRows) -> FeatureRows:
    """A tile's features row by row, from what llama.cpp returns: column by column."""
    n_embd = features.shape[-1]
    columns = features.reshape(_SIDE, _SIDE, n_embd)
    rows: FeatureRows = columns.swapaxes(0, 1).reshape(-1, n_embd)
    return rows


class _File(NamedTuple):
    """A projector that was checked, as it was then."""

    path: Path
    size: int
    modified: int
    digest: bytes


class Pictures:
    """What a model can be shown: its projector, loaded when features are first missing.

    Args:
        model: the model's file, which was checked.
        named: the projector's; None looks beside the model.

    Raises:
        ModelFileError: the one that was named is not one for this model.
    """

    def __init__(self, model: ModelInfo, named: str | os.PathLike[str] | None) -> None:
        self._model = model
        self._named = None if named is None else Path(as_path("projector", named))
        self._file: _File | None = None
        if self._named is not None:
            self._file = self._checked(self._named)
        self._engine: Engine | None = None
        self._projector: Projector | None = None
        self._kept: OrderedDict[bytes, _Encoded] = OrderedDict()
        self._lock = threading.Lock()
        self.embedding = TokenEmbedding(model)

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

    def digest(self) -> bytes:
        """What features of this projector are told by; empty where there is none.

        Raises:
            ModelFileError: it is not one for this model, or there are several.
        """
        file = self._found()
        return b"" if file is None else file.digest

    def loaded(self) -> Projector:
        """The projector.

        Raises:
            AllocationError: there is no room for it.
            EngineError: there is none, or llama.cpp refuses it.
            ModelFileError: it is not one for this model, or there are several.
        """
        assert self._engine is not None
        if self._projector is None:
            self._engine.in_thread(self._load)
        assert self._projector is not None
        return self._projector

    def features(
        self, tiles: ImageTiles, *, on_progress: Callable[[float], object] | None = None
    ) -> FeatureRows:
        """The features of a picture, float32 of [tiles, 144, n_embd], in reading order.

        Args:
            on_progress: called with the fraction encoded after each tile; returning False cancels.

        Raises:
            AllocationError, ModelFileError: see `loaded`.
            EngineError: it was cancelled, the features are NaN, there is no projector, or the model
                was closed.
        """
        assert self._engine is not None
        self.loaded()
        encoded = self.encoded(tiles)
        for number in range(1, len(tiles) + 1):
            while encoded.n_done < number:
                self._engine.in_thread(partial(self.encode_next, tiles, encoded))
            fraction = number / len(tiles)
            if on_progress is not None and on_progress(fraction) is False and fraction < 1:
                raise EngineError("encoding the picture was cancelled")
        return np.array(encoded.rows)

    def of_prompt(self, pictures: Sequence[ImageTiles], names: Sequence[int]) -> PromptFeatures:
        """What makes the features of a prompt's pictures when they are decoded.

        Args:
            names: those of all their rows, in order.

        Raises:
            EngineError: there is no projector.
            ModelFileError: it is not one for this model, or there are several.
        """
        if self._found() is None:
            raise no_projector(self._model.path)
        return PromptFeatures(self, pictures, names)

    def kept(self, tiles: ImageTiles) -> _Encoded | None:
        """The features of a picture as far as they are encoded, None where none are."""
        with self._lock:
            encoded = self._kept.get(tiles.digest)
            if encoded is not None:
                self._kept.move_to_end(tiles.digest)
        return encoded

    def encoded(self, tiles: ImageTiles) -> _Encoded:
        """The same, or room for them."""
        encoded = self.kept(tiles) or _Encoded(len(tiles), self._model.hparams.n_embd)
        with self._lock:
            encoded = self._kept.setdefault(tiles.digest, encoded)
            while sum(one.rows.nbytes for one in self._kept.values()) > _KEPT_BYTES:
                if len(self._kept) == 1:
                    break
                self._kept.popitem(last=False)
        return encoded

    def encode_next(self, tiles: ImageTiles, encoded: _Encoded) -> None:
        """Encode one more tile, if one is left; called in the engine's thread."""
        index = encoded.n_done
        if index < len(tiles):
            encoded.rows[index] = self.loaded().encode(tiles.levels[index])
            encoded.n_done = index + 1

    def _load(self) -> None:
        """Load the projector; called in the engine's thread, in which nobody else does."""
        if self._projector is None:
            assert self._engine is not None
            if (file := self._found()) is None:
                raise no_projector(self._model.path)
            self._projector = Projector(self._engine, file.path)

    def _found(self) -> _File | None:
        """The projector's file, checked; again where it has changed since, unless it is loaded."""
        if self._projector is not None:
            return self._file
        path = self.path()
        if path is None:
            return None
        if self._file is None or self._file[:3] != (path, *_state(path)):
            self._file = self._checked(path)
        return self._file

    def _checked(self, path: Path) -> _File:
        info = check_projector(path, self._model.hparams.n_embd)
        try:
            digest = sampled_digest("clip.", [info.gguf])
        except OSError as error:
            raise _unreadable(path, error) from None
        return _File(path, *_state(path), digest)


def _state(path: Path) -> tuple[int, int]:
    """The length of a file, and when it was changed."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return status.st_size, status.st_mtime_ns


def _unreadable(path: Path, error: OSError) -> ModelFileError:
    return ModelFileError(f"{path} cannot be read any more", found=error.strerror or str(error))
