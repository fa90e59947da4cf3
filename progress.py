"""How far a job over bytes is: a conversion, a download, a check of a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`bytes_done` of `bytes_total`; `item` is the tensor or file in work.

    `bytes_before` were done when the job began, because it resumed an interrupted one. `activity`
    says in words what is done where no bytes are read meanwhile.
    """

    bytes_done: int
    bytes_total: int
    item: str
    bytes_before: int = 0
    activity: str = ""
