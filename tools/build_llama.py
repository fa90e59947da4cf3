"""Builds the wheel of llama-cpp-python, and says how far the compiler is.

Promises a wheel in the directory asked for, or the compiler's own error and what to do about it.
Does not choose any flag: CMAKE_ARGS, CFLAGS and CXXFLAGS come from the environment.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from .progress import ProgressLine, follow, log_end

_INCLUDE = Path(__file__).with_name("llama_cpp.cmake")
_NINJA = re.compile(r"\s*\[(\d+)/(\d+)\] ")
# CMake's own trials before it are compiled by ninja too.
_COMPILING = "*** Building project"
_STAGES = (
    ("Downloading ", "fetching the source"),
    ("*** Configuring CMake", "looking at the compiler"),
    ("*** Making wheel", "packing the wheel"),
)
_NEEDS = """\
llama.cpp needs a C++17 compiler:
  Debian, Ubuntu: sudo apt-get install build-essential
  Fedora: sudo dnf install gcc-c++ make
  macOS: xcode-select --install
A wheel that was built elsewhere saves the build: LLAMA_WHEELS=<directory or index URL> make ..."""


class Compilation:
    """What the lines of pip's verbose output say of the build, drawn on a progress line."""

    def __init__(self, progress: ProgressLine) -> None:
        self._progress = progress
        self._stage = "starting"
        self._is_compiling = False
        self.done = 0
        self.total = 0

    def read(self, line: str) -> None:
        """Take one line of output."""
        count = _NINJA.match(line) if self._is_compiling else None
        if count:
            self.done, self.total = int(count[1]), int(count[2])
            self._stage = f"{self.done}/{self.total} files compiled"
        else:
            text = line.strip()
            self._is_compiling |= text.startswith(_COMPILING)
            stages = [stage for begin, stage in _STAGES if text.startswith(begin)]
            if not stages:
                return
            self._stage = stages[0]
        self.draw()

    def draw(self) -> None:
        """Say it again: time has passed."""
        compiling = 0 < self.done < self.total
        fraction = self.done / self.total if compiling else None
        self._progress.update(self._stage, fraction, estimate=True)


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with llama.cpp told to leave out what is never loaded."""
    include = shlex.quote(f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={_INCLUDE.as_posix()}")
    arguments = f"{environment.get('CMAKE_ARGS', '')} {include}".strip()
    return {**environment, "CMAKE_ARGS": arguments}


def build(version: str, directory: Path) -> int:
    """Build the wheel of llama-cpp-python `version` into `directory`; the exit status."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "build.log"
    pip = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-cache-dir", "--no-deps"]
    pip += ["--no-build-isolation", "--no-binary", "llama-cpp-python", "--progress-bar", "off"]
    pip += ["--wheel-dir", str(directory), f"llama-cpp-python=={version}"]
    progress = ProgressLine(f"llama.cpp of llama-cpp-python {version}")
    compilation = Compilation(progress)
    status = follow(
        pip, compilation.read, compilation.draw,
        log=log, environment=build_environment(os.environ),
    )  # fmt: skip
    if status == 0:
        progress.finish(f"built, {compilation.total} files")
        return 0
    files = f" after {compilation.done} of {compilation.total} files" if compilation.total else ""
    progress.finish(f"failed{files}")
    print(f"{log_end(log, begin='FAILED: ')}\n\n{_NEEDS}\nThe whole log: {log}", file=sys.stderr)
    return status


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", help="of llama-cpp-python")
    parser.add_argument("directory", type=Path, help="where the wheel goes")
    arguments = parser.parse_args()
    return build(arguments.version, arguments.directory)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted")
