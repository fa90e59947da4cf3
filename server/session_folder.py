"""The conversations that a server keeps: one session's file each, in one folder.

Promises that a name leads to a file of that folder and nowhere else, that each change is whole or
not there, that nobody's change is lost to another window, and that what a model has read is kept
with it. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from ..chat.conversation import Conversation, Message, as_json, as_record, conversation_in
from ..chat.session import change_of, common_beginning, is_mostly
from ..errors import EngineError, Llama4EdgeError, SessionError, SettingError
from ..ranges import as_path
from ..runtime.files.session_file import SessionFile, is_session
from ..runtime.files.session_writer import SessionWriter
from ..system.files import disk_hint
from ..untrusted import shown

if TYPE_CHECKING:
    from ..model import Model

logger = logging.getLogger(__name__)

ENDING = ".l4s"

LONGEST_NAME = 80
"""Characters of a name."""

_LONGEST_BYTES = 200  # of a name in UTF-8: file systems have 255, and temporary files more letters
_LONGEST_TITLE = 50
_MOST_ALIKE = 1000
_WORTH_KEEPING = 64  # tokens: reading so few again takes no longer than a state does
_FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # by Windows


@dataclass(frozen=True)
class Entry:
    """A conversation in the list.

    Args:
        modified: when it was changed last, in seconds since 1970.
        bytes: of its file, what the model has read among them.
    """

    name: str
    modified: float
    bytes: int


@dataclass(frozen=True)
class Kept:
    """A conversation, and the version that a change of it begins from."""

    name: str
    conversation: Conversation
    version: str


@dataclass(frozen=True)
class Resumed:
    """What a model has of a conversation when it is opened.

    Args:
        tokens: that need not be read again.
        note: why there are none of those in the file, None where there is nothing to say.
    """

    tokens: int
    note: str | None = None


class MissingSessionError(SessionError):
    """There is no conversation of this name."""


class ChangedSessionError(SessionError):
    """The conversation is not as it was when the change began, or not to be changed now."""


class SessionFolder:
    """A folder of conversations. Any thread may use it.

    Args:
        path: made, for its owner alone, where it is missing.

    Raises:
        SessionError: it cannot be made or written to.
        SettingError: it is of the wrong type.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(as_path("sessions", path))
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_writable = os.access(self.path, os.R_OK | os.W_OK | os.X_OK)
        except OSError as error:
            raise SessionError(
                f"{self.path}: conversations cannot be kept there",
                found=error.strerror,
                hint=disk_hint(error),
            ) from error
        if not is_writable:
            raise SessionError(
                f"{self.path}: conversations cannot be kept there",
                found="a directory that this user may not write to",
                hint="Choose another one.",
            )
        self._turn = threading.Condition()
        self._busy: set[str] = set()
        self._covered: dict[str, int] = {}  # tokens of the state in a file that still count
        self._touched: set[str] = set()  # those that may lack what was read lately

    # --- what is there

    def without_path(self, text: str) -> str:
        """What an error says of a conversation's file, without where that is."""
        for path in (self.path.resolve(), self.path.absolute(), self.path):
            if path != Path():
                text = text.replace(f"{path}{os.sep}", "").replace(str(path), "the folder")
        return text

    def entries(self) -> list[Entry]:
        """All conversations, that which was changed last first."""
        entries = []
        with os.scandir(self.path) as files:
            for file in files:
                name = file.name.removesuffix(ENDING)
                if name == file.name or not _is_name(name):
                    continue
                with suppress(OSError):  # removed meanwhile
                    if file.is_file(follow_symlinks=False):
                        status = file.stat(follow_symlinks=False)
                        entries.append(Entry(name, status.st_mtime, status.st_size))
        return sorted(entries, key=lambda entry: (-entry.modified, entry.name))

    def read(self, name: str) -> Kept:
        """A conversation.

        Raises:
            MissingSessionError: there is none of this name.
            SessionError: its file is damaged, or of a version that cannot be read.
        """
        with SessionFile(self._existing(name)) as file:
            conversation = conversation_in(file)
        return Kept(name, conversation, _version(conversation))

    # --- what is changed

    def create(self, model: Model, conversation: Conversation) -> Kept:
        """Keep a new conversation, under a name that its first question gives.

        Raises:
            SessionError: it cannot be written.
        """
        title = title_of(conversation)
        for number in count(1):
            name = title if number == 1 else f"{title} {number}"
            path = self._path(name)
            with self._claimed(name):
                if os.path.lexists(path):
                    if number < _MOST_ALIKE:
                        continue
                    raise SessionError(f"{self.path}: too many conversations are called {title}")
                with SessionWriter(path) as writer:
                    model.sessions.save(writer, conversation, None)
                self._note(name, 0)
                return Kept(name, conversation, _version(conversation))
        raise AssertionError

    def change(self, name: str, version: str, messages: tuple[Message, ...]) -> Kept:
        """Have a conversation say this.

        Args:
            version: of what the change begins from.

        Raises:
            MissingSessionError: there is none of this name.
            ChangedSessionError: it has another version now, is damaged, or another process has it.
            SessionError: it cannot be written; what was there is still there.
        """
        with self._claimed(name), self._writer(name) as writer:
            with SessionFile(writer.path) as file:
                before = conversation_in(file)
                if not file.is_appendable:
                    raise ChangedSessionError(
                        f"{name}: the conversation's file is damaged, or of another version",
                        hint="Save it as another one.",
                    )
                writer.goes_on(file)
            if version != _version(before):
                raise ChangedSessionError(
                    f"{name}: the conversation was changed meanwhile, in another window",
                    hint="Open it again, or save yours as another one.",
                )
            after = replace(before, messages=messages)
            if after != before:
                writer.append(change_of(before, after))
                goes_on = before.messages == messages[: len(before.messages)]
                self._note(name, self._covered.get(name, 0) if goes_on else 0)
            return Kept(name, after, _version(after))

    def rename(self, name: str, new_name: str) -> str:
        """Give a conversation another name; returns it as it is written.

        Raises:
            SettingError: it is no name for one.
            MissingSessionError: there is no conversation of the old name.
            ChangedSessionError: there is one of the new name, or another process has it open.
            SessionError: its file cannot be renamed.
        """
        new_name = checked_name(new_name)
        if new_name == name:
            return name
        target = self._path(new_name)
        with self._claimed(name, new_name), self._writer(name) as writer:
            if os.path.lexists(target):
                raise ChangedSessionError(
                    f"{new_name}: a conversation has this name already", hint="Choose another one."
                )
            with _renaming(name):
                writer.path.rename(target)
            if name in self._covered:
                self._covered[new_name] = self._covered.pop(name)
            if name in self._touched:
                self._touched.remove(name)
                self._touched.add(new_name)
        return new_name

    def remove(self, name: str) -> None:
        """Remove a conversation.

        Raises:
            MissingSessionError: there is none of this name.
            ChangedSessionError: another process has it open.
            SessionError: its file cannot be removed.
        """
        with self._claimed(name), self._writer(name) as writer:
            with _renaming(name):
                writer.path.unlink()
            self._covered.pop(name, None)
            self._touched.discard(name)

    # --- what a model has read

    def resume(self, model: Model, name: str) -> Resumed:
        """Have a model take up what is in a conversation's file, where it has less of it.

        Raises:
            MissingSessionError: there is none of this name.
            SessionError: the text of its file cannot be read.
        """
        with self._claimed(name):
            path = self._existing(name)
            with SessionFile(path) as file:
                conversation = conversation_in(file)
                n_kept = file.head.n_tokens if file.head else 0
            try:
                tokens = model.chat_prompt(conversation).positions
                n_held = _n_held(model, tokens)
                if n_held < n_kept - _WORTH_KEEPING:
                    model.load_session(path)
                    n_held = _n_held(model, tokens)
            except EngineError:
                raise
            except Llama4EdgeError as error:
                logger.warning("what was read of %s cannot be taken up: %s", shown(name), error)
                self._covered[name] = 0
                problem = self.without_path(str(error))
                return Resumed(0, f"{problem} What was said is here, and is read anew.")
            self._covered[name] = min(n_kept, n_held)
            return Resumed(n_held)

    def keep_state(self, model: Model, name: str) -> bool:
        """Have what a model has read in a conversation's file, if that has less than half of it."""
        return self._keep(model, name, lambda n_covered: max(n_covered, _WORTH_KEEPING))

    def keep_states(self, model: Model) -> None:
        """Have all that a model has read in the files, before it is freed."""
        for name in sorted(self._touched):
            self._keep(model, name, lambda _: _WORTH_KEEPING)

    def n_tokens(self, model: Model, conversation: Conversation) -> int | None:
        """How many tokens a conversation has; None where it is no prompt of this model."""
        try:
            return len(model.chat_prompt(conversation))
        except Llama4EdgeError:
            return None

    def _keep(self, model: Model, name: str, least: Callable[[int], int]) -> bool:
        """Write a state that has so many tokens more than the file; whether one was written."""
        try:
            with self._claimed(name):
                conversation = self.read(name).conversation
                tokens = model.chat_prompt(conversation).positions
                n_covered = self._covered.get(name, 0)
                if _n_held(model, tokens) - n_covered < least(n_covered):
                    return False
                state = model.engine.state_of(tokens, model.engine.adapters.scales)
                if state is None or not is_mostly(state, tokens):
                    return False
                with self._writer(name) as writer:
                    model.sessions.save(writer, conversation, state)
                self._covered[name] = len(state.tokens)
                self._touched.discard(name)
                return True
        except MissingSessionError:
            return False
        except Llama4EdgeError as error:
            logger.warning("what was read of %s is not kept: %s", shown(name), error)
            return False

    # --- names and turns

    def _path(self, name: str) -> Path:
        return self.path / f"{name}{ENDING}"

    def _existing(self, name: str) -> Path:
        """The file of a conversation.

        Raises:
            MissingSessionError: there is none.
        """
        if _is_name(name):
            path = self._path(name)
            if path.is_file() and not path.is_symlink():
                return path
        raise MissingSessionError("there is no conversation of this name", found=shown(name))

    @contextmanager
    def _writer(self, name: str) -> Iterator[SessionWriter]:
        """The file of a conversation, for this process alone.

        Raises:
            MissingSessionError: there is none.
            ChangedSessionError: another process has it, or it is no session.
        """
        path = self._existing(name)
        if not is_session(path):
            raise ChangedSessionError(f"{name}: this is not a session")
        try:
            writer = SessionWriter(path)
        except SessionError as error:
            raise ChangedSessionError(error.problem, found=error.found, hint=error.hint) from error
        with writer:
            if not writer.exists:
                raise MissingSessionError("there is no conversation of this name", found=name)
            yield writer

    @contextmanager
    def _claimed(self, *names: str) -> Iterator[None]:
        """Have some conversations to oneself, of all threads."""
        wanted = set(names)
        with self._turn:
            self._turn.wait_for(lambda: not self._busy & wanted)
            self._busy |= wanted
        try:
            yield
        finally:
            with self._turn:
                self._busy -= wanted
                self._turn.notify_all()

    def _note(self, name: str, n_covered: int) -> None:
        """A conversation was changed, and so many tokens of the state in its file still count."""
        self._covered[name] = n_covered
        self._touched.add(name)


def checked_name(text: str) -> str:
    """The name that a text is for a conversation.

    Raises:
        SettingError: it is none.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not _is_name(name):
        raise SettingError(
            "name is no name for a conversation",
            found=shown(text),
            expected=f"1 to {LONGEST_NAME} printable characters, none of them in / \\ : * ? "
            '" < > |, and no dot at either end',
        )
    return name


def title_of(conversation: Conversation) -> str:
    """A name for a conversation: the beginning of its first question."""
    questions = (one.text for one in conversation.messages if one.role == "user")
    text = next(chain(filter(None, map(str.strip, questions)), [""]))[: 4 * LONGEST_NAME]
    text = unicodedata.normalize("NFC", text)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    words = _FORBIDDEN.sub(" ", text).split()
    title = ""
    for word in words:
        longer = f"{title} {word}".strip()
        if len(longer) > _LONGEST_TITLE:
            break
        title = longer
    title = (title or "".join(words[:1])[:_LONGEST_TITLE]).strip(". ")
    return title if _is_name(title) else "Conversation"


def _is_name(name: str) -> bool:
    """Whether a name is one here, and of a file on every system."""
    return bool(
        0 < len(name) <= LONGEST_NAME
        and name.isprintable()
        and not _FORBIDDEN.search(name)
        and name == unicodedata.normalize("NFC", name).strip(". ")
        and not _RESERVED.fullmatch(name)
        and len(name.encode()) <= _LONGEST_BYTES
    )


def _n_held(model: Model, tokens: Sequence[int]) -> int:
    """How many of these tokens a model has read, with the adapters that it has now."""
    engine = model.engine
    held = (one.tokens for one in engine.held() if one.adapters == engine.adapters.scales)
    return max((common_beginning(one, tokens) for one in held), default=0)


def _version(conversation: Conversation) -> str:
    return hashlib.sha256(as_json(as_record(conversation), indent=None)).hexdigest()[:32]


@contextmanager
def _renaming(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SessionError(
            f"{name}: its file cannot be renamed or removed",
            found=error.strerror,
            hint=disk_hint(error),
        ) from error
