"""A worker that computes nothing and says what a test wants it to say."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

(ALLOC_BUFFER, GET_ALIGNMENT, GET_MAX_SIZE, BUFFER_GET_BASE) = range(4)
SET_TENSOR_HASH, GET_TENSOR, COPY_TENSOR = 7, 8, 9
GET_DEVICE_MEMORY, GET_ALLOC_SIZE, HELLO, DEVICE_COUNT = 11, 13, 14, 15


@dataclass(frozen=True)
class Lie:
    """What is said to the `turn`-th question with this command, or to all (None).

    ``body`` is the answer, None the true one; ``length`` what is said to be its length; ``sent``
    how many bytes of it all are sent before the worker hangs up, or falls silent.
    """

    command: int
    body: bytes | None = None
    length: int | None = None
    sent: int | None = None
    silent: bool = False
    turn: int | None = None


@contextmanager
def fake_worker(lies: Sequence[Lie] = (), fill: int = 0) -> Iterator[str]:
    """Serve one client after the other; where, as ``HOST:PORT``.

    Args:
        fill: the byte of which all that it computes consists.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                with suppress(OSError):
                    _serve(connection, lies, fill)
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for one in (listener, *connections):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        thread.join()
        for one in (listener, *connections):
            one.close()


def _serve(connection: socket.socket, lies: Sequence[Lie], fill: int) -> None:
    buffers, turns = 0, Counter[int]()
    while True:
        command, length = struct.unpack("<BQ", _exactly(connection, 9))
        request = _exactly(connection, length)
        buffers += command == ALLOC_BUFFER
        answer = _true_answer(command, request, buffers, fill)
        if answer is None:
            continue
        turn, turns[command] = turns[command], turns[command] + 1
        lie = next(
            (one for one in lies if one.command == command and one.turn in (None, turn)),
            Lie(command),
        )
        answer = answer if lie.body is None else lie.body
        said = len(answer) if lie.length is None else lie.length
        answer = struct.pack("<Q", said) + answer
        connection.sendall(answer[: lie.sent])
        if lie.sent is not None and not lie.silent:
            return


def _true_answer(command: int, request: bytes, buffers: int, fill: int) -> bytes | None:
    """The answer to a question; None to what is no question."""
    if command == ALLOC_BUFFER:
        return struct.pack("<QQ", buffers, *struct.unpack("<4xQ", request))
    if command == GET_TENSOR:
        return bytes([fill]) * int.from_bytes(request[-8:], "little")
    if command == BUFFER_GET_BASE:
        return struct.pack("<Q", (int.from_bytes(request, "little") % 2**20 << 36) or 2**60)
    return {
        GET_ALIGNMENT: struct.pack("<Q", 64),
        GET_MAX_SIZE: struct.pack("<Q", 2**64 - 1),
        SET_TENSOR_HASH: bytes([0]),
        COPY_TENSOR: bytes([1]),
        GET_DEVICE_MEMORY: struct.pack("<QQ", 2**33, 2**33),
        GET_ALLOC_SIZE: struct.pack("<Q", 0),
        HELLO: bytes([7]) + bytes(27),
        DEVICE_COUNT: struct.pack("<I", 1),
    }.get(command)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 2**20))
        if not piece:
            raise ConnectionResetError
        data += piece
    return bytes(data)
