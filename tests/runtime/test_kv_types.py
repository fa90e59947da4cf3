"""Keys and values in types of their own, decoded: every pair that settings allow works."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge import Model, plan
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.settings import (
    EngineSettings,
    FlashAttention,
    KVType,
    kv_bits,
    kv_type_fits,
    tensor_type,
)

TYPES: tuple[KVType, ...] = get_args(KVType)
PAIRS = tuple(product(TYPES, TYPES))
SAMPLE = (("f16", "bf16"), ("q8_0", "q4_0"), ("q5_1", "f16"), ("iq4_nl", "q5_0"), ("q4_1", "q4_1"))
TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 1000, 100)]
BASE = EngineSettings(n_ctx=256, n_threads=1, use_extra_bufts=False)


def log_probabilities(path: Path, settings: EngineSettings) -> npt.NDArray[np.float32]:
    with Engine(path, settings) as engine:
        logits = engine.logits(TOKENS)
        assert engine.memory().on("CPU").kv > 0
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def reference(scout_bf16: Path) -> npt.NDArray[np.float32]:
    return log_probabilities(scout_bf16, BASE)


@pytest.mark.parametrize(
    "pair",
    [pair if pair in SAMPLE else pytest.param(pair, marks=pytest.mark.heavy) for pair in PAIRS],
)
def test_every_pair_decodes_and_costs_little(
    scout_bf16: Path, reference: npt.NDArray[np.float32], pair: tuple[KVType, KVType]
) -> None:
    modes: list[FlashAttention] = ["auto", "on"]
    if not tensor_type(pair[1]).quantized:
        modes.append("off")
    for flash_attention in modes:
        settings = replace(BASE, kv_type=pair, flash_attention=flash_attention)
        found = log_probabilities(scout_bf16, settings)
        divergence = (np.exp(reference) * (reference - found)).sum(-1).mean()
        # Random weights: what four bits cost them is far below what other tokens would.
        assert divergence < (1e-3 if min(map(kv_bits, pair)) >= 17 else 2e-2)


def test_an_engine_holds_the_bytes_that_were_planned(scout_bf16: Path) -> None:
    planned = plan(scout_bf16, n_ctx=1024, kv_type=("q8_0", "q4_0"))
    with Model(scout_bf16, plan=planned, n_threads=1) as model:
        assert model.engine.settings.kv_type == ("q8_0", "q4_0")
        assert model.engine.memory().on("CPU").kv == planned.host.memory.kv


def test_types_take_the_bits_that_their_names_say() -> None:
    bits = {kind: kv_bits(kind) / 2 for kind in TYPES}
    assert bits == {
        "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5,
        "iq4_nl": 4.5,
    }  # fmt: skip
    assert kv_bits(("q8_0", "q4_0")) == 13


def test_a_planner_of_small_heads_tries_no_type_that_does_not_fit_them(tiny_path: Path) -> None:
    result = plan(tiny_path, vram=[3 * 2**29], ram=2**33)
    assert result.settings.kv_type == "f16"
    from llama4_edge.runtime.files.model_file import check_model_file

    hparams = check_model_file(tiny_path).hparams
    assert [kind for kind in TYPES if kv_type_fits(kind, hparams)] == ["f16", "bf16"]
