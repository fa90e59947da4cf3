"""Weights as compressed-tensors' own compressors store them, and as its own read them."""

from __future__ import annotations

from typing import Any

import torch

from tests.writers import writer

PARTS = {
    "weight_packed": "codes", "weight": "codes", "weight_scale": "scales", "weight_shape": "shape",
    "weight_zero_point": "zero points",
}  # fmt: skip


def scheme_of(
    *, bits: int, group: int | None, symmetric: bool = True, packed: bool = True
) -> dict[str, Any]:
    """A group of config.json's ``config_groups``."""
    weights = {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False,
        "strategy": "channel" if group is None else "group", "group_size": group,
        "block_structure": None, "actorder": None, "observer": "minmax", "observer_kwargs": {},
    }  # fmt: skip
    return {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized" if packed else "int-quantized",
    }


def compress(
    weight: torch.Tensor, scheme: dict[str, Any], dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The parts of a weight [out, in] with scales of `dtype`, and its decompressed numbers."""
    compressors = writer("compressed_tensors.compressors")
    quantization = writer("compressed_tensors.quantization")
    calculate_qparams = writer("compressed_tensors.quantization.utils").calculate_qparams
    args = quantization.QuantizationScheme(**{**scheme, "format": None})
    weights = args.weights
    assert weights is not None
    size = weights.group_size or weight.shape[1]
    groups = [part.aminmax(dim=1) for part in weight.split(size, dim=1)]
    low, high = (torch.stack(one, 1) for one in zip(*groups, strict=True))
    scales, zeros = calculate_qparams(low, high, weights)
    state = {"weight": weight.to(dtype), "weight_scale": scales.to(dtype)}
    if not weights.symmetric:
        state["weight_zero_point"] = zeros.to(torch.int8)
    compressor = compressors.BaseCompressor.get_value_from_registry(scheme["format"])
    compressed = compressor.compress(state, args)
    numbers = compressor.decompress(dict(compressed), args)["weight"]
    return {PARTS[name]: tensor for name, tensor in compressed.items()}, numbers


def numbers_in_order(
    parts: dict[str, torch.Tensor], scheme: dict[str, Any], shape: torch.Size
) -> torch.Tensor:
    """The exact numbers of parts, in float32, from the package's unpacking and the definition."""
    unpack = writer("compressed_tensors.compressors.pack_quantized.helpers").unpack_from_int32
    bits, codes, scales = scheme["weights"]["num_bits"], parts["codes"], parts["scales"].float()
    size = scheme["weights"]["group_size"] or shape[1]
    groups = parts.get("order of groups", torch.arange(shape[1]) // size).long()
    values = unpack(codes, bits, shape) if codes.dtype is torch.int32 else codes
    numbers = values.float()
    if "zero points" in parts:
        zeros = parts["zero points"]
        if zeros.dtype is torch.int32:
            zeros = unpack(zeros, bits, torch.Size((shape[0], scales.shape[1])), packed_dim=0)
        numbers = numbers - zeros.float()[:, groups]
    return numbers * scales[:, groups]
