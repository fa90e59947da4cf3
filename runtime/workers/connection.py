"""One connection of ggml's RPC client, and what becomes of it when the other side is gone.

ggml's RPC client ends the process when a connection is lost: it calls ``ggml_abort`` in the thread
that waits for an answer. `catch_aborts` has that thread wait for ever instead, in the callback that
ggml offers before it gives up, after marking the connection as lost.

Promises that a connection which ends, and one whose machine vanishes, can be told from one whose
worker computes; and that every other abort of ggml ends the process as before.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ...errors import WorkerError
from ..bindings.devices import NativeDevice, native_device, rpc_function
from ..bindings.library import native_function

# A machine that vanished is asked after 10 seconds of silence, every 5, and given up after 4.
_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
# Keepalive is silent while sent bytes are not acknowledged; a living machine does that in well
# under a second, however busy the worker. (TCP_USER_TIMEOUT would also end a connection whose
# worker computes for a long time and does not read meanwhile.)
_UNACKNOWLEDGED_FOR = 30.0

# struct tcp_info (linux/tcp.h): eight bytes, then numbers of which these are tcpi_unacked and
# tcpi_last_ack_recv (milliseconds).
_TCP_INFO = struct.Struct("=8x 4x 4x 4x 4x I 4x 4x 4x 4x 4x 4x 4x I")


class User(Protocol):
    """Who computes on a connection."""

    def wake(self) -> None:
        """See that the connection was lost."""


class Connection:
    """A connection of ggml's RPC client, and the devices behind it.

    ``users`` compute on it: ggml's server takes one connection at a time, so the models of a
    process share it.
    """

    def __init__(self, name: str, address: str, port: int, alias: str) -> None:
        self.name, self.key, self.alias = name, (address, port), alias
        self.native_devices: tuple[NativeDevice, ...] = ()
        self.users: list[User] = []
        self.lost = False
        self.socket: socket.socket | None = None
        self._backend: int | None = None

    def open(self) -> None:
        """Register the worker and connect; called in a thread that may be left behind.

        Here ggml holds locks that are needed for any other worker, so it is done at once, before
        anything that takes long.
        """
        add_server = rpc_function("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
        count_of = native_function("ggml_backend_reg_dev_count", ctypes.c_size_t, ctypes.c_void_p)
        device_of = native_function(
            "ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
        )
        start = native_function(
            "ggml_backend_dev_init", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
        )
        registry = add_server(self.alias.encode())
        if not registry:
            raise WorkerError(f"the worker {self.name} has no devices")
        handles = [device_of(registry, index) for index in range(count_of(registry))]
        before = set(_sockets_to(self.key))
        # As long as this backend lives, ggml keeps the connection: without it, there would be a new
        # one for each question.
        self._backend = start(handles[0], None)
        for descriptor in _sockets_to(self.key):
            if descriptor not in before:
                self.socket = socket.socket(fileno=os.dup(descriptor))
                _keep_alive(self.socket)
        self.native_devices = tuple(native_device("", handle, self.name) for handle in handles)

    def leave(self) -> None:
        """Have ggml end the connection."""
        if self._backend is not None and not self.lost:
            native_function("ggml_backend_free", None, ctypes.c_void_p)(self._backend)

    def forget(self) -> None:
        """Close our copy of the socket: the other side sees the end when none is open."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def cut(self) -> None:
        """End the connection, so that ggml loses it."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        self.lose()

    def lose(self) -> None:
        """Mark it as lost, and wake its users."""
        self.lost = True
        for user in list(self.users):
            user.wake()

    @property
    def ended(self) -> bool:
        """Whether the other side, or this one, has ended the connection."""
        if self.socket is None:
            return True
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    @property
    def vanished(self) -> bool:
        """Whether nobody acknowledges what was sent."""
        if self.socket is None or not hasattr(socket, "TCP_INFO"):
            return False
        with suppress(OSError, struct.error):
            info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            unacknowledged, silent = _TCP_INFO.unpack(info)
            return bool(unacknowledged and silent > _UNACKNOWLEDGED_FOR * 1000)
        return False


# By address and port, as long as a model uses them. (ggml's registry belongs to the process too.)
open_connections: dict[tuple[str, int], Connection] = {}


# --- ggml gives up


@functools.cache
def catch_aborts() -> None:
    """Have ggml ask `_on_abort` before it ends the process, as long as Python runs."""
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
    install = native_function("ggml_set_abort_callback", ctypes.c_void_p, ctypes.c_void_p)
    callback = prototype(_on_abort)
    _referenced.append(callback)
    install(ctypes.cast(callback, ctypes.c_void_p))
    if os.name == "posix":
        # At the end, a C function that waits for ever takes its place.
        pause = ctypes.cast(ctypes.CDLL(None).pause, ctypes.c_void_p)
        atexit.register(install, pause)


# ggml keeps only the address of the callback; this keeps the callback.
_referenced: list[object] = []


def _on_abort(message: bytes | None) -> None:
    """Keep ggml from ending the process for a lost worker; it does so when this returns."""
    text = (message or b"").decode("utf-8", "replace")
    if "ggml-rpc" not in text:
        os.write(2, f"{text}\n".encode())
        return
    try:
        every = list(open_connections.values())
        opened = [connection for connection in every if connection.socket is not None]
        without_peer = [connection for connection in opened if connection.ended]
        unopened = [connection for connection in every if connection.socket is None]
        for connection in without_peer or unopened or every:
            connection.lose()
    finally:
        while True:
            threading.Event().wait()


# --- sockets


def _sockets_to(peer: tuple[str, int]) -> Iterator[int]:
    """The descriptors of this process's connections to `peer`; none where there is no /dev/fd."""
    try:
        descriptors = [int(entry.name) for entry in Path("/dev/fd").iterdir()]
    except OSError:
        return
    for descriptor in descriptors:
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                if copy.family == socket.AF_INET and copy.getpeername() == peer:
                    yield descriptor


def _keep_alive(connection: socket.socket) -> None:
    """Have the kernel ask a silent machine whether it is there, and end the connection if not."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
