"""Sends the files of the page.

Promises that a browser which shows the page asks nobody but this server, runs no script but the
page's own, and reads a file again only when it has changed. Knows no path but those of its files.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent

MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""What is a file of the page, by its name's ending."""

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
"""What the page may load, and from where."""

HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, but asked for each time whether it is still the same.
    "Cache-Control": "no-cache",
}


def names() -> list[str]:
    """The files of the page."""
    return sorted(path.name for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES)


def file_route(path: str, name: str) -> Route:
    """The route of a file."""

    async def send(request: Request) -> Response:
        data, tag = _content(name)
        headers = {**HEADERS, "ETag": tag}
        known = request.headers.get("if-none-match", "")
        if tag in (one.strip().removeprefix("W/") for one in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=MEDIA_TYPES[Path(name).suffix])

    return Route(path, send, include_in_schema=False)


@cache
def _content(name: str) -> tuple[bytes, str]:
    """A file, and what tells its content from another one."""
    data = (FOLDER / name).read_bytes()
    return data, f'"{hashlib.sha256(data).hexdigest()[:32]}"'


routes = [
    file_route("/", "index.html"),
    *(file_route(f"/page/{name}", name) for name in names() if name != "index.html"),
]
