"""What ``/conversations`` reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ..body import Schema
from .openai import MessageField

Messages = Annotated[list[MessageField], Field(min_length=1)]


class NewConversation(Schema):
    """A conversation to keep."""

    messages: Messages


class ChangedConversation(Schema):
    """What a conversation says now."""

    version: str = Field(description="Of what the change begins from.")
    messages: Messages


class NewName(Schema):
    """Another name for a conversation."""

    name: str


class Nothing(Schema):
    """An object without fields."""


class ConversationEntry(Schema):
    """A conversation in the list."""

    name: str
    modified: float = Field(description="When it was changed last, in seconds since 1970.")
    bytes: int = Field(description="Of its file, what was read of it among them.")


class ConversationList(Schema):
    """All conversations, that which was changed last first."""

    object: Literal["list"]
    kept: bool = Field(description="Whether this server keeps any.")
    data: list[ConversationEntry]


class KeptConversation(Schema):
    """A conversation as it is kept now."""

    name: str
    version: str
    tokens: int | None = Field(description="That it has, where the model is loaded.")


class ReadConversation(KeptConversation):
    """What was said in a conversation."""

    model: str = Field(description="To whom.")
    messages: list[dict[str, Any]]


class RenamedConversation(Schema):
    """The name that a conversation has now."""

    name: str


class DeletedConversation(Schema):
    """The conversation that is no more."""

    name: str
    deleted: Literal[True]


class ResumedConversation(Schema):
    """What the model has of a conversation."""

    tokens: int = Field(description="That need not be read again.")
    note: str | None = Field(description="Why that is nothing of what is kept.")
