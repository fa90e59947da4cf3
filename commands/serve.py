"""`llama4 serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import Llama4EdgeError
from ..terminal.progress import loading_progress
from . import values
from .declare import argument, command, group, option, verbose_flag
from .model_name import check_name
from .options import EngineOptions, PlacementOptions, SamplingOptions
from .output import show_warnings
from .pictures import projector_option

if TYPE_CHECKING:
    from ..model import Model

_N_PARALLEL = 4


@dataclass(frozen=True)
class ServeOptions:
    """What `llama4 serve` may be asked."""

    model: str = argument(kind=click.Path())
    host: str | None = option(
        "--host", kind=str, metavar="ADDRESS",
        help="Address of this machine to listen on.  [default: 127.0.0.1]",
    )  # fmt: skip
    port: int | None = option(
        "--port", kind=values.whole_number(0, 65535), metavar="PORT",
        help="Port to listen on; 0 is any that is free.  [default: 8080]",
    )  # fmt: skip
    alias: str | None = option(
        "-a", "--alias", kind=str, metavar="NAME",
        help="What clients are told that the model is called.  [default: its file's name]",
    )  # fmt: skip
    n_parallel: int | None = option(
        "-np", "--parallel", kind=values.whole_number(1, 256),
        help="Answers at the same time, each with the whole context; more wait.",
    )  # fmt: skip
    projector: str | None = projector_option()
    sampling: SamplingOptions = group(SamplingOptions)
    engine: EngineOptions = group(EngineOptions)
    placement: PlacementOptions = group(PlacementOptions)
    verbose: bool = verbose_flag()

    @staticmethod
    def defaults() -> Mapping[str, object]:
        """What is declared here."""
        return {"n_parallel": _N_PARALLEL}


@command(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve a model over HTTP, for programs that speak OpenAI's protocol.

    \b
    llama4 serve scout.gguf
    llama4 serve scout.gguf --port 0 -np 8
    """
    _check_extra()
    import asyncio

    from ..server.app import create_app
    from ..server.keeper import ModelKeeper
    from ..server.listening import listening_port
    from ..server.running import Running
    from ..server.settings import ServerSettings
    from ..terminal.console import note

    check_name(options.model, "serve")
    show_warnings(verbose=options.verbose)
    settings = ServerSettings(alias=options.alias, sampling=options.sampling.sampling())
    app = create_app(ModelKeeper(_opener(options)), settings)
    running = Running(app)
    host, port = options.host or "127.0.0.1", 8080 if options.port is None else options.port
    with listening_port(host, port) as listener:
        note(f"Listening on http://{host}:{listener.getsockname()[1]}")
        asyncio.run(running.listen([listener]))


def _opener(options: ServeOptions) -> Callable[[], Model]:
    """What loads the model, with its progress shown."""
    settings = {
        "n_parallel": options.n_parallel or _N_PARALLEL,
        **options.engine.settings(),
        **options.placement.settings(),
    }

    def load() -> Model:
        from ..model import Model

        with loading_progress(Path(options.model).name) as progress:
            return Model(
                options.model, projector=options.projector, on_load_progress=progress, **settings
            )

    return load


def _check_extra() -> None:
    """Say which packages are missing, in one error.

    Raises:
        Llama4EdgeError: some are.
    """
    from importlib.util import find_spec

    names = ("prometheus_client", "pydantic", "starlette", "uvicorn")
    if missing := [name for name in names if find_spec(name) is None]:
        raise Llama4EdgeError(
            "the server needs packages that are not installed",
            found=f"no {', '.join(missing)}",
            hint="Install them: pip install 'llama4-edge[server]'",
        )
