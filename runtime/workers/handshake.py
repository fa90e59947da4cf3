"""The greeting of ggml's RPC protocol, spoken in llama.cpp's place.

ggml ends the process when a greeting fails, and believes every number that it is told. Promises
that a connection which passed is one to a worker of this version, whose numbers llama.cpp survives,
and that this is known within the patience, however slowly the other side speaks. Knows nothing of
llama.cpp.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

from ...errors import WorkerError

DEFAULT_PORT = 50052
"""Where a worker listens unless told otherwise, here as with llama.cpp's rpc-server."""

PROTOCOL = (7, 0)
"""Major and minor version that the pinned llama.cpp speaks (ggml-rpc.h)."""

# A request is the number of its command, its length and as many bytes; an answer is its length and
# as many bytes (ggml-rpc.cpp). A greeting says what this side's network can do beyond TCP: nothing.
# Its answer is three numbers of a version, a filler, and the other side's abilities.
GET_ALIGNMENT, GET_MAX_SIZE, HELLO, DEVICE_COUNT = 1, 2, 14, 15
REQUEST = struct.Struct("<BQ")
LENGTH = struct.Struct("<Q")
VERSION = struct.Struct("<BBBx24x")

MAX_DEVICES = 256
"""Devices that a worker may say it has: ggml makes as many objects as it says."""

_MAX_ALIGNMENT = 2**20
_LEAST_MAX_SIZE = 2**24  # below any GPU's, and enough for a tensor


@dataclass(frozen=True)
class RemoteDevice:
    """What a worker says of one of its devices: how its buffers are aligned, and how many bytes
    the largest of them can have."""

    alignment: int
    max_size: int


@dataclass(frozen=True)
class Greeting:
    """A connection to a worker that has answered, and the devices that it has."""

    connection: socket.socket
    devices: tuple[RemoteDevice, ...]


def resolve(host: str) -> str:
    """The IPv4 address of a host; ggml knows no other kind.

    Raises:
        WorkerError: the name has no IPv4 address.
    """
    try:
        addresses = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise WorkerError(
            f"the host {host} has no IPv4 address", found=getattr(error, "strerror", str(error))
        ) from error
    return str(addresses[0][4][0])


def greet(address: str, port: int, name: str, *, patience: float) -> None:
    """Check that a worker answers, as `introduce` does, and leave it.

    Raises:
        WorkerError: as `introduce`.
    """
    introduce(address, port, name, patience=patience).connection.close()


def introduce(address: str, port: int, name: str, *, patience: float) -> Greeting:
    """Connect to a worker, and check what it says before it is asked to do anything.

    Args:
        address: IPv4.
        name: what errors call the worker.
        patience: seconds for the connection and all answers together.

    Raises:
        WorkerError: nobody is there, nobody answers, it is not a worker of this version, or it
            gives a number of devices, an alignment or a size that cannot be.
    """
    deadline = time.monotonic() + patience
    try:
        connection = socket.create_connection((address, port), timeout=patience)
    except OSError as error:
        raise _unreachable(name, error) from error
    try:
        # As ggml has it: each message goes out at once.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        caller = _Caller(connection, name, deadline)
        _check_version(caller)
        greeting = Greeting(connection, _devices(caller))
        connection.settimeout(None)
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise _unreachable(name, error) from error
        raise
    return greeting


def _unreachable(name: str, error: OSError) -> WorkerError:
    return WorkerError(
        f"the worker {name} cannot be reached",
        found=error.strerror or str(error),
        hint="Start `llama4 worker` there, and see that no firewall is between.",
    )


def _check_version(caller: _Caller) -> None:
    # Another version says so, or ends the connection without an answer.
    version = VERSION.unpack(caller.ask(HELLO, bytes(VERSION.size - 4), VERSION.size))
    if version[0] != PROTOCOL[0] or version[1] > PROTOCOL[1]:
        raise WorkerError(
            f"the worker {caller.name} speaks another version of ggml's RPC protocol",
            found=_text(version),
            expected=_text(PROTOCOL),
            hint="Run the same release of llama4-edge on both machines.",
        )


def _devices(caller: _Caller) -> tuple[RemoteDevice, ...]:
    count = caller.number(DEVICE_COUNT, b"", 4)
    if not 1 <= count <= MAX_DEVICES:
        raise impossible(caller.name, "number of devices", count, f"1 to {MAX_DEVICES}")
    devices = []
    for index in range(count):
        which = index.to_bytes(4, "little")
        alignment = caller.number(GET_ALIGNMENT, which, 8)
        if alignment.bit_count() != 1 or alignment > _MAX_ALIGNMENT:
            expected = f"a power of two, at most {_MAX_ALIGNMENT}"
            raise impossible(caller.name, "alignment of buffers", alignment, expected)
        max_size = caller.number(GET_MAX_SIZE, which, 8)
        if max_size < _LEAST_MAX_SIZE:
            expected = f"at least {_LEAST_MAX_SIZE} bytes"
            raise impossible(caller.name, "size of the largest buffer", max_size, expected)
        devices.append(RemoteDevice(alignment, max_size))
    return tuple(devices)


def impossible(name: str, what: str, found: object, expected: str) -> WorkerError:
    """The error about a number of a worker's that cannot be."""
    return WorkerError(
        f"the worker {name} has an impossible {what}", found=str(found), expected=expected
    )


class _Caller:
    """Asks a worker on an open connection, until a deadline."""

    def __init__(self, connection: socket.socket, name: str, deadline: float) -> None:
        self.name = name
        self._connection = connection
        self._deadline = deadline

    def number(self, command: int, request: bytes, size: int) -> int:
        """The answer as a number of `size` bytes."""
        return int.from_bytes(self.ask(command, request, size), "little")

    def ask(self, command: int, request: bytes, size: int) -> bytes:
        """The answer, which has to be of `size` bytes.

        Raises:
            WorkerError: there is none, or another.
            OSError: the connection failed.
        """
        self._connection.settimeout(self._left())
        self._connection.sendall(REQUEST.pack(command, len(request)) + request)
        answer = self._receive(LENGTH.size + size)
        if len(answer) < LENGTH.size + size or LENGTH.unpack_from(answer)[0] != size:
            raise WorkerError(
                f"{self.name} is not a worker, or one of another llama.cpp",
                found=repr(answer[:16])
                if answer
                else "a connection that was closed without an answer",
                expected=f"version {_text(PROTOCOL)} of ggml's RPC protocol",
                hint="Run the same release of llama4-edge on both machines.",
            )
        return answer[LENGTH.size :]

    def _left(self) -> float:
        """Seconds; at least a moment, since 0 would mean not to wait at all."""
        return max(self._deadline - time.monotonic(), 0.001)

    def _receive(self, size: int) -> bytes:
        """So many bytes, or as many as came before the connection or the time ended."""
        answer = b""
        try:
            while len(answer) < size:
                self._connection.settimeout(self._left())
                piece = self._connection.recv(size - len(answer))
                if not piece:
                    break
                answer += piece
        except TimeoutError as error:
            if not answer:
                raise WorkerError(
                    f"the worker {self.name} does not answer",
                    hint="It serves one program at a time: end the other one, or wait for it. "
                    "If there is none, start the worker again.",
                ) from error
        except ConnectionError:
            pass  # as good as a closed connection
        return answer


def _text(version: tuple[int, ...]) -> str:
    return ".".join(str(number) for number in version[:2])
