"""`llama4 convert --type exps=TYPE`: llama.cpp loads the file, and answers as its bits say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from demo.checkpoint import SCOUT_LIKE
from llama4_edge import make_recipe, write_recipe
from llama4_edge.quant.importance import Activations, Importance
from llama4_edge.quant.importance_file import importance_bytes
from llama4_edge.quant.types import TYPES
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.settings import EngineSettings
from tests.command_line import Command, the_error
from tests.fixtures import MakeCheckpoint, MakeGGUF

GEOMETRY = replace(SCOUT_LIKE, experts=4, shards=1, vision=None)
SETTINGS = EngineSettings(n_ctx=128, n_threads=1, n_outputs=64, use_extra_bufts=False)
TOKENS = list(range(1, 61))

# The relative RMS error of normal numbers, without and with equal importance: between these.
ERRORS = {
    "q5_1": (0.02, 0.05),
    "q5_0": (0.02, 0.05),
    "q4_1": (0.05, 0.09),
    "iq4_nl": (0.06, 0.09),
    "iq4_xs": (0.06, 0.09),
    "mxfp4": (0.09, 0.14),
    "iq3_s": (0.11, 0.17),
    "q3_k": (0.12, 0.18),
    "q2_k": (0.22, 0.34),
}


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(GEOMETRY)


@pytest.fixture(scope="module")
def bf16(make_gguf: MakeGGUF, checkpoint: Path) -> Path:
    return make_gguf(checkpoint, "bf16")


@pytest.fixture(scope="module")
def expected(bf16: Path) -> npt.NDArray[np.float64]:
    return probabilities(bf16)


def probabilities(path: Path) -> npt.NDArray[np.float64]:
    """Of each next token, [position, token]."""
    with Engine(path, SETTINGS) as engine:
        logits = engine.logits(TOKENS).astype(np.float64)
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))


def experts(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The numbers of the routed experts, as the gguf package decodes them."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
        if tensor.name.endswith("_exps.weight")
    }


def equal_importance(path: Path) -> Path:
    """A file in which every column of every expert matters as much."""
    shape = (GEOMETRY.experts, GEOMETRY.hidden)
    assert GEOMETRY.hidden == GEOMETRY.expert_ffn
    one = Activations(np.ones(shape, np.float32), np.ones(shape[0], np.int64))
    layers, parts = range(GEOMETRY.layers), ("gate", "up", "down")
    names = [f"blk.{layer}.ffn_{part}_exps.weight" for layer in layers for part in parts]
    path.write_bytes(importance_bytes(Importance(dict.fromkeys(names, one))))
    return path


@pytest.mark.parametrize("name", ERRORS)
def test_experts_of_any_type_load_and_answer_as_its_bits_say(
    llama4: Command,
    checkpoint: Path,
    bf16: Path,
    expected: npt.NDArray[np.float64],
    tmp_path: Path,
    name: str,
) -> None:
    tensor_type = TYPES[name.upper()]
    convert = ("convert", checkpoint, "-o", "out.gguf", "--type", f"exps={name}", "--json")
    report = json.loads(llama4(*convert).stdout)
    (role,) = (role for role in report["roles"] if role["role"] == "expert")
    assert role["types"] == {tensor_type.name: 3 * GEOMETRY.layers}
    assert role["bits_per_weight"] == tensor_type.bits_per_weight
    inspected = json.loads(llama4("inspect", "out.gguf", "--json").stdout)
    assert inspected["expert_bits_per_weight"] == tensor_type.bits_per_weight
    # `plan` takes types in a recipe file.
    write_recipe(make_recipe("mine", [("exps", name)], "q8_0"), tmp_path / "mine.json")
    planned = json.loads(llama4("plan", checkpoint, "--recipe", "mine.json", "--json").stdout)
    assert planned["fits"] and planned["recipe"].endswith("mine.json")

    original = experts(bf16)
    least, most = ERRORS[name]
    for tensor, numbers in experts(tmp_path / "out.gguf").items():
        difference = numbers - original[tensor]
        error = float(np.sqrt(np.mean(difference**2) / np.mean(original[tensor] ** 2)))
        assert least < error < most, tensor
    answered = probabilities(tmp_path / "out.gguf")
    divergence = float((expected * np.log(expected / answered)).sum(axis=-1).mean())
    assert 0 < divergence < most**2, divergence


@pytest.mark.parametrize("name", ["iq3_xxs", "iq2_xxs"])
def test_types_that_need_an_importance_matrix_load_and_answer_with_one(
    llama4: Command,
    checkpoint: Path,
    expected: npt.NDArray[np.float64],
    tmp_path: Path,
    name: str,
) -> None:
    convert = ("convert", checkpoint, "-o", "out.gguf", "--type", f"exps={name}")
    refused = the_error(llama4(*convert))
    assert f"{name} needs an importance matrix, found none for blk.0.ffn_" in refused
    assert "--imatrix" in refused and not (tmp_path / "out.gguf").exists()
    matrix = equal_importance(tmp_path / "imatrix.gguf")
    result = llama4(*convert, "--imatrix", matrix, "--json")
    (role,) = (it for it in json.loads(result.stdout)["roles"] if it["role"] == "expert")
    assert role["types"] == {name.upper(): 3 * GEOMETRY.layers}
    answered = probabilities(tmp_path / "out.gguf")
    divergence = float((expected * np.log(expected / answered)).sum(axis=-1).mean())
    assert 0 < divergence < 0.5, divergence
