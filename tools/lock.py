"""Renews the locks of `LOCKS`: one resolution each for every Python and platform that is supported.

Promises a lock from which every Python and platform of `PYTHONS` and `PLATFORMS` can install wheels
alone, but for the packages that are named as built here. Does not install anything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# PyTorch's wheels need macOS 14 on arm64, and llguidance's glibc 2.31.
PLATFORMS = (
    "x86_64-manylinux_2_31",
    "aarch64-manylinux_2_31",
    "x86_64-apple-darwin",
    "aarch64-apple-darwin",
)


@dataclass(frozen=True)
class Lock:
    """A file of `requirements`, what it resolves, and which packages have no wheels."""

    path: Path
    sources: tuple[str, ...]
    built_here: frozenset[str]
    options: tuple[str, ...] = ()


LOCKS = (
    # llama.cpp is built for the machine.
    Lock(
        Path("requirements/lock.txt"),
        ("pyproject.toml", "requirements/tools.in"),
        frozenset({"llama-cpp-python"}),
        ("--all-extras", "--no-emit-package", "llama4-edge"),
    ),
    # A few hundred lines of Python each.
    Lock(
        Path("requirements/clients.txt"),
        ("requirements/clients.in",),
        frozenset({"rouge-score", "sqlitedict", "word2number"}),
    ),
)


def compile_lock(lock: Lock, *, upgrade: bool) -> None:
    """Resolve the ranges of the sources; uv writes the file."""
    command = [
        _uv(), "pip", "compile", "--quiet", "--universal", "--python-version", PYTHONS[0],
        *lock.options, "--constraints", "requirements/pins.txt",
        "--custom-compile-command", "make lock",
        "--output-file", str(lock.path), *(["--upgrade"] if upgrade else []), *lock.sources,
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)


def missing_wheels(lock: Lock, python: str, platform: str) -> str:
    """What uv says where the lock cannot be installed from wheels; empty where it can."""
    lines = (ROOT / lock.path).read_text().splitlines()
    wheels = [line for line in lines if re.split("[=<>! ;]", line)[0] not in lock.built_here]
    with tempfile.TemporaryDirectory() as directory:
        requirements = Path(directory) / "wheels.txt"
        requirements.write_text("\n".join(wheels))
        command = [
            _uv(), "pip", "install", "--quiet", "--dry-run", "--no-deps",
            "--only-binary", ":all:", "--target", str(Path(directory) / "target"),
            "--python-version", python, "--python-platform", platform, "-r", str(requirements),
        ]  # fmt: skip
        environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    return result.stderr.strip() if result.returncode else ""


def _uv() -> str:
    return str(Path(sys.executable).with_name("uv"))


def main() -> int:
    """Renew the locks, then check them."""
    failures = 0
    for lock in LOCKS:
        print(f"{lock.path}: asking for the newest allowed versions", flush=True)
        compile_lock(lock, upgrade="--keep" not in sys.argv[1:])
        for platform in PLATFORMS:
            for python in PYTHONS:
                problem = missing_wheels(lock, python, platform)
                failures += bool(problem)
                print(f"{platform}, Python {python}: {problem or 'wheels for all'}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
