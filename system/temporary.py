"""A header that is written, read by its name, and gone.

Promises that on Linux nothing is left of a process that is killed meanwhile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_path(prefix: str) -> Iterator[Path]:
    """A path to write one file to; on Linux without a name in any directory.

    Args:
        prefix: how the name begins elsewhere.
    """
    with tempfile.TemporaryFile(prefix=prefix) as file:
        path = Path(f"/proc/self/fd/{file.fileno()}")
        if path.exists():
            yield path
            return
    with tempfile.TemporaryDirectory(prefix=prefix) as directory:
        yield Path(directory) / "header.gguf"
