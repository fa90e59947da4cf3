"""What ``/conversations`` reads."""

from __future__ import annotations

from typing import Annotated

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
