"""What is installed here, and what the lock says about it.

Every machine gets the versions that were tested: nothing is installed that the lock does not name,
on any Python and platform that is supported.
"""

from __future__ import annotations

import importlib
import re
import sys
import sysconfig
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from llama4_edge.runtime.bindings.build import LLAMA_CPP_PYTHON
from tools.install import LOCK
from tools.latest import differences, locked_versions, newest_requirements, read_project
from tools.lock import LOCKS, PLATFORMS, PYTHONS

ROOT = Path(__file__).parents[1]
# What is there without having been asked for: the package itself, and Python's own installer.
_NOT_LOCKED = frozenset({"llama4-edge", "pip"})
# The lock of pyproject.toml with all extras, and the one of other people's clients.
PACKAGE, CLIENTS = (one.path for one in LOCKS)


def requirements(text: str) -> list[Requirement]:
    """The lines of a requirements file that begin a requirement."""
    return [Requirement(line) for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]


@cache
def lock(path: Path) -> tuple[Requirement, ...]:
    return tuple(requirements((ROOT / path).read_text()))


def locked(path: Path, environment: dict[str, str]) -> dict[str, Version]:
    """What the lock at `path` says in `environment`, by canonical name; no name twice."""
    versions: dict[str, Version] = {}
    for requirement in lock(path):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            assert name not in versions, f"two versions of {name}"
            versions[name] = Version(specifier.version)
    return versions


def environment(python: str, platform: str) -> dict[str, str]:
    """The values of markers for one of ``PLATFORMS``."""
    machine, _, system = platform.partition("-")
    mac = system == "apple-darwin"
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "darwin" if mac else "linux",
        "platform_system": "Darwin" if mac else "Linux",
        "platform_machine": "arm64" if mac and machine == "aarch64" else machine,
    }


def declared(path: Path) -> list[Requirement]:
    """What the lock at `path` has to hold."""
    if path != PACKAGE:
        return requirements((ROOT / path).with_suffix(".in").read_text())
    project: dict[str, Any] = read_project()
    groups = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    lines += [line for group in groups.values() for line in group]
    tools = requirements((ROOT / "requirements" / "tools.in").read_text())
    return [one for one in [*map(Requirement, lines), *tools] if one.name != "llama4-edge"]


@pytest.mark.parametrize("path", [PACKAGE, CLIENTS], ids=str)
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_locked_in_a_version_that_is_allowed(
    python: str, platform: str, path: Path
) -> None:
    values = environment(python, platform)
    versions = locked(path, values)
    wrong = [
        f"{one} is {versions.get(canonicalize_name(one.name), 'not locked')}"
        for one in declared(path)
        if (one.marker is None or one.marker.evaluate(values))
        and (
            canonicalize_name(one.name) not in versions
            or not one.specifier.contains(versions[canonicalize_name(one.name)])
        )
    ]
    assert wrong == []


def test_what_is_installed_is_what_the_lock_says() -> None:
    versions = locked_versions(LOCK.read_text())
    installed: dict[str, Version] = {
        canonicalize_name(one.metadata["Name"]): Version(one.version)
        # Not those that setuptools brings along: who imports it has them on the path.
        for one in distributions(path=[sysconfig.get_path(name) for name in ("purelib", "platlib")])
    }
    for name in _NOT_LOCKED:
        installed.pop(canonicalize_name(name), None)
    assert differences(installed, versions) == []


def test_a_range_ends_before_the_next_major_version() -> None:
    open_ended = [
        str(one)
        for one in [*declared(PACKAGE), *declared(CLIENTS)]
        if not any(bound.operator in ("<", "==") for bound in one.specifier)
    ]
    assert open_ended == []


def test_other_peoples_clients_come_without_pytorch() -> None:
    names = {canonicalize_name(one.name) for one in lock(CLIENTS)}
    assert {"lm-eval", "langchain-openai", "llama-index-llms-openai-like"} <= names
    assert not {"torch", "transformers"} & names


def test_the_newest_of_everything_has_no_upper_bounds() -> None:
    project = {
        "project": {
            "dependencies": ["click>=8.1,<9", "llama-cpp-python==0.3.36"],
            "optional-dependencies": {
                "test": [
                    "llama4-edge[plot]",
                    "llama-models==0.3.0",
                    "tf[x]>=4,!=5,<6; os_name=='nt'",
                ],
            },
        }
    }
    assert newest_requirements(project, ("test",)) == [
        "click>=8.1",
        "llama-models>=0.3.0",
        'tf[x]>=4; os_name == "nt"',
    ]


def test_a_build_for_one_kind_of_machine_is_the_version_that_is_locked() -> None:
    installed = {"torch": Version("2.13.0+cpu"), "click": Version("8.4"), "new": Version("1")}
    versions = {"torch": Version("2.13.0"), "click": Version("8.5.1")}
    assert differences(installed, versions) == [
        "click: 8.4, locked 8.5.1",
        "new: 1, locked in no version",
    ]


def test_the_makefile_installs_nothing_that_is_not_locked() -> None:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    pip = [
        line for line in text.splitlines() if re.search(r"\bpip (install|wheel|download)\b", line)
    ]
    assert len(pip) == 2
    # llama-cpp-python, out of the directory of its locked build
    assert all("--no-deps" in line for line in pip)
    assert all("$(WHEELS)/*.whl" in line or "==$(LLAMA_VERSION)" in line for line in pip)
    assert re.findall(r"^INSTALL +:= +(.+)$", text, re.M) == ["$(BIN)/python -m tools.install"]
    assert re.findall(r"@(\S+) -m tools.install *(.*?) *\"", text) == [
        ("$(CLIENTS)/bin/python", "--lock $(CLIENTS_LOCK)"),
        ("$(CLIENTS)/bin/python", "--lock $(CLIENTS_LOCK)"),
    ]


def test_the_installer_takes_every_version_from_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    install = importlib.import_module("tools.install")
    commands: list[list[str]] = []

    def follow(command: list[str], *_: object, **__: object) -> int:
        commands.append(command)
        return 0

    monkeypatch.setattr(install, "follow", follow)
    assert install.install("title", ["click"]) == 0
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[command.index("--constraint") + 1] == str(LOCK)
    assert "--no-build-isolation" in command
    assert command[-1] == "click"


def test_there_is_one_version_of_llama_cpp_python() -> None:
    assert {str(one.specifier) for one in declared(PACKAGE) if one.name == "llama-cpp-python"} == {
        f"=={LLAMA_CPP_PYTHON}"
    }
    peer = (ROOT / "benchmarks" / "peer.py").read_text()
    assert f'"llama-cpp-python=={LLAMA_CPP_PYTHON}"' in peer
