"""``--session``: a conversation that goes on where an earlier process left it.

Promises that what was said is in the file as soon as an answer has ended, and that what was read
for it is there at the end, however that comes: Ctrl-D, Ctrl-C, an error, SIGTERM or SIGHUP.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError, Llama4EdgeError, SessionError
from ..terminal.console import complain, note
from ..terminal.progress import byte_progress
from ..units import seconds_text
from .declare import option
from .flags import with_flags

if TYPE_CHECKING:
    from ..chat.answer import Stream
    from ..chat.conversation import Conversation, Message
    from ..chat.documents import Document
    from ..chat.pictures import Part
    from ..chat.session import Session
    from ..model import Model
    from ..progress import Progress
    from ..runtime.files.session_file import SessionFile
    from ..runtime.files.session_writer import SessionWriter
    from ..runtime.state import SequenceState

logger = logging.getLogger(__name__)

_BYTES_A_SECOND = 1e9
"""What a disk is taken to write: a state is written where reading it anew would take longer."""

_EAGER = 10
"""How much longer that must take for writing it after an answer, and not only at the end."""

_MOST_ASIDE = 9
"""Damaged files of one name that are kept."""

_PATIENCE = 2.0  # seconds until a bar shows how far reading or writing the file is


def session_option() -> Any:
    """The option that several commands share."""
    return option(
        "--session", kind=str, metavar="FILE",
        help="Go on with the conversation in FILE (as in book.l4s), or begin one there. What was "
        "said and what was read of it are kept, so that neither is read again.",
    )  # fmt: skip


class KeptSession:
    """The session that a command goes on with, adds to, and saves.

    ``conversation`` is what is in the file; it has the name of the model, and the sampling of the
    command.

    Args:
        beginning: what a session that is new begins with.
    """

    def __init__(self, model: Model, writer: SessionWriter, beginning: Conversation) -> None:
        self._model, self._writer = model, writer
        self._sessions = model.sessions
        self.conversation = self._stored = beginning
        self._is_new = not writer.exists
        self._is_appendable = True
        self._covered: tuple[int, ...] = ()  # tokens that the state in the file has
        self._state_bytes = 0
        self._answer: Stream | None = None
        self._read_tokens, self._read_seconds = 0, 0.0
        self._last: tuple[int, ...] = ()  # tokens of the last prompt and its answer
        if self._is_new:
            self._write(None)
        else:
            self._reopen()

    def answering(self, answer: Stream) -> Stream:
        """The same answer, which counts as what was read last."""
        self._answer = answer
        return answer

    def keep(self, conversation: Conversation) -> None:
        """Have this conversation in the file, and what was read for it if that took long.

        Raises:
            SessionError: it cannot be written; what was there is still there.
        """
        self.conversation = conversation
        self._add()
        self._save_if_it_pays(_EAGER)

    def close(self) -> None:
        """Have what was read in the file too, if that pays; a session without anything is removed.

        Raises:
            SessionError: it cannot be written; what was there is still there.
        """
        self._add()
        self._save_if_it_pays(1)
        if self._is_new and not self._covered and not self._has_exchanges:
            self._writer.remove()

    def _add(self) -> None:
        """Have the conversation in the file."""
        from ..chat.session import change_of

        if self.conversation.messages == self._stored.messages:
            return
        if self._is_appendable:
            self._writer.append(change_of(self._stored, self.conversation))
            self._stored = self.conversation
        else:
            self._write(None)

    @property
    def _has_exchanges(self) -> bool:
        return any(message.role != "system" for message in self.conversation.messages)

    def _reopen(self) -> None:
        """Take in what the file has; where its state cannot be used, the text alone."""
        from ..chat.conversation import conversation_in
        from ..runtime.files.session_file import SessionFile

        with SessionFile(self._writer.path) as file:
            text = conversation_in(file)
            self._is_appendable = file.is_appendable
            self._writer.goes_on(file)
            session = self._loaded(file)
        beginning = self.conversation
        self._stored = self.conversation = replace(beginning, messages=text.messages)
        for message in beginning.messages:  # what was asked for now, in place of what is there
            self.conversation = self.conversation.system(message.text)
        if session is None:
            return
        self._covered, self._state_bytes = session.tokens, session.bytes
        count = sum(message.role == "user" for message in text.messages)
        exchanges = f"{count:,} exchange{'s' * (count > 1)}, " if count else ""
        if session.tokens:
            tokens = f"{len(session.tokens):,} tokens"
            aside(f"{exchanges}{tokens} reopened in {seconds_text(session.seconds)}.")
        elif count:
            aside(f"{exchanges}to be read anew.")

    def _loaded(self, file: SessionFile) -> Session | None:
        try:
            with delayed_progress() as progress:
                return self._sessions.load(file, progress)
        except SessionError as error:
            if self._model.engine.closed:
                raise
            kept = ""
            if file.fault is not None and not file.is_appendable:
                # It may hold more of what was said than can be read.
                kept = f" The file as it is stays as {_kept_aside(file.path)}."
            logger.warning("%s What was said is kept, and read anew.%s", _sentence(error), kept)
            return None

    def _save_if_it_pays(self, factor: float) -> None:
        """Have the state in the file, if reading anew what it lacks there would take longer."""
        from ..chat.session import common_beginning

        answer, self._answer = self._answer, None
        if answer is not None:
            self._count(answer)
        missing = len(self._last) - common_beginning(self._covered, self._last)
        if not (missing and self._read_tokens) or self._model.engine.closed:
            return
        seconds = missing * self._read_seconds / self._read_tokens
        if seconds > factor * self._state_bytes / _BYTES_A_SECOND:
            state = self._model.engine.state_of(self._last)
            if state is not None:
                self._write(state)

    def _count(self, answer: Stream) -> None:
        """How long a token of a prompt takes to read, and how many there are now."""
        answer.close()
        self._last = self._model.engine.last_prompt
        with suppress(EngineError):
            completion = answer.completion
            self._last += completion.tokens
            self._read_tokens += completion.prompt_tokens - completion.reused_tokens
            self._read_tokens += completion.reread_tokens
            self._read_seconds += completion.prefill_seconds

    def _write(self, state: SequenceState | None) -> None:
        with delayed_progress() as progress:
            session = self._sessions.save(self._writer, self.conversation, state, progress)
        self._stored = self.conversation
        self._is_appendable = True
        self._covered, self._state_bytes = session.tokens, session.bytes


@contextmanager
def claimed_session(path: str | None) -> Iterator[SessionWriter | None]:
    """The session's file for this process alone, before anything is loaded.

    Raises:
        SessionError: another process has it, it cannot be written, or it is not a session.
    """
    if path is None:
        yield None
        return
    from ..runtime.files.session_writer import SessionWriter

    with SessionWriter(path) as writer, ended_by_signals():
        yield writer


@contextmanager
def kept_session(
    model: Model, writer: SessionWriter | None, beginning: Conversation
) -> Iterator[KeptSession | None]:
    """The session in the file, saved at the end of the block, whatever ends it."""
    if writer is None:
        yield None
        return
    session = KeptSession(model, writer, beginning)
    try:
        yield session
    except BaseException:
        try:
            session.close()
        except Llama4EdgeError as error:  # what ended the block is told by others
            with suppress(OSError):
                complain(with_flags(str(error)))
        raise
    session.close()


def documents_to_add(
    documents: Sequence[Document], messages: Sequence[Message]
) -> Sequence[Document]:
    """Those that no message of the user holds yet, under whichever name."""
    asked = [message.text for message in messages if message.role == "user"]
    return [
        document for document in documents if not any(document.body in content for content in asked)
    ]


def pictures_to_add(parts: Sequence[Part], messages: Sequence[Message]) -> Sequence[Part]:
    """Those that no message of the user shows yet; the frames of a video if one of them is new.

    Args:
        parts: pictures, then frames with their times, as `PictureOptions.parts` gives them.
    """
    asked = [message.content for message in messages if message.role == "user"]
    shown = [part for content in asked if not isinstance(content, str) for part in content]
    n_pictures = next((at for at, part in enumerate(parts) if "text" in part), len(parts))
    frames = parts[n_pictures:]
    is_new = any(part not in shown for part in frames)
    return [
        *(part for part in parts[:n_pictures] if part not in shown),
        *(frames if is_new else ()),
    ]


def _kept_aside(path: Path) -> Path:
    """Another name for a file that is about to be replaced.

    Raises:
        SessionError: it cannot have one.
    """
    for number in range(1, _MOST_ASIDE + 1):
        other = path.with_name(f"{path.name}.damaged{number if number > 1 else ''}")
        try:
            os.link(path, other)
        except FileExistsError:
            continue
        except OSError:  # a disk without hard links
            try:
                shutil.copyfile(path, other)
            except OSError as error:
                raise SessionError(
                    f"{path}: the damaged session cannot be kept beside the new one",
                    found=error.strerror,
                    hint="Move it away.",
                ) from error
        return other
    raise SessionError(
        f"{path}: {_MOST_ASIDE} damaged sessions lie beside it", hint="Move them away."
    )


class Ended(SystemExit):
    """SIGTERM or SIGHUP; the exit code is a shell's for that."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does; the first of them, and the others wait.

    Python drops an exception that a signal raises while it frees objects; then the block ends with
    it where it would have ended anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [
        number
        for name in ("SIGTERM", "SIGHUP")
        if (number := getattr(signal, name, None)) is not None
        and signal.getsignal(number) is signal.SIG_DFL
    ]
    ending: Ended | None = None

    def end(number: int, _frame: object) -> None:
        nonlocal ending
        if ending is None:
            ending = Ended(128 + number)
            raise ending

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
        if ending is not None:
            raise ending
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def aside(text: str) -> None:
    """Say something to a person who watches."""
    with suppress(OSError):  # the terminal is gone
        if sys.stderr.isatty():
            note(text)


@contextmanager
def delayed_progress() -> Iterator[Callable[[Progress], None]]:
    """A bar of bytes for what takes longer than two seconds."""
    begun = time.monotonic()
    bar: Any = nullcontext()
    show: Callable[[Progress], None] | None = None

    def progress(at: Progress) -> None:
        nonlocal bar, show
        if show is None and isinstance(bar, nullcontext) and time.monotonic() - begun > _PATIENCE:
            bar = byte_progress()
            show = bar.__enter__()
        if show is not None:
            show(at)

    try:
        yield progress
    finally:
        bar.__exit__(None, None, None)


def _sentence(error: Llama4EdgeError) -> str:
    text = str(error)
    return text if text.endswith((".", "?", "!")) else f"{text}."
