"""Messages to token ids: the chat template and the vocabulary of one model, joined.

Promises that only the template writes control tokens: their names in a message are plain text. The
template is compiled when it is first asked for. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import SettingError
from .conversation import Conversation, Message
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .template import ChatTemplate

Messages = str | Conversation | Iterable[Mapping[str, Any] | Message]
"""What a model can be asked: a string is one message of the user."""


class Prompts:
    """Writes the prompts of one model.

    Args:
        template: its Jinja text; None if the model has none.
    """

    def __init__(self, vocabulary: Vocabulary, template: str | None) -> None:
        self._vocabulary = vocabulary
        self._source = template

    @cached_property
    def template(self) -> ChatTemplate:
        """The compiled chat template.

        Raises:
            TemplateError: there is none, or it is not valid Jinja.
        """
        from .template import ChatTemplate  # Jinja takes a while to import

        bos, eos = self._vocabulary.bos_id, self._vocabulary.eos_id
        return ChatTemplate(
            self._source,
            control_tokens=self._vocabulary.control_tokens,
            bos_token="" if bos is None else self._vocabulary.token_text(bos),
            eos_token="" if eos is None else self._vocabulary.token_text(eos),
        )

    def of_text(self, text: str) -> list[int]:
        """The token ids of a text to continue, after BOS if the model asks for it."""
        return self._vocabulary.encode(text, add_bos=self._vocabulary.add_bos)

    def of_messages(self, messages: Messages) -> list[int]:
        """The token ids with which a model is asked to answer messages.

        Raises:
            TemplateError: there is no template, it does not render these messages, or one of them
                has an image.
            SettingError: there are no messages, or they are of the wrong type.
        """
        tokens: list[int] = []
        for piece in self.template.render(_mappings(messages)):
            if piece.control:
                tokens.append(self._vocabulary.control_tokens[piece.text])
            else:
                tokens.extend(self._vocabulary.encode(piece.text))
        bos = self._vocabulary.bos_id
        if self._vocabulary.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens


def _mappings(messages: Messages) -> list[Mapping[str, Any]]:
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    elif isinstance(messages, Conversation):
        messages = messages.messages
    elif isinstance(messages, Mapping | Message) or not isinstance(messages, Iterable):
        raise SettingError(
            "messages are of the wrong type",
            found=repr(messages),
            expected="a string, a list of messages, or a Conversation",
        )
    mappings = [asdict(item) if isinstance(item, Message) else item for item in messages]
    if not mappings:
        raise SettingError("there are no messages to answer", expected="at least one")
    return mappings
