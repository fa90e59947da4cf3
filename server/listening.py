"""Where a server listens: a port, or a Unix socket that only its owner may use.

Promises that a socket which a dead process left is replaced and one in use is not, and that a Unix
socket is gone when the server is. Knows nothing of HTTP.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import SettingError

_BACKLOG = 1024


@contextmanager
def listening_port(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on an address of this machine.

    Args:
        port: 0 is any that is free.

    Raises:
        SettingError: the address is not one of this machine, or the port is not to be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a name"
        raise SettingError(
            f"host {host} is not an address of this machine", found=reason, expected="127.0.0.1"
        ) from None
    # asyncio sends small pieces at once (TCP_NODELAY) only where the protocol is named.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise SettingError(
                f"cannot listen on port {port} of {host}",
                found=error.strerror,
                hint="Stop what listens there, or choose another port (0 is any that is free)."
                if error.errno == errno.EADDRINUSE
                else None,
            ) from None
        listener.setblocking(False)
        yield listener


@contextmanager
def listening_socket(path: str | os.PathLike[str]) -> Iterator[socket.socket]:
    """A Unix socket that only its owner may use, removed at the end of the block.

    Raises:
        SettingError: another server listens there, something else lies there, or it cannot be made.
    """
    place = Path(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        _clear(place)
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(place))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise SettingError(f"cannot make the socket {place}", found=reason) from None
        finally:
            os.umask(before)
        own = place.lstat()
        try:
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            yield listener
        finally:
            with suppress(OSError):
                now = place.lstat()
                if (now.st_dev, now.st_ino) == (own.st_dev, own.st_ino):
                    place.unlink()


def _clear(place: Path) -> None:
    """Remove a socket that nobody listens on any more.

    Raises:
        SettingError: somebody does, or it is no socket.
    """
    try:
        status = place.lstat()
    except (OSError, ValueError):
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SettingError(
            f"{place} is in the way of the socket",
            found="something else than a socket",
            hint="Move it away, or choose another path.",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(os.fspath(place))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                place.unlink()
            return
        except OSError as error:
            reason = error.strerror or str(error)
            raise SettingError(f"cannot replace the socket {place}", found=reason) from None
    raise SettingError(
        f"another server listens on {place}", hint="Stop it, or choose another path."
    )
