"""`llama4 worker`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from . import values
from .declare import command, given, option, verbose_flag
from .output import present, show_warnings


@dataclass(frozen=True)
class WorkerOptions:
    """What `llama4 worker` may be asked."""

    host: str | None = option(
        "-H", "--host", kind=str, metavar="ADDRESS",
        help="Address of this machine to listen on; 0.0.0.0 is all of them.",
    )  # fmt: skip
    port: int | None = option(
        "-p",
        "--port",
        kind=values.whole_number(0, 65535),
        metavar="PORT",
        help="Port to listen on; 0 is any that is free.",
    )
    n_threads: int | None = option(
        "-t", "--threads", kind=values.whole_number(1),
        help="CPU threads, where there is no GPU.  [default: one for each core]",
    )  # fmt: skip
    verbose: bool = verbose_flag()

    @staticmethod
    def defaults() -> dict[str, object]:
        """What `running_worker` declares."""
        from ..runtime.workers.worker import running_worker

        parameters = inspect.signature(running_worker).parameters
        return {name: parameters[name].default for name in ("host", "port")}


@command(WorkerOptions)
def worker(options: WorkerOptions) -> None:
    """Lend this machine to a model that runs on another one.

    Its GPUs, or else its CPU, hold part of a model: `llama4 run MODEL --workers HOST:PORT` there.
    A worker serves one program at a time, until Ctrl-C. It lends its GPUs' memory, or else seven
    eighths of the main memory that is free when it starts, and takes no more. There is no password
    and no encryption: whoever reaches the port can use it.

    \b
    llama4 worker
    llama4 worker --host 192.168.0.7
    """
    from ..runtime.workers.worker import running_worker
    from ..terminal.tables import worker_view

    show_warnings(verbose=options.verbose)
    settings = given(options)
    settings.pop("verbose", None)
    with running_worker(**settings) as here:
        present(here, worker_view)
        here.wait()
