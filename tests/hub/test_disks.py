"""The commands on disks that cannot do everything: no locks, no links, no fsync, no writing."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.convert.conftest import SMALL_WITH_TOWER
from tests.fixtures import MakeCheckpoint
from tests.hub_server import HubServer, running_hub

from .test_pull import gguf

NAME = "meta-llama/Llama-4-Small"
GGUF = "someone/GGUF"
SHARDS = 3
WANTED = r"json|md|0000[12]-of.*safetensors"


def some(first: Any, *more: Any) -> list[Any]:
    """Parameters of which the ordinary run takes the first."""
    return [first, *(pytest.param(one, marks=pytest.mark.heavy) for one in more)]


NO_LOCKS = some("ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL", "EPERM", "EACCES")
NO_LINKS = some("EPERM", "ENOSYS", "EOPNOTSUPP", "EINVAL", "EACCES", "EIO", "EMLINK")
NO_SYNC = some("EINVAL", "ENOSYS", "EOPNOTSUPP")
FULL = {
    "ENOSPC": "No space left on device. Free some space",
    "EDQUOT": "Disk quota exceeded. Your quota is used up",
    "EROFS": "Read-only file system. That file system is read-only",
    "EACCES": "Permission denied. Change its permissions",
    "EPERM": "Operation not permitted. Its permissions or its file system",
    "EIO": "Input/output error. The disk, or the network that it is on, fails",
    "ENAMETOOLONG": "File name too long. Choose a directory with a shorter path",
    "EFBIG": "File too large. That file system, or a limit of this process",
    "ESTALE": "Stale file handle. The network file system lost the directory",
    "EUCLEAN": "Structure needs cleaning. Check that disk",
}

Llama4 = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs LD_PRELOAD and cc"
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("disk") / "disk.so"
    source = Path(__file__).with_name("unhelpful_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> Iterator[HubServer]:
    with running_hub(monkeypatch, tmp_path / "home") as server:
        server.add(NAME, make_checkpoint(replace(SMALL_WITH_TOWER, shards=SHARDS)))
        server.add(GGUF, {"scout.gguf": gguf()})
        yield server


@pytest.fixture
def llama4(hub: HubServer, disk: Path, tmp_path: Path) -> Llama4:
    """Runs a command in `tmp_path`; keywords are what its disk answers, by name of the error."""

    def run(*words: object, path: Path | None = None, **answers: str) -> object:
        numbers = {
            f"DISK_{what.upper()}": str(getattr(errno, name)) for what, name in answers.items()
        }
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "LD_PRELOAD": str(disk),
            **({} if path is None else {"DISK_PATH": str(path)}),
            **numbers,
        }
        return subprocess.run(
            [sys.executable, "-m", "llama4_edge", *map(str, words)],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    return run  # type: ignore[return-value]


def cached(tmp_path: Path) -> list[str]:
    """Shards in the cache, and what earlier runs left of them."""
    files = (path for path in (tmp_path / "cache").rglob("*") if not path.is_dir())
    return sorted(
        path.name for path in files if "safetensors" in path.name or "llama4-edge" in path.name
    )


@pytest.mark.parametrize("name", NO_LOCKS)
def test_without_locks_it_works_and_warns(llama4: Llama4, tmp_path: Path, name: str) -> None:
    for words in (("pull", GGUF), ("convert", NAME, "-o", "out.gguf")):
        done = llama4(*words, flock=name)
        assert (done.returncode, "cannot be locked" in done.stderr) == (0, True), done.stderr
    assert (tmp_path / "out.gguf").is_file()


@pytest.mark.parametrize("name", NO_SYNC)
def test_without_fsync_it_works(llama4: Llama4, tmp_path: Path, name: str) -> None:
    for words in (("pull", GGUF), ("convert", NAME, "-o", "out.gguf")):
        done = llama4(*words, fsync=name)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").is_file()


def test_an_fsync_that_fails_is_said(llama4: Llama4, tmp_path: Path) -> None:
    for words in (("pull", GGUF), ("convert", NAME, "-o", "out.gguf")):
        done = llama4(*words, fsync="EIO")
        assert done.returncode == 1
        assert "found Input/output error. The disk, or the network" in done.stderr
        assert "space" not in done.stderr
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("name", NO_LINKS)
def test_without_links_shards_come_and_go_all_the_same(
    llama4: Llama4, tmp_path: Path, name: str
) -> None:
    done = llama4("convert", NAME, "-o", "plain.gguf")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "cache")
    done = llama4("convert", NAME, "-o", "out.gguf", symlink=name)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
    assert cached(tmp_path) == ["llama4-edge.lock", "model.safetensors.index.json"]


def test_without_links_kept_shards_are_files_of_the_snapshot(
    llama4: Llama4, hub: HubServer, tmp_path: Path
) -> None:
    done = llama4("convert", NAME, "-o", "out.gguf", "--keep-source", symlink="EPERM")
    assert done.returncode == 0, done.stderr
    (snapshot,) = (tmp_path / "cache").glob("models--*/snapshots/*")
    shards = sorted(snapshot.glob("*.safetensors"))
    assert len(shards) == SHARDS and not any(path.is_symlink() for path in shards)
    assert list(snapshot.parent.with_name("blobs").iterdir()) == []
    hub.requests.clear()
    done = llama4("convert", NAME, "-o", "again.gguf", symlink="EPERM")
    assert done.returncode == 0, done.stderr
    assert (hub.sent(WANTED), len(sorted(snapshot.glob("*.safetensors")))) == (0, SHARDS)


@pytest.mark.parametrize("name", some(*FULL))
def test_a_disk_that_takes_nothing_says_why(llama4: Llama4, tmp_path: Path, name: str) -> None:
    found = FULL[name]
    (tmp_path / "models").mkdir()
    done = llama4("pull", GGUF, "-o", tmp_path / "models", write=name, path=tmp_path / "models")
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: scout.gguf cannot be written to {tmp_path / 'models'}, found {found}"
    )
    assert "Traceback" not in done.stderr
    done = llama4("convert", NAME, "-o", tmp_path / "out.gguf", write=name, path=tmp_path / "cache")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"cannot be written to, found {found}" in line
    assert str(tmp_path / "cache") in line and "HF_HOME" in line
    done = llama4(
        "convert", NAME, "-o", tmp_path / "out.gguf", write=name, path=tmp_path / "out.gguf"
    )
    assert done.returncode == 1
    assert f"found {found}" in done.stderr.splitlines()[-1]


def test_a_cache_that_is_read_only_is_used(llama4: Llama4, hub: HubServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = llama4("convert", NAME, "-o", "first.gguf", "--keep-source")
    assert done.returncode == 0, done.stderr
    for name in ("EROFS", "EACCES"):
        hub.requests.clear()
        done = llama4("convert", NAME, "-o", f"{name}.gguf", write=name, path=cache)
        assert done.returncode == 0, done.stderr
        assert hub.sent(WANTED) == 0
        assert (tmp_path / f"{name}.gguf").read_bytes() == (tmp_path / "first.gguf").read_bytes()
    shard = next(cache.glob("models--*/snapshots/*/*.safetensors"))
    shard.unlink()
    done = llama4("convert", NAME, "-o", "second.gguf", write="EROFS", path=cache)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{cache}" in line and "Read-only file system" in line and "HF_HOME" in line
