"""Conversations in a file, one a line, with pictures beside it.

Promises that a line which is no conversation is named. Opens no pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..ranges import as_path
from ..untrusted import Reader, Record

_READER = Reader(
    SettingError, 2**32, 'Each line is an object like {"messages": [{"role": …, "content": …}]}.'
)
_URLS = ("data:", "http:", "https:")


def read_conversations(path: str | os.PathLike[str]) -> list[list[dict[str, Any]]]:
    """Read conversations, as `Model.chat` and `calibrate` take their messages.

    Each line is an object: ``{"messages": [{"role": "user", "content": …}, …]}``. Content is a text
    or a list of parts, ``{"type": "text", "text": …}`` and ``{"type": "image", "image": FILE}``;
    a picture's file is looked for from the directory of this one. Empty lines are left out.

    Raises:
        SettingError: it cannot be read, or a line is something else.
    """
    name = as_path("path", path)
    lines = _READER.text(name).split("\n")
    talks = [
        _conversation(line, f"{name}: line {number}", Path(name).parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not talks:
        raise SettingError(f"{name} has no conversations", hint=_READER.hint)
    return talks


def _conversation(line: str, name: str, directory: Path) -> list[dict[str, Any]]:
    record = _READER.as_record(_READER.parse(line, name), name)
    messages = record.records("messages")
    if not messages:
        raise record.fault("messages", "at least one message")
    return [_message(message, directory) for message in messages]


def _message(message: Record, directory: Path) -> dict[str, Any]:
    fields = {**message.fields, "role": message.text("role")}
    content = message.get("content")
    if isinstance(content, list):
        fields["content"] = list(_parts(message, directory))
    else:
        fields["content"] = message.text("content", default="")
    return fields


def _parts(message: Record, directory: Path) -> Iterator[dict[str, Any]]:
    for part in message.records("content"):
        image = part.get("image")
        if part.get("type") != "image" or image is None:
            yield dict(part.fields)
            continue
        file = part.text("image")
        # A picture on the web is refused by who opens it.
        is_file = not file.startswith(_URLS)
        yield {**part.fields, "image": os.path.join(directory, file) if is_file else file}  # noqa: PTH118
