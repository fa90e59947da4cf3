"""Workers that a model uses: connected, shared within the process, given up when lost.

Every call that needs a worker is made in one thread. When the connection it waits for is lost, the
caller gets a WorkerError, and the thread is left behind with all the memory that llama.cpp was
using: none of it is touched or freed again.

Promises that a worker which is absent, dies, or whose machine vanishes is soon an error that names
it; and that a call is given up when it is interrupted, even if its worker does not answer. Does
not notice a worker that is stopped (SIGSTOP) while its machine acknowledges for it: nothing tells
it from one that computes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from ...errors import SettingError, WorkerError
from ..bindings.devices import Device, NativeDevice, describe
from ..bindings.thread import NativeThread
from ..settings import split_endpoint
from .connection import Connection, catch_aborts, open_connections
from .handshake import introduce, resolve
from .worker import check_rpc

_T = TypeVar("_T")

_AT_ONCE = 10.0  # seconds, for what any living worker does in a fraction of one

_connecting = threading.RLock()


class Workers:
    """Connected workers, or none, and the thread in which llama.cpp is called with them.

    Close them, or use them in a ``with`` statement.
    """

    def __init__(self, connections: Sequence[Connection]) -> None:
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
        every = [device for connection in self._connections for device in connection.native_devices]
        return tuple(replace(one, name=f"RPC{number}") for number, one in enumerate(every))

    def devices(self) -> tuple[Device, ...]:
        """The same devices with the memory that they have now.

        Raises:
            WorkerError: a worker was lost.
        """
        native = self.native_devices
        devices = self.run(lambda: [describe(device.handle) for device in native], limit=_AT_ONCE)
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
        for connection in self._connections:
            if connection.fault is not None:
                raise connection.fault
        names = " or ".join(connection.name for connection in self._connections if connection.lost)
        if names:
            raise WorkerError(
                f"the worker {names} was lost, and with it its part of the model",
                hint="See that it runs, then open the model again.",
            )

    def open(self) -> None:
        """Have llama.cpp connect to those to which it is not connected yet.

        Raises:
            WorkerError: a worker was lost meanwhile.
        """
        for connection in self._connections:
            if not connection.native_devices:
                open_connections[connection.key] = connection
                self.run(connection.open, limit=_AT_ONCE)

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
            unused = [connection for connection in self._connections if connection.users == [self]]

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
            if not connection.users and open_connections.get(connection.key) is connection:
                del open_connections[connection.key]


def connect(endpoints: Sequence[str]) -> Workers:
    """Connect to workers, or share the connections that this process has to them.

    Args:
        endpoints: ``HOST:PORT`` of each.

    Raises:
        WorkerError: one is absent, busy, or no worker; or ggml's RPC is not built in.
        SettingError: not a worker's address, or two are the same worker.
    """
    if not endpoints:
        return Workers(())
    check_rpc()
    catch_aborts()
    with _connecting:
        workers = Workers(_connections(endpoints))
        try:
            workers.open()
        except BaseException:
            workers.close()
            raise
        return workers


def _connections(endpoints: Sequence[str]) -> list[Connection]:
    """One for each: that which is open, or a new one to a worker that has answered."""
    connections: dict[tuple[str, int], Connection] = {}
    try:
        for endpoint in endpoints:
            host, port = split_endpoint(endpoint)
            key = resolve(host), port
            if key in connections:
                raise SettingError("a worker is named twice", found=endpoint)
            existing = open_connections.get(key)
            if existing is None or existing.lost:
                greeting = introduce(*key, endpoint, patience=_AT_ONCE / 2)
                existing = Connection(endpoint, key, greeting)
            connections[key] = existing
    except BaseException:
        for connection in connections.values():
            if not connection.users:
                connection.forget()
        raise
    return list(connections.values())
