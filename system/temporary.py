"""Headers that are written, read by their names, and gone.

Promises that on Linux nothing is left of a process that is killed while it has a single one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import OutputError


@contextmanager
def temporary_path(prefix: str) -> Iterator[Path]:
    """A path to write one file to; on Linux without a name in any directory.

    Args:
        prefix: how the name begins elsewhere.

    Raises:
        OutputError: there is no directory for temporary files.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(prefix=prefix))
        except OSError as error:
            raise _no_place(error) from None
        path = Path(f"/proc/self/fd/{file.fileno()}")
        if not path.exists():
            path = stack.enter_context(temporary_directory(prefix)) / "header.gguf"
        yield path


@contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """A directory for several files, whose names count.

    Raises:
        OutputError: there is no directory for temporary files.
    """
    with ExitStack() as stack:
        try:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix))
        except OSError as error:
            raise _no_place(error) from None
        yield Path(name)


def _no_place(error: OSError) -> OutputError:
    return OutputError(
        "no temporary file can be made",
        found=error.strerror or str(error),
        hint="Set TMPDIR to a directory with room for it.",
    )
