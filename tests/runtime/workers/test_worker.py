from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama4_edge.errors import SettingError, WorkerError
from llama4_edge.runtime.workers.handshake import greet
from llama4_edge.runtime.workers.remote import connect
from llama4_edge.runtime.workers.worker import local_workers, running_worker
from llama4_edge.system.memory import host_memory

# They listen on ports of one machine, and free ones are asked for before they are taken.
pytestmark = pytest.mark.xdist_group("workers")

LLAMA4 = [sys.executable, "-c", "from llama4_edge.cli import main; main(prog_name='llama4')"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until_gone(pid: int) -> None:
    """Until the process is no more; a test that waits for ever is stopped from outside."""
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)


def test_a_worker_says_what_it_lends_and_ends_with_the_block() -> None:
    port = free_port()
    with running_worker(port=port, n_threads=1) as worker:
        (device,) = worker.devices
        memory = host_memory()
        assert memory is not None
        assert (device.name, device.type, device.total_bytes) == ("CPU", "cpu", memory.total)
        assert worker.endpoint == worker.reached_at == f"127.0.0.1:{port}"
        greet("127.0.0.1", port, "here", patience=5.0)
    assert worker.process.returncode == -signal.SIGKILL
    with pytest.raises(WorkerError, match="Connection refused"):
        greet("127.0.0.1", port, "here", patience=5.0)


def test_local_workers_are_as_many_as_were_asked_for() -> None:
    with local_workers(2) as endpoints:
        assert len(set(endpoints)) == 2
        for endpoint in endpoints:
            host, _, port = endpoint.partition(":")
            greet(host, int(port), endpoint, patience=5.0)


def test_a_worker_that_listens_everywhere_is_warned_of_and_reached_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    with running_worker("0.0.0.0", port, n_threads=1) as worker:
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
    with running_worker(port=free_port(), n_threads=1) as worker:
        worker.process.kill()
        with pytest.raises(WorkerError, match=rf"the worker on {worker.endpoint} ended, found sig"):
            worker.wait()


# --- the command


@pytest.fixture
def command() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*LLAMA4, "worker", "--port", str(free_port()), "--threads", "1"],
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
    wait_until_gone(server)


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
