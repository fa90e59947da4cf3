from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from llama4_edge.quant.encode import (
    _library_directory,
    bf16_to_f32,
    encode_rows,
    encoder_version,
    f32_to_bf16,
)
from llama4_edge.quant.types import TYPES, type_named

# Types for which the gguf package has an encoder of its own, written in NumPy.
INDEPENDENT = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


def rows(count: int = 8, length: int = 512, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, length), dtype=np.float32)


def encoded(numbers: np.ndarray, name: str) -> np.ndarray:
    out = np.empty(TYPES[name].nbytes(numbers.shape), np.uint8)
    encode_rows(numbers, TYPES[name], out)
    return out


@pytest.mark.parametrize("name", INDEPENDENT)
def test_bytes_agree_with_the_encoder_of_the_gguf_package(name: str) -> None:
    expected = quants.quantize(rows(), GGMLQuantizationType[name])
    assert encoded(rows(), name).tobytes() == expected.tobytes()


@pytest.mark.parametrize(("name", "bound"), [("Q6_K", 0.02), ("Q5_K", 0.04), ("Q4_K", 0.08)])
def test_k_quants_decode_to_what_was_encoded(name: str, bound: float) -> None:
    """Relative RMS error on normal numbers, decoded by the gguf package's own decoder."""
    numbers = rows(64)
    block = encoded(numbers, name).reshape(64, -1)
    decoded = quants.dequantize(block, GGMLQuantizationType[name])
    error = float(np.sqrt(np.mean((decoded - numbers) ** 2) / np.mean(numbers**2)))
    assert bound / 2 < error < bound


def test_a_q8_0_block_by_hand() -> None:
    """32 numbers: a half-precision scale of max/127, then each number over it, rounded."""
    numbers = np.zeros((1, 32), np.float32)
    numbers[0, :3] = 127.0, -63.5, 1.0
    assert encoded(numbers, "Q8_0")[:5].tolist() == [0x00, 0x3C, 127, 256 - 64, 1]


def test_bf16_widens_exactly_and_rounds_to_even() -> None:
    halves = np.arange(0x10000, dtype=np.uint32).astype(np.uint16)
    floats = np.empty(halves.shape, np.float32)
    bf16_to_f32(halves, floats)
    assert (floats.view(np.uint32) == halves.astype(np.uint32) << 16).all()
    finite = (halves & 0x7FFF) <= 0x7F80
    assert (f32_to_bf16(floats[finite]) == halves[finite]).all()
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    assert f32_to_bf16(ties).tolist() == [0x3F80, 0x3F82, 0x3F81]


def test_a_scale_that_overflows_is_no_silent_infinity(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="too large for Q8_0"):
        encoded(np.full((1, 32), 1e20, np.float32), "Q8_0")


def test_sizes_are_those_of_the_gguf_package() -> None:
    for name, tensor_type in TYPES.items():
        member = GGMLQuantizationType[name]
        assert (tensor_type.block, tensor_type.block_bytes) == GGML_QUANT_SIZES[member]
        assert tensor_type.ggml_id == member
        assert type_named(name.lower()) is tensor_type
    assert TYPES["Q4_K"].bits_per_weight == 4.5
    assert TYPES["Q8_0"].nbytes((3, 5, 64)) == 3 * 5 * 2 * 34


def test_another_build_of_the_encoders_is_another_version(tmp_path: Path) -> None:
    library = _library_directory() / "libggml-base.so"
    (tmp_path / library.name).write_bytes(library.read_bytes() + b"\0")
    script = "from llama4_edge.quant.encode import encoder_version; print(encoder_version())"
    versions = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "LLAMA_CPP_LIB_PATH": str(directory)},
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for directory in (library.parent, tmp_path)
    ]  # fmt: skip
    assert versions[0] == encoder_version() != versions[1]
