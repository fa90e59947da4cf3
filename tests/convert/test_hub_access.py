"""What the hub will not give, what is refused before it moves, and what the environment says."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from llama4_edge import convert
from llama4_edge.convert.hub import open_repository
from llama4_edge.errors import CheckpointError, HubError, UnsupportedError
from tests.hub_server import Fault, HubServer

from .conftest import edit_json, edit_text_config
from .on_hub import NAME, SHARDS, cached_files, opened, shard

# What is refused before a shard moves ------------------------------------------------------------


def test_a_config_that_cannot_be_converted_moves_no_shard(hub: HubServer, checkpoint: Path) -> None:
    edit_text_config(checkpoint, hidden_act="gelu")
    hub.add(NAME, checkpoint)
    with pytest.raises(UnsupportedError, match="hidden_act"):
        open_repository(NAME)
    assert hub.ranges("safetensors|tokenizer") == []


def test_another_model_is_refused_by_its_config_alone(hub: HubServer, checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", lambda config: config.update(model_type="qwen3"))
    hub.add("Qwen/Qwen3", checkpoint)
    with pytest.raises(UnsupportedError, match="qwen3"):
        open_repository("Qwen/Qwen3")
    assert hub.ranges("safetensors|tokenizer") == []


def test_a_shard_that_the_index_does_not_fit_is_refused_by_its_header(
    hub: HubServer, checkpoint: Path
) -> None:
    edit_json(
        checkpoint / "model.safetensors.index.json",
        lambda index: index["weight_map"].pop("language_model.model.norm.weight"),
    )
    hub.add(NAME, checkpoint)
    with pytest.raises(CheckpointError, match=r"holds language_model\.model\.norm\.weight"):
        open_repository(NAME)
    assert 0 < hub.sent("safetensors") < 8 * 4096


def test_metas_own_layout_is_refused_with_the_repository_to_use(hub: HubServer) -> None:
    name = "meta-llama/Llama-4-Scout-17B-16E-Instruct"
    hub.add(f"{name}-Original", {"consolidated.00.pth": b"x", "params.json": b"{}"})
    with pytest.raises(HubError, match=f"Meta's own layout.*layout: {name}$"):
        open_repository(f"{name}-Original")


def test_a_repository_of_gguf_files_is_one_to_pull(hub: HubServer) -> None:
    hub.add("someone/GGUF", {"model-Q4_K_M.gguf": b"GGUF"})
    with pytest.raises(HubError, match="llama4 pull someone/GGUF"):
        open_repository("someone/GGUF")


def test_an_empty_repository_says_what_it_lacks(hub: HubServer) -> None:
    hub.add(NAME, {"README.md": b"hello"})
    with pytest.raises(HubError, match=r"has no config\.json"):
        open_repository(NAME)


# Access ------------------------------------------------------------------------------------------


def test_a_gated_repository_without_token_says_where_to_accept_and_how_to_log_in(
    published: HubServer,
) -> None:
    published.repositories[NAME].gated = True
    page = re.escape(f"{published.url}/{NAME}")
    with pytest.raises(HubError, match=f"no token.*Accept the licence at {page}.*hf auth login"):
        open_repository(NAME)


def test_a_gated_repository_with_a_token_that_has_no_access_says_so(published: HubServer) -> None:
    published.repositories[NAME].gated = True
    with pytest.raises(HubError, match=r"account has no access.*is restricted.*Accept the licence"):
        open_repository(NAME, token="hf_stranger")


def test_a_token_with_access_opens_and_stays_on_the_hub(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.repositories[NAME].gated = True
    published.repositories[NAME].token = "hf_friend"
    monkeypatch.setenv("HF_TOKEN", "hf_friend")
    convert(NAME, tmp_path / "out.gguf", threads=1)
    tokens = {one.path.startswith("/cdn/"): one.token for one in published.requests}
    assert tokens == {False: "hf_friend", True: None}


def test_a_token_that_is_not_accepted_is_named(published: HubServer) -> None:
    with pytest.raises(HubError, match=r"does not accept the token.*hf auth login.*HF_TOKEN"):
        open_repository(NAME, token="hf_invalid")


def test_a_repository_that_does_not_exist(hub: HubServer) -> None:
    with pytest.raises(HubError, match=r"nobody/nothing does not exist on .*, or is private"):
        open_repository("nobody/nothing")


def test_a_revision_that_does_not_exist(published: HubServer) -> None:
    with pytest.raises(HubError, match=f"{NAME} has no revision v9"):
        open_repository(NAME, revision="v9")


def test_no_network(published: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"127.0.0.1:9 cannot give .*refused, 6 times.*the network"):
        open_repository(NAME)


def test_something_that_is_no_hub(hub: HubServer) -> None:
    hub.faults = [Fault("GET /api", status=200)]
    with pytest.raises(HubError, match="does not answer as the Hugging Face Hub does"):
        open_repository(NAME)


def test_a_cache_that_cannot_be_written_to_is_named(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    _, shards, paths = opened()
    found = r"Llama-4-Small cannot be written to, found Input/output.*HF_HUB_CACHE"
    with monkeypatch.context() as patch, pytest.raises(HubError, match=found):
        patch.setattr(fcntl, "flock", refuse)
        shards.expect(paths)
    repository = tmp_path / "home" / "hub" / "models--meta-llama--Llama-4-Small"
    (repository / "refs" / "v1").mkdir()
    with pytest.raises(HubError, match=r"Llama-4-Small cannot be written to, found Is a directory"):
        open_repository(NAME, revision="v1")


# Offline -----------------------------------------------------------------------------------------


def test_offline_mode_takes_all_from_the_cache(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = snapshot_download(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    published.requests.clear()
    checkpoint = open_repository(NAME)
    assert checkpoint.path == Path(snapshot)
    convert(checkpoint.path, tmp_path / "out.gguf", threads=1)
    assert published.requests == []
    assert len(cached_files()) == SHARDS


def test_offline_mode_without_the_repository(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"not in the cache, and offline mode.*HF_HUB_OFFLINE"):
        open_repository(NAME)


def test_offline_mode_with_shards_missing(
    published: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_repository(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=f"not whole.*6 of 6 shards missing, first {shard(1)}"):
        open_repository(NAME)


# The environment ---------------------------------------------------------------------------------


def test_endpoint_cache_and_token_come_from_the_environment(
    published: HubServer, tmp_path: Path
) -> None:
    published.repositories[NAME].gated = True
    published.repositories[NAME].token = "hf_environment"
    code = (
        "import sys; from llama4_edge.convert.hub import open_repository; "
        "print(open_repository(sys.argv[1]).path)"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": published.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_environment",
        "HF_HUB_OFFLINE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, NAME],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    commit = published.repositories[NAME].commit
    expected = tmp_path / "cache" / "models--meta-llama--Llama-4-Small" / "snapshots" / commit
    assert done.stdout.strip() == str(expected)
