"""No sizes that a config.json may have end llama.cpp, which aborts where its own limits are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from llama4_edge.architecture import MAX_EXPERTS, MAX_EXPERTS_USED
from llama4_edge.convert.presets import PRESETS
from tests.fuzzing import efforts, fuzz

# Plans each config.json that it is told of, and says how it went.
PLANNER = """
import sys
from llama4_edge import Llama4EdgeError, plan
for line in sys.stdin:
    try:
        plan(line.rstrip())
        print("planned", flush=True)
    except Llama4EdgeError as error:
        print(type(error).__name__, flush=True)
"""


class Planner:
    """A process that plans; another where one has died."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._process: subprocess.Popen[str] | None = None

    def plan(self, config: dict[str, Any]) -> str:
        """How planning ended; nothing where the process died."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PLANNER],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._config.write_text(json.dumps(config))
        self._process.stdin.write(f"{self._config}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


@pytest.fixture
def planner(tmp_path: Path) -> Iterator[Planner]:
    process = Planner(tmp_path / "config.json")
    yield process
    process.close()


def up_to(limit: int) -> st.SearchStrategy[int]:
    """Every order of magnitude alike."""
    return st.floats(0, 1).map(lambda share: max(1, round(limit**share)))


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes within their bounds, which nobody chose to go together."""
    n_layer = draw(st.sampled_from([4, 5, 8, 48]))
    n_head_kv = draw(up_to(64))
    n_expert = draw(up_to(MAX_EXPERTS))
    return dict(PRESETS["scout"].config) | {
        "num_hidden_layers": n_layer,
        "hidden_size": draw(up_to(1 << 16)),
        "num_key_value_heads": n_head_kv,
        "num_attention_heads": n_head_kv * draw(up_to(32)),
        "head_dim": 2 * draw(up_to(512)),
        "intermediate_size": draw(up_to(1 << 16)),
        "intermediate_size_mlp": draw(up_to(1 << 16)),
        "num_local_experts": n_expert,
        "num_experts_per_tok": min(n_expert, draw(up_to(MAX_EXPERTS_USED))),
        "interleave_moe_layer_step": draw(st.integers(1, 4)),
        "vocab_size": draw(up_to(1 << 18)),
        "max_position_embeddings": draw(up_to(2**32 - 1)),
        "use_qk_norm": n_expert != 128,
    }


@efforts
def test_no_sizes_abort_while_planning(planner: Planner, effort: settings) -> None:
    def check(config: dict[str, Any]) -> None:
        assert planner.plan(config) != ""

    fuzz(check, configs(), settings(effort, max_examples=effort.max_examples // 20))


def test_as_many_experts_a_token_as_are_allowed_can_be_planned_for(planner: Planner) -> None:
    sizes = {"num_local_experts": 64, "num_experts_per_tok": MAX_EXPERTS_USED}
    assert planner.plan(dict(PRESETS["scout"].config) | sizes) == "planned"
