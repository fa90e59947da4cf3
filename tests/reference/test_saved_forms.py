"""What transformers, torch.compile and safetensors write of one model becomes the same tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import save_file, save_model
from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration

from demo.checkpoint import SCOUT_LIKE, Geometry
from llama4_edge import convert
from tests.fixtures import MakeCheckpoint

SMALL = replace(
    SCOUT_LIKE, hidden=64, heads=2, kv_heads=1, head_dim=32, expert_ffn=64, dense_ffn=64, experts=4,
    shards=1,
)  # fmt: skip
TEXT = replace(SMALL, vision=None, text_only=True, config_form="rope_parameters")
TIED = replace(TEXT, tied=True)
CLASSES = {
    "multimodal": (SMALL, Llama4ForConditionalGeneration),
    "text": (TEXT, Llama4ForCausalLM),
    "tied": (TIED, Llama4ForCausalLM),
}

Save = Callable[[Any, Path], object]


def save_state(model: Any, directory: Path) -> None:
    """As a training loop does that knows of no `save_pretrained`."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, directory / "model.safetensors")


class Parallel(torch.nn.Module):
    """Names its parts as DistributedDataParallel does."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


def save_without_index(model: Any, directory: Path) -> None:
    model.save_pretrained(directory, max_shard_size="100KB")
    (directory / "model.safetensors.index.json").unlink()


SAVES: dict[str, Save] = {
    "save_pretrained": lambda model, directory: model.save_pretrained(directory),
    "sharded": lambda model, directory: model.save_pretrained(directory, max_shard_size="100KB"),
    "sharded, index lost": save_without_index,
    "torch.compile": lambda model, directory: save_state(torch.compile(model), directory),
    "data parallel": lambda model, directory: save_state(Parallel(model), directory),
    "safetensors.save_model": lambda model, directory: save_model(
        model, str(directory / "model.safetensors")
    ),
}


def written(checkpoint: Path, file: Path) -> dict[str, bytes]:
    convert(checkpoint, file, recipe="bf16")
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(file).tensors}


def copy_rest(plain: Path, directory: Path) -> None:
    """What the tokenizer would save, and config.json where the model did not."""
    for file in plain.iterdir():
        if "safetensors" not in file.name and not (directory / file.name).exists():
            shutil.copy(file, directory)


@pytest.mark.parametrize("kind", list(CLASSES))
def test_each_way_of_saving_becomes_the_same_tensors(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, kind: str
) -> None:
    geometry, model_class = CLASSES[kind]
    plain = make_checkpoint(geometry)
    model = model_class.from_pretrained(plain, dtype=torch.bfloat16)
    expected = written(plain, tmp_path / "plain.gguf")
    for number, (name, save) in enumerate(SAVES.items()):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        save(model, directory)
        copy_rest(plain, directory)
        assert written(directory, tmp_path / f"{number}.gguf") == expected, name


@pytest.mark.parametrize("equal", [True, False])
def test_a_stored_output_of_a_tied_model_is_what_transformers_computes_with(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, equal: bool
) -> None:
    geometry: Geometry = TIED
    directory = tmp_path / "tied"
    shutil.copytree(make_checkpoint(geometry), directory)
    state = Llama4ForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).state_dict()
    state = {name: tensor.clone() for name, tensor in state.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone() * (1 if equal else 2)
    save_file(state, directory / "model.safetensors")
    loaded = Llama4ForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    tensors = written(directory, tmp_path / "tied.gguf")
    output = tensors.get("output.weight", tensors["token_embd.weight"])
    expected = loaded.lm_head.weight.detach().view(torch.int16).numpy()
    assert ("output.weight" in tensors) is not equal
    assert np.array_equal(np.frombuffer(output, np.int16).reshape(expected.shape), expected)
