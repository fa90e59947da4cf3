"""What names something on the hub. Apart from the rest because it needs no HTTP client."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

# What pasting adds at either end.
_WRAPPING = " \t\r\n\"'`<>\u00a0\u200b\ufeff"
_ORGANIZATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]*?)(?:\.git)?"
    r"(?:@(?P<revision>[^:@\s]+))?(?::(?P<quantization>[A-Za-z0-9_.-]+))?"
)
# The views of a repository whose address has a revision in it.
_VIEWS = {"tree", "blob", "resolve", "raw", "blame", "commit", "commits"}
_OTHER_VIEWS = {"discussions", "settings"}
_OTHER_PAGES = {
    "datasets": "a data set", "spaces": "a space", "collections": "a collection",
    "papers": "a paper", "models": "a search", "docs": "documentation", "blog": "an article",
}  # fmt: skip
_OLLAMA = re.compile(
    r"(?:(?:https?:/{1,2})?(?:www\.)?(?:ollama\.com|registry\.ollama\.ai)/|ollama:/{0,2})?"
    r"(?:library/)?(?:llama-?4|(?:scout|maverick)(?=:))[a-z0-9._-]*(?::[A-Za-z0-9._-]+)?"
)
# Converted models that Ollama's llama4 is one of.
_GGUF = {
    "scout": "unsloth/Llama-4-Scout-17B-16E-Instruct-GGUF",
    "maverick": "unsloth/Llama-4-Maverick-17B-128E-Instruct-GGUF",
}


@dataclass(frozen=True)
class HubName:
    """Something on the hub: a repository, and what of it is meant, as far as that was said."""

    repository: str
    revision: str | None = None
    file: str | None = None
    quantization: str | None = None

    @property
    def is_repository(self) -> bool:
        """Whether all of the repository is meant."""
        return self.file is None and self.quantization is None


def parse_hub_name(text: str) -> HubName | None:
    """What of the hub the text can mean; None where it can mean nothing there.

    ``org/name``, ``org/name@revision``, ``org/name:Q4_K_M`` as llama.cpp and Ollama have it,
    ``org/name/model.gguf``, and the addresses of a repository, of its files and of its branches, on
    the hub or where HF_ENDPOINT says.
    """
    path, is_address = _path(text)
    if path is None:
        return None
    organization, *rest = path.split("/")
    match = _NAME.fullmatch(rest[0]) if rest else None
    if match is None or not _ORGANIZATION.fullmatch(organization) or organization in _OTHER_PAGES:
        return None
    repository, rest = f"{organization}/{match['name']}", rest[1:]
    revision, quantization = match["revision"], match["quantization"]
    if revision == "refs" and len(rest) > 1:  # refs/pr/1
        revision, rest = "/".join(["refs", *rest[:2]]), rest[2:]
    if len(rest) > 1 and rest[0] in _VIEWS and not (revision or quantization):
        taken = 4 if rest[1] == "refs" else 2
        revision, rest = "/".join(rest[1:taken]), rest[taken:]
    elif is_address and rest and rest[0] in _OTHER_VIEWS:
        rest = []
    elif rest and not rest[-1].endswith(".gguf"):
        return None
    if rest and quantization:
        return None
    return HubName(repository, revision, "/".join(rest) or None, quantization)


def other_name(text: str) -> tuple[str, str] | None:
    """What a text names that is known, but no model on the hub: what it is, and what to do."""
    path, is_address = _path(text)
    kind = (path or "").split("/")[0]
    if path is not None and kind in _OTHER_PAGES and (is_address or path.count("/") > 1):
        return f"{_OTHER_PAGES[kind]} on the hub", "Give a repository of a model: org/name"
    if is_address and parse_hub_name(text) is None:
        return "an address on the hub, but not a repository's", "Give org/name."
    if _OLLAMA.fullmatch(text.strip(_WRAPPING)):
        model = _GGUF["maverick" if "maverick" in text or "128" in text else "scout"]
        return "a name of Ollama's", f"Fetch a GGUF from the hub: llama4 pull {model} Q4_K_M"
    return None


def _path(text: str) -> tuple[str | None, bool]:
    """Organization, name and the rest in what may be an address; and whether it is one."""
    text = text.strip(_WRAPPING)
    hosts = {"huggingface.co", "hf.co", urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc} - {""}
    host = "|".join(re.escape(host) for host in sorted(hosts))
    # A path made of hf://org/name has lost a slash.
    prefix = re.match(
        rf"hf:/{{0,2}}|(?:(?:https?|ssh):/{{1,2}})?(?:git@)?(?:www\.)?(?:{host})[/:]", text
    )
    if prefix is None and ("://" in text or text.startswith("git@")):
        return None, False
    path = re.split(r"[?#]", text[prefix.end() if prefix else 0 :])[0]
    if prefix is None:
        return (None if path.startswith("/") else path.rstrip("/")), False
    path = unquote(path).strip("/")
    return path.removeprefix("api/models/"), True
