"""131,072 tokens are read: they take what was planned, a token costs what full layers predict."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demo.checkpoint import TEXT_ONLY
from llama4_edge.planner import Plan, plan
from llama4_edge.runtime.engine import Engine
from tests.fixtures import MakeCheckpoint, MakeGGUF

N_CTX = 131_072
NARROW = replace(
    TEXT_ONLY, hidden=64, heads=2, kv_heads=1, head_dim=32, expert_ffn=64, experts=4, vocabulary=512
)
TOKENS = 64
# Each at the end of a chunk, where chunked layers read all of it.
DEPTHS = (8192 - TOKENS, 32_768 - TOKENS, N_CTX - TOKENS)


@pytest.fixture(scope="module")
def gguf(make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF) -> Path:
    return make_gguf(make_checkpoint(NARROW))


def assert_as_planned(engine: Engine, planned: Plan) -> None:
    for device in planned.devices:
        assert engine.memory().on(device.name) == device.memory


@pytest.mark.heavy
def test_128k_tokens_take_what_was_planned_and_a_token_what_the_full_layers_predict(
    gguf: Path,
) -> None:
    planned = plan(gguf, n_ctx=N_CTX, load_mode="none")
    # One full layer of four, of one head of 32 numbers; three with a chunk and a ubatch.
    assert planned.host.load.kv_full_bytes == N_CTX * 2 * 32 * 2
    assert planned.host.load.kv_chunked_bytes == 3 * (8192 + 512) * 2 * 32 * 2
    tokens = np.random.default_rng(0).integers(0, 64, N_CTX).tolist()
    seconds = {}
    # In one thread, the process's time is that of the work, however busy the machine is.
    with Engine(gguf, replace(planned.settings, n_threads=1, n_threads_batch=2)) as engine:
        assert_as_planned(engine, planned)
        for depth in DEPTHS:
            engine.prefill(tokens[:depth])
            times = []
            for token in tokens[depth : depth + TOKENS]:
                begun = time.process_time()
                engine.append(token)
                times.append(time.process_time() - begun)
            seconds[depth] = min(times)
        assert engine.tokens_left == 0
        assert_as_planned(engine, planned)
    # The chunked layers cost the same at each depth, so that time grows on a straight line, along
    # which the full layer's cells come in. Time that grew with the square of the depth would be at
    # 4 times what the line says, time that stopped growing at a quarter. Caches of the processor,
    # which 8k tokens of this model fit into and 128k may not, cost less than twice.
    (near, t_near), (middle, t_middle), (far, t_far) = seconds.items()
    line = t_near + (t_middle - t_near) * (far - near) / (middle - near)
    assert 0.5 < t_far / line < 2.0, seconds
    # One full layer of 32k cells beside three of 8k is 7/4 of four of 8k; four of 32k would be 4.
    assert 1.0 < t_middle / t_near < 3.0, seconds
