"""What names a repository on the hub. Apart from the rest because it needs no HTTP client."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
# A path made of hf://org/name has lost a slash.
_HUB = r"(?:hf:/{1,2}|https:/{1,2}(?:huggingface\.co|hf\.co)/)?"
_REPOSITORY = re.compile(rf"{_HUB}({_NAME})/?")

_ADDRESS = re.compile(
    r"(?:hf:/{1,2}|(?:https?:/{1,2})?(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    rf"(?P<repository>{_NAME}?)"
    r"(?:/?|:(?P<quantization>[\w.-]+)|/(?:blob|resolve|raw|tree)/(?P<revision>[^/?#]+)"
    r"(?:/(?P<file>[^?#]*))?|/(?P<path>[^?#:]+\.gguf))"
    r"(?:[?#].*)?"
)


@dataclass(frozen=True)
class HubName:
    """Something on the hub: a repository, and what of it is meant, as far as that was said."""

    repository: str
    revision: str | None = None
    file: str | None = None
    quantization: str | None = None


def parse_repository(text: str) -> str | None:
    """``org/name`` when the text is that, its address or ``hf://org/name``; None for all else."""
    match = _REPOSITORY.fullmatch(text)
    return match.group(1) if match else None


def parse_hub_name(text: str) -> HubName | None:
    """What of the hub the text can mean; None where it can mean nothing there.

    ``org/name``, ``org/name:Q4_K_M`` as llama.cpp and Ollama have it, ``org/name/model.gguf``, and
    the addresses of a repository, of its files and of its branches.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or match["repository"].startswith(("huggingface.co/", "hf.co/")):
        return None
    file = match["file"] or match["path"] or None
    return HubName(match["repository"], match["revision"], file, match["quantization"])
