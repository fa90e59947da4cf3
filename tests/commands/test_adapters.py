"""`--lora` and `--control-vector` of the commands that open a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llama4_edge import Model
from tests.adapters import tiny_adapter, tiny_control_vector
from tests.command_line import RUN, Command, the_error
from tests.gguf_maker import tiny_model
from tests.tiny_model import never_ending

TARGETS = [
    name
    for name, tensor in tiny_model().tensors.items()
    if tensor.ndim == 2 and name != "token_embd.weight"
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapters")
    never_ending().write(directory / "model.gguf")
    tiny_adapter(TARGETS).write(directory / "poems.gguf")
    tiny_adapter(TARGETS, seed=7).write(directory / "law.gguf")
    tiny_control_vector().write(directory / "vector.gguf")
    return directory


def answer(files: Path, **settings: Any) -> str:
    with Model(files / "model.gguf", n_ctx=256, **settings) as model:
        return model.chat("Hello", max_tokens=8, temperature=0.0).text


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--lora", "poems.gguf"], {"adapters": ["poems.gguf"]}),
        (["--lora", "poems.gguf=-2"], {"adapters": [("poems.gguf", -2.0)]}),
        (
            ["--lora", "poems.gguf=0.5", "--lora", "law.gguf=2"],
            {"adapters": [("poems.gguf", 0.5), ("law.gguf", 2.0)]},
        ),
        (["--lora", "poems.gguf=0"], {}),
        (
            ["--control-vector=vector.gguf=4", "--control-vector-layer-range", "2", "3"],
            {"control_vectors": [("vector.gguf", 4.0)], "control_vector_layers": (2, 3)},
        ),
    ],
)
def test_run_answers_as_the_api_does(
    llama4: Command,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    settings: dict[str, Any],
) -> None:
    monkeypatch.chdir(files)
    result = llama4("run", "model.gguf", "Hello", "-c", 256, *RUN, *flags)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == answer(files, **settings).rstrip("\n") + "\n"


def test_plan_counts_them_and_says_the_command(
    llama4: Command, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    flags = ["--lora", "poems.gguf=0.5", "--control-vector", "vector.gguf"]
    shown = llama4("plan", "model.gguf", "-c", 256, *flags).stdout
    assert "--lora poems.gguf=0.5 --control-vector vector.gguf=1" in shown
    assert "adapters" in shown
    record = json.loads(llama4("plan", "model.gguf", "-c", 256, *flags, "--json").stdout)
    assert record["devices"][-1]["adapters_bytes"] > 0
    assert record["adapters"] == [{"path": "poems.gguf", "scale": 0.5}]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora", "poems.gguf=x"], "'poems.gguf=x' is not a file, or FILE=SCALE"),
        (["--lora-scaled", "poems.gguf:0.5"], "is --lora FILE=SCALE"),
        (["--control-vector-scaled", "v.gguf:2"], "is --control-vector FILE=SCALE"),
        (["--control-vector-layer-range", "1"], "requires 2 arguments"),
    ],
)
def test_what_is_no_adapter_is_a_usage_error(
    llama4: Command, files: Path, flags: list[str], words: str
) -> None:
    result = llama4("run", files / "model.gguf", "Hello", *flags)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_errors_name_the_flag(llama4: Command, files: Path) -> None:
    flags = ["--control-vector", files / "vector.gguf", "--control-vector-layer-range", 1, 9]
    line = the_error(llama4("run", files / "model.gguf", "Hello", *flags))
    assert "control_vector_layers (--control-vector-layer-range) goes beyond" in line
    line = the_error(llama4("run", files / "model.gguf", "Hello", "--lora", "missing.gguf"))
    assert "missing.gguf does not exist" in line


def test_chat_takes_up_a_session_with_its_adapter(llama4: Command, files: Path) -> None:
    session = ("-c", 512, "--temp", 0, "-n", 4, "--session", "talk.l4s")
    poems = ("--lora", files / "poems.gguf")
    long = "the " * 30
    llama4("chat", files / "model.gguf", *session, *poems, stdin=f"{long}\n")
    again = llama4("chat", files / "model.gguf", *session, *poems, stdin="Hello\n")
    assert (again.exit_code, again.stderr) == (0, "")
    other = llama4("chat", files / "model.gguf", *session, stdin="Hello\n")
    assert "read with other adapters, found poems.gguf=1, expected none" in other.stderr
