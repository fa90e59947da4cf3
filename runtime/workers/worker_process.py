"""The child process of ``worker``: ggml's RPC server, until its standard input ends.

Run as ``python -m llama4_edge.runtime.workers.worker_process ADDRESS PORT THREADS``; port 0 is any
that is free. As soon as it listens it writes one line on stdout, a JSON object of its port, its
devices and what it lends; status 1 says that it cannot.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict

import psutil

from ...errors import Llama4EdgeError
from ..bindings.devices import Device, list_devices, rpc_function
from ..bindings.library import native_function
from .connection import keep_alive
from .lending import Loan


def serve(address: str, port: int, n_threads: int) -> None:
    """Serve, and say so; returns only when serving is impossible."""
    # Ctrl-C at a terminal reaches the whole group of processes: the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_input, daemon=True).start()
    devices = list_devices()
    shared = [device for device in devices if device.type in ("gpu", "igpu")] or [
        device for device in devices if device.type == "cpu"
    ]
    by_name = native_function("ggml_backend_dev_by_name", ctypes.c_void_p, ctypes.c_char_p)
    handles = (ctypes.c_void_p * len(shared))(*(by_name(device.name.encode()) for device in shared))
    loan = Loan(n_threads)
    for device, handle in zip(shared, handles, strict=True):
        if device.type == "cpu":
            loan.report_as_memory_of(handle)
    loan.enforce(shared)
    output = os.dup(1)
    # The server prints a page; whoever started this one has no use for it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    threading.Thread(target=_report, args=(output, shared, loan), daemon=True).start()
    start = rpc_function(
        "ggml_backend_rpc_start_server",
        None,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_void_p,
    )
    start(f"{address}:{port}".encode(), None, n_threads, len(shared), handles)


def _report(output: int, devices: Sequence[Device], loan: Loan) -> None:
    """Write the line when ggml listens, which does not say where."""
    while not (listening := _listening()):
        time.sleep(0.01)
    descriptor, port = listening[0]
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        # Accepted connections inherit it: a client that vanished makes room for another.
        keep_alive(listener)
    record = {
        "port": port,
        "devices": [asdict(device) for device in devices],
        "lent_bytes": loan.lent_bytes,
    }
    os.write(output, json.dumps(record).encode() + b"\n")
    os.close(output)


def _listening() -> list[tuple[int, int]]:
    """The descriptors and ports on which this process listens."""
    connections = psutil.Process().net_connections("tcp4")
    return [(one.fd, one.laddr.port) for one in connections if one.status == psutil.CONN_LISTEN]


def _end_with_input() -> None:
    """End this process when the one that holds the other end of its standard input does."""
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    try:
        serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    except Llama4EdgeError as error:
        sys.stderr.write(f"error: {error}\n")
    sys.exit(1)
