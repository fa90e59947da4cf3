"""Conversations as values, and the files they are saved in.

Promises that a saved file is complete or absent, and that a damaged one raises a SessionError.
Knows nothing of models, templates or terminals.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SessionError, SettingError
from ..runtime.sampling import Sampling
from ..system.files import write_atomically

if TYPE_CHECKING:
    from .answer import Completion

FORMAT = "llama4-edge conversation"
VERSION = 1

MAX_BYTES = 1 << 30
"""The largest file that is read: ten million tokens of text are about 40 MB."""


@dataclass(frozen=True)
class Message:
    """One message: who speaks (``system``, ``user``, ``assistant``, …) and the text.

    Raises:
        SettingError: one of them is not a string.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        for name in ("role", "content"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise SettingError(
                    f"the {name} of a message is not a string", found=repr(value), expected="text"
                )


@dataclass(frozen=True)
class Conversation:
    """What was said, to which model (its name), and how its answers were sampled.

        >>> talk = Conversation().user("What is the capital of France?")
        >>> talk = talk.assistant(model.chat(talk))
        >>> talk.save("talk.json")

    Args:
        messages: oldest first; mappings with "role" and "content" are taken too.

    Raises:
        SettingError: the messages are of the wrong type.
    """

    messages: tuple[Message, ...] = ()
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", _as_messages(self.messages))

    def system(self, text: str) -> Conversation:
        """The same conversation with this system message, in place of the one it begins with."""
        begins = bool(self.messages) and self.messages[0].role == "system"
        rest = self.messages[1:] if begins else self.messages
        return replace(self, messages=(Message("system", text), *rest))

    def user(self, text: str) -> Conversation:
        """The conversation with a message of the user at its end."""
        return replace(self, messages=(*self.messages, Message("user", text)))

    def assistant(self, answer: str | Completion) -> Conversation:
        """The conversation with an answer at its end."""
        text = answer if isinstance(answer, str) else answer.text
        return replace(self, messages=(*self.messages, Message("assistant", text)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation as JSON, replacing the file in one step.

        Raises:
            SessionError: the file cannot be written; what was there before is still there.
        """
        text = json.dumps(self._as_dict(), ensure_ascii=False, indent=2) + "\n"
        # A lone surrogate (a byte that was not UTF-8 on the terminal) cannot be written as UTF-8;
        # "backslashreplace" spells it the way JSON does, so that it comes back when read.
        data = text.encode("utf-8", "backslashreplace")
        try:
            write_atomically(path, data, private=True)
        except (OSError, ValueError) as error:
            raise SessionError(
                f"{path}: the conversation cannot be saved",
                found=getattr(error, "strerror", None) or str(error),
                hint="Choose a directory that exists and that you may write to.",
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Conversation:
        """Read a conversation that ``save`` wrote.

        Raises:
            SessionError: the file is missing, damaged, or of another kind or version.
        """
        source = Path(path)
        try:
            text = _read(source)
        except (OSError, ValueError) as error:
            raise SessionError(
                f"{source}: the conversation cannot be read",
                found=getattr(error, "strerror", None) or str(error),
            ) from error
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged(source, f"{error}", "JSON") from error
        return cls._from_dict(source, data)

    def _as_dict(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "sampling": asdict(self.sampling),
            "messages": [asdict(message) for message in self.messages],
        }

    @classmethod
    def _from_dict(cls, source: Path, data: object) -> Conversation:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise _damaged(source, "something else", f'an object with "format": "{FORMAT}"')
        if data.get("version") != VERSION:
            raise SessionError(
                f"{source}: the conversation is of a version that this release does not read",
                found=repr(data.get("version")),
                expected=str(VERSION),
                hint="Open it with the release that saved it.",
            )
        names = [entry.name for entry in fields(cls)]
        _expect_keys(source, "the conversation", data, [*names, "format", "version"])
        if not isinstance(data["model"], str):
            raise _damaged(source, f'"model": {data["model"]!r}', "a string")
        return cls(
            messages=_messages(source, data["messages"]),
            model=data["model"],
            sampling=_sampling(source, data["sampling"]),
        )


def _as_messages(messages: object) -> tuple[Message, ...]:
    if isinstance(messages, str | Mapping | Message) or not isinstance(messages, Iterable):
        raise SettingError(
            "messages are of the wrong type",
            found=repr(messages),
            expected="a sequence of Message values",
        )
    return tuple(
        message if isinstance(message, Message) else _as_message(message) for message in messages
    )


def _as_message(message: object) -> Message:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise SettingError(
            "a message is of the wrong type",
            found=repr(message),
            expected='a Message, or {"role": "user", "content": "..."}',
        )
    return Message(**message)


def _read(source: Path) -> bytes:
    """The bytes of a regular file that is not too large for a conversation.

    Raises:
        OSError: it is neither, or cannot be read.
    """
    # A FIFO would be waited for here otherwise.
    descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > MAX_BYTES:
            raise OSError(f"it is larger than {MAX_BYTES} bytes")
        return file.read()


def _messages(source: Path, data: object) -> tuple[Message, ...]:
    if not isinstance(data, list):
        raise _damaged(source, f'"messages" as {type(data).__name__}', "a list")
    for number, item in enumerate(data, start=1):
        where = f"message {number}"
        if not isinstance(item, dict):
            raise _damaged(source, f"{where} as {type(item).__name__}", "an object")
        _expect_keys(source, where, item, [entry.name for entry in fields(Message)])
        for key, value in item.items():
            if not isinstance(value, str):
                raise _damaged(source, f'{where} with "{key}": {value!r}', "a string")
    return tuple(Message(**item) for item in data)


def _sampling(source: Path, data: object) -> Sampling:
    if not isinstance(data, dict):
        raise _damaged(source, f'"sampling" as {type(data).__name__}', "an object")
    _expect_keys(source, '"sampling"', data, [entry.name for entry in fields(Sampling)])
    try:
        return Sampling(**data)
    except SettingError as error:
        raise _damaged(source, f'"sampling" where {error}', "settings in their ranges") from error


def _expect_keys(source: Path, where: str, data: Mapping[str, Any], expected: Any) -> None:
    if set(data) != set(expected):
        keys = ", ".join(sorted(data)) or "nothing"
        raise _damaged(source, f"{where} with {keys}", ", ".join(sorted(expected)))


def _damaged(source: Path, found: str, expected: str) -> SessionError:
    return SessionError(
        f"{source}: this is not a saved conversation, or it is damaged",
        found=found,
        expected=expected,
    )
