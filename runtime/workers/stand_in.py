"""Stands in for a worker while llama.cpp connects to it, on the loopback interface.

ggml asks a worker a few numbers while it holds locks, and ends the process or waits for ever where
they are not given. It is told here what the worker has already said and what was checked, and then
gets the worker's own connection.

Promises that nothing else is answered, and that the connection which is replaced is ggml's. Knows
nothing of llama.cpp but these questions.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .handshake import (
    DEVICE_COUNT,
    GET_ALIGNMENT,
    GET_MAX_SIZE,
    HELLO,
    LENGTH,
    PROTOCOL,
    REQUEST,
    VERSION,
    Greeting,
)

_LONGEST_QUESTION = 64  # bytes


class StandIn:
    """Answers as the worker did that greeted; used in a ``with`` statement.

    ``port`` is where, on 127.0.0.1.
    """

    def __init__(self, greeting: Greeting) -> None:
        self._greeting = greeting
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._accepted: list[socket.socket] = []
        threading.Thread(target=self._accept, name="stand-in", daemon=True).start()

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None:
        # Ends the waiting for another, which closing alone does not.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for one in (self._listener, *self._accepted):
            one.close()

    def hand_over(self) -> bool:
        """Give the worker's connection to whoever in this process has connected here.

        Returns:
            False where that cannot be found out.
        """
        ours = {one.getpeername() for one in self._accepted}
        for descriptor in _sockets_to(self._listener.getsockname()):
            with socket.socket(fileno=os.dup(descriptor)) as one:
                if one.getsockname() in ours:
                    os.dup2(self._greeting.connection.fileno(), descriptor, inheritable=False)
                    return True
        return False

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._accepted.append(connection)
                threading.Thread(
                    target=self._serve, args=(connection,), name="stand-in", daemon=True
                ).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while len(head := connection.recv(REQUEST.size, socket.MSG_WAITALL)) == REQUEST.size:
                command, length = REQUEST.unpack(head)
                question = connection.recv(min(length, _LONGEST_QUESTION), socket.MSG_WAITALL)
                answer = self._answer(command, int.from_bytes(question, "little"))
                if answer is None:
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                connection.sendall(LENGTH.pack(len(answer)) + answer)

    def _answer(self, command: int, number: int) -> bytes | None:
        """The answer to a question about the device of that number; None to any other question."""
        devices = self._greeting.devices
        if command == HELLO:
            return VERSION.pack(*PROTOCOL, 0)
        if command == DEVICE_COUNT:
            return len(devices).to_bytes(4, "little")
        if command == GET_ALIGNMENT and number < len(devices):
            return devices[number].alignment.to_bytes(8, "little")
        if command == GET_MAX_SIZE and number < len(devices):
            return devices[number].max_size.to_bytes(8, "little")
        return None


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
