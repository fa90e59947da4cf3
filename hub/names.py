"""What names a repository on the hub. Apart from the rest because it needs no HTTP client."""

from __future__ import annotations

import re

# A path made of hf://org/name has lost a slash.
_HUB = r"(?:hf:/{1,2}|https:/{1,2}(?:huggingface\.co|hf\.co)/)?"
_REPOSITORY = re.compile(rf"{_HUB}([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/?")


def parse_repository(text: str) -> str | None:
    """``org/name`` when the text is that, its address or ``hf://org/name``; None for all else."""
    match = _REPOSITORY.fullmatch(text)
    return match.group(1) if match else None
