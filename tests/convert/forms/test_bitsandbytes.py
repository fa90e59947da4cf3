"""NF4, FP4 and INT8 against bitsandbytes: every number, to the bit."""

from __future__ import annotations

import json
from math import prod
from typing import Any

import numpy as np
import pytest
import torch

from llama4_edge.convert.forms import Form, forms_of, quantization_error
from llama4_edge.convert.forms.bitsandbytes import FP4, NF4, EightBits
from llama4_edge.errors import CheckpointError, DamagedTensorError
from tests.writers import writer

from .decoding import decoded

SHAPE = (64, 128)
KINDS: dict[str, Form] = {"nf4": NF4(), "fp4": FP4()}


def random(*shape: int) -> torch.Tensor:
    weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(5))
    weight[3] = 0
    return weight


def quantized(
    kind: str, shape: tuple[int, int] = SHAPE, block: int = 64, nested: bool = False
) -> tuple[dict[str, torch.Tensor], Any]:
    """The parts that bitsandbytes stores, and its own state."""
    codes, state = writer("bitsandbytes.functional").quantize_4bit(
        random(*shape), blocksize=block, quant_type=kind, compress_statistics=nested
    )
    parts = {"codes": codes, **state.as_dict(packed=True)}
    parts["quant_state"] = parts.pop(f"quant_state.bitsandbytes__{kind}")
    return parts, state


def dequantized(codes: torch.Tensor, state: Any) -> torch.Tensor:
    """By bitsandbytes' code that takes blocks over the ends of rows, as its CUDA kernels do.

    Its kernel for CPUs with AVX-512 does so for blocks of 2,048 and more alone.
    """
    functional = writer("bitsandbytes.functional")
    absmax = state.absmax
    if state.nested:
        absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
    numbers: torch.Tensor = writer("bitsandbytes.backends.default.ops")._dequantize_4bit_compute(
        codes.reshape(-1), absmax, state.code, state.blocksize, state.shape, torch.float32
    )
    return numbers


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("block", [32, 64, 512, 4096])
@pytest.mark.parametrize("kind", list(KINDS))
def test_four_bits_are_what_bitsandbytes_makes_of_them(kind: str, block: int, nested: bool) -> None:
    for shape in (SHAPE, (48, 320)):
        parts, state = quantized(kind, shape, block, nested)
        theirs = dequantized(parts["codes"], state).numpy()
        if shape[1] % block == 0:
            again = writer("bitsandbytes.functional").dequantize_4bit(parts["codes"], state)
            assert np.array_equal(again.numpy(), theirs)
        for step in (7, shape[0]):
            assert np.array_equal(decoded(KINDS[kind], shape, parts, step), theirs)


def test_eight_bits_are_what_bitsandbytes_makes_of_them() -> None:
    functional = writer("bitsandbytes.functional")
    codes, scales, _ = functional.int8_vectorwise_quant(random(*SHAPE).to(torch.float16))
    theirs = functional.int8_vectorwise_dequant(codes, scales).numpy()
    parts = {"codes": codes, "scales": scales}
    assert np.array_equal(decoded(EightBits(), SHAPE, parts, 7), theirs)
    row = {"weight_format": torch.tensor(0, dtype=torch.uint8)}
    assert np.array_equal(decoded(EightBits(), SHAPE, {**parts, **row}), theirs)
    turing = {"weight_format": torch.tensor(2, dtype=torch.uint8)}
    with pytest.raises(DamagedTensorError, match="order of a GPU's kernel"):
        decoded(EightBits(), SHAPE, {**parts, **turing})


def with_state(parts: dict[str, torch.Tensor], **changes: object) -> dict[str, torch.Tensor]:
    state = json.loads(bytes(parts["quant_state"].numpy()))
    state = {key: value for key, value in {**state, **changes}.items() if value is not None}
    raw = json.dumps(state).encode()
    return {**parts, "quant_state": torch.frombuffer(bytearray(raw), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"blocksize": 128}, "an invalid blocksize"),
        ({"blocksize": 0}, "an invalid blocksize"),
        ({"blocksize": "64"}, "an invalid blocksize"),
        ({"blocksize": None}, "no blocksize"),
        ({"quant_type": "fp4"}, "an invalid quant_type"),
        ({"dtype": "int8"}, "an invalid dtype"),
        ({"shape": [128, 64]}, "an invalid shape"),
        ({"nested_offset": None}, "no nested_offset"),
        ({"nested_offset": float("nan")}, "an invalid nested_offset"),
        ({"nested_offset": "0.1"}, "an invalid nested_offset"),
        ({"nested_blocksize": 64}, "an invalid nested_blocksize"),
    ],
)
def test_a_quant_state_of_another_matrix_is_refused(changes: dict[str, Any], found: str) -> None:
    parts = with_state(quantized("nf4", nested=True)[0], **changes)
    with pytest.raises(DamagedTensorError, match=f"quant_state.* has {found}"):
        decoded(NF4(), SHAPE, parts)


@pytest.mark.parametrize(
    ("raw", "found"), [(b"{", "is not JSON"), (b"[]", "is damaged"), (b"\xff\xfe", "is not JSON")]
)
def test_a_quant_state_that_is_no_object_is_refused(raw: bytes, found: str) -> None:
    state = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    with pytest.raises(DamagedTensorError, match=found):
        decoded(NF4(), SHAPE, {**quantized("nf4")[0], "quant_state": state})


BLOCKS = prod(SHAPE) // 64


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("absmax", torch.ones(BLOCKS - 1)),
        ("absmax", torch.ones(BLOCKS, dtype=torch.bfloat16)),
        ("quant_map", torch.ones(15)),
        ("codes", torch.zeros(64, 63, dtype=torch.uint8)),
        ("quant_state", torch.zeros(5000, dtype=torch.uint8)),
    ],
)
def test_parts_of_another_shape_are_refused(part: str, tensor: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match=f"cannot be the {part} of"):
        decoded(NF4(), SHAPE, {**quantized("nf4")[0], part: tensor})


@pytest.mark.parametrize("part", ["nested_absmax", "nested_quant_map"])
def test_nested_scales_without_their_own_are_refused(part: str) -> None:
    parts = quantized("nf4", nested=True)[0]
    del parts[part]
    with pytest.raises(CheckpointError, match=rf"weight\.{part} is missing"):
        decoded(NF4(), SHAPE, parts)


@pytest.mark.parametrize(
    ("part", "place", "value"),
    [
        ("absmax", 9, float("nan")),
        ("absmax", 9, -1.0),
        ("quant_map", 3, 0.5),
        ("quant_map", 3, float("nan")),
    ],
)
def test_damaged_scales_and_tables_are_refused(part: str, place: int, value: float) -> None:
    parts = quantized("nf4")[0]
    parts[part] = parts[part].clone()
    parts[part][place] = value
    with pytest.raises(DamagedTensorError, match=rf"weight\.{part} in one cannot be converted"):
        decoded(NF4(), SHAPE, parts)


@pytest.mark.parametrize(
    ("part", "value"), [("nested_absmax", float("inf")), ("nested_quant_map", 3)]
)
def test_damaged_nested_scales_are_refused(part: str, value: float) -> None:
    parts = quantized("nf4", nested=True)[0]
    parts[part] = parts[part].clone()
    parts[part][0] = value
    with pytest.raises(DamagedTensorError, match=rf"weight\.{part} in one cannot be converted"):
        decoded(NF4(), SHAPE, parts)


FOUR: dict[str, Any] = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16",
}  # fmt: skip


def test_settings_name_a_form() -> None:
    assert list(forms_of(FOUR)) == [NF4()]
    assert list(forms_of({**FOUR, "bnb_4bit_quant_type": "fp4"})) == [FP4()]
    assert list(forms_of({**FOUR, "load_in_8bit": True, "load_in_4bit": False})) == [EightBits()]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"bnb_4bit_quant_type": "af4"}, "bnb_4bit_quant_type 'af4'"),
        ({"bnb_4bit_quant_storage": "bfloat16"}, "bnb_4bit_quant_storage 'bfloat16'"),
        ({"load_in_4bit": False}, "neither load_in_4bit nor load_in_8bit"),
    ],
)
def test_other_settings_are_refused_by_name(change: dict[str, Any], found: str) -> None:
    error = quantization_error({**FOUR, **change})
    assert error is not None
    assert error.found == found
