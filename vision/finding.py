"""Which projector goes with a model: the one that was named, or the only one beside it.

Promises that a projector which is damaged, of another kind of model, or as wide as another one, is
refused before mtmd sees it, which would end the process.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import EngineError, ModelFileError
from ..runtime.files.projector_file import ProjectorInfo, check_projector_file
from .layout import TILE_SIZE

_HINT = "Convert it from the checkpoint of the model: llama4 convert --vision-only"


def projector_beside(model: str | os.PathLike[str]) -> Path | None:
    """The only file beside a model whose name says that it is a projector; None without one.

    Raises:
        ModelFileError: there are several.
    """
    folder = Path(model).parent
    try:
        paths = sorted(path for path in folder.iterdir() if _is_projector(path))
    except OSError:
        return None
    if len(paths) > 1:
        raise ModelFileError(
            f"several projectors are beside {os.fspath(model)}",
            found=", ".join(path.name for path in paths[:5]),
            hint="Name the one to use: projector=FILE.",
        )
    return paths[0] if paths else None


def check_projector(path: Path, n_embd: int) -> ProjectorInfo:
    """What is in a file, if it is a whole projector of Llama 4, for a model of this width.

    Raises:
        ModelFileError: it is not.
    """
    info = check_projector_file(path, n_embd=n_embd)
    if info.shape.image_size != TILE_SIZE:
        raise ModelFileError(
            f"{path} is the projector of another kind of model",
            found=f"tiles of {info.shape.image_size} pixels",
            expected=TILE_SIZE,
            hint=_HINT,
        )
    return info


def no_projector(model: str | os.PathLike[str]) -> EngineError:
    """The error that a model was opened without one."""
    return EngineError(
        f"{os.fspath(model)} was opened without a projector, which pictures need",
        expected="a file mmproj-*.gguf beside it, or projector=FILE",
        hint=_HINT,
    )


def _is_projector(path: Path) -> bool:
    name = path.name.lower()
    return "mmproj" in name and name.endswith(".gguf") and path.is_file()
