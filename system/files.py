"""Writes small files in one step.

Promises that the target holds either what it held before or all of the new text, even where the
process ends in between. Knows nothing of what is written.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..errors import OutputError


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to a temporary file beside `path`, and rename it when it is whole.

    Raises:
        OutputError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path}: cannot be written",
            found=error.strerror or error,
            hint="Give a file in a directory that exists and that you may write to.",
        ) from error
