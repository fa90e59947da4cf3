"""Jinja with what the chat templates of the transformers library expect to find.

Promises the same text in this process and in one of its own, which has limits of time and memory.
`TemplateProcess` runs this file as the program of that process: it imports Jinja and Python's own
library alone, and answers requests on standard input until that ends. Jinja is imported when it is
needed. Knows no messages and no control tokens.
"""

from __future__ import annotations

import json
import os
import signal
import struct
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2
    from jinja2.nodes import Node
    from jinja2.parser import Parser

REQUEST = struct.Struct("<QdQ")
"""Before the body of a request: its bytes, the seconds of computing, and the bytes of memory. The
first body is the template, each later one a JSON object of names and values."""

ANSWER = struct.Struct("<BQ")
"""Before the body of an answer: `TEXT`, `FAULT` or `MEMORY`, and its bytes. The body of `TEXT` is
what the template wrote, that of `FAULT` what Python or Jinja said."""

TEXT, FAULT, MEMORY = range(3)

MAX_FAULT = 500
"""Characters of a fault; a template chooses the text of its own."""

# JSON and templates may hold lone surrogates.
ENCODING = ("utf-8", "surrogatepass")


class RenderingError(Exception):
    """What Jinja or Python said about a template."""


class Template:
    """A compiled template.

    Raises:
        RenderingError: it is not valid.
        MemoryError: there is too little memory for it; `render` too.
    """

    def __init__(self, source: str) -> None:
        try:
            self._template = _environment().from_string(source)
        except MemoryError:
            raise
        # A template provokes any Python error: IndentationError is one of loops in loops.
        except Exception as error:
            raise RenderingError(_description(error)) from error

    def render(self, names: dict[str, Any]) -> str:
        """What the template writes, given these names.

        Raises:
            RenderingError: it fails on them.
        """
        try:
            return self._template.render(names)
        except MemoryError:
            raise
        except Exception as error:
            raise RenderingError(_description(error)) from error

    def close(self) -> None:
        """Nothing: what a `TemplateProcess` has to end is not here."""


def _description(error: Exception) -> str:
    import jinja2

    text = str(error)
    if isinstance(error, SyntaxError):
        text = error.msg  # its line is one of the Python that Jinja makes
    elif line := getattr(error, "lineno", None):
        text = f"{text[:MAX_FAULT]} in line {line}"
    name = "" if type(error) is jinja2.TemplateError else f"{type(error).__name__}: "
    return name + (text if len(text) <= MAX_FAULT + 20 else text[:MAX_FAULT] + "...")


def _environment() -> jinja2.Environment:
    """What templates of the transformers library expect to find."""
    import jinja2
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %}`` marks, for training, what the assistant says: the text stays."""

        tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class PublicNamespace(Namespace):
        """A namespace without the names that Python itself looks for."""

        def __init__(*arguments: Any, **values: Any) -> None:
            self, *positional = arguments
            Namespace.__init__(self)
            for name, value in dict(*positional, **values).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"a namespace cannot hold {name!r}")
            super().__setitem__(name, value)

    class Dictionaries:
        """Makes dictionaries, and is not the type itself."""

        def __call__(self, *arguments: Any, **values: Any) -> dict[Any, Any]:
            return dict(*arguments, **values)

        def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
            return dict.fromkeys(keys, value)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter would escape <, > and & for HTML.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message: object) -> NoReturn:
        raise jinja2.TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = PublicNamespace
    environment.globals["dict"] = Dictionaries()
    return environment


# ---- the process


def serve() -> None:
    """Answer requests until standard input ends."""
    _confine()
    template: Template | None = None
    most = 0
    while header := _read(REQUEST.size):
        size, seconds, memory = REQUEST.unpack(header)
        # What was used for one request may still be held in the next.
        most = max(most, memory)
        _limit(seconds, most)
        kind, body = TEXT, b""
        try:
            text = _read(size).decode(*ENCODING)
            if template is None:
                template = Template(text)
            else:
                body = template.render(json.loads(text)).encode(*ENCODING)
        except MemoryError:
            kind = MEMORY
        except RenderingError as error:
            kind, body = FAULT, str(error).encode(*ENCODING)
        _write(ANSWER.pack(kind, len(body)))
        _write(body)


def _confine() -> None:
    """Import what templates may need, then open no file and no connection any more."""
    import codecs
    import html
    import textwrap
    import time
    import unicodedata

    import jinja2.constants
    import jinja2.debug
    import jinja2.ext
    import jinja2.sandbox

    time.localtime()  # reads the time zone
    for encoding in ("ascii", "latin-1", "unicode_escape", *ENCODING[:1]):
        codecs.lookup(encoding)
    _ = html, textwrap, unicodedata
    _ = jinja2.constants, jinja2.debug, jinja2.ext, jinja2.sandbox
    # Whoever asks decides about Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit(seconds: float, memory: int) -> None:
    """End this process after so many seconds of computing; refuse it more memory than that."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
        signal.setitimer(signal.ITIMER_PROF, seconds)
    with suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        if most != resource.RLIM_INFINITY:
            memory = min(memory, most)
        resource.setrlimit(resource.RLIMIT_AS, (memory, most))


def _read(size: int) -> bytes:
    """So many bytes of standard input; nothing if it has ended."""
    parts = []
    while size:
        part = os.read(0, min(size, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    serve()
