"""Every way to name a model to every command: used, or one sentence with a command that works."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click
import pytest

from llama4_edge.cli import main
from llama4_edge.hub.names import HubName, parse_hub_name
from tests.command_line import Command, the_error

FILE_COMMANDS = ("run", "chat", "bench")
COMMANDS = (*FILE_COMMANDS, "inspect", "plan", "convert")
PROMPT = {"run": ["hi"]}
PULL_OR_CONVERT = (
    "If it is a repository: llama4 pull org/name fetches a GGUF, llama4 convert org/name makes one "
    "of a checkpoint."
)


def refusal(llama4: Command, command: str, name: object) -> str:
    return the_error(llama4(command, name, *PROMPT.get(command, []))).removeprefix("error: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_there_is_worded_alike(llama4: Command, command: str) -> None:
    for name in ("absent.gguf", "folder/absent.gguf", "absent", "./absent", "/absent/x.gguf"):
        assert refusal(llama4, command, name).startswith(f"{name} does not exist. ")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_name_is_a_usage_error(llama4: Command, command: str) -> None:
    result = llama4(command, "", *PROMPT.get(command, []))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "error: the name of the model is empty"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("org/name:Q4_K_M", "llama4 pull org/name Q4_K_M"),
        ("hf.co/org/name:Q4_K_M", "llama4 pull org/name Q4_K_M"),
        ("org/name/x.gguf", "llama4 pull org/name x.gguf"),
        ("https://huggingface.co/org/name/blob/main/q4/x.gguf", "llama4 pull org/name q4/x.gguf"),
        ("https://hf.co/org/name/resolve/v2/x.gguf?download=true",
         "llama4 pull org/name x.gguf --revision v2"),
        ("file:///models/x.gguf", "Give its path: llama4 {command} /models/x.gguf"),
        ("https://example.org/x.gguf", "Download it, and give the file."),
        ("s3://bucket/x", "Download it, and give the file."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_elsewhere_is_fetched_first(
    llama4: Command, command: str, name: str, hint: str
) -> None:
    error = refusal(llama4, command, name)
    assert error.endswith(hint.replace("{command}", command))
    said = "is an address, not a file. " if "://" in name else "does not exist. "
    assert error.startswith(f"{name} {said}")


@pytest.mark.parametrize(
    "name",
    [
        "org/name",
        "https://huggingface.co/org/name",
        "hf://org/name",
        "org/name/",
        "https://huggingface.co/org/name/tree/main",
        "git@hf.co:org/name.git",
    ],
)
def test_a_repository_is_a_model_for_some_commands(llama4: Command, name: str) -> None:
    for command in (*FILE_COMMANDS, "inspect"):
        assert refusal(llama4, command, name).endswith(PULL_OR_CONVERT)
    for command in ("plan", "convert"):  # they ask the hub, which the tests cannot
        assert "offline mode" in refusal(llama4, command, name)


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_an_address_of_a_repository_that_is_not_understood_is_put_right(
    llama4: Command, command: str
) -> None:
    error = refusal(llama4, command, "https://huggingface.co/org/name/tree/v2/q4")
    revision = " --revision v2" if command == "convert" else ""
    assert error.endswith(f"Give its repository: llama4 {command} org/name{revision}")


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_known_elsewhere_is_answered_with_what_to_do(llama4: Command, command: str) -> None:
    assert refusal(llama4, command, "llama4:scout") == (
        "llama4:scout is a name of Ollama's. Fetch a GGUF from the hub: "
        "llama4 pull unsloth/Llama-4-Scout-17B-16E-Instruct-GGUF Q4_K_M"
    )
    assert refusal(llama4, command, "https://huggingface.co/datasets/org/name") == (
        "https://huggingface.co/datasets/org/name is a data set on the hub. "
        "Give a repository of a model: org/name"
    )


def test_the_name_of_a_preset_says_what_knows_it(llama4: Command) -> None:
    convert = "llama4 convert meta-llama/Llama-4-Scout-17B-16E-Instruct"
    for command in set(COMMANDS) - {"plan"}:
        error = refusal(llama4, command, "scout")
        assert error.startswith("scout does not exist. llama4 plan scout says what it needs. ")
        assert error.endswith(convert)
    assert "llama4 bench --synthetic scout " in refusal(llama4, "bench", "scout")
    assert "convert" not in refusal(llama4, "run", "behemoth")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_link_to_nothing_and_an_unfinished_file_say_so(
    llama4: Command, command: str, model: Path
) -> None:
    Path("link.gguf").symlink_to("nothing.gguf")
    said = "link.gguf is a symbolic link to a file that does not exist, found nothing.gguf"
    assert refusal(llama4, command, "link.gguf") == said
    shutil.copy(model, "x.gguf.partial")
    if command != "inspect":
        error = refusal(llama4, command, "x.gguf.partial")
        assert error.startswith("x.gguf.partial is not finished. Give the llama4 convert")


@pytest.mark.parametrize("command", FILE_COMMANDS)
def test_a_directory_with_a_checkpoint_is_converted_first(
    llama4: Command, command: str, scout_checkpoint: Path
) -> None:
    Path("above").mkdir()
    Path("above/one").symlink_to(scout_checkpoint)
    Path("hub/models--org--name/snapshots").mkdir(parents=True)
    Path("hub/models--org--name/snapshots/c0ffee").symlink_to(scout_checkpoint)
    for name, checkpoint in [
        ("above", "above/one"),
        ("hub", "hub/models--org--name"),
        ("hub/models--org--name", "hub/models--org--name"),
    ]:
        error = refusal(llama4, command, name)
        assert error.endswith(f"Turn it into a GGUF: llama4 convert {checkpoint}")
        assert llama4("convert", checkpoint, "--dry-run").exit_code == 0
    assert f"llama4 convert {scout_checkpoint}" in refusal(llama4, command, scout_checkpoint)
    config = scout_checkpoint / "config.json"
    assert refusal(llama4, command, config).endswith(f"llama4 convert {scout_checkpoint}")


def test_a_directory_of_ggufs_is_no_model_to_plan(llama4: Command, model: Path) -> None:
    Path("ggufs").mkdir()
    Path("ggufs/a b.gguf").symlink_to(model)
    assert refusal(llama4, "plan", "ggufs").endswith("llama4 plan 'ggufs/a b.gguf'")
    for command in (*FILE_COMMANDS, "inspect"):
        assert "ggufs/a b.gguf" in refusal(llama4, command, "ggufs")


def test_one_file_of_a_checkpoint_is_not_planned(llama4: Command, scout_checkpoint: Path) -> None:
    shard = next(scout_checkpoint.glob("*.safetensors"))
    error = refusal(llama4, "plan", shard)
    assert error == (
        f"{shard} is one file of a checkpoint. Give its directory: llama4 plan {scout_checkpoint}"
    )


def test_names_that_are_nearly_right(llama4: Command) -> None:
    for name in ("scout.gguf", "noise.gguf"):
        Path(name).touch()
    Path("checkpoint").mkdir()
    assert refusal(llama4, "run", "scuot.gguf").endswith("Did you mean scout.gguf?")
    assert refusal(llama4, "run", "./scout").endswith("Did you mean ./scout.gguf?")
    assert refusal(llama4, "chat", "scout").endswith("Did you mean scout.gguf?")
    assert refusal(llama4, "inspect", "chekpoint").endswith("Did you mean checkpoint?")
    assert refusal(llama4, "plan", "mavrick").endswith("Did you mean maverick?")
    assert "Did you mean" not in refusal(llama4, "run", "absent.gguf")
    assert "Did you mean" not in refusal(llama4, "run", "chekpoint")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name")),
        ("org/name/", HubName("org/name")),
        ("http://huggingface.co/org/name#files", HubName("org/name")),
        ("hf.co/org/name:Q4_K_M", HubName("org/name", quantization="Q4_K_M")),
        ("org/name/sub/x.gguf", HubName("org/name", file="sub/x.gguf")),
        ("https://hf.co/org/name/tree/main", HubName("org/name", "main")),
        ("https://hf.co/org/name/raw/v2/a/config.json", HubName("org/name", "v2", "a/config.json")),
        ("scout", None),
        ("../org/name", None),
        ("/org/name", None),
        ("a/b/c/d", None),
        ("https://huggingface.co/org", None),
        ("huggingface.co/org", None),
        ("https://example.org/org/name", None),
    ],
)
def test_what_of_the_hub_a_text_means(text: str, name: HubName | None) -> None:
    assert parse_hub_name(text) == name


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["absent", "scout", "org/name", "org/name:Q4_K_M", "a b:c'd"])
def test_hints_name_commands_and_flags_that_exist(llama4: Command, command: str, name: str) -> None:
    if name == "scout" and command == "plan":
        return
    for hint in refusal(llama4, command, name).split("llama4 ")[1:]:
        next_command, *words = hint.split()
        found = main.get_command(click.Context(main), next_command)
        assert found is not None
        flags = {flag for param in found.params for flag in param.opts}
        assert {word for word in words if word.startswith("-")} <= flags


def test_a_name_that_cannot_be_one_is_one_error(llama4: Command) -> None:
    for name in ("x" * 300, "a/" * 3000 + "b", os.fsdecode(b"\xff.gguf")):
        for command in COMMANDS:
            assert refusal(llama4, command, name)
