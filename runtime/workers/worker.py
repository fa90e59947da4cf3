"""A worker: ggml's RPC server, which lets other machines use the devices of this one.

Promises that a running worker listens and answers, that it takes no more of this machine than it
lends, and that it ends with the block or the process that started it, whichever way that ends. The
server runs in a process of its own, because it never returns, and because a client can make it end
the process.

The protocol has neither authentication nor encryption: who reaches the port can use the machine.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from ...errors import WorkerError
from ...ranges import check_whole
from ...system.cores import MAX_THREADS, decoding_threads
from ...untrusted import Reader, Record
from ..bindings.build import build_command
from ..bindings.devices import Device
from ..bindings.library import llama
from .handshake import DEFAULT_PORT, greet, resolve

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

_CHILD = Reader(WorkerError, limit=2**20)
_STARTS_WITHIN = 120.0  # seconds; a GPU's driver may take its time
_ENDS_WITHIN = 5.0


@dataclass(frozen=True)
class Worker:
    """A running worker: where it listens, its devices, and the bytes of main memory that it lends
    where it has no GPU."""

    address: str
    port: int
    devices: tuple[Device, ...]
    lent_bytes: int
    process: subprocess.Popen[bytes]

    @property
    def endpoint(self) -> str:
        """``HOST:PORT``, as ``workers`` takes it."""
        return f"{self.address}:{self.port}"

    @property
    def reached_at(self) -> str:
        """The endpoint for other machines: this host's name where it listens on all addresses."""
        every = ipaddress.ip_address(self.address).is_unspecified
        return f"{socket.gethostname()}:{self.port}" if every else self.endpoint

    def wait(self) -> None:
        """Wait for ever; WorkerError if the server ends."""
        status = self.process.wait()
        raise WorkerError(
            f"the worker on {self.endpoint} ended",
            found=f"signal {-status}" if status < 0 else f"exit code {status}",
            hint="A client of another version can cause that. Start the worker again.",
        )


@contextmanager
def running_worker(
    host: str = LOOPBACK, port: int = DEFAULT_PORT, *, n_threads: int | None = None
) -> Iterator[Worker]:
    """A worker on this machine, for as long as the block lasts.

    Its devices are the GPUs, or else the CPU with ``n_threads`` threads (None is one for each
    physical core). Port 0 is any that is free.

    Raises:
        SettingError: a port or a number of threads outside its range.
        WorkerError: the address is not one of this machine, the port is taken, or ggml's RPC
            server is not built in.
        EngineError: llama.cpp's library does not load.
    """
    check_whole("port", port, 0, 65535)
    if n_threads is None:
        n_threads = decoding_threads()
    check_whole("n_threads", n_threads, 1, MAX_THREADS)
    check_rpc()
    address = resolve(host)
    _check_free(address, port)
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.worker_process", address, str(port), str(n_threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        worker = _reported(process, address)
        greet(_reachable(address), worker.port, worker.endpoint, patience=_STARTS_WITHIN)
        if not ipaddress.ip_address(address).is_loopback:
            logger.warning(
                "the worker on %s has no authentication: who reaches it can use this machine, and "
                "read what it is sent. Let only a trusted network reach it.",
                worker.endpoint,
            )
        yield worker
    finally:
        _end(process)


@contextmanager
def local_workers(count: int, *, n_threads: int = 1) -> Iterator[tuple[str, ...]]:
    """So many workers on free ports of the loopback interface, by their endpoints.

    Raises:
        WorkerError, EngineError: as ``running_worker``.
    """
    with ExitStack() as stack:
        workers = [
            stack.enter_context(running_worker(port=0, n_threads=n_threads)) for _ in range(count)
        ]
        yield tuple(worker.endpoint for worker in workers)


def check_rpc() -> None:
    """Check that the library was built with RPC.

    Raises:
        WorkerError: it was not.
    """
    if not llama().llama_supports_rpc():
        raise WorkerError(
            "llama.cpp is built without RPC, and can neither be a worker nor use one",
            hint=f"Build it with: {build_command()}",
        )


def _check_free(address: str, port: int) -> None:
    """Raise WorkerError if ggml could not listen here; ggml itself reports nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            hints = {
                errno.EADDRINUSE: "Choose another port, or end what listens there.",
                errno.EADDRNOTAVAIL: "Listen on an address of this machine.",
                errno.EACCES: "Choose a port from 1024 up.",
            }
            raise WorkerError(
                f"a worker cannot listen on {address}:{port}",
                found=error.strerror,
                hint=hints.get(error.errno or 0),
            ) from error


def _reported(process: subprocess.Popen[bytes], address: str) -> Worker:
    """What the child says as soon as it listens; WorkerError if it does not come so far."""
    assert process.stdout is not None
    # Without a line the child has already said on stderr what was wrong.
    deadline = threading.Timer(_STARTS_WITHIN, process.kill)
    deadline.start()
    try:
        line = process.stdout.readline(_CHILD.limit)
    finally:
        deadline.cancel()
    if not line:
        raise _did_not_start(process)
    record = _CHILD.as_record(_CHILD.parse(line, "the worker's first line"), "it")
    devices = tuple(
        Device(
            name=device.text("name"),
            description=device.text("description"),
            type=device.text("type"),
            backend=device.text("backend"),
            total_bytes=_bytes(device, "total_bytes"),
            free_bytes=_bytes(device, "free_bytes"),
            memory_source=device.text("memory_source"),
        )
        for device in record.records("devices")
    )
    port = record.integer("port", 1, 65535)
    return Worker(address, port, devices, record.integer("lent_bytes"), process)


def _bytes(device: Record, name: str) -> int | None:
    return None if device.get(name) is None else device.integer(name)


def _reachable(address: str) -> str:
    """Where this machine reaches what listens on an address."""
    return LOOPBACK if ipaddress.ip_address(address).is_unspecified else address


def _did_not_start(process: subprocess.Popen[bytes]) -> WorkerError:
    with suppress(subprocess.TimeoutExpired):
        process.wait(_ENDS_WITHIN)
    return WorkerError("the worker did not start", found=f"exit code {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # ggml's server has no state to save
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
