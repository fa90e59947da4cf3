"""A converted model on the hub: chosen, brought and checked."""

from __future__ import annotations

import os
import random
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama4_edge.errors import HubError, OutputError
from llama4_edge.hub.pull import pull
from llama4_edge.hub.repository import find_repository, partial_path
from llama4_edge.progress import Progress
from tests.hub_server import Fault, HubServer, running_hub

NAME = "someone/Llama-4-Scout-GGUF"
STEM = "Llama-4-Scout-17B-16E-Instruct"


def gguf(architecture: str = "llama4", *, seed: int = 0, nbytes: int = 100_000) -> bytes:
    """The first field of a GGUF, and noise."""
    key = b"general.architecture"
    value = architecture.encode()
    return (
        b"GGUF" + (3).to_bytes(4, "little") + bytes(16)
        + len(key).to_bytes(8, "little") + key + (8).to_bytes(4, "little")
        + len(value).to_bytes(8, "little") + value
        + random.Random(seed).randbytes(nbytes)
    )  # fmt: skip


FILES = {
    "README.md": b"hello",
    f"{STEM}-Q2_K.gguf": gguf(seed=1),
    f"{STEM}-Q4_K_M-00001-of-00002.gguf": gguf(seed=2),
    f"{STEM}-Q4_K_M-00002-of-00002.gguf": gguf(seed=3),
    f"UD-Q4_K_XL/{STEM}-UD-Q4_K_XL-00001-of-00001.gguf": gguf(seed=4),
    f"UD-Q2_K/{STEM}-UD-Q2_K.gguf": gguf(seed=5),
    "mmproj-BF16.gguf": gguf("clip", seed=6),
    "mmproj-F16.gguf": gguf("clip", seed=7),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with running_hub(monkeypatch, tmp_path / "home") as server:
        server.add(NAME, FILES)
        yield server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def listing(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


def test_all_parts_and_the_projector_come_whole(hub: HubServer, place: Path) -> None:
    pulled = pull(NAME, "Q4_K_M", directory=place)
    names = [
        f"{STEM}-Q4_K_M-00001-of-00002.gguf", f"{STEM}-Q4_K_M-00002-of-00002.gguf",
        "mmproj-F16.gguf",
    ]  # fmt: skip
    assert listing(place) == {name: FILES[name] for name in names}
    assert pulled.model == str(place / names[0])
    assert pulled.parts == (str(place / names[0]), str(place / names[1]))
    assert pulled.projector == str(place / names[2])
    assert pulled.bytes == pulled.bytes_fetched == sum(len(FILES[name]) for name in names)
    assert pulled.commit == hub.repositories[NAME].commit


def test_the_projector_stays_where_it_is_if_it_is_not_wanted(hub: HubServer, place: Path) -> None:
    pulled = pull(NAME, "Q4_K_M", directory=place, projector=False)
    assert pulled.projector is None
    assert sorted(listing(place)) == sorted(Path(part).name for part in pulled.parts)
    assert not hub.sent("mmproj")


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ("q2_k", f"{STEM}-Q2_K.gguf"),
        ("UD-Q2_K", f"{STEM}-UD-Q2_K.gguf"),
        ("Q4_K_XL", f"{STEM}-UD-Q4_K_XL-00001-of-00001.gguf"),
        (f"{STEM}-Q2_K.gguf", f"{STEM}-Q2_K.gguf"),
        (f"UD-Q2_K/{STEM}-UD-Q2_K.gguf", f"{STEM}-UD-Q2_K.gguf"),
        (f"{STEM}-Q4_K_M-00002-of-00002.gguf", f"{STEM}-Q4_K_M-00001-of-00002.gguf"),
    ],
)
def test_a_choice_names_one_model(hub: HubServer, place: Path, choice: str, name: str) -> None:
    assert pull(NAME, choice, directory=place).model == str(place / name)


def test_several_models_are_listed_and_none_is_fetched(hub: HubServer, place: Path) -> None:
    listed = (
        r"Q2_K \(97.7 KiB\), Q4_K_M \(195.4 KiB\), "
        r"UD-Q2_K \(97.7 KiB\), UD-Q4_K_XL \(97.7 KiB\)"
    )
    with pytest.raises(HubError, match=f"more than one model, found {listed}.*pull {NAME} Q2_K"):
        pull(NAME, directory=place)
    with pytest.raises(HubError, match=f"has no Q8_0, found {listed}"):
        pull(NAME, "Q8_0", directory=place)
    with pytest.raises(HubError, match="has no Q4_K, found"):
        pull(NAME, "Q4_K", directory=place)
    with pytest.raises(HubError, match=r"more than one model for UD, found UD-Q2_K .*UD-Q4_K_XL"):
        pull(NAME, "UD", directory=place)
    assert hub.sent("gguf") == 0


def test_the_only_model_needs_no_choice(hub: HubServer, place: Path) -> None:
    hub.add("someone/one", {"scout.gguf": gguf()})
    pulled = pull("someone/one", directory=place)
    assert (pulled.model, pulled.projector) == (str(place / "scout.gguf"), None)


def test_missing_parts_are_noticed_before_anything_is_fetched(hub: HubServer, place: Path) -> None:
    hub.add("someone/half", {"scout-00001-of-00003.gguf": gguf(), "scout-00003-of-00003.gguf": b""})
    with pytest.raises(HubError, match=r"lacks parts of scout, found scout-00001-of-00003\.gguf,"):
        pull("someone/half", directory=place)


def test_missing_parts_of_another_model_do_not_matter(hub: HubServer, place: Path) -> None:
    hub.add("someone/half", {"a-Q8_0-00001-of-00003.gguf": gguf(), "a-Q2_K.gguf": gguf(seed=1)})
    assert pull("someone/half", "Q2_K", directory=place).model == str(place / "a-Q2_K.gguf")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"model.gguf": gguf("qwen3")}, r"not Llama 4, found qwen3, expected llama4"),
        ({"model.gguf": b"GGUF" + bytes(100)}, r"not Llama 4, found none named"),
        ({"model.gguf": b"<html>" + bytes(100)}, r"is not a GGUF file"),
        ({"model.safetensors": b"x"}, r"holds no GGUF. Convert it: llama4 convert someone/other"),
        ({"README.md": b"x"}, r"holds no GGUF"),
    ],
)
def test_a_repository_without_a_llama_4(
    hub: HubServer, place: Path, files: dict[str, bytes], problem: str
) -> None:
    hub.add("someone/other", files)
    with pytest.raises(HubError, match=problem):
        pull("someone/other", directory=place)
    assert listing(place) == {}


def test_a_gated_repository_says_what_to_do(hub: HubServer, place: Path) -> None:
    hub.repositories[NAME].gated = True
    with pytest.raises(HubError, match=r"is gated, and no token is set.*Accept the licence"):
        pull(NAME, "Q2_K", directory=place)


def test_an_interrupted_pull_goes_on(hub: HubServer, place: Path) -> None:
    name = f"{STEM}-Q4_K_M-00002-of-00002.gguf"
    size = len(FILES[name])
    hub.faults = [
        Fault(f"GET /cdn/.*{name}", cut=60_000), Fault(f"GET /cdn/.*{name}", times=99, status=503),
    ]  # fmt: skip
    with pytest.raises(HubError, match=f"cannot give {name} of {NAME}, found HTTP status 503"):
        pull(NAME, "Q4_K_M", directory=place)
    hub.faults = []
    hub.requests.clear()
    pulled = pull(NAME, "Q4_K_M", directory=place)
    assert hub.ranges(f"/cdn/.*{name}") == [f"bytes=60000-{size - 1}"]
    assert pulled.bytes - pulled.bytes_fetched == len(FILES[name.replace("2-of", "1-of")]) + 60_000
    assert [Path(part).read_bytes() for part in pulled.parts] == [
        FILES[name.replace("2-of", "1-of")], FILES[name],
    ]  # fmt: skip


def test_what_is_there_is_checked_and_not_fetched_again(hub: HubServer, place: Path) -> None:
    pull(NAME, "Q2_K", directory=place)
    assert pull(NAME, "Q2_K", directory=place).bytes_fetched == 0


@pytest.mark.parametrize("content", [b"mine", FILES[f"{STEM}-Q2_K.gguf"][:-1] + b"\0"])
def test_another_file_of_that_name_is_left_alone(
    hub: HubServer, place: Path, content: bytes
) -> None:
    mine = place / f"{STEM}-Q2_K.gguf"
    mine.write_bytes(content)
    with pytest.raises(OutputError, match="exists and is another file than the hub's"):
        pull(NAME, "Q2_K", directory=place)
    assert listing(place) == {mine.name: content}


def test_a_damaged_file_never_gets_its_name(hub: HubServer, place: Path) -> None:
    entry = hub.repositories[NAME].entries[f"{STEM}-Q2_K.gguf"]
    entry.served = entry.data[:-1] + bytes([entry.data[-1] ^ 1])
    with pytest.raises(HubError, match=f"{entry.name} of {NAME} failed its checksum"):
        pull(NAME, "Q2_K", directory=place)
    assert not (place / entry.name).exists()


def test_too_small_a_disk_is_noticed_first(
    hub: HubServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 0, 150_000))
    with pytest.raises(OutputError, match=r"too little free space, found 146.5 KiB free"):
        pull(NAME, "Q2_K", directory=place)
    assert listing(place) == {}


def test_progress_counts_every_byte_once(hub: HubServer, place: Path) -> None:
    states: list[Progress] = []
    pulled = pull(NAME, "Q4_K_M", directory=place, progress=states.append)
    done = [state.bytes_done for state in states]
    assert done == sorted(set(done))
    assert states[-1] == Progress(pulled.bytes, pulled.bytes, "mmproj-F16.gguf", 0)


def test_a_directory_that_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"is not a directory\. Make it first"):
        pull(NAME, "Q2_K", directory=tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / ("x" * 300), "x/" * 3000, "a\0b"):
        with pytest.raises(OutputError, match="is not a directory"):
            pull(NAME, "Q2_K", directory=directory)
    assert hub.requests == []


def test_names_that_the_disk_does_not_take_are_one_error(hub: HubServer, place: Path) -> None:
    # With what is added while it is fetched, the second is too long.
    for name in ("x" * 200 + ".gguf", "x" * 250 + ".gguf"):
        hub.add("someone/long", {name: gguf()})
        try:
            pull("someone/long", directory=place)
        except OutputError as error:
            assert (len(name), "File name too long" in str(error)) == (255, True)
            assert "Choose a directory with a shorter path" in str(error)
        else:
            assert len(name) == 205


def test_files_that_differ_only_by_case_are_refused(hub: HubServer, place: Path) -> None:
    parts = {"a-00001-of-00002.gguf": gguf(), "a-00002-of-00002.gguf": gguf()}
    hub.add("someone/case", {**parts, "mmproj-F16.gguf": gguf("clip"), "MMPROJ-f16.gguf": gguf()})
    assert pull("someone/case", directory=place).projector
    hub.add("someone/case", {"A.gguf": gguf(), "a.gguf": gguf()})
    with pytest.raises(HubError, match="more than one model"):
        pull("someone/case", directory=place)


def test_a_long_list_of_models_is_cut(hub: HubServer, place: Path) -> None:
    hub.add("someone/many", {f"{number:04d}-Q4_K_M.gguf": b"GGUF" for number in range(300)})
    with pytest.raises(HubError, match=r"0039-Q4_K_M \(4 B\) and 260 more") as caught:
        pull("someone/many", directory=place)
    assert len(str(caught.value)) < 2000


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [Path.mkdir, make_fifo, lambda path: path.symlink_to("/dev/full")])
@pytest.mark.parametrize("partial", [False, True])
def test_what_lies_under_the_name_of_the_file_is_left_alone(
    hub: HubServer, place: Path, make: Callable[[Path], None], partial: bool
) -> None:
    hub.add("someone/one", {"scout.gguf": gguf()})
    file = find_repository("someone/one").files["scout.gguf"]
    target = place / "scout.gguf"
    make(partial_path(target, file) if partial else target)
    with pytest.raises((OutputError, HubError), match=r"scout\.gguf"):
        pull("someone/one", directory=place)
    assert len(list(place.iterdir())) == 1 and not target.is_file()


def test_links_planted_beside_a_file_are_not_written_through(hub: HubServer, place: Path) -> None:
    hub.add("someone/one", {"scout.gguf": gguf()})
    file = find_repository("someone/one").files["scout.gguf"]
    victim = place / "victim"
    victim.write_bytes(b"mine")
    partial = partial_path(place / "scout.gguf", file)
    for link in (partial.symlink_to, partial.hardlink_to):
        link(victim)
        with pytest.raises(HubError, match=r"to .*found (Too many|Not a regular)"):
            pull("someone/one", directory=place)
        assert victim.read_bytes() == b"mine"
        partial.unlink()
