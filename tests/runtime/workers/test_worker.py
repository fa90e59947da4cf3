from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from llama4_edge.errors import SettingError, WorkerError
from llama4_edge.runtime.workers import lending
from llama4_edge.runtime.workers.handshake import greet
from llama4_edge.runtime.workers.remote import connect
from llama4_edge.runtime.workers.worker import Worker, local_workers, running_worker
from llama4_edge.system.memory import HostMemory, host_memory
from tests.asking import until

LLAMA4 = [sys.executable, "-c", "from llama4_edge.cli import main; main(prog_name='llama4')"]


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_says_what_it_lends_and_ends_with_the_block() -> None:
    with running_worker(port=0, n_threads=1) as worker:
        port = worker.port
        (device,) = worker.devices
        memory = host_memory()
        assert (device.name, device.type, device.total_bytes) == ("CPU", "cpu", memory.total)
        assert 0 < worker.lent_bytes < memory.total
        assert worker.endpoint == worker.reached_at == f"127.0.0.1:{port}"
        greet("127.0.0.1", port, "here", patience=60.0)
    assert worker.process.returncode == -signal.SIGKILL
    with pytest.raises(WorkerError, match="Connection refused"):
        greet("127.0.0.1", port, "here", patience=60.0)


def test_a_worker_lends_what_is_free_and_tells_of_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # (What is free changes with all that runs on the machine.)
    memory, taken = HostMemory(100 << 30, 32 << 30, "a test"), [1 << 30]
    monkeypatch.setattr(lending, "host_memory", lambda: memory)
    monkeypatch.setattr(lending, "_private_bytes", lambda: taken[0])
    loan = lending.Loan(1)
    assert loan.lent_bytes == 28 << 30
    assert 31 << 30 < loan.limit_bytes < 32 << 30

    def told() -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        loan._get_memory(0, ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    assert told() == (28 << 30, 100 << 30)
    taken[0] = 6 << 30
    assert told() == (23 << 30, 100 << 30)
    memory = replace(memory, free=2 << 30)
    assert told() == (2 << 30, 100 << 30)
    taken[0] = 40 << 30
    assert told() == (0, 100 << 30)


def test_local_workers_are_as_many_as_were_asked_for() -> None:
    with local_workers(2) as endpoints:
        assert len(set(endpoints)) == 2
        for endpoint in endpoints:
            host, _, port = endpoint.partition(":")
            greet(host, int(port), endpoint, patience=60.0)


def test_a_worker_that_listens_everywhere_is_warned_of_and_reached_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running_worker("0.0.0.0", 0, n_threads=1) as worker:
        port = worker.port
        assert worker.endpoint == f"0.0.0.0:{port}"
        assert worker.reached_at == f"{socket.gethostname()}:{port}"
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert warning.startswith(
        f"the worker on 0.0.0.0:{port} has no authentication: who reaches it can use"
    )


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ({"port": 65536}, "port is outside its range, found 65536"),
        ({"port": True}, "port is outside its range, found True"),
        ({"n_threads": 0}, "n_threads is outside its range, found 0"),
        ({"n_threads": 513}, "n_threads is outside its range, found 513"),
    ],
)
def test_numbers_outside_their_range_are_refused(where: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint), running_worker(**where):
        pass


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        taken = f"a worker cannot listen on 127.0.0.1:{port}, found Address already in use"
        with pytest.raises(WorkerError, match=re.escape(taken)), running_worker(port=port):
            pass
    # 192.0.2.0/24 is for documentation, and nobody's.
    with (
        pytest.raises(WorkerError, match="found Cannot assign requested address"),
        running_worker("192.0.2.1"),
    ):
        pass


def test_a_server_that_ends_by_itself_is_an_error() -> None:
    with running_worker(port=0, n_threads=1) as worker:
        worker.process.kill()
        with pytest.raises(WorkerError, match=rf"the worker on {worker.endpoint} ended, found sig"):
            worker.wait()


# --- what a client may take

HELLO, ALLOC_BUFFER, SET_TENSOR, GET_DEVICE_MEMORY = 14, 0, 6, 11


def greeted(worker: Worker) -> socket.socket:
    client = socket.create_connection((worker.address, worker.port))
    client.sendall(struct.pack("<BQ24x", HELLO, 24))
    client.recv(36, socket.MSG_WAITALL)
    return client


def asked(client: socket.socket, command: int, request: bytes) -> tuple[int, int]:
    client.sendall(struct.pack("<BQ", command, len(request)) + request)
    length, first, second = struct.unpack("<QQQ", client.recv(24, socket.MSG_WAITALL))
    assert length == 16
    return first, second


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel refuses nothing")
def test_a_client_takes_no_more_memory_than_the_worker_lends() -> None:
    with running_worker(port=0, n_threads=1) as worker:
        lent = worker.lent_bytes
        with greeted(worker) as client:
            free, total = asked(client, GET_DEVICE_MEMORY, bytes(4))
            assert 0 < free <= lent < total
            # More is refused, and the client hears it.
            assert asked(client, ALLOC_BUFFER, struct.pack("<IQ", 0, total)) == (0, 0)
            buffer, size = asked(client, ALLOC_BUFFER, struct.pack("<IQ", 0, lent // 2))
            assert (buffer > 0, size) == (True, lent // 2)
            assert asked(client, ALLOC_BUFFER, struct.pack("<IQ", 0, lent * 3 // 5)) == (0, 0)
            left, _ = asked(client, GET_DEVICE_MEMORY, bytes(4))
            assert 0 < left <= lent - lent // 2
        # Seventeen bytes that announce a message of more than there is.
        for announced in (total, 2**40, 2**62):
            with greeted(worker) as client, suppress(ConnectionResetError):
                client.sendall(struct.pack("<BQ8x", SET_TENSOR, announced))
                assert client.recv(1) == b""
        used = psutil.Process(worker.process.pid).memory_info().rss
        assert used < 2**28
        greet(worker.address, worker.port, "here", patience=60.0)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what the kernel does")
def test_a_client_whose_machine_vanished_makes_room_for_another() -> None:
    with running_worker(port=0, n_threads=1) as worker, greeted(worker):
        local, established, asks_whether_it_is_there = f":{worker.port:04X}", "01", "02"

        def timers() -> list[str]:
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            return [row[5][:2] for row in rows if row[1].endswith(local) and row[3] == established]

        # (Once the client's machine has acknowledged the greeting.)
        until(lambda: timers() == [asks_whether_it_is_there])


def test_a_process_that_takes_more_than_it_lends_ends_where_the_kernel_refuses_nothing() -> None:
    code = """
import sys
from llama4_edge.runtime.bindings.devices import Device
from llama4_edge.runtime.workers.lending import Loan
loan = Loan(1)
loan.limit_bytes = loan._before + 50 * 2**20
loan.enforce([Device("CUDA0", "", "gpu", "CUDA", None, None, "")])
taken = bytes(20 * 2**20)
print("still here", flush=True)
taken = [bytearray(b"x" * 10 * 2**20) for _ in range(10)]
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.wait() == 1
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.read() == "still here\n"
        assert child.stderr.read().startswith("error: a client has taken all the main memory")


# --- the command


@pytest.fixture
def command() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*LLAMA4, "worker", "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def server_of(command: subprocess.Popen[str]) -> tuple[int, str]:
    """The process id of the command's server, and what the command said when it was there."""
    said = ""
    assert command.stdout is not None
    while "use it with" not in said:
        said += command.stdout.readline()
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text()
    return int(children), said


@pytest.mark.parametrize(
    ("end", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_the_server_ends_with_the_command_whichever_way_that_ends(
    command: subprocess.Popen[str], end: signal.Signals, status: int
) -> None:
    server, said = server_of(command)
    assert re.search(r"^CPU +cpu ", said, re.MULTILINE)
    assert re.search(r"use it with  llama4 run MODEL --workers 127\.0\.0\.1:\d+\n", said)
    command.send_signal(end)
    assert command.wait() == status
    until(lambda: not runs(server))


def test_a_command_whose_server_died_says_so_in_one_line(command: subprocess.Popen[str]) -> None:
    server, _ = server_of(command)
    os.kill(server, signal.SIGKILL)
    _, errors = command.communicate()
    assert command.returncode == 1
    assert re.fullmatch(r"error: the worker on \S+ ended, found signal 9\. .*\n", errors)


def test_a_library_without_rpc_says_how_it_is_built_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class WithoutRPC:
        def llama_supports_rpc(self) -> bool:
            return False

    monkeypatch.setattr("llama4_edge.runtime.workers.worker.llama", WithoutRPC)
    with pytest.raises(WorkerError, match=r"built without RPC.*-DGGML_RPC=ON"), running_worker():
        pass
    with pytest.raises(WorkerError, match="built without RPC"):
        connect(("127.0.0.1:50052",))
