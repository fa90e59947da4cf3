"""A command that may take little memory (`ulimit -v`) ends with its result or one line of error."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is not kept")

MIB = 2**20
LLAMA4 = [sys.executable, "-c", "from llama4_edge.cli import main; main(prog_name='llama4')"]


def run(arguments: list[str], limit: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LLAMA4, *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def commands(model: Path, checkpoint: Path, output: Path) -> dict[str, list[str]]:
    return {
        "plan": ["plan", str(model)],
        "inspect": ["inspect", str(model), "--check"],
        "run": ["run", str(model), "hi", "-n", "2", "-c", "64", "-t", "1"],
        "convert": ["convert", str(checkpoint), "-o", str(output), "--force"],
        "bench": ["bench", str(model), "-p", "4", "-n", "0", "-r", "1", "-t", "1"],
        "worker": ["worker", "--host", "192.0.2.1"],  # nobody's address
        "doctor": ["doctor"],
    }


@pytest.mark.parametrize("name", ["plan", "inspect", "run", "convert", "bench", "worker", "doctor"])
@pytest.mark.parametrize(
    "limit", [250, *(pytest.param(limit, marks=pytest.mark.heavy) for limit in (200, 500, 1000))]
)
def test_a_command_with_little_memory_ends_in_one_line(
    name: str, limit: int, tiny_path: Path, scout_checkpoint: Path, tmp_path: Path
) -> None:
    arguments = commands(tiny_path, scout_checkpoint, tmp_path / "out.gguf")[name]
    result = run(arguments, limit * MIB)
    assert result.returncode in (0, 1)
    assert "Traceback" not in result.stderr and "abort" not in result.stderr.lower()
    if result.returncode and name != "doctor":  # which says it as one of its findings
        (error,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
        assert len(error) < 500
    if limit >= 500:
        assert result.returncode == (1 if name == "worker" else 0)
    assert not list(tmp_path.glob("*.partial*")) or result.returncode == 1


def test_what_the_limit_leaves_is_said_before_llama_cpp_is_loaded(tiny_path: Path) -> None:
    result = run(["plan", str(tiny_path)], 300 * MIB)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: the limit of this process's memory (ulimit -v) leaves too little for llama.cpp, "
    )
    assert result.stderr.count("\n") == 1
