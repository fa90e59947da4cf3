"""What names a repository on the hub. Apart from the rest because it needs no HTTP client."""

from __future__ import annotations

import re

# A path made of hf://org/name has lost a slash.
_REPOSITORY = re.compile(r"(?:hf:/{1,2})?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")


def parse_repository(text: str) -> str | None:
    """``org/name`` when the text is that or ``hf://org/name``, and None when it is neither."""
    match = _REPOSITORY.fullmatch(text)
    return match.group(1) if match else None
