"""Conversations as values, and the files they are saved in.

Promises that a saved file is whole or not there, and that a damaged one is one SessionError. Knows
nothing of models, templates or terminals.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import SessionError, SettingError
from ..runtime.sampling import Sampling
from ..system.files import write_atomically

FORMAT = "llama4-edge conversation"
VERSION = 1


@dataclass(frozen=True)
class Message:
    """One message: who speaks (``system``, ``user``, ``assistant``, …) and the text."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """What was said, to which model (its name), and how its answers were sampled."""

    messages: tuple[Message, ...] = ()
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation as JSON, replacing the file in one step.

        Raises:
            SessionError: the file cannot be written; what was there before is still there.
        """
        target = Path(path)
        text = json.dumps(self._as_dict(), ensure_ascii=False, indent=2) + "\n"
        # A lone surrogate (a byte that was not UTF-8 on the terminal) cannot be written as UTF-8;
        # "backslashreplace" spells it the way JSON does, so that it comes back when read.
        data = text.encode("utf-8", "backslashreplace")
        try:
            write_atomically(target, data, private=True)
        except OSError as error:
            raise SessionError(
                f"{target}: the conversation cannot be saved",
                found=error.strerror or str(error),
                hint="Choose a folder that exists and that you may write to.",
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Conversation:
        """Read a conversation that ``save`` wrote.

        Raises:
            SessionError: the file is missing, damaged, or of another kind or version.
        """
        source = Path(path)
        try:
            data = json.loads(source.read_bytes())
        except OSError as error:
            raise SessionError(
                f"{source}: the conversation cannot be read", found=error.strerror or str(error)
            ) from error
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
                f"{source}: the conversation has a version that this program does not read",
                found=repr(data.get("version")),
                expected=str(VERSION),
                hint="Open it with the release that saved it.",
            )
        _expect_keys(source, "the conversation", data, (*cls().__dict__, "format", "version"))
        if not isinstance(data["model"], str):
            raise _damaged(source, f'"model": {data["model"]!r}', "a string")
        return cls(
            messages=_messages(source, data["messages"]),
            model=data["model"],
            sampling=_sampling(source, data["sampling"]),
        )


def _messages(source: Path, data: object) -> tuple[Message, ...]:
    if not isinstance(data, list):
        raise _damaged(source, f'"messages" as {type(data).__name__}', "a list")
    for number, item in enumerate(data, start=1):
        where = f"message {number}"
        if not isinstance(item, dict):
            raise _damaged(source, f"{where} as {type(item).__name__}", "an object")
        _expect_keys(source, where, item, [one.name for one in fields(Message)])
        for key, value in item.items():
            if not isinstance(value, str):
                raise _damaged(source, f'{where} with "{key}": {value!r}', "a string")
    return tuple(Message(**item) for item in data)


def _sampling(source: Path, data: object) -> Sampling:
    if not isinstance(data, dict):
        raise _damaged(source, f'"sampling" as {type(data).__name__}', "an object")
    _expect_keys(source, '"sampling"', data, [one.name for one in fields(Sampling)])
    try:
        return Sampling(**data)
    except SettingError as error:
        raise _damaged(source, f'"sampling" where {error}', "settings in their ranges") from error


def _expect_keys(source: Path, where: str, data: Mapping[str, Any], expected: Any) -> None:
    if set(data) != set(expected):
        found = ", ".join(sorted(data)) or "nothing"
        raise _damaged(source, f"{where} with {found}", ", ".join(sorted(expected)))


def _damaged(source: Path, found: str, expected: str) -> SessionError:
    return SessionError(
        f"{source}: this is not a saved conversation, or it is damaged",
        found=found,
        expected=expected,
    )
