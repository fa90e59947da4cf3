"""Messages to token ids: the chat template, the vocabulary and the pictures, joined.

Promises that only the template writes control tokens, unless it is asked to read them: their names
in a message are plain text. What cannot fit into the context is refused without tokenizing all of
it. The template is compiled when it is first asked for. Knows nothing of engines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import ContextFullError, ImageError, SettingError, TemplateError
from ..untrusted import shown
from ..vision.layout import IMAGE, PATCH, image_token_names
from ..vision.projector import row_names
from ..vision.seen import SEEN
from .conversation import Conversation, Message
from .options import AnswerOptions, AnswerSettings
from .pictures import take_pictures
from .tool_prompt import as_mapping, knows, tool_prompt
from .tools import Tool
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..runtime.features import Features
    from ..vision.images import ImageTiles
    from .template import ChatTemplate

logger = logging.getLogger(__name__)

COUNTED = 100_000
"""Tokens of a prompt that are counted exactly, even where they cannot fit."""

Messages = str | Conversation | Iterable[Mapping[str, Any] | Message]
"""What a model can be asked: a string is one message of the user."""


@dataclass(frozen=True)
class Prompt:
    """What a model goes on with: token ids, and pictures that stand among them.

    Attributes:
        positions: the id of a token each, or below zero the name of one row of a picture's features
            (`row_names`).
        pictures: in the order in which they stand there.
        patch_id: the token that stands for a row of features.
        dropped_messages: how many messages the model is not shown.
        shortened: makes the prompt that an answer of so many tokens goes on after when the context
            is full, None where that is not wanted; it returns None where nothing is left to drop.
        features: makes those of the pictures, None where nobody does.
    """

    positions: list[int]
    pictures: tuple[ImageTiles, ...] = ()
    patch_id: int = -1
    dropped_messages: int = 0
    shortened: Callable[[int], Prompt | None] | None = None
    features: Features | None = None

    @property
    def token_ids(self) -> list[int]:
        """The ids that the model's own processor makes, those of pictures included."""
        return [self.patch_id if one < 0 else one for one in self.positions]

    def __len__(self) -> int:
        """Tokens, each row of features being one."""
        return len(self.positions)


class Prompts:
    """Writes the prompts of one model.

    Args:
        template: its Jinja text; None if the model has none.
        projector_digest: what features of the model's projector are told by, asked for where there
            are pictures.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: str | None,
        projector_digest: Callable[[], bytes] = bytes,
    ) -> None:
        self._vocabulary = vocabulary
        self._source = template
        self._has_warned = False  # that the template shows no tools
        self._projector_digest = projector_digest

    @cached_property
    def template(self) -> ChatTemplate:
        """The compiled chat template.

        Raises:
            TemplateError: there is none, or it is not valid Jinja.
        """
        from .template import ChatTemplate  # needed for chats alone

        bos, eos = self._vocabulary.bos_id, self._vocabulary.eos_id
        return ChatTemplate(
            self._source,
            control_tokens=self._vocabulary.control_tokens,
            bos_token="" if bos is None else self._vocabulary.token_text(bos),
            eos_token="" if eos is None else self._vocabulary.token_text(eos),
        )

    def close(self) -> None:
        """End the process in which the template may run; asking again starts another one."""
        if "template" in self.__dict__:
            self.template.close()

    def of_text(self, text: str, *, special: bool = False, n_ctx: int | None = None) -> list[int]:
        """The token ids of a text to continue, after BOS if the model asks for it.

        Args:
            special: whether control tokens are read where the text names them.
            n_ctx: tokens that the context holds; a text that is far longer is not read to its end.

        Raises:
            ContextFullError: it is.
        """
        tokens: list[int] = []
        self._extend(tokens, text, special, n_ctx, add_bos=self._vocabulary.add_bos)
        return tokens

    def of_messages(
        self,
        messages: Messages,
        *,
        special: bool = False,
        allow_download: bool = False,
        tools: Sequence[Tool] = (),
        n_ctx: int | None = None,
    ) -> Prompt:
        """The prompt with which a model is asked to answer messages; see `of_text`.

        Args:
            allow_download: whether a message may have a picture on the web.
            tools: what the model is told that it may call.

        Raises:
            TemplateError: there is no template, or it does not render these messages.
            ImageError: a picture cannot be read, or the model has no place for it.
            ContextFullError: they are far longer than the context.
            SettingError: there are no messages, or they are of the wrong type.
        """
        mappings = as_mappings(messages)
        self.check_length(mappings, n_ctx)
        mappings, given = take_pictures(mappings, allow_download=allow_download)
        pictures = [SEEN.tiles(one, allow_download=allow_download) for one in given]
        projector = self._projector_digest() if pictures else b""
        left = iter(pictures)
        tokens: list[int] = []
        n_places = 0
        shown_to = tool_prompt(mappings, tools, self._source or "")
        if tools and not knows(self._source or "", "tools") and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the chat template shows no tools: they are written in front of the first question"
            )
        pieces = self.template.render(
            shown_to.messages, tools=shown_to.tools, variables=shown_to.variables
        )
        for piece in pieces:
            if pictures and piece.control and piece.text == IMAGE:
                n_places += 1
                if (picture := next(left, None)) is not None:
                    tokens += self._picture(picture, projector)
            elif piece.control:
                tokens.append(self._vocabulary.control_tokens[piece.text])
            else:
                self._extend(tokens, piece.text, special, n_ctx)
        if n_places != len(pictures):
            raise TemplateError(
                "the chat template has not one place for each picture",
                found=f"{n_places} places for {len(pictures)} pictures",
                expected=f"{IMAGE} for each, in the messages of users",
            )
        bos = self._vocabulary.bos_id
        if self._vocabulary.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        patch = self._vocabulary.control_tokens.get(PATCH, -1)
        return Prompt(tokens, tuple(pictures), patch)

    def _picture(self, picture: ImageTiles, projector: bytes) -> Iterator[int]:
        """The ids of the tokens around a picture, and the names of its features."""
        ids = self._vocabulary.control_tokens
        names = image_token_names(picture.grid)
        if missing := sorted(set(names) - set(ids)):
            raise ImageError(
                "the model's vocabulary has no tokens for pictures",
                expected=", ".join(missing),
                hint="Use a Llama 4 that was trained with pictures.",
            )
        rows = iter(row_names(picture.digest, projector, len(picture)))
        return (next(rows) if name == PATCH else ids[name] for name in names)

    def count(self, text: str, *, special: bool = False) -> int:
        """How many tokens a text of a message has."""
        return len(self._vocabulary.encode(text, special=special))

    def check_length(self, messages: Iterable[Mapping[str, Any]], n_ctx: int | None) -> None:
        """Refuse messages whose texts are known not to fit, without tokenizing them.

        Raises:
            ContextFullError: they are far longer than the context.
        """
        self._check_length(0, sum(len(text.strip()) for text in contents(messages)), n_ctx)

    def _extend(
        self,
        tokens: list[int],
        text: str,
        special: bool,
        n_ctx: int | None,
        *,
        add_bos: bool = False,
    ) -> None:
        """Add the ids of a text to those of what comes before it."""
        if isinstance(text, str):
            self._check_length(len(tokens), len(text), n_ctx)
        limit = None if n_ctx is None else max(n_ctx, COUNTED) - len(tokens)
        tokens += self._vocabulary.encode(text, special=special, add_bos=add_bos, limit=limit)
        self._check_length(len(tokens), 0, n_ctx)

    def _check_length(self, held: int, characters: int, n_ctx: int | None) -> None:
        """Refuse a text that is known not to fit behind `held` tokens."""
        least = held + self._vocabulary.least_tokens(characters)
        if n_ctx is not None and least > max(n_ctx, COUNTED):
            raise ContextFullError(
                "the tokens do not fit into the context",
                found=f"at least {least} tokens",
                expected=f"at most {n_ctx}",
                hint="Shorten the prompt, or open the model with a larger n_ctx.",
            )


def contents(messages: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The texts of messages, which a template may trim."""
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list | tuple) else [content]:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                yield text


def as_mappings(messages: Messages) -> list[Mapping[str, Any]]:
    """The messages as templates take them; what is in them is not checked.

    Raises:
        SettingError: there are none, or they are of the wrong type.
    """
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    elif isinstance(messages, Conversation):
        messages = messages.messages
    elif isinstance(messages, Mapping | Message) or not isinstance(messages, Iterable):
        raise SettingError(
            "messages are of the wrong type",
            found=shown(messages),
            expected="a string, a list of messages, or a Conversation",
        )
    mappings = [as_mapping(item) if isinstance(item, Message) else item for item in messages]
    if not mappings:
        raise SettingError("there are no messages to answer", expected="at least one")
    return mappings


def chat_settings(messages: Messages, options: AnswerOptions) -> AnswerSettings:
    """The settings that keywords ask for, beside those of a conversation."""
    if not isinstance(messages, Conversation):
        return AnswerSettings.of(options)
    usual: AnswerOptions = {"when_full": messages.when_full}
    return AnswerSettings.of({**usual, **options}, messages.sampling)


def text_settings(options: AnswerOptions) -> AnswerSettings:
    """The settings that keywords ask for, for a text without exchanges.

    Raises:
        SettingError: some of these are to be dropped.
    """
    settings = AnswerSettings.of(options)
    if settings.when_full == "drop":
        raise SettingError(
            'when_full="drop" drops exchanges, and a text has none', expected='"stop"'
        )
    if settings.tools:
        raise SettingError(
            "tools are for messages, and this is a text", expected="`Model.chat` with them"
        )
    return settings
