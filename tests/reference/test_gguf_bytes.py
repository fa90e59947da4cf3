"""A GGUF becomes what llama.cpp's own tools make of it, byte by byte.

llama-quantize is llama.cpp's ``llama_model_quantize``. llama-gguf-split is in no package: where
``LLAMA_CPP_TOOLS`` names a directory of built tools, what it writes is compared.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import gguf
import llama_cpp
import pytest

from demo.checkpoint import EIGHT_EXPERTS, MAVERICK_LIKE, ODD, SCOUT_LIKE, Geometry
from llama4_edge import convert, merge, split
from tests.fixtures import MakeCheckpoint, MakeGGUF

from .test_bytes import FILE_TYPES, assert_same_tensors, write_reference_bf16

TOOLS = os.environ.get("LLAMA_CPP_TOOLS")
needs_tools = pytest.mark.skipif(TOOLS is None, reason="LLAMA_CPP_TOOLS names no directory")

CASES: list[tuple[Geometry, str, tuple[str, ...]]] = [
    (SCOUT_LIKE, "bf16", ("q4_0", "q4_k_m", "q8_0", "f16")),
    (SCOUT_LIKE, "f16", ("q4_k_m", "q8_0", "bf16")),
    (SCOUT_LIKE, "q8_0", ("q4_0", "q4_k_m", "f16", "bf16")),
    (MAVERICK_LIKE, "q8_0", ("q4_k_m",)),
    (EIGHT_EXPERTS, "q8_0", ("q4_k_m",)),
    (ODD, "q8_0", ("q4_k_m",)),
]


def requantize(source: Path, target: Path, recipe: str) -> None:
    """llama-quantize --allow-requantize SOURCE TARGET RECIPE."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = FILE_TYPES[recipe], 2, True
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    assert failed == 0


@pytest.mark.parametrize(
    ("geometry", "source", "recipe"),
    [(geometry, source, recipe) for geometry, source, recipes in CASES for recipe in recipes],
)
def test_a_gguf_becomes_llama_quantizes_bytes(
    geometry: Geometry,
    source: str,
    recipe: str,
    make_checkpoint: MakeCheckpoint,
    make_gguf: MakeGGUF,
    tmp_path: Path,
) -> None:
    path = make_gguf(make_checkpoint(geometry), source)
    requantize(path, tmp_path / "expected.gguf", recipe)
    report = convert(path, tmp_path / "ours.gguf", recipe=recipe)
    assert_same_tensors(Path(report.output), tmp_path / "expected.gguf")


def test_a_file_in_f32_becomes_llama_quantizes_bytes(tiny_path: Path, tmp_path: Path) -> None:
    for recipe in ("q4_0", "q8_0", "f16", "bf16"):
        requantize(tiny_path, tmp_path / "expected.gguf", recipe)
        report = convert(tiny_path, tmp_path / "ours.gguf", recipe=recipe, force=True)
        assert_same_tensors(Path(report.output), tmp_path / "expected.gguf")


def test_a_few_bits_become_llama_quantizes_bytes_too(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF, tmp_path: Path
) -> None:
    path = make_gguf(make_checkpoint(SCOUT_LIKE), "q4_k_m")
    requantize(path, tmp_path / "expected.gguf", "q4_0")
    report = convert(path, tmp_path / "ours.gguf", recipe="q4_0", requantize=True)
    assert_same_tensors(Path(report.output), tmp_path / "expected.gguf")


def test_a_file_that_llama_cpp_wrote_is_a_source(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF, tmp_path: Path
) -> None:
    """Its tensors lie in another order, and it says less of itself than ours do."""
    checkpoint = make_checkpoint(SCOUT_LIKE)
    bare = tmp_path / "bare.gguf"
    write_reference_bf16(checkpoint, SCOUT_LIKE, bare)
    report = convert(bare, tmp_path / "ours.gguf", recipe="q4_k_m")
    assert_same_tensors(Path(report.output), make_gguf(checkpoint, "q4_k_m"))
    order = [
        [tensor.name for tensor in gguf.GGUFReader(it).tensors] for it in (bare, report.output)
    ]
    assert order[0] == order[1]


@needs_tools
def test_parts_are_llama_gguf_splits_and_it_merges_ours(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF, tmp_path: Path
) -> None:
    assert TOOLS is not None
    tool = str(Path(TOOLS) / "llama-gguf-split")
    source = make_gguf(make_checkpoint(SCOUT_LIKE), "bf16")
    theirs = [tool, "--split", "--split-max-size", "2M", str(source), str(tmp_path / "theirs")]
    subprocess.run(theirs, check=True, capture_output=True)
    ours = split(source, tmp_path / "ours", split_size=2_000_000)
    assert len(ours.outputs) == len(list(tmp_path.glob("theirs-*.gguf"))) > 2
    for path in ours.outputs:
        other = path.replace("/ours-", "/theirs-")
        assert Path(path).read_bytes() == Path(other).read_bytes()
    merged = tmp_path / "merged.gguf"
    subprocess.run(
        [tool, "--merge", ours.output, str(merged)], check=True, capture_output=True
    )  # which keeps what it says of parts
    assert_same_tensors(Path(merge(ours.output, tmp_path / "m.gguf").output), merged)
