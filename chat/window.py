"""What of a conversation a model is shown where not all of it fits into the context.

Promises that system messages, what stands before the first question, documents in front of that and
the last exchange stay; that whole exchanges leave, the oldest first; and that which ones leave
follows from the messages alone, so that the next turn begins as this one did. Knows nothing of
engines.

The context that is not taken by what stays is divided into halves: exchanges leave until whole
halves are free. So about half of what may leave is read anew, and nothing for a long while after.
Measured over 80 turns of about 100 new tokens in a context of 2048, a turn reads 1560 tokens on
average where just enough is dropped, 389 with quarters, 204 with halves, 144 with three quarters.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from .documents import documents_in_front
from .options import AnswerSettings
from .pictures import with_tiles
from .prompt import Messages, Prompt, Prompts, as_mappings, contents
from .tool_prompt import shown_text

ROOM = 8
"""One part in so many of the context that is not taken by what stays is left for an answer."""


def prompt_of(prompts: Prompts, messages: Messages, settings: AnswerSettings, n_ctx: int) -> Prompt:
    """The prompt with which messages are answered in a context of so many tokens.

    Raises:
        ContextFullError: the last exchange, or all of them where none is to be dropped, is far
            longer than that.
        SettingError, TemplateError: see ``Prompts.of_messages``.
    """
    if settings.when_full == "drop":
        return _Window(prompts, messages, settings, n_ctx).prompt()
    return prompts.of_messages(
        messages,
        special=settings.special,
        allow_download=settings.allow_download,
        tools=settings.callable_tools,
        n_ctx=n_ctx,
    )


class _Window:
    """The messages of one question, and the prompts that show more or less of them."""

    def __init__(
        self, prompts: Prompts, messages: Messages, settings: AnswerSettings, n_ctx: int
    ) -> None:
        self._prompts, self._settings, self._n_ctx = prompts, settings, n_ctx
        self._messages = as_mappings(messages)
        # An exchange begins with a question. The last one stays.
        starts = [at for at, one in enumerate(self._messages) if _role(one) == "user"]
        self._starts = starts or [0]
        self._most = len(self._starts) - 1
        prompts.check_length(self._messages[self._starts[-1] :], n_ctx)
        self._messages = with_tiles(self._messages, allow_download=settings.allow_download)
        self._whole = self._shown(0)
        self._documents = _documents(self._messages[self._starts[0]])

    @cached_property
    def _free(self) -> int:
        """Tokens of the context that are not taken by what stays."""
        staying = [*contents(self._messages[: self._starts[0]]), self._documents]
        staying += [shown_text(tool.definition) for tool in self._settings.callable_tools]
        special = self._settings.special
        taken = sum(self._prompts.count(text, special=special) for text in staying)
        return max(self._n_ctx - taken, 2)

    @property
    def _room(self) -> int:
        """Tokens that are left for an answer."""
        most = self._settings.max_tokens
        return self._free // ROOM if most is None else min(self._free // ROOM, most)

    def prompt(self, n_answer: int = 0) -> Prompt:
        """The prompt that shows as much as leaves room behind so many tokens of an answer."""
        excess = len(self._whole) + n_answer - self._n_ctx
        n_dropped = 0
        # Where even more room is left, what stays need not be counted.
        if self._most and excess + self._n_ctx // ROOM > 0 and excess + self._room > 0:
            half = self._free // 2
            leaving = -(-(excess + self._room) // half) * half
            numbers = range(1, self._most)
            n_dropped = 1 + bisect_left(numbers, leaving, key=self._freed)
        left_out = self._messages[self._starts[0] : self._starts[n_dropped]]
        return replace(
            self._shown(n_dropped) if n_dropped else self._whole,
            dropped_messages=sum(_role(one) != "system" for one in left_out),
            shortened=self._shortened if n_dropped < self._most else lambda _: None,
        )

    def _shortened(self, n_answer: int) -> Prompt | None:
        prompt = self.prompt(n_answer)
        return prompt if len(prompt) + n_answer < self._n_ctx else None

    def _freed(self, n_dropped: int) -> int:
        """How many tokens the prompt has less without so many exchanges."""
        return len(self._whole) - len(self._shown(n_dropped))

    def _shown(self, n_dropped: int) -> Prompt:
        settings = self._settings
        return self._prompts.of_messages(
            self._without(n_dropped),
            special=settings.special,
            allow_download=settings.allow_download,
            tools=settings.callable_tools,
        )

    def _without(self, n_dropped: int) -> list[Mapping[str, Any]]:
        first, start = self._starts[0], self._starts[n_dropped]
        if not n_dropped:
            return self._messages
        system = [one for one in self._messages[first:start] if _role(one) == "system"]
        question, *rest = self._messages[start:]
        if self._documents:
            question = {**question, "content": _behind(self._documents, question["content"])}
        return [*self._messages[:first], *system, question, *rest]


def _role(message: Mapping[str, Any]) -> object:
    return message.get("role") if isinstance(message, Mapping) else None


def _documents(message: Mapping[str, Any]) -> str:
    """The documents that the text of a message begins with."""
    return documents_in_front(next(contents([message]), ""))


def _behind(documents: str, content: Any) -> Any:
    """The content of a message with the documents before it."""
    if isinstance(content, str):
        return documents + content
    return [{"type": "text", "text": documents}, *content]
