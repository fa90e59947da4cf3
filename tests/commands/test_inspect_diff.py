"""`llama4 inspect --diff`: what is shown, and the exit code."""

from __future__ import annotations

import json
import math
from pathlib import Path

from llama4_edge import diff
from tests.command_line import Command, the_error
from tests.gguf_maker import STR, TinyModel, Value, tiny_model


def pair(tmp_path: Path) -> tuple[TinyModel, Path, Path]:
    """A tiny model to be changed, where it goes, and the same one unchanged."""
    return tiny_model(), tmp_path / "b.gguf", tiny_model().write(tmp_path / "a.gguf")


def test_inspect_diff_exits_as_diff_does(llama4: Command, tmp_path: Path) -> None:
    model, path, other = pair(tmp_path)
    model.tensors["output.weight"] += 1
    model.write(path)
    same = llama4("inspect", "--diff", other, other)
    assert (same.exit_code, same.stderr) == (0, "")
    assert f"metadata, and all {len(model.tensors)} tensors" in same.stdout
    different = llama4("inspect", "--diff", other, path)
    assert (different.exit_code, different.stderr) == (1, "")
    row = next(line for line in different.stdout.splitlines() if line.startswith("output.weight"))
    assert row.split()[:3] == ["output.weight", "F32", "263x64"]
    assert "100.00%" in row
    trouble = llama4("inspect", "--diff", other, tmp_path / "none.gguf")
    assert "does not exist" in the_error(trouble, 2)
    assert llama4("inspect", "--diff", other, path, "--check").exit_code == 2


def test_inspect_diff_speaks_json(llama4: Command, tmp_path: Path) -> None:
    model, path, other = pair(tmp_path)
    model.keys["general.name"] = Value("Other", STR)
    model.tensors["output.weight"][0, 0] = math.inf
    record = json.loads(llama4("inspect", "--json", "--diff", other, model.write(path)).stdout)
    assert record == diff(other, path).as_dict() | {
        "metadata": [
            {
                "key": "general.name",
                "a": {"type": "str", "value": "Tiny", "length": None},
                "b": {"type": "str", "value": "Other", "length": None},
                "index": None,
            }
        ]
    }
    assert record["tensors"][0]["numbers"]["not_finite"] == 1
