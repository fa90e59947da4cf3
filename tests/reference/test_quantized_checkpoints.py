"""Checkpoints that the packages write of a tiny Llama 4 become the file of what they decode to."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
)

from demo.checkpoint import SCOUT_LIKE
from llama4_edge import Report, convert, inspect
from llama4_edge.convert.blueprint import blueprint
from tests.fixtures import MakeCheckpoint
from tests.writers import quiet, writer

# Every second layer is dense. Groups of 32 and 16 fit; a block of 128 does not.
SMALL = replace(
    SCOUT_LIKE, hidden=192, heads=2, kv_heads=1, head_dim=96, expert_ffn=128, dense_ffn=160,
    experts=4, moe_step=2, layers=4, shards=1, vision=None, text_only=True,
    config_form="rope_parameters",
)  # fmt: skip
RECIPES = ("bf16", "int4")

State = dict[str, torch.Tensor]
Unpack = Callable[[str, State], torch.Tensor]


def load(plain: Path, **settings: Any) -> Llama4ForCausalLM:
    return Llama4ForCausalLM.from_pretrained(plain, dtype=torch.bfloat16, **settings).eval()


def copy_rest(plain: Path, directory: Path) -> None:
    for file in plain.iterdir():
        if "safetensors" not in file.name and not (directory / file.name).exists():
            shutil.copy(file, directory)


# What each package writes.


def write_bitsandbytes(plain: Path, directory: Path, **settings: Any) -> None:
    model = load(plain, quantization_config=BitsAndBytesConfig(**settings), device_map="cpu")
    model.save_pretrained(directory)


def write_modelopt(plain: Path, directory: Path, algorithm: str) -> None:
    quantization = writer("modelopt.torch.quantization")
    model = load(plain)
    model.config.architectures = ["Llama4ForCausalLM"]
    export = writer("modelopt.torch.export").export_hf_checkpoint
    settings = deepcopy(getattr(quantization, algorithm))
    with quiet():
        quantization.quantize(model, settings, lambda one: one(torch.arange(64)[None]))
        export(model, export_dir=directory)


class Expert(nn.Module):
    """An expert as LLM Compressor has it: three linear layers."""

    def __init__(self, gate_up: torch.Tensor, down: torch.Tensor) -> None:
        super().__init__()
        gate, up = gate_up.T.chunk(2)
        for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down.T)):
            outputs, inputs = weight.shape
            linear = nn.Linear(inputs, outputs, bias=False, dtype=weight.dtype)
            linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            setattr(self, name, linear)


def write_compressed(plain: Path, directory: Path, **groups: dict[str, Any]) -> None:
    """Each group: the settings of its weights and its targets."""
    quantization = writer("compressed_tensors.quantization")
    model = load(plain)
    for layer in model.model.layers:
        if hasattr(layer.feed_forward, "experts"):
            fused = layer.feed_forward.experts
            pairs = zip(fused.gate_up_proj.data, fused.down_proj.data, strict=True)
            layer.feed_forward.experts = nn.ModuleList([Expert(*pair) for pair in pairs])
    schemes = {
        name: quantization.QuantizationScheme(
            targets=group.pop("targets"), weights=quantization.QuantizationArgs(**group)
        )
        for name, group in groups.items()
    }
    config = quantization.QuantizationConfig(
        config_groups=schemes, ignore=["lm_head", "re:.*router", r"re:.*layers\.3\."]
    )
    quantization.apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            calibrate(module)
    compressors = writer("compressed_tensors.compressors")
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    shutil.copy(plain / "config.json", directory)
    compressor.update_config(str(directory))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        directory / "model.safetensors",
    )


def calibrate(module: Any) -> None:
    """Scales from the smallest and largest number of what each is for."""
    utils = writer("compressed_tensors.quantization.utils")
    args, weight = module.quantization_scheme.weights, module.weight.float()
    rows, columns = weight.shape
    if args.strategy == "block":
        height, width = args.block_structure
        padded = nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        blocks = padded.unflatten(1, (-1, width)).unflatten(0, (-1, height)).transpose(1, 2)
        blocks = blocks.flatten(2)
    else:
        size = {"tensor": weight.numel(), "channel": columns}.get(args.strategy, args.group_size)
        blocks = weight.reshape(-1, size)
        blocks = blocks.reshape(rows, -1, size) if args.strategy != "tensor" else blocks
    low, high = blocks.amin(-1), blocks.amax(-1)
    outer = None
    if args.strategy == "tensor_group":
        outer = utils.generate_gparam(weight.amin()[None], weight.amax()[None])
        module.weight_global_scale.data = outer
    scales, _ = utils.calculate_qparams(low, high, args, outer)
    module.weight_scale.data = scales.reshape(module.weight_scale.shape).to(module.weight_scale)


# What each package decodes it to; the parts of a weight by their last names.


def unpack_bitsandbytes(name: str, state: State) -> torch.Tensor:
    functional = writer("bitsandbytes.functional")
    module = name.removesuffix("weight")
    wide: torch.Tensor
    if f"{module}SCB" in state:
        wide = functional.int8_vectorwise_dequant(state[name], state[f"{module}SCB"])
        return wide.to(torch.bfloat16)
    parts = {
        key[len(name) + 1 :]: tensor for key, tensor in state.items() if key.startswith(f"{name}.")
    }
    settings = functional.QuantState.from_dict(parts, torch.device("cpu"))
    absmax = settings.absmax
    if settings.nested:
        absmax = functional.dequantize_blockwise(absmax, settings.state2) + settings.offset
    # Its kernel for CPUs with AVX-512 is another one, which fails where a block has parts of rows.
    wide = writer("bitsandbytes.backends.default.ops")._dequantize_4bit_compute(
        state[name].reshape(-1), absmax, settings.code, settings.blocksize, settings.shape,
        torch.bfloat16,
    )  # fmt: skip
    return wide


def unpack_modelopt(name: str, state: State) -> torch.Tensor:
    tensors = writer("modelopt.torch.quantization.qtensor")
    before = name if name.endswith("weight") else f"{name}_weight"
    codes, scale = state[name], state[f"{before}_scale"]
    outer = state.get(f"{before}_scale_2")
    wide: torch.Tensor
    if outer is not None:
        fused = codes.dim() == 3
        codes, scale = (part.mT.contiguous() if fused else part for part in (codes, scale))
        shape = torch.Size((*codes.shape[:-1], 2 * codes.shape[-1]))
        wide = tensors.NVFP4QTensor(shape, torch.float32, codes).dequantize(
            dtype=torch.float32, scale=scale, double_scale=outer, block_sizes={-1: 16}
        )
        return (wide.mT if fused else wide).to(torch.bfloat16).contiguous()
    if codes.dtype == torch.uint8:
        shape = torch.Size((*codes.shape[:-1], 2 * codes.shape[-1]))
        wide = tensors.MXFP4QTensor(shape, torch.float32, codes).dequantize(
            dtype=torch.float32, scale=scale, block_sizes={-1: 32}
        )
    elif scale.dtype == torch.uint8:
        wide = tensors.MXFP8QTensor(codes.shape, torch.float32, codes).dequantize(
            dtype=torch.float32, scale=scale
        )
    else:
        wide = codes.float() * scale.reshape(-1, *[1] * (codes.dim() - 1))
    return wide.to(torch.bfloat16)


def unpack_compressed(directory: Path) -> Unpack:
    """With the settings of config.json, by its own compressors."""
    quantization = writer("compressed_tensors.quantization")
    registry = writer("compressed_tensors.compressors").BaseCompressor
    settings = json.loads((directory / "config.json").read_text())["quantization_config"]
    schemes = []
    for group in settings["config_groups"].values():
        form = group["format"] or settings["format"]
        schemes.append((form, quantization.QuantizationScheme(**{**group, "format": None})))

    def unpack(name: str, state: State) -> torch.Tensor:
        module = re.sub(r"weight(_packed)?$", "", name)
        parts = {key: state[module + key] for key in LINEAR if module + key in state}
        form, scheme = next(
            one for one in schemes if ("pack" in one[0]) == ("weight_packed" in parts)
        )
        compressor = registry.get_value_from_registry(form)
        weight: torch.Tensor = compressor.decompress(parts, scheme)["weight"]
        return weight.to(torch.bfloat16).contiguous()

    return unpack


LINEAR = ("weight", "weight_packed", "weight_scale", "weight_global_scale")
# Every part but the codes.
PARTS = r"(_scale(_2)?|\.(nested_)?(absmax|quant_map)|__(nf4|fp4)|SCB|weight_format)$"
CODES = (torch.uint8, torch.int8, torch.float8_e4m3fn)


def decoded(state: State, unpack: Unpack) -> State:
    """The checkpoint's tensors, with what is quantized as bf16, and without its parts."""

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in state.items():
            if not re.search(PARTS, name):
                quantized = tensor.dtype in CODES
                yield (
                    name.removesuffix("_packed"),
                    unpack(name, state) if quantized else tensor,
                )

    return dict(tensors())


def channel(**settings: Any) -> dict[str, Any]:
    return {
        "num_bits": 8,
        "type": "float",
        "strategy": "channel",
        "targets": ["Linear"],
        **settings,
    }


NVFP4 = {
    "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
    "targets": ["Linear"],
}  # fmt: skip
MXFP4 = {**NVFP4, "strategy": "group", "group_size": 32}
BLOCK = {"strategy": "block", "block_structure": [128, 128]}

Write = Callable[[Path, Path], None]
COMPRESSED: dict[str, tuple[Write, str]] = {
    "channel": (lambda a, b: write_compressed(a, b, group=channel()), "a scale for each row"),
    "tensor": (
        lambda a, b: write_compressed(a, b, group=channel(strategy="tensor")),
        "a scale for each matrix",
    ),
    "block": (lambda a, b: write_compressed(a, b, group=channel(**BLOCK)), "each 128 x 128"),
    "NVFP4": (lambda a, b: write_compressed(a, b, group=dict(NVFP4)), "NVFP4"),
    "MXFP4": (lambda a, b: write_compressed(a, b, group=dict(MXFP4)), "MXFP4"),
    "mixed": (
        lambda a, b: write_compressed(
            a, b, experts={**NVFP4, "targets": [r"re:.*experts.*"]},
            attention=channel(targets=[r"re:.*self_attn.*"]),
        ),
        "NVFP4",
    ),
}  # fmt: skip
MODELOPT = {
    "FP8_DEFAULT_CFG": "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG": "FP8",
    "NVFP4_DEFAULT_CFG": "NVFP4",
    "NVFP4_EXPERTS_ONLY_CFG": "NVFP4",
    "MXFP4_DEFAULT_CFG": "MXFP4",
    "MXFP8_DEFAULT_CFG": "MXFP8",
}
BITSANDBYTES: dict[str, tuple[dict[str, Any], str]] = {
    "NF4": ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "NF4"),
    "nested NF4": (
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        },
        "NF4",
    ),
    "FP4": ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "FP4"),
    "INT8": ({"load_in_8bit": True}, "INT8"),
}


def test_a_tower_of_linear_layers_in_few_bits_becomes_the_projector_of_its_numbers(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    plain = make_checkpoint(replace(SMALL, vision=SCOUT_LIKE.vision, text_only=False))
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = Llama4ForConditionalGeneration.from_pretrained(
        plain, dtype=torch.bfloat16, quantization_config=settings, device_map="cpu"
    )
    quantized, bf16 = tmp_path / "quantized", tmp_path / "bf16"
    model.save_pretrained(quantized)
    bf16.mkdir()
    state = load_file(quantized / "model.safetensors")
    save_file(decoded(state, unpack_bitsandbytes), bf16 / "model.safetensors")
    files = []
    for source in (quantized, bf16):
        copy_rest(plain, source)
        file = tmp_path / f"{source.name}.gguf"
        convert(source, file, text=False, vision_type="bf16")
        # What is f32 there takes numbers that were not rounded to bf16.
        files.append(
            {
                tensor.name: tensor.data.tobytes()
                for tensor in GGUFReader(file).tensors
                if tensor.tensor_type.name == "BF16"
            }
        )
    assert (
        sum(tensor.dtype == torch.uint8 for name, tensor in state.items() if "vision" in name) > 9
    )
    assert files[0] == files[1]
    # What is planned and said of it is of its numbers, too, not of the bytes that hold them.
    drawn = [blueprint(source) for source in (quantized, bf16)]
    assert drawn[0].vision == drawn[1].vision is not None
    towers = [
        {
            tensor.name: tensor.shape
            for tensor in inspect(source).summary.tensors
            if tensor.role in ("vision_tower", "projector")
        }
        for source in (quantized, bf16)
    ]
    assert towers[0] == towers[1]


def numbers(checkpoint: Path, file: Path, recipe: str) -> tuple[dict[str, bytes], Report]:
    report = convert(checkpoint, file, recipe=recipe)
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(file).tensors}, report


def check(quantized: Path, unpack: Unpack, form: str, plain: Path, tmp_path: Path) -> None:
    """Its file is that of what it is decoded to, which is stored as bf16."""
    state = load_file(quantized / "model.safetensors")
    bf16 = tmp_path / "bf16"
    bf16.mkdir()
    copy_rest(plain, bf16)
    copy_rest(plain, quantized)
    save_file(decoded(state, unpack), bf16 / "model.safetensors")
    for recipe in RECIPES:
        ours, report = numbers(quantized, tmp_path / f"ours-{recipe}.gguf", recipe)
        theirs, _ = numbers(bf16, tmp_path / f"theirs-{recipe}.gguf", recipe)
        assert ours == theirs
        assert any(form in note and "decoded" in note for note in report.notes), report.notes


@pytest.fixture
def plain(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(SMALL)


@pytest.mark.parametrize("kind", list(COMPRESSED))
def test_compressed_tensors(plain: Path, kind: str, tmp_path: Path) -> None:
    directory = tmp_path / "quantized"
    directory.mkdir()
    write, form = COMPRESSED[kind]
    write(plain, directory)
    check(directory, unpack_compressed(directory), form, plain, tmp_path)


@pytest.mark.parametrize("algorithm", list(MODELOPT))
def test_modelopt(plain: Path, algorithm: str, tmp_path: Path) -> None:
    directory = tmp_path / "quantized"
    write_modelopt(plain, directory, algorithm)
    check(directory, unpack_modelopt, MODELOPT[algorithm], plain, tmp_path)


@pytest.mark.parametrize("kind", list(BITSANDBYTES))
def test_bitsandbytes(plain: Path, kind: str, tmp_path: Path) -> None:
    directory = tmp_path / "quantized"
    settings, form = BITSANDBYTES[kind]
    write_bitsandbytes(plain, directory, **settings)
    check(directory, unpack_bitsandbytes, form, plain, tmp_path)
