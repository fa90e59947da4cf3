"""The child process of ``worker``: ggml's RPC server, until its standard input ends.

Run as ``python -m llama4_edge.runtime.workers.worker_process ADDRESS PORT THREADS``. The first line
on stdout is a JSON list of its devices. It serves from then on; status 1 says that it cannot.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from dataclasses import asdict

from ..bindings.devices import list_devices, rpc_function
from ..bindings.library import native_function


def serve(address: str, port: int, n_threads: int) -> None:
    """Write the devices, then serve; returns only when serving is impossible."""
    # Ctrl-C at a terminal reaches the whole group of processes: the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_input, daemon=True).start()
    devices = list_devices()
    shared = [device for device in devices if device.type in ("gpu", "igpu")] or [
        device for device in devices if device.type == "cpu"
    ]
    sys.stdout.write(json.dumps([asdict(device) for device in shared]) + "\n")
    sys.stdout.flush()
    # The server prints a page; whoever started this one has no use for it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    by_name = native_function("ggml_backend_dev_by_name", ctypes.c_void_p, ctypes.c_char_p)
    handles = (ctypes.c_void_p * len(shared))(*(by_name(device.name.encode()) for device in shared))
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


def _end_with_input() -> None:
    """End this process when the one that holds the other end of its standard input does."""
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.exit(1)
