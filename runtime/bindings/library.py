"""Loads llama.cpp's native library, and keeps its log out of the terminal.

Promises that the library is loaded and initialised once, that its log goes to Python's ``logging``
(logger ``llama4_edge.llama_cpp``), and that nothing reaches stdout or stderr unless the application
asks for it. Knows nothing of models, files or devices.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import AllocationError, EngineError
from ...system.memory import address_space_left
from ...units import bytes_text
from .build import LLAMA_CPP_PYTHON, build_command

logger = logging.getLogger("llama4_edge.llama_cpp")
# llama.cpp writes a page for every model: without this, its warnings would reach stderr through
# logging's handler of last resort.
logger.addHandler(logging.NullHandler())

# enum ggml_log_level (ggml.h); 5 continues the line before it.
_LEVELS = {0: logging.INFO, 1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_CONTINUE = 5


# How llama.cpp, ggml, CUDA and C++ report a failed allocation.
_NO_MEMORY = re.compile(r"(failed|unable) to allocate|out of memory|cudaMalloc failed|bad_alloc")


@dataclass(frozen=True)
class LogLine:
    """One whole line of llama.cpp's log; ``level`` is a level of Python's ``logging``."""

    level: int
    text: str


@dataclass
class CapturedLog:
    """The lines that llama.cpp logged inside a ``captured_log()`` block, from all threads."""

    lines: list[LogLine] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All lines, one below the other."""
        return "\n".join(line.text for line in self.lines)

    @property
    def errors(self) -> tuple[str, ...]:
        """The lines that were logged as errors."""
        return tuple(line.text for line in self.lines if line.level >= logging.ERROR)

    @property
    def last_error(self) -> str | None:
        """The last error that llama.cpp logged; None where it logged none.

        The line that only adds that loading failed is skipped for the one before it.
        """
        telling = [line for line in self.errors if not line.endswith(": failed to load model")]
        return next(reversed(telling or self.errors), None)

    @property
    def shortage(self) -> str | None:
        """The line that reports a failed allocation; None where there is none.

        Of several the last that gives a size, because it names the device too.
        """
        short = [line for line in self.errors if _NO_MEMORY.search(line)]
        telling = [line for line in short if " of size " in line] or short
        return telling[-1] if telling else None


def refused(problem: str, log: CapturedLog, hint: str | None = None) -> EngineError:
    """The error for what llama.cpp refused, in the words of its log.

    An AllocationError where it said that memory is short.
    """
    kind = AllocationError if log.shortage else EngineError
    reason = log.shortage or log.last_error or "no reason in its log"
    return kind(problem, found=reason, hint=hint)


class _LogReceiver:
    """Joins the fragments that llama.cpp logs into lines, and passes each line on."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._level = logging.INFO
        self._pending = ""
        self._captures: list[CapturedLog] = []

    def receive(self, level: int, text: str) -> None:
        """Take one fragment; a line is complete at its newline, or when another one begins."""
        lines: list[LogLine] = []
        with self._lock:
            if level != _CONTINUE:
                if self._pending:
                    lines.append(LogLine(self._level, self._pending))
                self._pending = ""
                self._level = _LEVELS.get(level, logging.ERROR)
            *whole, self._pending = (self._pending + text).split("\n")
            lines.extend(LogLine(self._level, line) for line in whole if line.strip())
            captures = tuple(self._captures)
        for line in lines:
            for capture in captures:
                capture.lines.append(line)
            logger.log(line.level, "%s", line.text)

    def renew_lock(self) -> None:
        """Forget who holds the lock."""
        self._lock = threading.RLock()

    def flush(self) -> None:
        """Pass on a line that llama.cpp began and did not end."""
        if self._pending:
            self.receive(_CONTINUE, "\n")

    def begin(self, captured: CapturedLog) -> None:
        """Add lines to `captured` too from now on."""
        self.flush()
        with self._lock:
            self._captures.append(captured)

    def end(self, captured: CapturedLog) -> None:
        """Stop adding lines to it."""
        self.flush()
        with self._lock:
            # By identity: two captures with the same lines are equal.
            self._captures = [capture for capture in self._captures if capture is not captured]


_receiver = _LogReceiver()


def _on_log(level: int, text: bytes | None, _user_data: object) -> None:
    """llama.cpp's log callback. ctypes would print an exception and drop it, so it raises none."""
    try:
        _receiver.receive(level, (text or b"").decode("utf-8", "replace"))
    except KeyboardInterrupt:
        # Ctrl-C arrived while llama.cpp was logging: raise it again once Python has control.
        again = threading.Timer(0.05, _interrupt_main)
        again.daemon = True
        again.start()
    except Exception:
        logger.debug("a log handler failed", exc_info=True)


def _interrupt_main() -> None:
    """Ctrl-C once more, which ends what the main thread waits for."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)


# llama.cpp keeps only the address of the callback; this keeps the object alive.
_referenced: list[object] = []


# What the library, a graph and threads take before a model does. With less, ggml or the C library
# would end the process.
_LEAST_LEFT = 256 * 2**20


@functools.cache
def _load() -> Any:
    """Import the bindings, take over the log, initialise the backends. Once a process."""
    left = address_space_left()
    if left is not None and left < _LEAST_LEFT:
        raise AllocationError(
            "the limit of this process's memory (ulimit -v) leaves too little for llama.cpp",
            found=bytes_text(left),
            expected=f"at least {bytes_text(_LEAST_LEFT)}, and what the model takes",
            hint="Raise the limit, or lift it: ulimit -v unlimited",
        )
    # When ggml gives up it would start a debugger, if there is one, for a page of backtrace.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        with _bounded_spin():
            bindings = importlib.import_module("llama_cpp.llama_cpp")
    except Exception as error:  # a missing .so raises FileNotFoundError, a broken one RuntimeError
        raise EngineError(
            "the llama.cpp library cannot be loaded",
            found=f"{type(error).__name__}: {error}",
            expected=f"llama-cpp-python {LLAMA_CPP_PYTHON} with its native library",
            hint=f"Build it with: {build_command()}",
        ) from error
    callback = on_log(bindings)
    bindings.llama_log_set(callback, ctypes.c_void_p(0))
    atexit.register(bindings.llama_log_set, silent_callback(bindings), ctypes.c_void_p(0))
    bindings.llama_backend_init()
    return bindings


@contextmanager
def _bounded_spin() -> Iterator[None]:
    """Have GCC's OpenMP, where this block loads it, spin for 30,000 rounds before a thread sleeps.

    Unless the person has chosen how threads wait. By default they spin ten times as long,
    which takes cores from the very threads that they wait for, where other programs or a CPU quota
    leave fewer cores than threads. Tokens a second of a tiny model, prefill of 128 and decode of
    64, two threads on two cores, idle and with one core taken by another program:

    ============  ==========  =========
    rounds        idle        busy
    ============  ==========  =========
    the default   2499, 130   625, 74
    300           1782, 112   1434, 86
    3,000         2257, 130   1133, 68
    30,000        2833, 158   890, 79
    none          1809, 42
    ============  ==========  =========

    On another machine of two idle cores, with 0.25 ms a token: 2,920 tokens a second with 3,000
    rounds, 4,060 with 30,000, as many as by default.
    """
    if _SPIN in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ[_SPIN] = "30000"
    try:
        yield
    finally:
        del os.environ[_SPIN]  # read by now; other programs have their own needs


_SPIN = "GOMP_SPINCOUNT"


def on_log(bindings: Any) -> Any:
    """A ``ggml_log_callback`` that receives the log, to be set in a native library for good."""
    callback = bindings.llama_log_callback(_on_log)
    _referenced.append(callback)
    return callback


def silent_callback(bindings: Any) -> Any:
    """A native function to log to: destructors log after Python has ended.

    ``ggml_time_us`` takes no argument and changes nothing, so it can stand in for a callback.
    """
    address = ctypes.cast(bindings._lib["ggml_time_us"], ctypes.c_void_p).value
    assert address is not None
    return bindings.llama_log_callback(address)


_load_lock = threading.Lock()


def _renew_locks() -> None:
    """In a forked child, no thread is left that could release what it held."""
    global _load_lock
    _load_lock = threading.Lock()
    _receiver.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def llama() -> Any:
    """The module ``llama_cpp.llama_cpp``: llama.cpp's C functions and structs, ready to call.

    Raises:
        EngineError: the package or its native library is missing or does not load.
    """
    with _load_lock:
        return _load()


def native_function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A C function of libllama or of the ggml libraries it depends on, with its own types.

    Raises:
        EngineError: the loaded library has no such function.
    """
    try:
        # Indexing makes a new function object: setting its types cannot disturb the bindings'.
        function = llama()._lib[name]
    except AttributeError as error:
        raise EngineError(
            f"the loaded llama.cpp library has no function {name}",
            expected=f"the library of llama-cpp-python {LLAMA_CPP_PYTHON}",
            hint=f"Build it with: {build_command()}",
        ) from error
    function.restype = result
    function.argtypes = list(arguments)
    return function  # type: ignore[no-any-return]


class captured_log:  # noqa: N801 (used as a function is, and written out because it is quicker)
    """Collect what llama.cpp logs inside the block, beside sending it to ``logging``.

    Entered for each decoded token, for which a generator's context manager would be too slow.
    """

    def __enter__(self) -> CapturedLog:
        llama()
        self._captured = CapturedLog()
        _receiver.begin(self._captured)
        return self._captured

    def __exit__(self, *_: object) -> None:
        _receiver.end(self._captured)


@dataclass(frozen=True)
class LibraryInfo:
    """Versions, files and backends of the loaded native library."""

    llama_cpp_python: str
    llama_cpp: str
    ggml: str
    ggml_commit: str
    paths: tuple[str, ...]
    backends: tuple[str, ...]
    rpc: bool


def llama_cpp_python() -> str:
    """The release of the loaded llama-cpp-python; EngineError when it does not load."""
    llama()
    return str(importlib.import_module("llama_cpp").__version__)


def library_info() -> LibraryInfo:
    """Versions, files and backends of the loaded library; EngineError when it does not load."""
    bindings = llama()
    backends = _backend_names()
    return LibraryInfo(
        llama_cpp_python=llama_cpp_python(),
        llama_cpp=_string_function("llama_version"),
        ggml=_string_function("ggml_version"),
        ggml_commit=_string_function("ggml_commit"),
        paths=_loaded_paths(bindings),
        backends=backends,
        rpc=bool(bindings.llama_supports_rpc()),
    )


def system_info() -> dict[str, dict[str, str]]:
    """What each backend says it was built with: ``{"CPU": {"AVX2": "1", ...}, ...}``."""
    return parse_system_info(llama().llama_print_system_info().decode("utf-8", "replace"))


def parse_system_info(text: str) -> dict[str, dict[str, str]]:
    """Parse ``CPU : AVX = 1 | AVX2 = 1 | CUDA : ARCHS = 900 | `` by backend."""
    backends: dict[str, dict[str, str]] = {}
    features: dict[str, str] = {}
    for item in text.split("|"):
        assignment, has_value, value = item.partition(" = ")
        if not has_value:
            continue
        backend, starts_backend, name = assignment.rpartition(" : ")
        if starts_backend:
            features = backends.setdefault(backend.strip(), {})
        features[name.strip()] = value.strip()
    return backends


def _string_function(name: str) -> str:
    value = native_function(name, ctypes.c_char_p)()
    return value.decode("utf-8", "replace") if value else "unknown"


def _backend_names() -> tuple[str, ...]:
    count = native_function("ggml_backend_reg_count", ctypes.c_size_t)()
    get = native_function("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name = native_function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    return tuple(name(get(index)).decode("utf-8", "replace") for index in range(count))


def _loaded_paths(bindings: Any) -> tuple[str, ...]:
    """The native libraries that the kernel mapped: the loader may choose other files."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return (str(bindings._lib._name),)
    mapped = (line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines())
    names = ("libllama", "libggml")
    return tuple(sorted({path for path in mapped if Path(path).name.startswith(names)}))
