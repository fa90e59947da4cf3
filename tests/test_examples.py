"""Each program of examples/ runs as its docstring says, on the model in the box."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llama4_edge.runtime.workers.worker import local_workers
from tests.fixtures import MakeGGUF

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "demo" / "Llama-4-Tiny"
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="session")
def model(make_gguf: MakeGGUF) -> Path:
    return make_gguf(CHECKPOINT, "int4")


def run(name: str, *arguments: object, stdin: str = "") -> list[str]:
    """The lines that an example prints; nothing may go wrong."""
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_there_are_eight() -> None:
    assert EXAMPLES == [
        "ask.py",
        "chat.py",
        "convert_and_inspect.py",
        "plan_then_load.py",
        "several_machines.py",
        "stream.py",
        "structured.py",
        "tools.py",
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_says_how_it_is_run(name: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / "examples" / name).read_text(encoding="utf-8")))
    assert text is not None
    assert f"\n    python examples/{name} demo/" in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_says_so_too_when_it_is_given_nothing(name: str) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / name], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert f"python examples/{name} demo/" in result.stderr
    assert "Traceback" not in result.stderr


def test_ask(model: Path) -> None:
    assert run("ask.py", model, "How many experts does Scout have?") == ["Scout has 16 experts."]


def test_stream(model: Path) -> None:
    question = "How many experts does Scout have?"
    assert run("stream.py", model, question) == ["Scout has 16 experts."]
    (line,) = run("stream.py", model, question, "9")
    assert len(line) < len("Scout has 16 experts.")
    assert "Scout has 16 experts.".startswith(line)


def test_structured(model: Path) -> None:
    assert run("structured.py", model) == ["Scout 16", "Maverick 128", "16"]


def test_chat_goes_on_where_it_was_saved(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "lighthouse.json"
    first = "Remember: the code of the old lighthouse is 48213.\n"
    assert len(run("chat.py", model, file, stdin=first)) == 1
    second = "Which code does the old lighthouse have?\n"
    (line,) = run("chat.py", model, file, stdin=second)
    assert "48213" in line


def test_plan_then_load(model: Path) -> None:
    lines = run("plan_then_load.py", model)
    assert lines[0].startswith("Llama 4 Tiny, 65,536 tokens of f16: ")
    assert any(line.startswith("CPU: ") for line in lines)


def test_convert_and_inspect(tmp_path: Path) -> None:
    output = tmp_path / "tiny-int4.gguf"
    lines = run("convert_and_inspect.py", CHECKPOINT, output)
    assert lines[0] == "6.87 bits a weight"
    assert lines[-1] == "sound"
    assert output.is_file()


def test_several_machines(model: Path) -> None:
    with local_workers(2) as workers:
        lines = run("several_machines.py", model, *workers)
    assert lines[-1] == "20 + 30: 0+0=0, 2+3=5, so 50."
    assert [line.split(" at ")[0] for line in lines[:-1]] == ["RPC0", "RPC1", "CPU"]


def test_tools(model: Path) -> None:
    called, *_ = run("tools.py", model, "Light in the hall, please.")
    shown = re.fullmatch(r"switch (\{.*\}) -> The lamp in the (\w+) is (on|off)\.", called)
    assert shown is not None
    assert ast.literal_eval(shown[1]) == {"lamp": shown[2], "on": shown[3] == "on"}
