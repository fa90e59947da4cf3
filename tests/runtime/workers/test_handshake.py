from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from llama4_edge.errors import SettingError, WorkerError
from llama4_edge.runtime.settings import EngineSettings, split_endpoint
from llama4_edge.runtime.workers import handshake
from llama4_edge.runtime.workers.handshake import PROTOCOL, greet, resolve
from llama4_edge.runtime.workers.worker import local_workers

Listen = Callable[..., int]


@pytest.fixture
def stranger() -> Iterator[Listen]:
    """Servers that answer whatever they hear with some bytes, and then hang up or do not."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []
    finished = threading.Event()

    def start(answer: bytes, *, hang_up: bool = True) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1024)
                    connection.sendall(answer)
                    if not hang_up:
                        finished.wait()

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    finished.set()
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)  # wakes who still waits for a client
    for thread in threads:
        thread.join()
    for listener in listeners:
        listener.close()


def answer(major: int, minor: int) -> bytes:
    return struct.pack("<QBBB25x", 28, major, minor, 0)


def test_a_worker_of_the_pinned_llama_cpp_answers_with_the_version_that_is_expected() -> None:
    with local_workers(1) as (endpoint,):
        host, port = split_endpoint(endpoint)
        with socket.create_connection((host, port)) as connection:
            connection.sendall(struct.pack("<BQ24x", 14, 24))
            length, major, minor = struct.unpack_from(
                "<QBB", connection.recv(8 + 28, socket.MSG_WAITALL)
            )
        assert (length, major, minor) == (28, *PROTOCOL)
        greet(host, port, endpoint, patience=60.0)


def test_nobody_there_is_told_with_what_to_do() -> None:
    with socket.socket() as silent, pytest.raises(WorkerError) as caught:
        silent.bind(("127.0.0.1", 0))  # so that nobody else listens there
        greet("127.0.0.1", silent.getsockname()[1], "here:1", patience=60.0)
    assert str(caught.value) == (
        "the worker here:1 cannot be reached, found Connection refused. "
        "Start `llama4 worker` there, and see that no firewall is between."
    )


@pytest.mark.parametrize(
    ("said", "hangs_up", "complaint"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 2, True, "is not a worker, or one of another "
         "llama.cpp, found b'HTTP/1.1 400 Bad'"),
        (b"SSH-2.0", False, "is not a worker, or one of another llama.cpp, found b'SSH-2.0'"),
        (b"", True, "found a connection that was closed without an answer"),
        (b"", False, "does not answer. It serves one program at a time"),
        (answer(PROTOCOL[0] + 1, 0), True, "speaks another version of ggml's RPC protocol, "
         f"found {PROTOCOL[0] + 1}.0, expected {PROTOCOL[0]}.{PROTOCOL[1]}"),
        (answer(PROTOCOL[0], PROTOCOL[1] + 1), True, f"found {PROTOCOL[0]}.{PROTOCOL[1] + 1}"),
    ],
)  # fmt: skip
def test_who_is_no_worker_of_this_version_is_refused_by_name(
    stranger: Listen, monkeypatch: pytest.MonkeyPatch, said: bytes, hangs_up: bool, complaint: str
) -> None:
    left = iter([600.0, 600.0] if said else [])
    # Who neither hangs up nor says all that is asked is waited for.
    monkeypatch.setattr(
        handshake._Caller, "_left", lambda _: 600.0 if hangs_up else next(left, 0.1)
    )
    port = stranger(said, hang_up=hangs_up)
    with pytest.raises(WorkerError, match=re.escape(complaint)) as caught:
        greet("127.0.0.1", port, "somewhere:5", patience=60.0)
    assert "somewhere:5" in caught.value.problem


def number(value: int, size: int) -> bytes:
    return struct.pack("<Q", size) + value.to_bytes(size, "little")


@pytest.mark.parametrize(
    ("devices", "alignment", "max_size", "complaint"),
    [
        (0, 64, 2**64 - 1, "has an impossible number of devices, found 0, expected 1 to 256"),
        (2**32 - 1, 64, 2**64 - 1, "number of devices, found 4294967295"),
        (1, 0, 2**64 - 1, "has an impossible alignment of buffers, found 0, expected a power of"),
        (1, 96, 2**64 - 1, "alignment of buffers, found 96"),
        (1, 2**63, 2**64 - 1, f"alignment of buffers, found {2**63}"),
        (1, 64, 0, "has an impossible size of the largest buffer, found 0, expected at least"),
        (1, 64, 2**24 - 1, "size of the largest buffer, found 16777215"),
    ],
)
def test_a_worker_whose_numbers_would_end_the_process_is_refused(
    stranger: Listen, devices: int, alignment: int, max_size: int, complaint: str
) -> None:
    answers = answer(*PROTOCOL) + number(devices, 4) + number(alignment, 8) + number(max_size, 8)
    port = stranger(answers, hang_up=False)
    with pytest.raises(WorkerError, match=re.escape(complaint)):
        greet("127.0.0.1", port, "somewhere:5", patience=60.0)


def test_an_answer_that_trickles_in_ends_with_the_patience() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                for byte in answer(*PROTOCOL) * 100:
                    connection.sendall(bytes([byte]))
                    time.sleep(0.1)

        thread = threading.Thread(target=serve)
        thread.start()
        # On a machine so busy that no byte came in time, the other.
        with pytest.raises(WorkerError, match=r"is not a worker|does not answer") as caught:
            greet("127.0.0.1", listener.getsockname()[1], "somewhere:5", patience=0.5)
        assert caught.value.found != repr(answer(*PROTOCOL)[:11])  # the first answer, whole
        thread.join()


def test_a_host_without_an_address_is_refused_by_name() -> None:
    with pytest.raises(WorkerError, match=r"the host no\.such\.host\.invalid has no IPv4 address"):
        resolve("no.such.host.invalid")
    assert resolve("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize(
    "endpoint", ["", "host", "host:", ":50052", "host:0", "host:65536", "host:a", "::1:5", "a b:5"]
)
def test_an_address_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(SettingError, match="not a worker's address") as caught:
        EngineSettings(workers=(endpoint,))
    assert caught.value.found == repr(endpoint)


def test_a_worker_is_named_once() -> None:
    with pytest.raises(SettingError, match="a worker is named twice, found host:5"):
        EngineSettings(workers=("host:5", "host:05"))
