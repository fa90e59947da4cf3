"""Does the loaded library survive a prompt on this CPU? Tested once, in a child process.

GCC before 13.2.1 drops the stores that fill ggml's AMX tile configuration, and llama.cpp dies with
SIGSEGV at the first prompt on a Xeon with AMX. No symbol of the library shows how it was built.
Where it has AMX, a child process runs a tiny model; the result is cached on disk until the library
or the CPU changes. Promises never to crash this process, and that an uncertain result counts as
"not safe" and is not cached.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import EngineError
from ...system.cores import cpu_model
from ...system.files import write_atomically
from ...untrusted import Reader
from .build import build_command
from .library import library_info, system_info

PROBE = (sys.executable, "-m", "llama4_edge.runtime.bindings.amx_probe")
"""The command that tries a prompt with AMX; it must end with status 0."""

TIMEOUT = 60.0
"""Seconds after which a trial counts as failed."""

logger = logging.getLogger(__name__)

_CACHED = Reader(EngineError, limit=2**20)


@dataclass(frozen=True)
class AMXState:
    """Whether AMX works here.

    ``needed``: the library was built with AMX, so that a trial is needed. ``survived``: the trial
    succeeded, or none was needed. ``cached``: the result came from disk. ``reason`` says in a
    clause where the result comes from.
    """

    needed: bool
    survived: bool
    cached: bool
    reason: str


def use_extra_bufts() -> bool:
    """Whether llama.cpp may repack weights for this CPU; a warning says once where it may not.

    Raises:
        EngineError: llama.cpp's library does not load.
    """
    state = _state_of_this_process()
    if not state.survived:
        _warn(state)
    return state.survived


def extra_buffers_are_safe() -> AMXState:
    """Look at the library, then in the cache, then run a child process.

    Raises:
        EngineError: llama.cpp's library does not load.
    """
    if system_info().get("CPU", {}).get("AMX_INT8") != "1":
        return AMXState(False, True, False, "the library was built without AMX")
    identity = _identity()
    path = _cache_path(identity)
    known = _read_cache(path, identity) if path else None
    if known is not None:
        return known
    state, certain = _probe()
    if certain and path:
        _write_cache(path, identity, state)
    return state


def rebuild_command() -> str:
    """The command that rebuilds the library without the fault, with the backends that it has."""
    return build_command(library_info().backends)


_state_of_this_process = functools.cache(extra_buffers_are_safe)


@functools.cache
def _warn(state: AMXState) -> None:
    logger.warning(
        "The llama.cpp library cannot use AMX on this machine (%s), and runs slower without it. "
        "Rebuild it with: %s",
        state.reason,
        rebuild_command(),
    )


def _probe() -> tuple[AMXState, bool]:
    """Run the child; the second value says whether the result can be cached."""
    # ggml would start a debugger to print a backtrace.
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    try:
        done = subprocess.run(
            PROBE,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return AMXState(True, False, False, f"a trial did not end in {TIMEOUT:g} seconds"), False
    except OSError as error:
        return AMXState(True, False, False, f"a trial could not start: {error.strerror}"), False
    if done.returncode == 0:
        return AMXState(True, True, False, "a trial prompt succeeded"), True
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        # SIGKILL and SIGTERM come from outside, as from the kernel when memory is short.
        certain = name not in ("SIGKILL", "SIGTERM")
        return AMXState(True, False, False, f"a trial prompt ended with {name}"), certain
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no output"]
    return AMXState(True, False, False, f"a trial failed: {lines[-1]}"), False


# --- the cache on disk


def _identity() -> dict[str, object]:
    """All that the result depends on: the library's files, its version and the CPU."""
    info = library_info()
    files = {path: Path(path).stat() for path in info.paths}
    return {
        "files": {path: [stat.st_mtime_ns, stat.st_size] for path, stat in files.items()},
        "llama_cpp_python": info.llama_cpp_python,
        "ggml_commit": info.ggml_commit,
        "cpu": cpu_model(),
    }


def _cache_path(identity: Mapping[str, object]) -> Path | None:
    """The cache file; None for a user without a home directory."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification ignores a relative path.
    try:
        base = configured if configured.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return base / "llama4-edge" / f"amx-{digest[:16]}.json"


def _read_cache(path: Path, identity: Mapping[str, object]) -> AMXState | None:
    """The result cached in `path`; None where there is none, or where it is damaged."""
    try:
        kept = _CACHED.record(path)
        if kept.record("identity").fields != identity:
            return None
        return AMXState(True, kept.boolean("survived"), True, kept.text("reason"))
    except EngineError:
        return None


def _write_cache(path: Path, identity: Mapping[str, object], state: AMXState) -> None:
    """Cache the result. Where that fails, the next process runs the trial again."""
    kept = {"identity": identity, "survived": state.survived, "reason": state.reason}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(kept))
    except OSError as error:
        logger.debug("cannot cache the result of the AMX trial in %s: %s", path, error)
