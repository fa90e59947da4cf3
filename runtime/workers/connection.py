"""One connection of ggml's RPC client, and what becomes of it when the other side is gone or lies.

ggml's RPC client ends the process when a connection is lost: it calls ``ggml_abort`` in the thread
that waits for an answer. `catch_aborts` has that thread wait for ever instead, in the callback that
ggml offers before it gives up, after marking the connection as lost.

Promises that llama.cpp hears of buffers only what can be; that a connection which ends, and one
whose machine vanishes, can be told from one whose worker computes; and that every other abort of
ggml ends the process as before.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import itertools
import os
import socket
import struct
import threading
import weakref
from contextlib import suppress
from typing import Protocol

from ...errors import WorkerError
from ..bindings.devices import NativeDevice, native_device, rpc_function
from ..bindings.library import native_function
from .buffers import Fault, check_buffers
from .handshake import Greeting, impossible
from .stand_in import StandIn

# A machine that vanished is asked after 10 seconds of silence, every 5, and given up after 4.
_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
# Keepalive is silent while sent bytes are not acknowledged; a living machine does that in well
# under a second, however busy the worker. (TCP_USER_TIMEOUT would also end a connection whose
# worker computes for a long time and does not read meanwhile.)
_UNACKNOWLEDGED_FOR = 30.0

# struct tcp_info (linux/tcp.h): eight bytes, then numbers of which these are tcpi_unacked and
# tcpi_last_ack_recv (milliseconds).
_TCP_INFO = struct.Struct("=8x 4x 4x 4x 4x I 4x 4x 4x 4x 4x 4x 4x I")


# Of ggml's connections in this process.
_numbers = itertools.count(1)


class User(Protocol):
    """Who computes on a connection."""

    def wake(self) -> None:
        """See that the connection was lost."""


class Connection:
    """A connection of ggml's RPC client, and the devices behind it.

    ``users`` compute on it: ggml's server takes one connection at a time, so the models of a
    process share it.
    """

    def __init__(self, name: str, key: tuple[str, int], greeting: Greeting) -> None:
        self.name, self.key = name, key
        self.native_devices: tuple[NativeDevice, ...] = ()
        self.users: list[User] = []
        self.lost = False
        self.fault: WorkerError | None = None
        """What the worker said that cannot be, which is why it is lost."""
        self.socket: socket.socket | None = greeting.connection
        self._greeting = greeting
        self._backend: int | None = None

    def open(self) -> None:
        """Have llama.cpp connect, and give it the connection that was greeted."""
        add_server = rpc_function("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
        count_of = native_function("ggml_backend_reg_dev_count", ctypes.c_size_t, ctypes.c_void_p)
        device_of = native_function(
            "ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
        )
        start = native_function(
            "ggml_backend_dev_init", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
        )
        with StandIn(self._greeting) as stand_in:
            # ggml reads a port up to what is no digit, and takes the whole for the worker's name,
            # under which it would go on with a connection that was lost.
            alias = f"127.0.0.1:{stand_in.port} for {self.name} #{next(_numbers)}"
            registry = add_server(alias.encode())
            handles = [device_of(registry, index) for index in range(count_of(registry))]
            # As long as this backend lives, ggml keeps the connection: without it, there would be a
            # new one for each question.
            self._backend = start(handles[0], None)
            self.native_devices = tuple(native_device("", handle, self.name) for handle in handles)
            if not stand_in.hand_over():
                raise WorkerError(
                    "workers cannot be used on this system",
                    found="no list of open files in /dev/fd",
                    expected="Linux or macOS",
                )
        assert self.socket is not None
        keep_alive(self.socket)
        # What ggml keeps for ever keeps no connection.
        here = weakref.ref(self)

        def refuse(fault: Fault) -> None:
            if (connection := here()) is not None:
                connection.refuse(fault)

        for device in self.native_devices:
            check_buffers(device.buffer_type, refuse)

    def refuse(self, fault: Fault) -> None:
        """Give the worker up for something that it said."""
        self.fault = impossible(self.name, *fault)
        self.cut()

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
        for connection in without_peer or every:
            connection.lose()
    finally:
        while True:
            threading.Event().wait()


# --- sockets


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel ask a silent machine whether it is there, and end the connection if not."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
