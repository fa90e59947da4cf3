"""The greeting of ggml's RPC protocol, spoken before llama.cpp does.

Promises that an endpoint which passed is a worker that llama.cpp can connect to now: ggml ends the
process when its own greeting fails. Knows nothing of llama.cpp.
"""

from __future__ import annotations

import socket
import struct

from ...errors import WorkerError

DEFAULT_PORT = 50052
"""Where a worker listens unless told otherwise, here as with llama.cpp's rpc-server."""

PROTOCOL = (7, 0)
"""Major and minor version that the pinned llama.cpp speaks (ggml-rpc.h)."""

# The request is the number of the command, the bytes that follow, and what this side's network can
# do beyond TCP: nothing. The answer is its length, three numbers of a version, a filler, and the
# other side's abilities (rpc_msg_hello_rsp in ggml-rpc.cpp).
_HELLO = struct.pack("<BQ24x", 14, 24)
_ANSWER = struct.Struct("<QBBBx24x")
_ANSWER_BYTES = _ANSWER.size - 8


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
    """Check that a worker answers, on a connection of its own.

    Args:
        address: IPv4.
        name: what errors call the worker.
        patience: seconds to wait for each of connection and answer.

    Raises:
        WorkerError: nobody is there, nobody answers, or it is not a worker of this version.
    """
    try:
        with socket.create_connection((address, port), timeout=patience) as connection:
            answer = _ask(connection, name)
    except OSError as error:
        raise WorkerError(
            f"the worker {name} cannot be reached",
            found=error.strerror or str(error),
            hint="Start `llama4 worker` there, and see that no firewall is between.",
        ) from error
    length, *version = _ANSWER.unpack(answer.ljust(_ANSWER.size, b"\0"))
    # Another version answers so, or ends the connection without an answer.
    if len(answer) < _ANSWER.size or length != _ANSWER_BYTES:
        raise WorkerError(
            f"{name} is not a worker, or one of another llama.cpp",
            found=repr(answer[:16]) if answer else "a connection that was closed without an answer",
            expected=f"version {_text(PROTOCOL)} of ggml's RPC protocol",
            hint="Run the same release of llama4-edge on both machines.",
        )
    if version[0] != PROTOCOL[0] or version[1] > PROTOCOL[1]:
        raise WorkerError(
            f"the worker {name} speaks another version of ggml's RPC protocol",
            found=_text(version),
            expected=_text(PROTOCOL),
            hint="Run the same release of llama4-edge on both machines.",
        )


def _ask(connection: socket.socket, name: str) -> bytes:
    """The answer to the greeting, or as much as came before the connection ended."""
    connection.sendall(_HELLO)
    answer = b""
    try:
        while len(answer) < _ANSWER.size and (piece := connection.recv(_ANSWER.size)):
            answer += piece
    except TimeoutError as error:
        if not answer:
            raise WorkerError(
                f"the worker {name} does not answer",
                hint="It serves one program at a time: end the other one, or wait for it. "
                "If there is none, start the worker again.",
            ) from error
    except ConnectionError:
        pass  # as good as a closed connection
    return answer


def _text(version: tuple[int, ...] | list[int]) -> str:
    return ".".join(str(number) for number in version[:2])
