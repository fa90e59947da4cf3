"""Every module can be imported on macOS and Windows, as far as Linux can tell.

A child pretends: another `sys.platform`, without the modules and functions that Python has on Linux
alone, and without /proc. What the package depends on is imported before.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tools.imports import sources

# What Python's documentation says is missing: modules, and names in os, signal and socket.
MISSING: dict[str, dict[str, tuple[str, ...]]] = {
    "darwin": {
        "modules": ("spwd", "msvcrt", "winreg"),
        "os": (
            "copy_file_range", "eventfd", "fdatasync", "memfd_create", "pidfd_open",
            "posix_fadvise", "posix_fallocate", "sched_getaffinity", "sched_setaffinity", "splice",
        ),
        "signal": ("SIGPOLL", "SIGPWR", "SIGSTKFLT", "sigtimedwait", "sigwaitinfo"),
        "socket": ("AF_PACKET", "SO_BINDTODEVICE", "TCP_USER_TIMEOUT"),
    },
    "win32": {
        "modules": (
            "crypt", "curses", "fcntl", "grp", "nis", "posix", "pty", "pwd", "readline",
            "resource", "spwd", "syslog", "termios", "tty",
        ),
        "os": (
            "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "RTLD_LOCAL",
            "WNOHANG", "chown", "confstr", "copy_file_range", "eventfd", "fchmod", "fchown",
            "fdatasync", "fork", "forkpty", "geteuid", "getgid", "getloadavg", "getpgid", "getuid",
            "killpg", "lockf", "memfd_create", "mkfifo", "mknod", "nice", "openpty", "pidfd_open",
            "posix_fadvise", "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite",
            "pwritev", "register_at_fork", "sched_getaffinity", "sched_setaffinity",
            "sched_yield", "sendfile", "setsid", "splice", "statvfs", "sync", "sysconf", "uname",
            "wait", "wait3", "wait4",
        ),
        "signal": (
            "ITIMER_REAL", "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGIO", "SIGKILL",
            "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGWINCH",
            "alarm", "getitimer", "pause", "pthread_kill", "pthread_sigmask", "setitimer",
            "sigpending", "sigwait",
        ),
        "socket": ("AF_PACKET", "AF_UNIX", "socketpair", "SO_BINDTODEVICE", "TCP_USER_TIMEOUT"),
    },
}  # fmt: skip

CHILD = """
import builtins, ctypes, importlib, os, signal, socket, sys

platform, missing, modules = ARGUMENTS
# Dependencies have their own ways; those that are imported late are imported now.
for name in ("click", "cpuinfo", "ctypes.util", "gguf", "huggingface_hub", "jinja2.sandbox",
             "numpy", "prompt_toolkit", "psutil", "rich.console", "rich.progress", "rich.table",
             "tempfile", "tokenizers", "subprocess", "asyncio", "multiprocessing.pool",
             "matplotlib.figure", "jinja2.ext", "concurrent.futures.thread"):
    importlib.import_module(name)
from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub import errors, utils
from prompt_toolkit import PromptSession, application, history, key_binding

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in missing["modules"]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in missing["modules"]:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
for module in (os, signal, socket):
    for name in missing[module.__name__]:
        if hasattr(module, name):
            delattr(module, name)

def hidden(path):
    return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith("/proc")

def without_proc(function):
    def call(path, *rest, **more):
        if hidden(path):
            raise FileNotFoundError(2, "No such file or directory", os.fsdecode(path))
        return function(path, *rest, **more)
    return call

for module, names in ((os, ("open", "stat", "lstat", "listdir", "scandir", "readlink")),
                      (builtins, ("open",))):
    for name in names:
        setattr(module, name, without_proc(getattr(module, name)))
if platform == "win32":
    def library(name, *rest, **more):
        if name is None:
            raise TypeError("LoadLibrary() argument 1 must be str, not None")
        return original(name, *rest, **more)
    original, ctypes.CDLL = ctypes.CDLL, library
    signal.SIGBREAK = signal.SIGTERM  # only Windows has it, and uvicorn asks for it there
sys.platform = platform

for name in modules:
    importlib.import_module(name)

from pathlib import Path
from llama4_edge.system import cores, files, locks, page_cache
assert cores.usable_threads() == cores.logical_cores() == os.cpu_count()
assert cores.cpu_quota() is None
assert cores.cpu_model()
target = Path(sys.argv[1], "file")
files.write_atomically(target, "text")
with target.open("r+b") as file:
    page_cache.forget_cached(file.fileno(), 0, 4)
    page_cache.start_writing(file.fileno(), 0, 4)
    if platform == "darwin":
        assert locks.lock(file.fileno(), target)
print("imported", len(modules))
"""


@pytest.mark.parametrize("platform", MISSING)
def test_every_module_can_be_imported_elsewhere(platform: str, tmp_path: object) -> None:
    modules = ["llama4_edge" if name == "__init__" else f"llama4_edge.{name}" for name in sources()]
    arguments = repr((platform, MISSING[platform], modules))
    done = subprocess.run(
        [sys.executable, "-c", CHILD.replace("ARGUMENTS", arguments), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"imported {len(modules)}\n"
