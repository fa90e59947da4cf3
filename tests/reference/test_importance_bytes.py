"""With an importance matrix every tensor has the bytes that llama-quantize would write with it.

What llama.cpp's loader makes of the file, means by expert, is written here a second time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import pytest

from demo.checkpoint import MAVERICK_LIKE, ODD, SCOUT_LIKE, Geometry
from llama4_edge import convert
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.fixtures import MakeCheckpoint

from .test_bytes import (
    FILE_TYPES,
    LATER_FILE_TYPES,
    assert_same_tensors,
    quantize,
    write_reference_bf16,
)

LOW = {
    "q2_k_s": 21, "iq3_xs": 22, "iq3_xxs": 23, "iq2_m": 29, "iq2_s": 28, "iq2_xs": 20,
    "iq2_xxs": 19, "iq1_m": 31, "iq1_s": 24,
}  # fmt: skip
NUMBERS = {**FILE_TYPES, **LATER_FILE_TYPES, **LOW}
SCOUT = replace(SCOUT_LIKE, experts=3, kv_heads=1, vision=None, shards=2)
GEOMETRIES = {
    "scout": SCOUT,
    "maverick": replace(MAVERICK_LIKE, experts=4, qk_norm=True, vision=None, shards=2),
    "low": replace(SCOUT, experts=2, layers=4),
    "odd": replace(ODD, experts=3, vision=None),
    # Of eight layers, the first is an eighth, whose down projections depend on the matrix.
    "deep": replace(SCOUT, layers=8, experts=2),
}
CASES = [
    *(
        ("scout", recipe)
        for recipe in NUMBERS
        # Of the others each has its type, or its rule, from one of these.
        if recipe not in ("f16", "bf16", "iq3_s", "iq3_m", *LOW)
        and not recipe.endswith(("_s", "_l"))
    ),
    *(("maverick", recipe) for recipe in ("q4_k_m", "q2_k", "iq4_xs")),
    *(("odd", recipe) for recipe in ("q4_k_m", "q2_k", "iq4_xs")),
    # ggml's encoders of these take many seconds, even for layers of two experts.
    *(pytest.param("low", recipe, marks=pytest.mark.heavy) for recipe in ("iq3_s", *LOW)),
    *(("deep", recipe) for recipe in ("q4_0", "q5_0")),
]


class Reference(NamedTuple):
    checkpoint: Path
    bf16: Path
    imatrix: Path
    weights: Mapping[str, np.ndarray]


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    return {}


@pytest.fixture
def reference(
    request: pytest.FixtureRequest,
    references: dict[str, Reference],
    make_checkpoint: MakeCheckpoint,
    tmp_path_factory: pytest.TempPathFactory,
) -> Reference:
    """A checkpoint, its bf16 file, and statistics that no expert shares with another."""
    name = request.param
    if name not in references:
        geometry = GEOMETRIES[name]
        checkpoint = make_checkpoint(geometry)
        directory = tmp_path_factory.mktemp(name)
        write_reference_bf16(checkpoint, geometry, directory / "bf16.gguf")
        weights = write_imatrix(geometry, directory / "imatrix.gguf")
        references[name] = Reference(
            checkpoint, directory / "bf16.gguf", directory / "imatrix.gguf", weights
        )
    return references[name]


def columns(geometry: Geometry) -> dict[str, tuple[int, int]]:
    """Matrices and columns of the tensors that a matrix has."""
    g, found = geometry, dict[str, tuple[int, int]]()
    for layer in range(g.layers):
        routed = {"ffn_gate_inp": (1, g.hidden)}
        for part, length in (("gate", g.hidden), ("up", g.hidden), ("down", g.expert_ffn)):
            routed[f"ffn_{part}_exps"] = (g.experts, length)
            routed[f"ffn_{part}_shexp"] = (1, length)
        dense = {"ffn_gate": (1, g.hidden), "ffn_up": (1, g.hidden), "ffn_down": (1, g.dense_ffn)}
        attention = {f"attn_{part}": (1, g.hidden) for part in ("q", "k", "v")}
        attention["attn_output"] = (1, g.heads * g.head_dim)
        parts = {**attention, **(routed if g.is_moe(layer) else dense)}
        found |= {f"blk.{layer}.{part}.weight": shape for part, shape in parts.items()}
    # As of a model whose value was not measured, and whose output was.
    del found["blk.1.attn_v.weight"]
    return found | {"output.weight": (1, g.hidden)}


def write_imatrix(geometry: Geometry, path: Path) -> dict[str, np.ndarray]:
    """Statistics as llama-imatrix writes them, and what llama-quantize's loader makes of them."""
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["calibration ä.txt", "other.txt"])
    writer.add_uint32("imatrix.chunk_count", 5)
    writer.add_uint32("imatrix.chunk_size", 512)
    weights = {}
    for name, (matrices, length) in columns(geometry).items():
        counts = rng.integers(1, 2560, (matrices, 1)).astype(np.float32)
        sums = rng.lognormal(0, 2, (matrices, length)).astype(np.float32) * counts
        if matrices > 2:
            counts[1] = 0  # an expert that saw no token
        if name.endswith("ffn_up_exps.weight"):
            sums[0, : length // 2] = 0  # columns that nothing reached
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts)
        means = np.ones_like(sums)
        np.divide(sums, counts, out=means, where=counts > 0)
        weights[name] = means
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.mark.parametrize(("reference", "recipe"), CASES, indirect=["reference"])
def test_with_an_importance_matrix_a_recipe_has_llama_cpps_bytes(
    reference: Reference, recipe: str, tmp_path: Path
) -> None:
    expected = tmp_path / "expected.gguf"
    quantize(reference.bf16, expected, NUMBERS[recipe], reference.weights)
    report = convert(
        reference.checkpoint, tmp_path / "ours.gguf", recipe=recipe, imatrix=reference.imatrix
    )
    assert_same_tensors(Path(report.output), expected)


@pytest.mark.parametrize("reference", ["scout"], indirect=True)
def test_of_a_gguf_it_is_the_same(reference: Reference, tmp_path: Path) -> None:
    """All experts of a matrix lie in one slab there."""
    for recipe in ("q4_k_m", "q4_0"):
        expected = tmp_path / f"expected-{recipe}.gguf"
        quantize(reference.bf16, expected, NUMBERS[recipe], reference.weights)
        report = convert(
            reference.bf16, tmp_path / f"{recipe}.gguf", recipe=recipe, imatrix=reference.imatrix
        )
        assert_same_tensors(Path(report.output), expected)


@pytest.mark.parametrize("reference", ["scout"], indirect=True)
def test_llama_quantize_itself_writes_that_and_the_same_about_the_matrix(
    reference: Reference, tmp_path: Path
) -> None:
    tools = os.environ.get("LLAMA_CPP_TOOLS")
    tool = shutil.which("llama-quantize", path=tools)
    if tool is None:
        pytest.skip("llama-quantize is not built")
    expected = tmp_path / "expected.gguf"
    subprocess.run(
        [tool, "--imatrix", reference.imatrix, reference.bf16, expected, "IQ4_XS"],
        check=True, capture_output=True,
    )  # fmt: skip
    report = convert(
        reference.bf16, tmp_path / "ours.gguf", recipe="iq4_xs", imatrix=reference.imatrix
    )
    assert_same_tensors(Path(report.output), expected)
    ours, theirs = (read_gguf(path).metadata for path in (report.output, expected))
    own = ("llama4_edge.recipe",)
    assert {key: value for key, value in ours.items() if key not in own} == theirs
    assert theirs["quantize.imatrix.dataset"] == "calibration ä.txt"
    assert theirs["quantize.imatrix.chunks_count"] == 5
