"""Conversations as values, and the files they are saved in.

Promises that a saved file is complete or absent, and that a damaged one raises a SessionError.
Knows nothing of models, templates or terminals.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast, get_args

from ..errors import SessionError, SettingError
from ..ranges import as_path, check_choice, check_text
from ..runtime.sampling import Sampling
from ..system.files import write_atomically
from ..untrusted import Reader, Record, shown
from .options import WhenFull
from .pictures import Part, is_kept, kept_parts
from .tool_calls import ToolCall, as_calls, call_of_record

if TYPE_CHECKING:
    from ..runtime.files.session_file import SessionFile
    from .answer import Completion

logger = logging.getLogger(__name__)

FORMAT = "llama4-edge conversation"
VERSION = 2
"""Of the format. Version 1 has no calls of tools; what has none is written as version 1 still."""

MAX_BYTES = 1 << 27
"""The largest file that is read: ten million tokens of text are about 40 MB."""

# Of version 1 of the format: what is written where it is not as by default, because it had no such
# thing at first; and the settings that it had then, which readers of it expect.
_NOT_ALWAYS = {"when_full"}
_FIRST_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "seed")


Content = str | tuple[Part, ...]
"""What a message says: a text, or parts."""


@dataclass(frozen=True)
class Message:
    """One message: who speaks (``system``, ``user``, ``assistant``, …) and what.

    Args:
        content: a text, or parts of text and pictures, which then are kept in the message itself;
            see `with_images`.
        tool_calls: what an answer calls of tools, as `ToolCall` values or in OpenAI's form.
        tool_call_id: of the call whose result this message is, where its role is ``tool``.

    Raises:
        SettingError: one of them is of the wrong type.
        ImageError: a picture cannot be read.
    """

    role: str
    content: Content
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tool_calls", as_calls(self.tool_calls))
        check_text("the tool_call_id of a message", self.tool_call_id, or_none=True)
        if isinstance(self.content, list | tuple):
            object.__setattr__(self, "content", kept_parts(self.content))
        for name, kinds in (("role", str), ("content", str | tuple)):
            value = getattr(self, name)
            if not isinstance(value, kinds):
                raise SettingError(
                    f"the {name} of a message is not a string", found=shown(value), expected="text"
                )

    def __repr__(self) -> str:
        """As Python writes it, with a word for each picture, which may have megabytes."""
        calls = f", tool_calls={self.tool_calls!r}" if self.tool_calls else ""
        result = "" if self.tool_call_id is None else f", tool_call_id={self.tool_call_id!r}"
        return f"Message(role={self.role!r}, content={str(self)!r}{calls}{result})"

    @property
    def text(self) -> str:
        """What it says, without its pictures."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part["text"] for part in self.content if part["type"] == "text")

    def __str__(self) -> str:
        """The same, with a word for each picture."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(part.get("text", "[picture]") for part in self.content)


@dataclass(frozen=True)
class Conversation:
    """What was said, to which model (its name), and how its answers are made.

        >>> talk = Conversation().user("What is the capital of France?")
        >>> talk = talk.assistant(model.chat(talk))
        >>> talk.save("talk.json")

    Args:
        messages: oldest first; mappings with "role" and "content" are taken too.
        sampling: how tokens are chosen.
        when_full: what happens at the end of the context; see ``Model.chat``.

    Raises:
        SettingError: one of them is of the wrong type.
    """

    messages: tuple[Message, ...] = ()
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    when_full: WhenFull = "stop"

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", _as_messages(self.messages))
        for name, kind in (("model", str), ("sampling", Sampling)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise SettingError(
                    f"the {name} of a conversation is of the wrong type",
                    found=shown(value),
                    expected="a string" if kind is str else "a Sampling",
                )
        check_choice("when_full", self.when_full, get_args(WhenFull))

    def system(self, text: str) -> Conversation:
        """The same conversation with this system message, in place of the one it begins with."""
        begins = bool(self.messages) and self.messages[0].role == "system"
        rest = self.messages[1:] if begins else self.messages
        return replace(self, messages=(Message("system", text), *rest))

    def user(self, content: str | Iterable[Part]) -> Conversation:
        """The conversation with a message of the user at its end; parts as by `with_images`."""
        # `Message` refuses what is neither.
        return replace(self, messages=(*self.messages, Message("user", content)))  # type: ignore[arg-type]

    def assistant(self, answer: str | Completion) -> Conversation:
        """The conversation with an answer at its end, and the answer's calls of tools."""
        message = getattr(answer, "message", None)
        if not isinstance(message, Message):
            message = Message("assistant", answer)  # type: ignore[arg-type]  # it refuses others
        return replace(self, messages=(*self.messages, message))

    def tool(self, call: ToolCall | str, result: str) -> Conversation:
        """The conversation with the result of a call of a tool at its end.

        Args:
            call: the call, or its id.
            result: what the tool gave back.
        """
        identifier = call.id if isinstance(call, ToolCall) else call
        message = Message("tool", result, tool_call_id=identifier)
        return replace(self, messages=(*self.messages, message))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation as JSON, replacing the file in one step.

        Raises:
            SessionError: the file cannot be written; what was there before is still there.
        """
        path = as_path("path", path)
        try:
            write_atomically(path, as_json(as_record(self)), private=True)
        except (OSError, ValueError) as error:
            raise SessionError(
                f"{path}: the conversation cannot be saved",
                found=getattr(error, "strerror", None) or str(error),
                hint="Choose a directory that exists and that you may write to.",
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Conversation:
        """Read a conversation that ``save`` wrote, or the one in a session.

        Raises:
            SessionError: the file is missing, damaged, or of another kind or version.
        """
        path = as_path("path", path)
        from ..runtime.files.session_file import SessionFile, is_session  # with llama.cpp

        if is_session(path):
            with SessionFile(path) as file:
                return conversation_in(file)
        return _conversation(_reader().record(path))


def conversation_in(file: SessionFile) -> Conversation:
    """What was said in a session, as far as it is whole; a warning says where it is not.

    Raises:
        SessionError: the text is of another version or form.
    """
    name, reader = str(file.path), _reader()
    written = _conversation(reader.as_record(reader.parse(file.text, name), name))
    messages = written.messages
    for turn in file.turns:
        record = reader.as_record(reader.parse(turn, name), name)
        kept = record.integer("keep", 0, len(messages))
        messages = (*messages[:kept], *_messages(record))
    if file.torn and file.fault is None:
        text = "%s: what was said last was not written whole, and is left out (%d bytes)"
        logger.warning(text, name, file.torn)
    return replace(written, messages=messages)


def as_record(conversation: Conversation) -> dict[str, object]:
    """The conversation as it is written."""
    return {
        "format": FORMAT,
        "version": VERSION if any(map(_has_tools, conversation.messages)) else 1,
        "model": conversation.model,
        "sampling": _changed(conversation.sampling),
        **({} if conversation.when_full == "stop" else {"when_full": conversation.when_full}),
        "messages": [message_record(message) for message in conversation.messages],
    }


def message_record(message: Message) -> dict[str, Any]:
    """A message as it is written; without what it has not."""
    record: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        record["tool_calls"] = [call.as_record() for call in message.tool_calls]
    if message.tool_call_id is not None:
        record["tool_call_id"] = message.tool_call_id
    return record


def _has_tools(message: Message) -> bool:
    return bool(message.tool_calls) or message.tool_call_id is not None


def _conversation(file: Record) -> Conversation:
    if file.get("format") != FORMAT:
        raise _damaged(file, "something else", f'an object with "format": "{FORMAT}"')
    if file.get("version") not in (1, VERSION):
        raise SessionError(
            f"{file.name}: the conversation is of a version that this release does not read",
            found=shown(file.get("version")),
            expected=f"1 to {VERSION}",
            hint="Open it with the release that saved it.",
        )
    names = {entry.name for entry in fields(Conversation)} - (_NOT_ALWAYS - set(file))
    _expect_keys(file, "the conversation", {*names, "format", "version"})
    return Conversation(
        messages=_messages(file),
        model=file.text("model"),
        sampling=_sampling(file.record("sampling")),
        when_full=_when_full(file),
    )


def _reader() -> Reader:
    return Reader(SessionError, MAX_BYTES, surrogates=True)


def as_json(record: object, indent: int | None = 2) -> bytes:
    """A value as JSON in UTF-8."""
    text = json.dumps(record, ensure_ascii=False, indent=indent) + "\n"
    # A lone surrogate (a byte that was not UTF-8 on the terminal) cannot be written as UTF-8;
    # "backslashreplace" spells it the way JSON does, so that it comes back when read.
    return text.encode("utf-8", "backslashreplace")


def _messages(record: Record) -> tuple[Message, ...]:
    return tuple(map(_message, record.records("messages")))


def _as_messages(messages: object) -> tuple[Message, ...]:
    if isinstance(messages, str | Mapping | Message) or not isinstance(messages, Iterable):
        raise SettingError(
            "messages are of the wrong type",
            found=shown(messages),
            expected="a sequence of Message values",
        )
    return tuple(
        message if isinstance(message, Message) else _as_message(message) for message in messages
    )


def _as_message(message: object) -> Message:
    names = set(message) if isinstance(message, Mapping) else set()
    known = {entry.name for entry in fields(Message)}
    if not (isinstance(message, Mapping) and {"role", "content"} <= names <= known):
        raise SettingError(
            "a message is of the wrong type",
            found=shown(", ".join(map(str, message)) if isinstance(message, Mapping) else message),
            expected='a Message, or {"role": "user", "content": "..."}',
        )
    given = {name: value for name, value in message.items() if value is not None}
    if message.get("tool_calls"):
        given.setdefault("content", "")  # OpenAI has null beside calls
    return Message(**{"role": None, "content": None, **given})


def _message(record: Record) -> Message:
    optional = {"tool_calls", "tool_call_id"} & set(record)
    _expect_keys(record, "a message", {"role", "content", *optional})
    content = record["content"]
    tools: dict[str, Any] = {}
    if "tool_call_id" in record:
        tools["tool_call_id"] = record.text("tool_call_id")
    if "tool_calls" in record:
        try:
            tools["tool_calls"] = tuple(map(call_of_record, record.records("tool_calls")))
        except SettingError as error:
            raise _damaged(record, f'"tool_calls" where {error}', "calls of tools") from error
    if isinstance(content, list):
        # What names a file is not for a conversation that somebody else may have written.
        if not all(map(is_kept, content)):
            raise record.fault("content", "texts and pictures as data: URLs")
        return Message(record.text("role"), tuple(content), **tools)
    return Message(record.text("role"), record.text("content"), **tools)


def _sampling(record: Record) -> Sampling:
    """The sampling of a file; what it does not name is as by default."""
    defaults = vars(Sampling())
    unknown = sorted(set(record) - set(defaults))
    if unknown:
        raise _damaged(record, f'"sampling" with {shown(unknown[0])}', ", ".join(defaults))
    try:
        return Sampling(**{name: _setting(record, name, defaults[name]) for name in record})
    except SettingError as error:
        raise _damaged(record, f'"sampling" where {error}', "settings in their ranges") from error


def _setting(record: Record, name: str, default: object) -> Any:
    """A setting of the type that its default has."""
    if name == "seed":
        return None if record[name] is None else record.integer(name)
    if isinstance(default, tuple):
        return record.elements(name)
    return record.integer(name) if isinstance(default, int) else record.number(name)


def _when_full(record: Record) -> WhenFull:
    value = record.text("when_full", default="stop")
    if value not in get_args(WhenFull):
        raise record.fault("when_full", " or ".join(get_args(WhenFull)))
    return cast("WhenFull", value)


def _changed(sampling: Sampling) -> dict[str, object]:
    """The settings to save: those that releases before 0.2 know, and what is not as by default."""
    defaults = vars(Sampling())
    return {
        name: value
        for name, value in asdict(sampling).items()
        if name in _FIRST_SETTINGS or value != defaults[name]
    }


def _expect_keys(record: Record, where: str, expected: Iterable[str]) -> None:
    if set(record) != set(expected):
        keys = shown(", ".join(sorted(record))) if record else "nothing"
        raise _damaged(record, f"{where} with {keys}", ", ".join(sorted(expected)))


def _damaged(record: Record, found: str, expected: str) -> SessionError:
    return SessionError(
        f"{record.name}: this is not a saved conversation, or it is damaged",
        found=found,
        expected=expected,
    )
