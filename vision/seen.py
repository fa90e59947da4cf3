"""Pictures that were cut into tiles before: a conversation shows the same ones again and again.

Promises that a file is opened once while its tiles are kept, and that what a prompt needs of it is
known much longer: its pixels are only asked for where a model has not read it yet. Knows nothing
of messages.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ImageError
from ..runtime.features import SeenPicture
from .images import ImageTiles, cut
from .layout import tile_grid

if TYPE_CHECKING:
    from .opening import PictureInput

_MOST_BYTES = 1 << 28
"""Of tiles that are kept: 45 pictures of 17."""
_MOST_SEEN = 1 << 16
"""Pictures of which the size and the digest are kept."""

Levels = npt.NDArray[np.uint8]


class SeenPictures:
    """Cuts pictures, each once while it is kept; any thread may ask."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, SeenPicture] = OrderedDict()
        self._levels: OrderedDict[bytes, Levels] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles that are kept."""
        return self._n_bytes

    def tiles(
        self, picture: PictureInput | ImageTiles, *, allow_download: bool = False
    ) -> ImageTiles:
        """The tiles of a picture; see ``image_tiles``. Those that were cut already are taken.

        Raises:
            ImageError: it is not a picture, or one that is damaged or too large.
        """
        from .opening import bytes_of, is_file, open_picture  # with Pillow

        if isinstance(picture, ImageTiles):
            return picture
        if is_file(picture):
            return self.tiles_of_file(*bytes_of(picture, allow_download=allow_download))
        pixels = open_picture(picture, allow_download=allow_download)
        head = b"pixels %d %d " % pixels.shape[:2]
        return self._cut_once(hashlib.sha256(head + pixels.tobytes()).digest(), lambda: pixels)

    def tiles_of_file(self, name: str, data: bytes) -> ImageTiles:
        """Those of a file that was read.

        Args:
            name: what errors call it.
        """
        from .opening import pixels_of

        return self._cut_once(hashlib.sha256(data).digest(), lambda: pixels_of(name, data), name)

    def keep(self, data: bytes, pixels: Levels) -> None:
        """Keep the tiles of a file whose pixels are at hand."""
        self._cut_once(hashlib.sha256(data).digest(), lambda: pixels)

    def of_file(self, data: bytes) -> SeenPicture | None:
        """What is known of a file, None where it was not cut."""
        return self._seen.get(hashlib.sha256(data).digest())

    def remember(self, seen: SeenPicture) -> None:
        """Know a picture that another process has cut."""
        with self._lock:
            self._seen.setdefault(seen.file, seen)
            while len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)

    def _cut_once(
        self, key: bytes, pixels: Callable[[], Levels], name: str = "the pixels"
    ) -> ImageTiles:
        with self._lock:
            seen, levels = self._seen.get(key), self._levels.get(key)
            if levels is not None:
                self._levels.move_to_end(key)
        if seen is None:
            return self._cut(key, pixels)
        if levels is not None:
            return _SeenTiles(seen, lambda: levels)
        return _SeenTiles(seen, lambda: self._cut_again(seen, pixels, name))

    def _cut(self, key: bytes, pixels: Callable[[], Levels]) -> ImageTiles:
        tiles = cut(pixels())
        self.remember(SeenPicture(key, tiles.size, tiles.digest))
        with self._lock:
            if key not in self._levels:
                self._levels[key] = tiles.levels
                self._n_bytes += tiles.levels.nbytes
            while self._n_bytes > _MOST_BYTES:
                self._n_bytes -= self._levels.popitem(last=False)[1].nbytes
        return tiles

    def _cut_again(self, seen: SeenPicture, pixels: Callable[[], Levels], name: str) -> Levels:
        """The tiles of a picture whose names stand in a prompt already."""
        with self._lock:
            levels = self._levels.get(seen.file)
        if levels is not None:
            return levels
        tiles = self._cut(seen.file, pixels)
        if tiles.digest != seen.digest:
            with self._lock:
                self._seen[seen.file] = SeenPicture(seen.file, tiles.size, tiles.digest)
            raise ImageError(
                f"{name} is not what the session was made with",
                found="other tiles",
                expected="those that the session names",
                hint="Another Pillow may decode it otherwise. Ask again, and it is read anew.",
            )
        return tiles.levels


class _SeenTiles(ImageTiles):
    """Tiles that are cut, or cut again, when their pixels are asked for."""

    def __init__(self, seen: SeenPicture, levels: Callable[[], Levels]) -> None:
        columns, rows = seen.size
        self.__dict__.update(
            size=seen.size, grid=tile_grid(columns, rows), digest=seen.digest, _levels_of=levels
        )

    @property
    def levels(self) -> Levels:
        levels: Levels = self.__dict__["_levels_of"]()
        return levels


SEEN = SeenPictures()
"""Those of this process: what a picture is cut into depends on no model."""
