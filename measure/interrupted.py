"""The file that an interrupted calibration goes on from, kept for one process at a time.

Promises that it is the old state or the new one, whole, that two calibrations never write the same
one, and that none is left that has nothing. Knows no model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from ..errors import OutputError
from ..quant.importance_state import CalibrationState, read_state
from ..system.files import disk_hint, write_atomically
from ..system.locks import lock

_SAVE_EVERY = 3.0  # seconds
_SAVE_COST = 20  # times what saving takes, at least


class KeptState:
    """The state of one calibration, in ``FILE.partial`` beside the file that will be written.

    Raises:
        OutputError: here and below: the file cannot be written; when it is entered, another
            calibration has it.
    """

    def __init__(self, target: Path) -> None:
        self._path = target.with_name(f"{target.name}.partial")
        self._descriptor: int | None = None
        self._saved_at, self._save_took = time.monotonic(), 0.0

    def __enter__(self) -> KeptState:
        self._claim(os.O_CREAT)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is None:
            return
        if not os.fstat(self._descriptor).st_size:
            self._path.unlink(missing_ok=True)
        self._release()

    def read(self, of: Mapping[str, str]) -> CalibrationState | None:
        """What was saved before; None where nothing was.

        Args:
            of: what this calibration is of; see `CalibrationState`.

        Raises:
            OutputError: it is of something else, or damaged.
        """
        if not self._path.stat().st_size:
            return None
        state = read_state(self._path)
        for name, digest in of.items():
            if state.of.get(name) != digest:
                raise OutputError(
                    f"{self._path} is of a calibration that was interrupted, of another {name}"
                    if name != "settings"
                    else f"{self._path} is of a calibration with other settings",
                    found=state.of.get(name) if name == "settings" else None,
                    expected=digest if name == "settings" else None,
                    hint="Give the same text, chunks and settings to go on, or remove it to begin "
                    "anew.",
                )
        return state

    @property
    def is_due(self) -> bool:
        """Whether so long nothing was saved that saving costs little beside."""
        passed = time.monotonic() - self._saved_at
        return passed > max(_SAVE_EVERY, _SAVE_COST * self._save_took)

    def save(self, state: CalibrationState) -> None:
        """Replace what was saved."""
        begun = time.monotonic()
        write_output(self._path, state.data())
        # The new file is another one. Who takes it before this does goes on with it alone.
        self._release()
        self._claim()
        self._saved_at = time.monotonic()
        self._save_took = self._saved_at - begun

    def remove(self) -> None:
        """It is of no more use."""
        self._path.unlink(missing_ok=True)
        self._release()

    def _claim(self, flags: int = 0) -> None:
        flags |= os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._descriptor = os.open(self._path, flags, 0o666)
            held = not lock(self._descriptor, self._path)
            # Who had it may have put a newer file in its place, or removed it, since.
            held = held or not os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except (OSError, ValueError) as error:
            self._release()
            raise _unwritable(self._path, error) from error
        if held:
            self._release()
            raise OutputError(
                f"another calibration is writing {self._path}",
                hint="Wait for it, or give another name.",
            )

    def _release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def write_output(path: Path, data: bytes) -> None:
    """Write a file in one step.

    Raises:
        OutputError: it cannot be written.
    """
    # One temporary name: who is killed leaves one file.
    temporary = path.with_name(f".{path.name[:200]}.new")
    try:
        write_atomically(path, data, temporary=temporary)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError | ValueError) -> OutputError:
    if not isinstance(error, OSError):  # no file can have such a name
        return OutputError(f"{path} cannot be written", found=str(error))
    return OutputError(f"{path} cannot be written", found=error.strerror, hint=disk_hint(error))
