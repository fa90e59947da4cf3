"""The greeting of ggml's RPC protocol, spoken before llama.cpp does.

Promises that an endpoint which passed is a worker that llama.cpp can connect to now: ggml ends the
process when its own greeting fails, and believes every number that it is told. Knows nothing of
llama.cpp.
"""

from __future__ import annotations

import socket
import struct
import time

from ...errors import WorkerError

DEFAULT_PORT = 50052
"""Where a worker listens unless told otherwise, here as with llama.cpp's rpc-server."""

PROTOCOL = (7, 0)
"""Major and minor version that the pinned llama.cpp speaks (ggml-rpc.h)."""

# A request is the number of its command, its length and as many bytes; an answer is its length and
# as many bytes (ggml-rpc.cpp). A greeting says what this side's network can do beyond TCP: nothing.
# Its answer is three numbers of a version, a filler, and the other side's abilities.
_GET_ALIGNMENT, _HELLO, _DEVICE_COUNT = 1, 14, 15
_LENGTH = struct.Struct("<Q")
_VERSION = struct.Struct("<BBBx24x")

MAX_DEVICES = 256
"""Devices that a worker may say it has: ggml makes as many objects as it says."""

_MAX_ALIGNMENT = 2**20


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
    """Check on a connection of its own that a worker answers, with numbers that llama.cpp survives.

    Args:
        address: IPv4.
        name: what errors call the worker.
        patience: seconds for the connection, and for all answers together.

    Raises:
        WorkerError: nobody is there, nobody answers, it is not a worker of this version, or it
            gives a number of devices or an alignment that cannot be.
    """
    try:
        with socket.create_connection((address, port), timeout=patience) as connection:
            caller = _Caller(connection, name, time.monotonic() + patience)
            _check_version(caller)
            _check_devices(caller)
    except OSError as error:
        raise WorkerError(
            f"the worker {name} cannot be reached",
            found=error.strerror or str(error),
            hint="Start `llama4 worker` there, and see that no firewall is between.",
        ) from error


def _check_version(caller: _Caller) -> None:
    # Another version says so, or ends the connection without an answer.
    version = _VERSION.unpack(caller.ask(_HELLO, bytes(_VERSION.size - 4), _VERSION.size))
    if version[0] != PROTOCOL[0] or version[1] > PROTOCOL[1]:
        raise WorkerError(
            f"the worker {caller.name} speaks another version of ggml's RPC protocol",
            found=_text(version),
            expected=_text(PROTOCOL),
            hint="Run the same release of llama4-edge on both machines.",
        )


def _check_devices(caller: _Caller) -> None:
    count = int.from_bytes(caller.ask(_DEVICE_COUNT, b"", 4), "little")
    if not 1 <= count <= MAX_DEVICES:
        raise WorkerError(
            f"the worker {caller.name} has an impossible number of devices",
            found=str(count),
            expected=f"1 to {MAX_DEVICES}",
        )
    for device in range(count):
        answer = caller.ask(_GET_ALIGNMENT, device.to_bytes(4, "little"), 8)
        alignment = int.from_bytes(answer, "little")
        if alignment.bit_count() != 1 or alignment > _MAX_ALIGNMENT:
            raise WorkerError(
                f"the worker {caller.name} has an impossible alignment of buffers",
                found=str(alignment),
                expected=f"a power of two, at most {_MAX_ALIGNMENT}",
            )


class _Caller:
    """Asks a worker on an open connection, until a deadline."""

    def __init__(self, connection: socket.socket, name: str, deadline: float) -> None:
        self.name = name
        self._connection = connection
        self._deadline = deadline

    def ask(self, command: int, request: bytes, size: int) -> bytes:
        """The answer, which has to be of `size` bytes.

        Raises:
            WorkerError: there is none, or another.
            OSError: the connection failed.
        """
        self._connection.sendall(struct.pack("<BQ", command, len(request)) + request)
        answer = self._receive(_LENGTH.size + size)
        if len(answer) < _LENGTH.size + size or _LENGTH.unpack_from(answer)[0] != size:
            raise WorkerError(
                f"{self.name} is not a worker, or one of another llama.cpp",
                found=repr(answer[:16])
                if answer
                else "a connection that was closed without an answer",
                expected=f"version {_text(PROTOCOL)} of ggml's RPC protocol",
                hint="Run the same release of llama4-edge on both machines.",
            )
        return answer[_LENGTH.size :]

    def _receive(self, size: int) -> bytes:
        """So many bytes, or as many as came before the connection or the time ended."""
        answer = b""
        try:
            while len(answer) < size:
                # At least a moment, since 0 would mean not to wait at all.
                self._connection.settimeout(max(self._deadline - time.monotonic(), 0.001))
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
