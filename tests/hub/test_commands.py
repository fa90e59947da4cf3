"""`llama4 pull` and `llama4 convert ORG/NAME`: as a person gives them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from demo.checkpoint import TEXT_ONLY
from llama4_edge.cli import main
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.fixtures import MakeCheckpoint, MakeGGUF
from tests.hub_server import HubServer, running_hub

NAME = "meta-llama/Llama-4-Tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    with running_hub(monkeypatch, tmp_path / "home") as server:
        yield server


def test_a_repository_becomes_a_gguf_by_its_name(
    hub: HubServer, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    hub.add(NAME, make_checkpoint(TEXT_ONLY))
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
    }
    code = "from llama4_edge.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", NAME, "--json"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["output"] == "Llama-4-Tiny-int4.gguf"
    metadata = read_gguf(tmp_path / report["output"]).metadata
    assert metadata["general.name"] == "Llama 4 Tiny"
    assert metadata["general.organization"] == "meta-llama"
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []


def test_a_pulled_model_can_be_read(
    hub: HubServer, make_gguf: MakeGGUF, scout_checkpoint: Path, tmp_path: Path
) -> None:
    model = make_gguf(scout_checkpoint, "int4")
    hub.add("someone/GGUF", {"scout-Q4_K_M.gguf": model.read_bytes()})
    result = CliRunner().invoke(main, ["pull", "someone/GGUF", "--json"])
    assert result.exit_code == 0
    pulled = json.loads(result.stdout)
    assert pulled["model"] == "scout-Q4_K_M.gguf"
    assert (tmp_path / pulled["model"]).read_bytes() == model.read_bytes()
    again = CliRunner().invoke(main, ["pull", "hf://someone/GGUF"])
    assert f"{hub.repositories['someone/GGUF'].commit[:12]}" in again.stdout
    assert "0 B fetched" in again.stdout
    for name in ("someone/GGUF:Q4_K_M", "https://huggingface.co/someone/GGUF"):
        assert "0 B fetched" in CliRunner().invoke(main, ["pull", name]).stdout


def test_a_projector_is_pulled_with_its_model(
    hub: HubServer, tiny_path: Path, tmp_path: Path
) -> None:
    files = {"q4_0.gguf": tiny_path.read_bytes(), "mmproj-f16.gguf": b"GGUF projector"}
    hub.add("someone/GGUF", files)
    assert CliRunner().invoke(main, ["pull", "someone/GGUF", "--no-mmproj"]).exit_code == 0
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["q4_0.gguf"]
    result = CliRunner().invoke(main, ["pull", "someone/GGUF"])
    assert result.exit_code == 0
    assert "mmproj-f16.gguf" in result.stdout
    assert (tmp_path / "mmproj-f16.gguf").read_bytes() == files["mmproj-f16.gguf"]


def test_a_repository_is_planned_from_its_headers_alone(
    hub: HubServer, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(TEXT_ONLY)
    hub.add(NAME, checkpoint)
    machine = ["--vram", "2G", "--ram", "4G", "--json"]
    plans = [
        json.loads(CliRunner().invoke(main, ["plan", model, *machine]).stdout)
        for model in (NAME, str(checkpoint))
    ]
    assert plans[0]["path"] == NAME
    assert plans[0]["fits"]
    assert plans[0]["devices"] == plans[1]["devices"]
    assert plans[0]["devices"][0]["weights_bytes"] > 1_000_000
    result = CliRunner().invoke(main, ["plan", "nobody/nothing"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: nobody/nothing does not exist on ")
    shards = sum(shard.stat().st_size for shard in checkpoint.glob("*.safetensors"))
    assert 0 < hub.sent(r"\.safetensors") < shards / 10


def test_what_cannot_be_had_is_one_line(hub: HubServer) -> None:
    result = CliRunner().invoke(main, ["pull", "nobody/nothing"])
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: nobody/nothing does not exist on ")
    result = CliRunner().invoke(main, ["convert", "nobody/nothing", "--json"])
    assert json.loads(result.stdout)["error"] == "HubError"


def test_what_names_no_repository_is_a_usage_error(hub: HubServer) -> None:
    result = CliRunner().invoke(main, ["pull", "scout.gguf"])
    assert result.exit_code == 2
    assert "'scout.gguf' is not org/name. For example: llama4 pull unsloth/" in result.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["llama4:scout"],
            "'llama4:scout' is a name of Ollama's. Fetch a GGUF from the hub:",
        ),
        (["https://huggingface.co/datasets/a/b"], "is a data set on the hub. Give a repository"),
        (["a/b:Q4_K_M", "Q8_0"], "'a/b:Q4_K_M' says Q4_K_M, and CHOICE Q8_0"),
        (["a/b@v1", "--revision", "v2"], "'a/b@v1' says v1, and --revision v2"),
        (["https://example.org/x.gguf"], "is not org/name"),
    ],
)
def test_what_a_pull_cannot_mean_is_a_usage_error(
    hub: HubServer, words: list[str], problem: str
) -> None:
    result = CliRunner().invoke(main, ["pull", *words])
    assert result.exit_code == 2
    assert problem in " ".join(result.stderr.split())
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["someone/GGUF", "https://huggingface.co/someone/GGUF/tree/main", "someone/GGUF@main"]
)
def test_a_repository_of_gguf_files_is_not_converted_but_pulled(hub: HubServer, name: str) -> None:
    hub.add("someone/GGUF", {"config.json": b"{}", "scout-Q4_K_M.gguf": b"GGUF"})
    for command in ("convert", "plan"):
        result = CliRunner().invoke(main, [command, name])
        assert result.exit_code == 1
        assert result.stderr.endswith("Fetch one: llama4 pull someone/GGUF\n")


def test_nothing_is_asked_of_the_hub_but_what_is_needed(
    hub: HubServer, make_gguf: MakeGGUF, scout_checkpoint: Path, tmp_path: Path
) -> None:
    hub.add("someone/GGUF", {"scout.gguf": make_gguf(scout_checkpoint, "int4").read_bytes()})
    home = tmp_path / "elsewhere"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
    }
    environment.pop("HF_HUB_CACHE", None)
    words = [sys.executable, "-m", "llama4_edge", "pull", "someone/GGUF"]
    subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, check=True)
    views = {one.path.split("/")[1 if "/cdn/" in one.path else 3] for one in hub.requests}
    assert views == {"someone", "resolve", "cdn"}
    assert not home.exists()
