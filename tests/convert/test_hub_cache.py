"""The hub's cache as others left it: without links, damaged, in the way, or another version's."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from llama4_edge import convert
from llama4_edge.convert import hub as convert_hub
from llama4_edge.convert.hub import SMALL_FILES, open_repository
from llama4_edge.errors import HubError
from llama4_edge.hub.cache import STAGED_SUFFIX
from tests.asking import until
from tests.hub_server import HubServer

from .on_hub import NAME, blobs, cached_files, opened, shard


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)


def repository() -> Path:
    return Path(constants.HF_HUB_CACHE) / "models--meta-llama--Llama-4-Small"


# Without links -----------------------------------------------------------------------------------


def test_without_links_shards_of_a_killed_run_are_used_or_swept(
    published: HubServer, without_links: None
) -> None:
    _, killed, paths = opened()
    killed.expect(paths)
    killed.acquire(paths[0])
    until(paths[1].is_file)
    killed.close()
    published.requests.clear()
    _, shards, _ = opened()
    shards.expect(paths[1:])
    assert not paths[0].is_file()
    shards.acquire(paths[1])
    until(paths[2].is_file)
    assert published.sent(shard(2)) == 0
    shards.release(paths[1])
    shards.release(paths[2])
    assert [path.is_file() for path in paths[:3]] == [False] * 3
    shards.close()


def test_without_links_shards_at_another_commit_are_used_and_dropped(
    published: HubServer, without_links: None
) -> None:
    _, broken_off, paths = opened()
    broken_off.expect(paths[:1])
    broken_off.acquire(paths[0])
    broken_off.close()
    entries = published.repositories[NAME].entries
    files = {name: entry.data for name, entry in entries.items()}
    published.add(NAME, {**files, "README.md": b"a new commit, and the same weights"})
    published.requests.clear()
    _, shards, moved = opened()
    shards.expect(moved[:1])
    assert (paths[0].is_file(), moved[0].is_file()) == (False, True)
    assert published.sent(shard(1)) <= 3 * 4096
    shards.release(moved[0])
    assert (cached_files(), blobs(f"*{STAGED_SUFFIX}*")) == ([], [])
    shards.close()


def test_without_links_what_a_killed_run_left_can_be_kept(
    published: HubServer, without_links: None, tmp_path: Path
) -> None:
    _, killed, paths = opened()
    killed.expect(paths[:1])
    killed.acquire(paths[0])
    killed.close()
    published.requests.clear()
    convert(NAME, tmp_path / "out.gguf", threads=1, keep_source=True)
    assert published.sent(f"cdn.*{shard(1)}") == 0
    assert (len(cached_files()), blobs(f"*{STAGED_SUFFIX}*")) == (6, [])


def test_without_links_a_blob_of_the_clients_own_is_copied_and_stays(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Path(snapshot_download(NAME))
    (snapshot / shard(1)).unlink()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)
    before = {path: path.read_bytes() for path in blobs()}
    published.requests.clear()
    convert(NAME, tmp_path / "out.gguf", threads=1)
    assert published.sent("safetensors") <= 4096  # its header
    assert {path: path.read_bytes() for path in blobs()} == before
    assert not (snapshot / shard(1)).is_symlink()


NOTES = [
    b"moved to ", b"moved to \xff", b"moved to ../../../victim", b"moved to /victim",
    b"moved to snapshots/x/victim", b"moved to snapshots/%s/../../../victim" % (b"a" * 40),
    b"moved to snapshots/%s/a\0b" % (b"a" * 40), b"moved to blobs/%s" % (b"a" * 40),
]  # fmt: skip


@pytest.mark.parametrize("note", NOTES, ids=range(len(NOTES)))
def test_a_note_of_where_a_shard_lies_is_not_believed(published: HubServer, note: bytes) -> None:
    victim = Path(constants.HF_HUB_CACHE) / "victim"
    _, shards, paths = opened()
    victim.write_bytes(b"mine")
    (repository() / "blobs").mkdir(exist_ok=True)
    etag = published.repositories[NAME].entries[shard(1)].etag
    (repository() / "blobs" / f"{etag}{STAGED_SUFFIX}").write_bytes(note)
    shards.expect(paths)
    shards.acquire(paths[0])
    assert paths[0].read_bytes() == published.repositories[NAME].entries[shard(1)].data
    shards.release(paths[0])
    shards.close()
    assert victim.read_bytes() == b"mine"


# In the way --------------------------------------------------------------------------------------


def directory(path: Path) -> None:
    path.mkdir(parents=True)


def file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def loop(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.name)


IN_THE_WAY: dict[str, tuple[Callable[[Path], None], str]] = {
    "the cache is a file": (file, ""),
    "the repository is a file": (file, "models--meta-llama--Llama-4-Small"),
    "blobs are a file": (file, "models--meta-llama--Llama-4-Small/blobs"),
    "snapshots are a file": (file, "models--meta-llama--Llama-4-Small/snapshots"),
    "the snapshot is a file": (file, "models--meta-llama--Llama-4-Small/snapshots/{commit}"),
    "a file is a directory": (
        directory, "models--meta-llama--Llama-4-Small/snapshots/{commit}/config.json",
    ),
    "a blob is a directory": (directory, "models--meta-llama--Llama-4-Small/blobs/{etag}"),
    "refs are a file": (file, "models--meta-llama--Llama-4-Small/refs"),
    "a ref is a directory": (directory, "models--meta-llama--Llama-4-Small/refs/main"),
    "the repository is a loop": (loop, "models--meta-llama--Llama-4-Small"),
    "blobs are a loop": (loop, "models--meta-llama--Llama-4-Small/blobs"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "where"), IN_THE_WAY.values(), ids=IN_THE_WAY.keys())
def test_what_is_in_the_way_is_one_error(
    published: HubServer, make: Callable[[Path], None], where: str
) -> None:
    remote = published.repositories[NAME]
    etag = remote.entries["config.json"].etag
    make(Path(constants.HF_HUB_CACHE) / where.format(commit=remote.commit, etag=etag))
    with pytest.raises(HubError, match="cannot be written to"):
        open_repository(NAME)


@pytest.mark.parametrize("where", [".locks", ".locks/models--meta-llama--Llama-4-Small"])
def test_a_file_where_locks_belong_is_one_error(published: HubServer, where: str) -> None:
    _, shards, paths = opened()
    file(Path(constants.HF_HUB_CACHE) / where)
    with pytest.raises(HubError, match=r"cannot be written to, found (Not a|File ex)"):
        shards.expect(paths)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"main", b"a" * 39, b"A" * 40, b"../../../etc", b"x" * 100_000, b"\0" * 40],
)
def test_a_damaged_ref_is_named_offline_and_written_anew_online(
    published: HubServer, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    snapshot_download(NAME)
    ref = repository() / "refs" / "main"
    ref.write_bytes(content)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"refs/main is .*Remove it|refs/main is not UTF-8"):
        open_repository(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    open_repository(NAME)
    assert ref.read_text(encoding="utf-8") == published.repositories[NAME].commit


def test_dangling_links_and_truncated_files_are_fetched_again(
    published: HubServer, tmp_path: Path
) -> None:
    snapshot = Path(snapshot_download(NAME))
    entries = published.repositories[NAME].entries
    for name in ("config.json", shard(1)):
        (snapshot / name).resolve().unlink()
    for name in ("tokenizer.json", shard(2)):
        (snapshot / name).resolve().write_bytes(b"cut short")
    convert(NAME, tmp_path / "out.gguf", threads=1, keep_source=True)
    for name in ("config.json", "tokenizer.json", shard(1), shard(2)):
        assert (snapshot / name).read_bytes() == entries[name].data


def test_offline_mode_names_a_blob_that_is_missing(
    published: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Path(snapshot_download(NAME))
    (snapshot / shard(2)).resolve().unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=f"1 of 6 shards missing, first {shard(2)}"):
        open_repository(NAME)
    (snapshot / "config.json").resolve().unlink()
    with pytest.raises(HubError, match="is not in the cache"):
        open_repository(NAME)


# What is fetched ---------------------------------------------------------------------------------


def test_only_files_that_are_read_are_fetched_and_none_that_is_too_large(
    published: HubServer,
) -> None:
    files = {name: entry.data for name, entry in published.repositories[NAME].entries.items()}
    remote = published.add(
        NAME, {**files, "notes.json": b"x", "a.md": b"x", "x/config.json": b"{}"}
    )
    open_repository(NAME)
    resolved = {one.path.split("/")[-1] for one in published.requests if "/resolve/" in one.path}
    assert {name for name in resolved if "safetensors" not in name} <= SMALL_FILES.keys()
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        published.requests.clear()
        entry = remote.entries[name]
        entry.listed_size = SMALL_FILES[name] + 1
        with pytest.raises(HubError, match=rf"{name} of {NAME} is too large, found .*at most"):
            open_repository(NAME)
        assert published.sent(f"{name}$") == 0
        entry.listed_size = None


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (
            {"config.json": b"{}", "a-Q4_K_M.gguf": b"GGUF"},
            "holds GGUF files.*llama4 pull some/one",
        ),
        ({"adapter_model.safetensors": b"x", "adapter_config.json": b"{}"}, "holds an adapter"),
        ({"config.json": b"{}", "adapter_model.safetensors": b"x"}, "holds an adapter"),
        (
            {"config.json": b"{}", "pytorch_model.bin": b"x"},
            "pickled weights, expected safetensors",
        ),
        ({"config.json": b"{}", "consolidated.00.pth": b"x"}, "Meta's own layout"),
        ({"config.json": b"{}"}, r"has no weights \(\*\.safetensors\)"),
        ({"config.json": b"{}", "sub/model.safetensors": b"x"}, "has no weights"),
    ],
)
def test_a_repository_without_weights_says_what_it_holds(
    hub: HubServer, files: dict[str, bytes], problem: str
) -> None:
    hub.add("some/one", files)
    with pytest.raises(HubError, match=problem):
        open_repository("some/one")
    assert hub.ranges("/resolve/") == []


def test_an_index_of_too_many_shards_is_refused(
    published: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_hub, "_MOST_SHARDS", 5)
    with pytest.raises(HubError, match="names too many shards, found 6, expected at most 5"):
        open_repository(NAME)
    assert published.sent("safetensors") == published.sent("index.json")


def test_every_file_that_a_conversion_reads_is_fetched() -> None:
    room = Path(convert_hub.__file__).parent
    sources = [path.read_text(encoding="utf-8") for path in room.glob("*.py")]
    sources.append((room.parent / "conversion.py").read_text(encoding="utf-8"))
    names = set(re.findall(r'"(\w[\w.-]*\.(?:json|jinja|md))"', "".join(sources)))
    assert "tokenizer.json" in names
    assert names - {"adapter_config.json"} <= SMALL_FILES.keys()
