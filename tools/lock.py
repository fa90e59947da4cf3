"""Renews requirements/lock.txt: one resolution for every Python and platform that is supported.

Promises a lock from which every Python and platform of `PYTHONS` and `PLATFORMS` can install wheels
alone, llama-cpp-python excepted, which is built here. Does not install anything.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = Path("requirements/lock.txt")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# PyTorch's wheels need glibc 2.28, and macOS 14 on arm64.
PLATFORMS = (
    "x86_64-manylinux_2_28",
    "aarch64-manylinux_2_28",
    "x86_64-apple-darwin",
    "aarch64-apple-darwin",
)
_BUILT_HERE = "llama-cpp-python"


def compile_lock(*, upgrade: bool) -> None:
    """Resolve the ranges of pyproject.toml and tools.in, all extras; uv writes the file."""
    command = [
        _uv(), "pip", "compile", "--quiet", "--universal", "--python-version", PYTHONS[0],
        "--all-extras", "--no-emit-package", "llama4-edge",
        "--constraints", "requirements/pins.txt", "--custom-compile-command", "make lock",
        "--output-file", str(LOCK), *(["--upgrade"] if upgrade else []),
        "pyproject.toml", "requirements/tools.in",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)


def missing_wheels(python: str, platform: str) -> str:
    """What uv says where the lock cannot be installed from wheels; empty where it can."""
    lines = (ROOT / LOCK).read_text().splitlines()
    with tempfile.TemporaryDirectory() as directory:
        wheels = Path(directory) / "wheels.txt"
        wheels.write_text("\n".join(line for line in lines if not line.startswith(_BUILT_HERE)))
        command = [
            _uv(), "pip", "install", "--quiet", "--dry-run", "--no-deps",
            "--only-binary", ":all:", "--target", str(Path(directory) / "target"),
            "--python-version", python, "--python-platform", platform, "-r", str(wheels),
        ]  # fmt: skip
        environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    return result.stderr.strip() if result.returncode else ""


def _uv() -> str:
    return str(Path(sys.executable).with_name("uv"))


def main() -> int:
    """Renew the lock, then check it."""
    print("asking for the newest allowed versions", flush=True)
    compile_lock(upgrade="--keep" not in sys.argv[1:])
    failures = 0
    for platform in PLATFORMS:
        for python in PYTHONS:
            problem = missing_wheels(python, platform)
            failures += bool(problem)
            print(f"{platform}, Python {python}: {problem or 'wheels for everything'}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
