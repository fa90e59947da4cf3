"""`llama4 serve`."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import Llama4EdgeError, SettingError
from ..system.allocator import return_large_blocks
from ..terminal.progress import loading_progress, waiting_progress
from ..untrusted import Reader
from . import values
from .declare import argument, command, flag, given, group, option, usage_error, verbose_flag
from .model_name import check_name
from .options import EngineOptions, PlacementOptions, SamplingOptions
from .pictures import projector_option
from .serve_log import ServeLog

if TYPE_CHECKING:
    from ..model import Model
    from ..server.running import TLS
    from ..server.settings import ServerSettings

logger = logging.getLogger(__name__)

_HOST, _PORT, _N_PARALLEL = "127.0.0.1", 8080, 4
_KEY_VARIABLE = "LLAMA_API_KEY"
_MAX_KEYS = 1 << 20  # bytes of a file


@dataclass(frozen=True)
class PlaceOptions:
    """Where it listens, and who may ask."""

    host: str | None = option(
        "--host", kind=str, metavar="ADDRESS",
        help="Address of this machine to listen on; 0.0.0.0 is all of them. Others than this "
        "machine's own need an API key.",
    )  # fmt: skip
    port: int | None = option(
        "--port", kind=values.whole_number(0, 65535), metavar="PORT",
        help="Port to listen on; 0 is any that is free.",
    )  # fmt: skip
    socket: str | None = option(
        "--socket", kind=str, metavar="PATH",
        help="Listen on a Unix socket in place of a port, which only you may use.",
    )  # fmt: skip
    api_keys: tuple[str, ...] = option(
        "--api-key", kind=str, metavar="KEY", multiple=True,
        help="A key that requests must have; several have commas between them. Others on this "
        "machine see it in ps; they do not see --api-key-file, or LLAMA_API_KEY of the "
        "environment.",
    )  # fmt: skip
    api_key_file: str | None = option(
        "--api-key-file", kind=str, metavar="FILE", help="A file with a key in each line.",
    )  # fmt: skip
    certificate: str | None = option(
        "--ssl-cert-file", kind=str, metavar="FILE", help="Certificate for HTTPS, in PEM.",
    )  # fmt: skip
    key: str | None = option(
        "--ssl-key-file", kind=str, metavar="FILE", help="Its private key, in PEM.",
    )  # fmt: skip
    cors_origins: tuple[str, ...] = option(
        "--cors-origin", kind=str, metavar="ORIGIN", multiple=True,
        help="Let web pages of ORIGIN ask, as in https://chat.example; * is all.",
    )  # fmt: skip
    allowed_hosts: tuple[str, ...] = option(
        "--allowed-host", kind=str, metavar="NAME", multiple=True,
        help="Another name of this machine that requests may be sent to; addresses are always "
        "allowed.",
    )  # fmt: skip

    @staticmethod
    def defaults() -> Mapping[str, object]:
        """What is declared here."""
        return {"host": _HOST, "port": _PORT}


@dataclass(frozen=True)
class LoadOptions:
    """How much it takes on."""

    n_parallel: int | None = option(
        "-np", "--parallel", kind=values.whole_number(1, 256),
        help="Answers at the same time, each with the whole context; more wait.",
    )  # fmt: skip
    max_queue: int | None = option(
        "--max-queue", kind=values.whole_number(0),
        help="Requests that may wait; more are refused with 429.",
    )  # fmt: skip
    max_body: int | None = option(
        "--max-body", kind=values.mebibytes, metavar="MiB", help="Size of a request, at most.",
    )  # fmt: skip
    idle_unload: int | None = option(
        "--idle-unload", "--sleep-idle-seconds", kind=values.whole_number(1), metavar="SECONDS",
        help="Free the model when nobody has asked for so long; the next request waits for it.",
    )  # fmt: skip
    slot_save: str | None = option(
        "--slot-save", "--slot-save-path", kind=str, metavar="DIR",
        help="Keep what was read in DIR at the end, and take it up at the start.",
    )  # fmt: skip
    sessions: str | None = option(
        "--sessions", kind=str, metavar="DIR",
        help="Keep the page's conversations in DIR, with what was read of them. Without it they "
        "last as long as the page's tab.",
    )  # fmt: skip
    grace_seconds: int | None = option(
        "--grace", kind=values.whole_number(0, 86400), metavar="SECONDS",
        help="How long answers may go on when the server is to stop.",
    )  # fmt: skip

    @staticmethod
    def defaults() -> Mapping[str, object]:
        """What is declared here, and what a server's settings declare."""
        return {"n_parallel": _N_PARALLEL, "max_queue": 64, "max_body": 64, "grace_seconds": 30}


@dataclass(frozen=True)
class ServeOptions:
    """What `llama4 serve` may be asked."""

    model: str = argument(kind=click.Path())
    alias: str | None = option(
        "-a", "--alias", kind=str, metavar="NAME",
        help="What clients are told that the model is called.  [default: its file's name]",
    )  # fmt: skip
    projector: str | None = projector_option()
    place: PlaceOptions = group(PlaceOptions)
    load: LoadOptions = group(LoadOptions)
    sampling: SamplingOptions = group(SamplingOptions)
    engine: EngineOptions = group(EngineOptions)
    placement: PlacementOptions = group(PlacementOptions)
    json: bool = flag("--json", help="A JSON object in a line of stdout for all that happens.")
    verbose: bool = verbose_flag()

    @staticmethod
    def defaults() -> Mapping[str, object]:
        """What the groups declare."""
        return {**PlaceOptions.defaults(), **LoadOptions.defaults()}


@command(ServeOptions)
def serve(options: ServeOptions) -> int:
    """Serve a model over HTTP, to programs and to browsers.

    It listens on this machine alone, until Ctrl-C, which lets answers end; the second ends them.
    Sampling flags say what holds where a request does not. At a terminal each request is a line.

    \b
    llama4 serve scout.gguf
    llama4 serve scout.gguf -np 8 -c 128k --slot-save states/ --idle-unload 3600
    llama4 serve scout.gguf --socket /run/user/1000/llama4.sock
    llama4 serve scout.gguf --host 0.0.0.0 --api-key-file keys.txt \\
        --ssl-cert-file cert.pem --ssl-key-file key.pem
    """
    _check_extra()
    log = ServeLog(as_json=options.json, verbose=options.verbose)
    try:
        return _serve(options, log)
    except Llama4EdgeError as error:
        if not options.json:
            raise
        log.failed(error)
        return 1


def _serve(options: ServeOptions, log: ServeLog) -> int:
    """Serve until it is stopped; the exit code."""
    import asyncio

    from ..server.app import create_app
    from ..server.keeper import ModelKeeper
    from ..server.running import Running
    from ..server.slots import Slots

    settings, tls = _settings(options), _tls(options.place)
    check_name(options.model, "serve")
    return_large_blocks()
    slots = None if options.load.slot_save is None else Slots(options.load.slot_save)

    def opened(model: Model) -> None:
        if slots is not None:
            slots.restore(model)
        log.ready(model)

    keeper = ModelKeeper(
        _opener(options),
        idle_seconds=options.load.idle_unload,
        opened=opened,
        closing=lambda model: slots.save(model) if slots else None,
    )
    app = create_app(keeper, settings)
    app.state.server.observers.append(log.request)
    running = Running(app, tls, stopping=lambda: log.stopping(settings.grace_seconds))
    with _listener(options.place) as listener:
        log.listening(_url(options.place, listener, tls))
        asyncio.run(running.listen([listener]))
    log.stopped()
    return 130 if running.force_exit else 0


def _settings(options: ServeOptions) -> ServerSettings:
    """What the server is told.

    Raises:
        click.UsageError: what others could reach has no key.
        Llama4EdgeError: a value cannot be used.
    """
    from ..server.settings import LOOPBACK, ServerSettings

    place, load = options.place, options.load
    keys = _keys(place)
    is_ours = place.socket is not None or _is_loopback(place.host or _HOST)
    if not is_ours and not keys:
        raise usage_error(
            f"--host {place.host} lets others use the model: give --api-key-file, --api-key or "
            f"{_KEY_VARIABLE}"
        )
    if not is_ours and place.certificate is None:
        logger.warning(
            "without --ssl-cert-file and --ssl-key-file, keys and all that is said go over the "
            "network as plain text"
        )
    names = [*LOOPBACK, place.host or _HOST, *place.allowed_hosts]
    if not is_ours:
        names += [socket.gethostname(), f"{socket.gethostname()}.local"]
    limits = given(load)
    return ServerSettings(
        alias=options.alias,
        api_keys=keys,
        cors_origins=place.cors_origins,
        hosts=None if place.socket is not None else tuple(dict.fromkeys(names)),
        sampling=options.sampling.sampling(),
        sessions=load.sessions,
        **{
            name: limits[name]
            for name in ("max_queue", "max_body", "grace_seconds")
            if name in limits
        },
    )


def _keys(place: PlaceOptions) -> tuple[str, ...]:
    """The API keys of the command line, the file and the environment.

    Raises:
        Llama4EdgeError: the file cannot be read, or has none.
    """
    keys = [key.strip() for text in place.api_keys for key in text.split(",")]
    if not all(keys):
        raise usage_error("--api-key is empty")
    if place.api_key_file is not None:
        text = Reader(SettingError, _MAX_KEYS).text(place.api_key_file)
        lines = [line.strip() for line in text.splitlines()]
        if not any(lines):
            raise SettingError(f"{place.api_key_file} has no keys", expected="one in each line")
        keys += filter(None, lines)
    keys += filter(None, [os.environ.get(_KEY_VARIABLE, "").strip()])
    return tuple(dict.fromkeys(keys))


def _tls(place: PlaceOptions) -> TLS | None:
    from ..server.running import TLS

    if (place.certificate is None) != (place.key is None):
        raise usage_error("--ssl-cert-file and --ssl-key-file go together")
    if place.certificate is None or place.key is None:
        return None
    for name in (place.certificate, place.key):
        Reader(SettingError, _MAX_KEYS).data(name)
    return TLS(place.certificate, place.key)


def _listener(place: PlaceOptions) -> AbstractContextManager[socket.socket]:
    """What it listens on."""
    from ..server.listening import listening_port, listening_socket

    if place.socket is None:
        return listening_port(place.host or _HOST, _PORT if place.port is None else place.port)
    if place.host is not None or place.port is not None:
        raise usage_error("--socket goes with neither --host nor --port")
    return listening_socket(place.socket)


def _url(place: PlaceOptions, listener: socket.socket, tls: TLS | None) -> str:
    scheme = "http" if tls is None else "https"
    if place.socket is not None:
        return f"{scheme}+unix://{place.socket}"
    host = place.host or _HOST
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _opener(options: ServeOptions) -> Callable[[Callable[[], bool]], Model]:
    """What loads the model, with its progress shown, unless it is to stop."""
    settings = {
        "n_parallel": options.load.n_parallel or _N_PARALLEL,
        **options.engine.settings(),
        **options.placement.settings(),
    }

    def load(is_cancelled: Callable[[], bool]) -> Model:
        from ..model import Model

        with loading_progress(Path(options.model).name) as show:

            def progress(fraction: float) -> bool:
                if show is not None:
                    show(fraction)
                return not is_cancelled()

            model = Model(
                options.model, projector=options.projector, on_load_progress=progress, **settings
            )
        with waiting_progress("preparing the vocabulary for structured answers"):
            model.structures.prepare()
        return model

    return load


def _check_extra() -> None:
    """Say which packages are missing, in one error.

    Raises:
        Llama4EdgeError: some are.
    """
    from importlib.util import find_spec

    names = ("h11", "prometheus_client", "pydantic", "starlette", "uvicorn")
    if missing := [name for name in names if find_spec(name) is None]:
        raise Llama4EdgeError(
            "the server needs packages that are not installed",
            found=f"no {', '.join(missing)}",
            hint="Install them: pip install 'llama4-edge[server]'",
        )
