"""FP8 with a scale for each row, against torch: every code, exact to the bit."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from llama4_edge.convert.forms import Form, forms_of, fp8, quantization_error
from llama4_edge.convert.forms.fp8 import (
    BlockFP8,
    ChannelFP8,
    FusedFP8,
    InverseBlockFP8,
    InverseTensorFP8,
    LinearFP8,
    TensorFP8,
)
from llama4_edge.errors import CheckpointError, DamagedTensorError
from llama4_edge.quant.encode import f32_to_bf16
from tests.writers import writer

from .decoding import decoded

NAN_CODES = (0x7F, 0xFF)

# The weights and activations as vLLM printed them for the published repository (its issue 16474).
PUBLISHED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "ignore": ["language_model.lm_head", "re:.*self_attn.*"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "output_activations": None,
            "input_activations": {
                "num_bits": 8, "type": "float", "symmetric": True, "group_size": None,
                "strategy": "token", "block_structure": None, "dynamic": True, "actorder": None,
                "observer": None, "observer_kwargs": {},
            },
            "weights": {
                "num_bits": 8, "type": "float", "symmetric": True, "group_size": None,
                "strategy": "channel", "block_structure": None, "dynamic": False, "actorder": None,
                "observer": "minmax", "observer_kwargs": {},
            },
        }
    },
}  # fmt: skip


def _finite_codes(rows: int) -> np.ndarray:
    """Each row holds every code that is a number."""
    row = np.array([code for code in range(256) if code not in NAN_CODES], np.uint8)
    return np.tile(row, (rows, 1))


def fp8_codes(codes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(codes).view(torch.float8_e4m3fn)


def _torch_dequantized(codes: np.ndarray, scale: torch.Tensor) -> np.ndarray:
    """float32 product, rounded to bf16: raw words."""
    values = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float32)
    product = (values * scale.to(torch.float32)).to(torch.bfloat16)
    return product.view(torch.int16).numpy().view(np.uint16)


def test_every_code_has_the_value_that_torch_gives_it() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    expected = codes.numpy()
    assert np.array_equal(fp8.VALUES, expected, equal_nan=True)
    assert np.array_equal(np.signbit(fp8.VALUES[[0x00, 0x80]]), [False, True])
    assert list(np.flatnonzero(np.isnan(fp8.VALUES))) == list(NAN_CODES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_decoded_rows_equal_torchs_product_rounded_to_bf16(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    # From what a weight's scale is (1e-4) to products that are subnormal in bf16.
    magnitude = 10.0 ** torch.linspace(-38, 30, 512)
    scale = (magnitude * (1 + torch.rand(512, generator=generator))).to(dtype)[:, None]
    codes = _finite_codes(512)
    ours = decoded(ChannelFP8(), codes.shape, {"codes": fp8_codes(codes), "scales": scale})
    with np.errstate(over="ignore"):
        assert np.array_equal(f32_to_bf16(ours), _torch_dequantized(codes, scale))


def test_one_rounding_equals_a_product_taken_in_bf16() -> None:
    """compressed-tensors multiplies in the scale's own dtype."""
    scale = (10.0 ** torch.linspace(-6, 0, 64)).to(torch.bfloat16)[:, None]
    codes = _finite_codes(64)
    in_bf16 = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.bfloat16) * scale
    ours = decoded(ChannelFP8(), codes.shape, {"codes": fp8_codes(codes), "scales": scale})
    expected = in_bf16.view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(f32_to_bf16(ours), expected)


@pytest.mark.parametrize("code", NAN_CODES)
def test_a_code_that_is_no_number_is_refused(code: int) -> None:
    codes = np.zeros((3, 32), np.uint8)
    codes[2, 31] = code
    parts = {"codes": fp8_codes(codes), "scales": torch.ones(3, 1)}
    with pytest.raises(ValueError, match="NaN"):
        decoded(ChannelFP8(), codes.shape, parts)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_scale_that_is_no_positive_number_is_refused(scale: float) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        scales = torch.tensor([[1.0], [scale]], dtype=dtype)
        parts = {"codes": fp8_codes(np.zeros((2, 4), np.uint8)), "scales": scales}
        with pytest.raises(DamagedTensorError, match=r"not a positive number: .* in row 1"):
            decoded(ChannelFP8(), (2, 4), parts)


def test_the_published_settings_are_taken() -> None:
    assert quantization_error(PUBLISHED) is None
    empty: dict[str, object] = {"sparsity_config": {}, "transform_config": {}}
    assert quantization_error({**PUBLISHED, **empty}) is None


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"quant_method": "quark"}, "quant_method 'quark'"),
        ({"quant_method": "modelopt", "format": None}, "quant_algo None"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size a list of 1"),
        ({"format": "marlin-24"}, "format 'marlin-24'"),
        ({"format": "nvfp4-pack-quantized"}, "group_0: weights.num_bits 8"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "a transform_config"),
        ({"config_groups": {}}, "config_groups an object of 0 entries"),
        ({"config_groups": {"group_0": {"weights": None}}}, "group_0: no weights"),
    ],
)
def test_another_quantization_is_refused_by_what_differs(
    change: dict[str, object], found: str
) -> None:
    error = quantization_error({**PUBLISHED, **change})
    assert error is not None
    assert "quantized in a way" in error.problem
    assert found in str(error.found)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_bits", 4),
        ("type", "int"),
        ("strategy", "token"),
        ("strategy", "block"),
        ("symmetric", False),
        ("dynamic", True),
        ("group_size", 128),
        ("block_structure", [128, 128]),
    ],
)
def test_another_kind_of_weight_is_refused_by_name(field: str, value: object) -> None:
    settings = deepcopy(PUBLISHED)
    settings["config_groups"]["group_0"]["weights"][field] = value
    error = quantization_error(settings)
    assert error is not None
    shown = "a list of 2" if isinstance(value, list) else repr(value)
    assert error.found == f"group_0: weights.{field} {shown}"


def test_a_group_with_a_format_of_its_own_is_refused() -> None:
    settings = deepcopy(PUBLISHED)
    settings["config_groups"]["group_0"]["format"] = "pack-quantized"
    assert "pack-quantized" in str(quantization_error(settings))


def test_settings_that_are_no_object_are_refused() -> None:
    assert "no settings" in str(quantization_error(["float-quantized"]))


def with_weights(**weights: object) -> dict[str, Any]:
    settings = deepcopy(PUBLISHED)
    settings["config_groups"]["group_0"]["weights"].update(weights)
    return settings


SETTINGS: dict[str, tuple[dict[str, Any], list[Form]]] = {
    "channel": (PUBLISHED, [ChannelFP8()]),
    "naive": ({**PUBLISHED, "format": "naive-quantized"}, [ChannelFP8()]),
    "tensor": (with_weights(strategy="tensor"), [TensorFP8()]),
    "block": (with_weights(strategy="block", block_structure=[64, 128]), [BlockFP8(64, 128)]),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200}, [ChannelFP8()]),
    "fp8": ({"quant_method": "fp8", "weight_block_size": None}, [InverseTensorFP8()]),
    "fp8 blocks": (
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        [InverseBlockFP8(128, 128)],
    ),
}


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_settings_name_a_form(kind: str) -> None:
    settings, forms = SETTINGS[kind]
    assert list(forms_of(settings)) == forms


def test_groups_with_different_settings_are_different_forms() -> None:
    settings = deepcopy(PUBLISHED)
    settings["format"] = "mixed-precision"
    groups = settings["config_groups"]
    groups["group_0"]["format"] = "float-quantized"
    groups["group_1"] = {
        "format": "nvfp4-pack-quantized",
        "weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    }
    groups["group_2"] = deepcopy(groups["group_0"])
    assert [form.label for form in forms_of(settings)] == ["F8_E4M3", "NVFP4"]


STRATEGIES: dict[str, tuple[Form, tuple[int, ...], dict[str, Any]]] = {
    "channel": (ChannelFP8(), (70, 1), {}),
    "tensor": (TensorFP8(), (1,), {}),
    "block": (BlockFP8(32, 48), (3, 3), {"block_structure": [32, 48]}),
}


@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_are_those_of_compressed_tensors(strategy: str, dtype: torch.dtype) -> None:
    """Without rounding where it multiplies in float32, else with its own."""
    form, shape, settings = STRATEGIES[strategy]
    base = writer("compressed_tensors.compressors.naive_quantized.base")
    quantization = writer("compressed_tensors.quantization")
    args = quantization.QuantizationArgs(num_bits=8, type="float", strategy=strategy, **settings)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    generator = torch.Generator().manual_seed(6)
    scales = (1e-4 * (1 + torch.rand(shape, generator=generator))).to(dtype)
    weight = 0.02 * torch.randn(70, 100, generator=generator)
    compressed = base.FloatQuantizationCompressor.compress(
        {"weight": weight.to(dtype), "weight_scale": scales}, scheme
    )
    theirs = base.FloatQuantizationCompressor.decompress(compressed, scheme)["weight"]
    assert compressed["weight"].dtype == torch.float8_e4m3fn
    parts = {"codes": compressed["weight"], "scales": scales}
    for step in (7, 70):
        ours = torch.from_numpy(decoded(form, (70, 100), parts, step))
        assert torch.equal(ours.to(dtype), theirs)


@pytest.mark.parametrize("shape", [(), (1,), (16,), (16, 1)])
def test_a_linear_layer_of_modelopt_has_a_scale_for_all_or_for_each_row(
    shape: tuple[int, ...],
) -> None:
    codes = fp8_codes(_finite_codes(16))
    scales = 1e-3 * (1 + torch.rand(shape, generator=torch.Generator().manual_seed(16)))
    ours = decoded(LinearFP8(), (16, 254), {"codes": codes, "scales": scales}, 7)
    assert np.array_equal(ours, (codes.float() * scales.reshape(-1, 1)).numpy())


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1, 1), (3, 24), (3, 1, 24)])
def test_fused_experts_of_modelopt_have_a_scale_for_all_or_for_each(shape: tuple[int, ...]) -> None:
    codes = fp8_codes(_finite_codes(3 * 24).reshape(3, 24, 254).transpose(0, 2, 1).copy())
    scales = 1e-3 * (1 + torch.rand(shape, generator=torch.Generator().manual_seed(24)))
    each = scales.reshape(*shape[:1], 1, -1) if len(shape) > 1 else scales.reshape(-1, 1, 1)
    ours = decoded(FusedFP8(), (3, 254, 24), {"codes": codes, "scales": scales}, 7)
    assert np.array_equal(ours, (codes.float() * each).transpose(1, 2).numpy())


@pytest.mark.parametrize("shape", [(2,), (70, 2), (3, 2), (1, 70)])
def test_scales_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    parts = {"codes": fp8_codes(np.zeros((70, 100), np.uint8)), "scales": torch.ones(shape)}
    for form, _, _ in STRATEGIES.values():
        with pytest.raises(CheckpointError, match=r"weight_scale .*cannot be the scales of"):
            decoded(form, (70, 100), parts)
