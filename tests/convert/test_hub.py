"""A checkpoint on the hub: the real client against a hub on loopback."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import namedtuple
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, snapshot_download

from llama4_edge import convert
from llama4_edge.convert import hub as hub_shards
from llama4_edge.convert import output
from llama4_edge.convert.hub import HubShards, open_repository
from llama4_edge.errors import HubError, OutputError
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.asking import until
from tests.hub_server import Fault, HubServer

from .on_hub import NAME, SHARDS, blobs, cached_files, opened, shard

# What comes out ----------------------------------------------------------------------------------


def test_the_file_is_that_of_a_local_directory_to_the_byte(
    published: HubServer, tmp_path: Path
) -> None:
    local = snapshot_download(NAME, cache_dir=tmp_path / "elsewhere")
    convert(local, tmp_path / "local.gguf", threads=1)
    convert(NAME, tmp_path / "hub.gguf", threads=1)
    assert (tmp_path / "hub.gguf").read_bytes() == (tmp_path / "local.gguf").read_bytes()


def test_no_more_than_two_shards_lie_on_the_disk(published: HubServer, tmp_path: Path) -> None:
    seen: list[int] = []

    def held() -> int:
        return len(blobs("*.llama4-edge*"))

    def count() -> None:
        seen.append(held())

    def progress(_: object) -> None:
        if 2 not in seen:
            # One shard is worked on, and the next one comes meanwhile, however late.
            until(lambda: held() == 2)
        count()

    published.on_request = count
    convert(NAME, tmp_path / "out.gguf", threads=1, progress=progress)
    assert max(seen) == 2
    assert (blobs("*.llama4-edge*"), cached_files()) == ([], [])


@pytest.mark.parametrize(
    ("models", "fetched"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"vision": False}, [1, 1, 1, 1, 0, 0]),
        ({"text": False}, [0, 0, 0, 1, 1, 1]),
    ],
)
def test_a_shard_is_fetched_once_where_it_is_needed_and_else_never(
    published: HubServer, tmp_path: Path, models: dict[str, bool], fetched: list[int]
) -> None:
    convert(NAME, tmp_path / "out.gguf", threads=1, **models)  # type: ignore[arg-type]
    sizes = [len(published.repositories[NAME].entries[shard(n + 1)].data) for n in range(SHARDS)]
    ranges = [published.ranges(f"/cdn/.*{shard(n + 1)}") for n in range(SHARDS)]
    whole = [f"bytes=0-{size - 1}" for size in sizes]
    assert [one.count(all_) for one, all_ in zip(ranges, whole, strict=True)] == fetched
    for number, count in enumerate(fetched, 1):
        assert count or published.sent(shard(number)) < 2 * 4096


def test_kept_shards_are_the_clients_own(published: HubServer, tmp_path: Path) -> None:
    convert(NAME, tmp_path / "out.gguf", threads=1, keep_source=True)
    assert cached_files() == [shard(number) for number in range(1, 7)]
    path = hf_hub_download(NAME, shard(3), local_files_only=True)
    assert Path(path).read_bytes() == published.repositories[NAME].entries[shard(3)].data


def test_a_shard_in_the_cache_is_used_and_stays(published: HubServer, tmp_path: Path) -> None:
    path = Path(hf_hub_download(NAME, shard(2)))
    published.requests.clear()
    convert(NAME, tmp_path / "out.gguf", threads=1)
    assert published.sent(shard(2)) == 0
    assert path.read_bytes() == published.repositories[NAME].entries[shard(2)].data
    assert cached_files() == [shard(2)]


def test_every_request_is_for_one_commit(published: HubServer, tmp_path: Path) -> None:
    commit = published.repositories[NAME].commit
    convert(NAME, tmp_path / "out.gguf", threads=1, revision="v1")
    asked = [one.path.split("/")[4] for one in published.requests if "/resolve/" in one.path]
    assert set(asked) == {commit}
    listed = [one.path for one in published.requests if "/api/" in one.path]
    assert listed == [f"/api/models/{NAME}/revision/v1"]


def test_the_output_is_named_after_the_repository(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = convert(NAME, dry_run=True)
    assert report.output == "Llama-4-Small-int4.gguf"
    assert published.sent("safetensors") < 3 * 4096 * SHARDS


def test_what_was_encoded_before_an_interruption_is_not_fetched_again(
    published: HubServer, tmp_path: Path
) -> None:
    uninterrupted = convert(NAME, tmp_path / "whole.gguf", threads=1)
    # Lets the header through, and too little of the rest.
    published.faults = [Fault(f"GET /cdn/.*{shard(4)}", times=999, cut=20_000)]
    with pytest.raises(HubError, match=f"cannot give {shard(4)}"):
        convert(NAME, tmp_path / "out.gguf", threads=1)
    published.faults = []
    published.requests.clear()
    report = convert(NAME, tmp_path / "out.gguf", threads=1)
    assert 0.5 < report.resumed_at < 1
    assert [published.sent(shard(n)) > 3 * 4096 for n in range(1, 7)] == [False] * 3 + [True] * 3
    for made, whole in zip(report.outputs, uninterrupted.outputs, strict=True):
        assert Path(made).read_bytes() == Path(whole).read_bytes()


def test_a_disk_too_small_for_output_and_two_shards_moves_none(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = convert(NAME, tmp_path / "out.gguf", threads=1).bytes
    _, shards, paths = opened()
    needed = output + shards.disk_need(paths[:4]).nbytes
    published.requests.clear()
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk(1 << 40, 0, needed - 1))
    with pytest.raises(OutputError, match="too little free space"):
        convert(NAME, tmp_path / "new.gguf", threads=1)
    assert published.sent("safetensors") < 3 * 4096 * SHARDS
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk(1 << 40, 0, needed))
    assert convert(NAME, tmp_path / "new.gguf", threads=1).bytes == output


@pytest.mark.parametrize("failing", [False, True])
def test_a_disk_slower_than_the_encoders_is_waited_for_and_not_for_ever(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    """Both shards that are held are encoded before the first of them is safe, if ever it is."""
    syncs = 0

    def slow(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs > 1:
            time.sleep(0.3)
        if failing and syncs > 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", slow)
    monkeypatch.setattr(output, "COMMIT_SECONDS", 0.0)
    ends: list[str] = []

    def run() -> None:
        try:
            ends.append(convert(NAME, tmp_path / "out.gguf", threads=1).output)
        except OutputError as error:
            ends.append(str(error.found))

    running = threading.Thread(target=run, daemon=True)
    running.start()
    running.join(120)
    assert ends == ["Input/output error" if failing else str(tmp_path / "out.gguf")]


# In which order ----------------------------------------------------------------------------------


def test_opening_moves_headers_only(published: HubServer) -> None:
    open_repository(NAME)
    lengths = [one.range for one in published.requests if "/cdn/" in one.path]
    assert set(lengths) <= {"bytes=0-4095"} | {
        r for r in lengths if r and r.startswith("bytes=4096")
    }
    assert published.sent(r"\.safetensors") < 3 * 4096 * SHARDS
    assert cached_files() == []


def test_the_next_shard_comes_while_one_is_worked_on_and_the_one_after_waits(
    published: HubServer,
) -> None:
    _, shards, paths = opened()
    shards.expect(paths)
    shards.acquire(paths[0])
    until(paths[1].is_file)
    before = published.sent(shard(3))
    assert [path.is_file() for path in paths] == [True, True, False, False, False, False]
    shards.release(paths[0])
    until(paths[2].is_file)
    assert published.sent(shard(3)) > before
    assert [path.is_file() for path in paths] == [False, True, True, False, False, False]
    shards.close()


def test_a_blocked_acquire_ends_when_the_shards_are_closed(published: HubServer) -> None:
    _, shards, paths = opened()
    shards.expect(paths)
    shards.acquire(paths[1])
    errors: list[HubError] = []

    def ask() -> None:
        try:
            shards.acquire(paths[2])
        except HubError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    shards.close()
    asking.join(60)
    assert [str(error) for error in errors] == [f"{shard(3)} is no longer wanted"]


def test_two_conversions_do_not_drop_each_others_shards(published: HubServer) -> None:
    _, first, paths = opened()
    first.expect(paths)
    _, second, _ = opened()
    with pytest.raises(HubError, match="another conversion is fetching"):
        second.expect(paths)
    first.close()
    second.expect(paths)
    second.close()


def test_shards_of_a_killed_run_are_used_or_swept(published: HubServer) -> None:
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
    assert [path.is_file() for path in paths] == [False, True, True, False, False, False]
    shards.close()


def asked_for(shards: HubShards, path: Path) -> bool:
    """Whether the shard is there after a moment, and its `acquire` did not wait for ever."""
    asking = threading.Thread(target=shards.acquire, args=(path,), daemon=True)
    asking.start()
    asking.join(60)
    return path.is_file() and not asking.is_alive()


def test_shards_that_a_run_left_further_on_do_not_keep_those_before_from_coming(
    published: HubServer,
) -> None:
    """As when a conversion is broken off in the middle, and one to another recipe begins."""
    _, broken_off, paths = opened()
    broken_off.expect(paths[2:])
    broken_off.acquire(paths[2])
    until(paths[3].is_file)
    broken_off.close()
    _, shards, _ = opened()
    shards.expect(paths)
    assert asked_for(shards, paths[0])
    until(paths[1].is_file)
    assert [path.is_file() for path in paths] == [True, True, False, False, False, False]
    shards.close()


def test_shards_that_were_left_at_another_commit_are_used(published: HubServer) -> None:
    _, broken_off, paths = opened()
    broken_off.expect(paths)
    broken_off.acquire(paths[0])
    until(paths[1].is_file)
    broken_off.close()
    entries = published.repositories[NAME].entries
    files = {name: entry.data for name, entry in entries.items()}
    published.add(NAME, {**files, "README.md": b"a new commit, and the same weights"})
    published.requests.clear()
    _, shards, moved = opened()
    assert moved != paths
    shards.expect(moved)
    assert asked_for(shards, moved[0]) and asked_for(shards, moved[1])
    assert published.sent(f"{shard(1)}|{shard(2)}") <= 2 * 3 * 4096
    shards.close()


def test_nothing_is_on_its_way_any_more_once_the_shards_are_closed(
    published: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_shards, "_PARTING_SECONDS", 600.0)
    before = threading.enumerate()
    _, shards, paths = opened()
    published.on_request = lambda: time.sleep(0.3)
    shards.expect(paths)
    shards.close()
    begun = [thread for thread in threading.enumerate() if thread not in before]
    assert "fetch" not in [thread.name for thread in begun]


def test_room_is_for_the_two_largest_neighbours_or_for_all_that_is_kept(
    published: HubServer,
) -> None:
    sizes = [len(published.repositories[NAME].entries[shard(n + 1)].data) for n in range(SHARDS)]
    _, shards, paths = opened()
    pairs = [one + other for one, other in pairwise(sizes)]
    assert shards.disk_need(paths).nbytes == max(pairs)
    _, kept, _ = opened(keep_source=True)
    assert kept.disk_need(paths).nbytes == sum(sizes)
    hf_hub_download(NAME, shard(1))
    assert kept.disk_need(paths).nbytes == sum(sizes[1:])


# Faults on the way -------------------------------------------------------------------------------


PASSING_FAULTS = {
    "connection dropped": Fault(f"GET /cdn/.*{shard(2)}", times=3, cut=10_000),
    "connection dropped at once": Fault(f"GET /cdn/.*{shard(2)}", times=3, cut=0),
    "too many requests": Fault("GET /.*json", times=4, status=429, headers={"Retry-After": "0"}),
    "hub down": Fault("GET /api", times=4, status=503),
    "cdn down": Fault("GET /cdn", times=4, status=503, headers={"Retry-After": "0"}),
    "short answers": Fault(f"GET /cdn/.*{shard(4)}", times=4, short=7_000),
}


@pytest.mark.parametrize("fault", PASSING_FAULTS.values(), ids=PASSING_FAULTS.keys())
def test_a_fault_that_passes_changes_nothing(
    published: HubServer, tmp_path: Path, fault: Fault
) -> None:
    convert(NAME, tmp_path / "quiet.gguf", threads=1)
    published.requests.clear()
    published.faults = [replace(fault)]
    for path in blobs():
        path.unlink()
    convert(NAME, tmp_path / "noisy.gguf", threads=1)
    assert published.faults[0].times == 0
    assert (tmp_path / "noisy.gguf").read_bytes() == (tmp_path / "quiet.gguf").read_bytes()


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (Fault(f"GET /cdn/.*{shard(3)}", times=999, status=503), "HTTP status 503"),
        (Fault(f"GET /cdn/.*{shard(3)}", times=999, cut=100), "closed connection|disconnected"),
    ],
)
def test_a_fault_that_stays_is_one_error_and_the_same_command_goes_on(
    published: HubServer, tmp_path: Path, fault: Fault, found: str
) -> None:
    open_repository(NAME)
    heads = len(published.ranges(shard(3)))
    published.faults = [fault]
    with pytest.raises(HubError, match=f"cannot give {shard(3)} of {NAME}.*({found}).*6 times"):
        shards_all(NAME)
    tries = 999 - fault.times
    assert tries == 6
    published.faults = []
    before = published.sent(shard(3))
    shards_all(NAME)
    size = len(published.repositories[NAME].entries[shard(3)].data)
    assert heads > 0 and published.sent(shard(3)) - before < size + 3 * 4096


def shards_all(name: str) -> None:
    """Acquire and release every shard in turn."""
    _, shards, paths = opened(name)
    try:
        shards.expect(paths)
        for path in paths:
            shards.acquire(path)
            shards.release(path)
    finally:
        shards.close()


def test_what_came_before_the_error_is_not_fetched_again(published: HubServer) -> None:
    _, shards, paths = opened()
    size = len(published.repositories[NAME].entries[shard(1)].data)
    half = size // 2
    first = f"GET /cdn/.*{shard(1)}"
    published.faults = [Fault(first, cut=half), Fault(first, times=999, status=503)]
    shards.expect(paths[:1])
    with pytest.raises(HubError, match="HTTP status 503, 6 times"):
        shards.acquire(paths[0])
    shards.close()
    published.faults.clear()
    published.requests.clear()
    _, again, _ = opened()
    again.expect(paths[:1])
    again.acquire(paths[0])
    assert published.ranges(f"/cdn/.*{shard(1)}")[-1] == f"bytes={half}-{size - 1}"
    assert paths[0].read_bytes() == published.repositories[NAME].entries[shard(1)].data
    again.close()


def test_a_file_that_changed_between_two_requests_is_refused(published: HubServer) -> None:
    _, shards, paths = opened()
    published.repositories[NAME].entries[shard(1)].etag = "f" * 64
    shards.expect(paths)
    with pytest.raises(HubError, match=f"{shard(1)} of {NAME} changed while it was being read"):
        shards.acquire(paths[0])
    shards.close()


def test_a_file_of_another_length_than_listed_is_refused(published: HubServer) -> None:
    _, shards, paths = opened()
    entry = published.repositories[NAME].entries[shard(1)]
    entry.served = entry.data[:-10]
    shards.expect(paths)
    size = len(entry.data)
    with pytest.raises(HubError, match=f"a file of {size - 10} bytes instead of {size}, 6 times"):
        shards.acquire(paths[0])
    shards.close()


def test_a_damaged_file_is_noticed_and_does_not_stay(published: HubServer) -> None:
    _, shards, paths = opened()
    entry = published.repositories[NAME].entries[shard(1)]
    entry.served = entry.data[:-10] + bytes(10)
    shards.expect(paths[:1])
    with pytest.raises(
        HubError, match=f"{shard(1)} of {NAME} failed its checksum.*expected {entry.etag}"
    ):
        shards.acquire(paths[0])
    shards.close()
    assert [path.stat().st_size for path in blobs("*.llama4-edge*")] == [0]


def test_further_chat_templates_come_from_their_directory(
    published: HubServer, tmp_path: Path
) -> None:
    entries = published.repositories[NAME].entries
    files = {name: entry.data for name, entry in entries.items()}
    more = {"additional_chat_templates/tool_use.jinja": b"{{ tools }}"}
    published.add(NAME, {**files, **more, "additional_chat_templates/deep/x.jinja": b"x"})
    convert(NAME, tmp_path / "out.gguf", recipe="bf16")
    metadata = read_gguf(tmp_path / "out.gguf").metadata
    assert metadata["tokenizer.chat_templates"] == ("tool_use",)
    assert metadata["tokenizer.chat_template.tool_use"] == "{{ tools }}"
