"""What a server may be told. Declared once: the command line takes it from here.

Promises that settings which exist can be carried out.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field

from ..chat.options import AnswerSettings
from ..errors import SettingError
from ..ranges import as_path, as_tuple, check_text, check_whole, is_number, outside
from ..runtime.sampling import Sampling

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""What this machine is called in its own browsers."""

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ServerSettings:
    """How a server treats those who ask.

    Args:
        alias: what the model is called; None is the name of its file.
        api_keys: one of these must come with a request; () asks for none.
        cors_origins: origins of pages elsewhere that may ask, as in ``https://chat.example``;
            ``*`` is all.
        hosts: what the server may be called in a request's ``Host``, beside addresses; None is
            anything, as on a Unix socket, which no browser reaches.
        sampling: how tokens are chosen where a request does not say.
        sessions: a directory where the page's conversations are kept, with what the model has
            read of them; None keeps none.
        max_queue: requests that may wait beyond those that are answered.
        max_body: bytes of a request.
        body_seconds: how long a request may take to come in, beside a second for each 16 KiB.
        grace_seconds: how long answers may go on when the server is to stop.
        beat_seconds: silence in a stream after which a comment says that the server is there.

    Raises:
        SettingError: a value outside its range, or of the wrong type.
    """

    alias: str | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = LOOPBACK
    sampling: Sampling = field(default_factory=Sampling)
    sessions: str | os.PathLike[str] | None = None
    max_queue: int = 64
    max_body: int = 64 * MEBIBYTE
    body_seconds: float = 30.0
    grace_seconds: float = 30.0
    beat_seconds: float = 15.0

    def __post_init__(self) -> None:
        check_text("alias", self.alias, or_none=True)
        if self.alias is not None and not self.alias.strip():
            raise SettingError("alias is empty", expected="a name, or None")
        for name in ("api_keys", "cors_origins"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        if self.hosts is not None:
            names = tuple(map(_host, _texts("hosts", self.hosts)))
            object.__setattr__(self, "hosts", names)
        object.__setattr__(self, "cors_origins", tuple(map(_origin, self.cors_origins)))
        AnswerSettings(sampling=self.sampling)
        if self.sessions is not None:
            object.__setattr__(self, "sessions", as_path("sessions", self.sessions))
        check_whole("max_queue", self.max_queue, 0)
        check_whole("max_body", self.max_body, 1)
        for name in ("body_seconds", "grace_seconds", "beat_seconds"):
            value = getattr(self, name)
            if not (is_number(value) and 0.0 <= value <= 86400.0):
                raise outside(name, value, "a number of seconds from 0.0 to 86400.0")


_HOST = re.compile(r"(?:\[([^\s\[\]]+)\]|([^\s:/?#@\[\]]+?)\.?)(?P<port>:[0-9]{0,5})?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*]+", re.IGNORECASE)


def host_name(host: str) -> str:
    """The name in a ``Host`` header, without port, brackets, and the dot of a full name.

    It is empty where that is no host.
    """
    match = _HOST.fullmatch(host)
    return "" if match is None else (match[1] or match[2]).lower()


def is_address(name: str) -> bool:
    """Whether it is a number that no name server is asked for."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host(text: str) -> str:
    is_bare = ":" in text and not text.startswith("[")  # an address, or something else
    host = f"[{text}]" if is_bare else text
    match = _HOST.fullmatch(host)
    if match is None or match["port"] or (match[1] and not is_address(match[1])):
        raise SettingError("hosts has what is no name of a host", found=text, expected="gpu-box")
    return host_name(host)


def _origin(text: str) -> str:
    """An origin as browsers send it."""
    if text in ("*", "null"):
        return text
    if _ORIGIN.fullmatch(text.removesuffix("/")) is None:
        raise SettingError(
            "cors_origins has what is no origin of a page", found=text,
            expected="https://chat.example, or *",
        )  # fmt: skip
    return text.removesuffix("/").lower()


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = as_tuple(name, value, "strings")
    for text in texts:
        check_text(name, text)
        # Never shown: these may be keys.
        if not text or not text.isprintable() or text != text.strip():
            raise SettingError(
                f"{name} has a text that no header can carry",
                expected="printable characters without spaces around them",
            )
    return texts
