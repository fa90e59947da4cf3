"""What a model has read, kept on disk from one start of a server to the next.

Promises that what cannot be kept or taken up is told and does no harm: it is read anew. A file that
was not taken up, as one of another model, is left as it is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from ..chat.conversation import Conversation
from ..errors import EngineError, OutputError, SessionError
from ..model import Model
from ..runtime.files.session_file import SessionFile
from ..runtime.files.session_writer import SessionWriter

logger = logging.getLogger(__name__)

_PATTERN = "slot-*.l4s"


class Slots:
    """A directory with a session's file for each state.

    Raises:
        OutputError: there is no such directory and none can be made, or nothing can be written
            there.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._own: set[Path] = set()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"cannot make the directory {directory}", found=reason) from None
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise OutputError(f"{directory} cannot be written to", hint="Choose another directory.")

    def restore(self, model: Model) -> None:
        """Take up all that was kept, for the same model with the same settings."""
        taken = {path: _taken_up(model, path) for path in self._paths()}
        self._own = {path for path, n_tokens in taken.items() if n_tokens}
        if n_tokens := sum(taken.values()):
            logger.info("took up %d tokens from %s", n_tokens, self._directory)

    def save(self, model: Model) -> None:
        """Keep all that is held, in place of what was taken up or kept before."""
        names = self._free_names()
        written: set[Path] = set()
        try:
            for held in model.engine.held():
                state = model.engine.state_of(held.tokens, held.adapters)
                if state is not None:
                    path = next(names)
                    with SessionWriter(path) as writer:
                        model.sessions.save(writer, Conversation(model=model.info.name), state)
                    written.add(path)
        except (SessionError, EngineError) as error:
            self._own |= written
            logger.warning("not all that was read is kept: %s", error)
            return
        for path in self._own - written:
            with suppress(OSError):
                path.unlink()
        self._own = written
        logger.info("kept %d states in %s", len(written), self._directory)

    def _free_names(self) -> Iterator[Path]:
        """Paths at which nothing lies that is not our own."""
        for number in count():
            path = self._directory / f"slot-{number:04}.l4s"
            if path in self._own or not os.path.lexists(path):
                yield path

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob(_PATTERN))


def _taken_up(model: Model, path: Path) -> int:
    """How many tokens of a file the model need not read again."""
    try:
        with SessionFile(path) as file:
            return len(model.sessions.load(file, any_scales=True).tokens)
    except SessionError as error:
        logger.warning("%s. It is left there, and read anew.", str(error).rstrip("."))
        return 0
