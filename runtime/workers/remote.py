"""Devices of other machines, and calls into llama.cpp that survive the loss of one.

ggml's RPC client ends the process when a connection is lost: it calls ``ggml_abort`` in the thread
that serves the connection. Here that thread is stopped for ever instead, in the callback that ggml
offers before it gives up. Every call that needs a worker is made in one thread for that purpose;
when the connection it waits for is lost, the caller gets a WorkerError, and the waiting thread is
left behind with all the memory that llama.cpp was using. None of it is touched or freed again.

Promises that a worker which is absent, dies, or whose machine vanishes is an error that names it,
soon; and that a call is given up when it is interrupted, though its worker does not answer. Does
not notice by itself a worker that is stopped (SIGSTOP) while its machine goes on answering for it:
nothing tells it from one that computes.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ...errors import SettingError, WorkerError
from ..bindings.devices import Device, NativeDevice, describe, native_device, rpc_function
from ..bindings.library import native_function
from ..bindings.thread import NativeThread
from ..settings import split_endpoint
from .handshake import greet, resolve
from .worker import check_rpc

_T = TypeVar("_T")

_AT_ONCE = 10.0  # seconds, for what any living worker does in a fraction of one
# A machine that vanished is asked after 10 seconds of silence, every 5, and given up after 4.
_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))
# Keepalive is silent while sent bytes are not acknowledged; a living machine does that in well
# under a second, however busy the worker. (TCP_USER_TIMEOUT would also end a connection whose
# worker computes for a long time and does not read meanwhile.)
_UNACKNOWLEDGED_FOR = 30.0

# struct tcp_info (linux/tcp.h): eight bytes, then numbers of which these are tcpi_unacked and
# tcpi_last_ack_recv (milliseconds).
_TCP_INFO = struct.Struct("=8x 4x 4x 4x 4x I 4x 4x 4x 4x 4x 4x 4x I")


class _Connection:
    """One connection of ggml's RPC client, and the devices behind it.

    ``users`` are the objects that compute on it: ggml's server takes one connection at a time, so
    that the models of a process share it.
    """

    def __init__(self, name: str, address: str, port: int, alias: str) -> None:
        self.name, self.key, self.alias = name, (address, port), alias
        self.native_devices: tuple[NativeDevice, ...] = ()
        self.users: list[Workers] = []
        self.lost = False
        self.socket: socket.socket | None = None
        self._backend: int | None = None

    def open(self) -> None:
        """Register the worker and connect; called where it may be given up.

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
        """Let go of the socket too: the other side sees the end when nobody holds it."""
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
        """Know that it is lost, and tell whoever waits."""
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
_connections: dict[tuple[str, int], _Connection] = {}
_connecting = threading.RLock()
# How often each was connected. Under the same name, ggml would go on with the devices that it found
# the first time, and with a connection that was lost.
_times: dict[tuple[str, int], int] = {}
# Workers that were lost while ggml held its locks: no other can be connected any more.
_blocked_by: list[str] = []


class Workers:
    """Connected workers, or none, and the thread in which llama.cpp is called with them.

    Close them, or use them in a ``with`` statement.
    """

    def __init__(self, connections: Sequence[_Connection]) -> None:
        self._connections = tuple(connections)
        self._closed = False
        self.thread = NativeThread(self if connections else None)
        for connection in connections:
            connection.users.append(self)

    def __bool__(self) -> bool:
        return bool(self._connections)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def native_devices(self) -> tuple[NativeDevice, ...]:
        """Their devices, named RPC0, RPC1, … in the order of the workers.

        (ggml counts all that the process ever connected; its reports say ``buffer_name``.)
        """
        every = [one for connection in self._connections for one in connection.native_devices]
        return tuple(replace(one, name=f"RPC{number}") for number, one in enumerate(every))

    def devices(self) -> tuple[Device, ...]:
        """The same devices with the memory that they have now.

        Raises:
            WorkerError: a worker was lost.
        """
        native = self.native_devices
        devices = self.run(lambda: [describe(one.handle) for one in native], limit=_AT_ONCE)
        return tuple(
            replace(device, name=one.name, memory_source=f"worker {one.endpoint}")
            for device, one in zip(devices, native, strict=True)
        )

    @property
    def lost(self) -> bool:
        """Whether one of them is gone, with all that llama.cpp kept there."""
        return any(connection.lost for connection in self._connections)

    def check(self) -> None:
        """Raise WorkerError if one of them is gone."""
        names = " or ".join(one.name for one in self._connections if one.lost)
        if names:
            raise WorkerError(
                f"the worker {names} was lost, and with it its part of the model",
                hint="See that it runs, then open the model again.",
            )

    def run(self, work: Callable[[], _T], *, limit: float | None = None) -> _T:
        """What ``work`` returns or raises, in the thread; see ``NativeThread.call``.

        Raises:
            WorkerError: a worker was lost, before or meanwhile.
        """
        return self.thread.call(work, limit=limit)

    def watch(self) -> None:
        """Give up those whose machines acknowledge nothing any more."""
        for connection in self._connections:
            if connection.vanished:
                connection.cut()

    def cut(self) -> None:
        """Give up whatever is being waited for: the workers are lost."""
        for connection in self._connections:
            connection.cut()

    def wake(self) -> None:
        """Let those who wait see that a connection was lost."""
        self.thread.wake()

    def close(self, *, wait: bool = True) -> None:
        """End the thread, which frees what it made, and leave the workers to others.

        Closing twice is harmless, and so is closing in a fork of the process.

        Args:
            wait: whether to return only when that is done, or a worker is lost.
        """
        if not self._connections or self.thread.is_foreign:
            self.thread.end(wait=wait)
            return
        # Held until the workers are left: another model of this process could not connect earlier.
        with _connecting:
            if self._closed:
                return
            self._closed = True
            unused = [one for one in self._connections if one.users == [self]]

            def leave() -> None:
                for connection in unused:
                    connection.leave()
                    connection.forget()

            if not self.lost:
                self.thread.end(then=leave, wait=wait)
            self._withdraw()
            if self.lost:
                # llama.cpp can free nothing of what was spread over several: this frees the others.
                self.thread.end(free=False, wait=False)
                for connection in unused:
                    connection.cut()
                    connection.forget()

    def _withdraw(self) -> None:
        """Be no user of the connections, and let nobody share those that have none any more."""
        for connection in self._connections:
            connection.users.remove(self)
            if not connection.users and _connections.get(connection.key) is connection:
                del _connections[connection.key]


def connect(endpoints: Sequence[str]) -> Workers:
    """Connect to workers, or share the connections that this process has to them.

    Args:
        endpoints: ``HOST:PORT`` of each.

    Raises:
        WorkerError: one is absent, busy, or no worker; or ggml's RPC is not built in.
        SettingError: an address is none, or two are the same worker.
    """
    if not endpoints:
        return Workers(())
    check_rpc()
    _catch_aborts()
    with _connecting:
        connections: list[_Connection] = []
        for endpoint in endpoints:
            connection = _connection(endpoint)
            if connection.key in [one.key for one in connections]:
                raise SettingError("a worker is named twice", found=endpoint)
            connections.append(connection)
        workers = Workers(connections)
        try:
            for connection in connections:
                if not connection.native_devices:
                    _open(connection, workers)
        except BaseException:
            workers.close()
            raise
        return workers


def _connection(endpoint: str) -> _Connection:
    """The one that is open, or a new one to a worker that was just seen to answer."""
    host, port = split_endpoint(endpoint)
    key = address, port = resolve(host), port
    known = _connections.get(key)
    if known is not None and not known.lost:
        return known
    greet(address, port, endpoint, patience=_AT_ONCE / 2)
    times = _times[key] = _times.get(key, 0) + 1
    # ggml reads a port up to what is no digit, and takes the whole for the worker's name.
    alias = f"{address}:{port}" + (f"#{times}" if times > 1 else "")
    return _Connection(endpoint, address, port, alias)


def _open(connection: _Connection, workers: Workers) -> None:
    if _blocked_by:
        raise WorkerError(
            f"this process can connect to no worker any more, since {_blocked_by[0]} was lost "
            "while llama.cpp connected to it",
            hint="Start the program again.",
        )
    _connections[connection.key] = connection
    try:
        workers.run(connection.open, limit=_AT_ONCE)
    except BaseException as error:
        if not connection.lost:
            raise
        _blocked_by.append(connection.name)
        if not isinstance(error, WorkerError):
            raise
        raise WorkerError(
            f"the worker {connection.name} was lost while llama.cpp connected to it",
            hint="See that it runs and is reached without loss; then start this program again.",
        ) from None


# --- ggml gives up


@functools.cache
def _catch_aborts() -> None:
    """Be asked before ggml ends the process, as long as Python runs."""
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
    """Return, and ggml ends the process; it is to do so for everything but a lost worker."""
    text = (message or b"").decode("utf-8", "replace")
    if "ggml-rpc" not in text:
        os.write(2, f"{text}\n".encode())
        return
    try:
        known = list(_connections.values())
        ended = [one for one in known if one.socket is not None and one.ended]
        opening = [one for one in known if one.socket is None]
        for connection in ended or opening or known:
            connection.lose()
    finally:
        while True:
            threading.Event().wait()


# --- sockets


def _sockets_to(peer: tuple[str, int]) -> Iterator[int]:
    """The descriptors of this process's connections to `peer`; none where there is no /dev/fd."""
    try:
        descriptors = [int(one.name) for one in Path("/dev/fd").iterdir()]
    except OSError:
        return
    for descriptor in descriptors:
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as one:
                if one.family == socket.AF_INET and one.getpeername() == peer:
                    yield descriptor


def _keep_alive(connection: socket.socket) -> None:
    """Have the kernel ask a silent machine whether it is there, and end the connection if not."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
