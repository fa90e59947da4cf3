"""Tries the package with the newest of everything, in an environment of its own.

Promises that upper bounds and excluded versions of pyproject.toml do not count, and that the last
lines say which packages differ from the lock and whether the tests passed. llama-cpp-python stays
as it is: the code follows its ctypes structs.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from .install import LOCK

ROOT = Path(__file__).parents[1]
_KEPT = frozenset({"llama-cpp-python", "llama4-edge"})
_HOLDS_THE_LOCK = "tests/test_locks.py::test_what_is_installed_is_what_the_lock_says"


def read_project() -> dict[str, Any]:
    """pyproject.toml, on a Python without tomllib too."""
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project


def newest_requirements(project: dict[str, Any], extras: tuple[str, ...]) -> list[str]:
    """The project's dependencies and those of `extras`, with lower bounds only."""
    groups = project["project"]["optional-dependencies"]
    lines = list(project["project"]["dependencies"])
    lines += [line for name in extras for line in groups[name]]
    requirements = [Requirement(line) for line in lines]
    wanted = [entry for entry in requirements if canonicalize_name(entry.name) not in _KEPT]
    return [_lower_bound(entry) for entry in wanted]


def _lower_bound(requirement: Requirement) -> str:
    specifiers = [entry for entry in requirement.specifier if entry.operator in (">=", "==", "~=")]
    bounds = [specifier.version for specifier in specifiers]
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    marker = f"; {requirement.marker}" if requirement.marker else ""
    return requirement.name + extras + "".join(f">={bound}" for bound in bounds) + marker


def locked_versions(text: str) -> dict[str, Version]:
    """The versions of a lock that hold in this environment, by canonical name."""
    versions: dict[str, Version] = {}
    for line in text.splitlines():
        if re.match(r"[A-Za-z0-9]", line):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                (specifier,) = requirement.specifier
                versions[canonicalize_name(requirement.name)] = Version(specifier.version)
    return versions


def differences(installed: dict[str, Version], locked: dict[str, Version]) -> list[str]:
    """A line for each package that is not there in its locked version."""
    return [
        f"{name}: {version}, locked {locked.get(name, 'in no version')}"
        for name, version in sorted(installed.items())
        if name not in _KEPT and (name not in locked or version.public != locked[name].public)
    ]


def _installed(python: Path) -> dict[str, Version]:
    command = [str(python), "-m", "pip", "list", "--format", "freeze"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pairs = (line.split("==") for line in output.split())
    return {canonicalize_name(name): Version(version) for name, version in pairs if name != "pip"}


def main(wheel_directory: str, *overrides: str) -> int:
    """Make the environment, run the tests in it, and compare; the tests' exit status.

    `overrides` are requirements that replace the project's own, ``torch==2.13.0``.
    """
    python = ROOT / ".venv-latest" / "bin" / "python"
    own = {canonicalize_name(Requirement(line).name) for line in overrides}
    newest = newest_requirements(read_project(), ("plot", "server", "test", "video"))
    newest = [line for line in newest if canonicalize_name(Requirement(line).name) not in own]
    newest += ["setuptools", *overrides]
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    wheels = [str(wheel) for wheel in Path(wheel_directory).glob("*.whl")]
    package = ["--no-deps", "--no-build-isolation", "--editable", "."]
    for title, command in (
        ("creating .venv-latest", [sys.executable, "-m", "venv", "--clear", ".venv-latest"]),
        ("installing the newest of everything", [*pip, "-U", *wheels, *newest]),
        ("installing the package", [*pip, *package]),
    ):
        print(title, flush=True)
        subprocess.run(command, cwd=ROOT, check=True)
    pytest = [str(python), "-m", "pytest", "--numprocesses", "auto", "--dist", "loadgroup"]
    tests = subprocess.run([*pytest, "--deselect", _HOLDS_THE_LOCK], cwd=ROOT)
    lines = differences(_installed(python), locked_versions(LOCK.read_text()))
    print("\nOther than locked:", *(lines or ["nothing"]), sep="\n  ")
    print("The tests pass with these." if tests.returncode == 0 else "The tests fail with these.")
    return tests.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
