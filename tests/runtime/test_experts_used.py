"""Other numbers of routed experts a token than the file says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from demo.checkpoint import SCOUT_LIKE
from llama4_edge import Model, bench, convert, plan
from llama4_edge.errors import SettingError
from llama4_edge.measure.speed import BenchGrid
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.settings import EngineSettings
from tests.fixtures import MakeCheckpoint, MakeGGUF

TOKENS = list(range(40, 140))
ONE_THREAD = EngineSettings(n_ctx=256, n_threads=1)


def logits(path: Path, n_expert_used: int | None) -> npt.NDArray[np.float32]:
    with Engine(path, replace(ONE_THREAD, n_expert_used=n_expert_used)) as engine:
        return engine.logits(TOKENS)


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_the_logits_are_those_of_a_file_that_was_converted_with_that_number(
    scout_checkpoint: Path, scout_int4: Path, tmp_path: Path, count: int
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(scout_checkpoint, checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["num_experts_per_tok"] = count
    (checkpoint / "config.json").write_text(json.dumps(config))
    convert(checkpoint, tmp_path / "made.gguf")
    np.testing.assert_array_equal(logits(scout_int4, count), logits(tmp_path / "made.gguf", None))
    usual = logits(scout_int4, None)
    assert np.array_equal(logits(scout_int4, count), usual) == (count == 1)


def test_a_plan_counts_the_experts_that_a_token_reads(scout_int4: Path) -> None:
    one, two, four = (plan(scout_int4, n_ctx=256, n_expert_used=count) for count in (None, 2, 4))
    assert one.settings.n_expert_used is None
    expert = two.bytes_per_token_read - one.bytes_per_token_read
    # Three matrices of an expert in each of the layers, of which the file holds 16.
    experts = dict(one.host.load.weights)["expert"]
    assert expert == experts // 16
    assert four.bytes_per_token_read - one.bytes_per_token_read == 3 * expert
    assert two.host.memory.kv == one.host.memory.kv


def test_more_experts_than_the_model_has_are_refused_everywhere(
    make_gguf: MakeGGUF, make_checkpoint: MakeCheckpoint
) -> None:
    few = make_gguf(make_checkpoint(replace(SCOUT_LIKE, experts=4)), "int4")
    complaint = "n_expert_used is more than the model has, found 5, expected 1 to 4"
    with pytest.raises(SettingError, match=complaint):
        Model(few, n_expert_used=5)
    with pytest.raises(SettingError, match=complaint):
        plan(few, n_expert_used=5)
    with pytest.raises(SettingError, match=complaint):
        next(bench(few, BenchGrid(base=EngineSettings(n_expert_used=5))))


def test_a_model_of_a_plan_has_the_plans_experts(scout_int4: Path) -> None:
    planned = plan(scout_int4, n_ctx=256, n_expert_used=2)
    with Model(scout_int4, plan=planned, n_threads=1) as model:
        found = model.logits(TOKENS)
    np.testing.assert_array_equal(found, logits(scout_int4, 2))
    with pytest.raises(SettingError, match=r"a plan decides .*, found n_expert_used"):
        Model(scout_int4, plan=planned, n_expert_used=3)
