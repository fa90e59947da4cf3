"""The file names of a split model, ``NAME-00001-of-00003.gguf``, by which llama.cpp finds them.

Source: ``llama_split_path`` in llama.cpp's src/llama.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII)


@dataclass(frozen=True)
class PartName:
    """One part by its name: `number` counts from 1 to `count`."""

    stem: str
    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.stem}-{self.number:05d}-of-{self.count:05d}.gguf"

    def siblings(self) -> tuple[PartName, ...]:
        """All parts of the model in order, this one included."""
        return tuple(PartName(self.stem, number, self.count) for number in range(1, self.count + 1))


def part_named(name: str) -> PartName | None:
    """The part that a file's name says it is; None for a model in one file."""
    match = _PART.fullmatch(name)
    return match and PartName(match["stem"], int(match["number"]), int(match["count"]))
