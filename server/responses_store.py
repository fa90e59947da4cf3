"""Responses that are kept, so that a later request goes on from them.

Promises that they are bounded in number and in bytes, those of an item that several responses share
being counted once, and that those go first which were used least lately. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

StoredItem = Mapping[str, Any]
"""An item as it is stored and listed: a message, a call of a function, or what one gave back."""

MOST_RESPONSES = 1024
"""How many are kept."""

MOST_BYTES = 1 << 28
"""How many bytes of text, and of pictures in base64, are kept."""


@dataclass(frozen=True)
class StoredResponse:
    """One response.

    Attributes:
        answer: as it was sent.
        items: what it answers, oldest first, what was said before included.
    """

    answer: Mapping[str, Any]
    items: tuple[StoredItem, ...]

    @property
    def said(self) -> tuple[StoredItem, ...]:
        """All that was said, its own items included."""
        return (*self.items, *self.answer["output"])


class ResponseStore:
    """Keeps responses by their ids, in one process.

    Args:
        most_responses, most_bytes: what is kept at most.
    """

    def __init__(self, most_responses: int = MOST_RESPONSES, most_bytes: int = MOST_BYTES) -> None:
        self._most_responses, self._most_bytes = most_responses, most_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        # By identity: the item, its bytes, and how many responses have it.
        self._items: dict[int, tuple[StoredItem, int, int]] = {}
        self._by_id: dict[str, StoredItem] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, response: StoredResponse) -> None:
        """Keep a response; one that is larger than all that is kept is not."""
        self._responses[response.answer["id"]] = response
        self.nbytes += _own_size(response)
        for item in response.said:
            self._take(item)
        while len(self) > self._most_responses or self.nbytes > self._most_bytes:
            self._forget(next(iter(self._responses)))

    def get(self, id: str) -> StoredResponse | None:
        """The response of an id, which is used now; None where there is none."""
        response = self._responses.get(id)
        if response is not None:
            self._responses.move_to_end(id)
        return response

    def item(self, id: str) -> StoredItem | None:
        """The item of an id that a response has; None where there is none."""
        return self._by_id.get(id)

    def delete(self, id: str) -> bool:
        """Forget a response; whether there was one."""
        if id not in self._responses:
            return False
        self._forget(id)
        return True

    def _forget(self, id: str) -> None:
        response = self._responses.pop(id)
        self.nbytes -= _own_size(response)
        for item in response.said:
            self._release(item)

    def _take(self, item: StoredItem) -> None:
        _, size, count = self._items.get(id(item), (item, 0, 0))
        if not count:
            size = _size(item)
            self.nbytes += size
            self._by_id[item["id"]] = item
        self._items[id(item)] = (item, size, count + 1)

    def _release(self, item: StoredItem) -> None:
        _, size, count = self._items[id(item)]
        if count > 1:
            self._items[id(item)] = (item, size, count - 1)
            return
        del self._items[id(item)]
        self.nbytes -= size
        if self._by_id.get(item["id"]) is item:
            del self._by_id[item["id"]]


def _own_size(response: StoredResponse) -> int:
    """The bytes of a response without its items."""
    return _size({**response.answer, "output": ()})


def _size(value: object) -> int:
    """About the bytes of a value of JSON."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return 64 + sum(len(name) + _size(inner) for name, inner in value.items())
    if isinstance(value, Iterable):
        return 64 + sum(map(_size, value))
    return 8
