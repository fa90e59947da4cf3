"""Writes a trained model as a checkpoint like the published ones, with a model card.

Promises: the files, names and types of Meta's repositories: bf16 safetensors in shards with their
index, configs of model, generation and image processor, tokenizer, chat template, and a card with
the training losses. Does not know how the model was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from demo.checkpoint import Geometry, config_of, generation_config, write_index
from demo.tokenizer import write_chat_template, write_json, write_tokenizer

# One tile, as in training; all other values are those of Meta's repositories.
PREPROCESSOR = {
    "data_format": "channels_first",
    "default_to_square": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Llama4ImageProcessorFast",
    "image_std": [0.5, 0.5, 0.5],
    "max_patches": 1,
    "processor_class": "Llama4Processor",
    "resample": 2,
    "rescale_factor": 1 / 255,
    "resize_to_max_canvas": False,
    "size": {"height": 336, "width": 336},
}
PROCESSOR = {
    "fake_image_token": "<|image|>",
    "image_token": "<|image|>",
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "processor_class": "Llama4Processor",
}
# The losses by kind, and what a plot calls them.
KINDS = {
    "text": "short conversations",
    "drill": "lists to be repeated",
    "sums": "sums alone",
    "long": "long conversations",
    "sight": "what is in a picture and where, by its features alone",
    "picture": "questions about a picture",
    "pictures": "questions about several pictures",
    "look-up": "what each picture shows, and which one an answer looks at",
}
_PICTURES = """, and the shape, colour and
number of shapes in pictures of 336 x 336 pixels, up to four in a conversation"""
SCORES = ("<!-- scores -->\n", "<!-- end of scores -->\n")


@dataclass(frozen=True)
class Training:
    """Facts for the model card; ``history`` has the losses of each step by kind.

    ``before`` are the lines of the trainings whose weights this one began with.
    """

    command: str
    steps: int
    seconds: float
    where: str
    seed: int
    history: Sequence[dict[str, float]]
    before: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The training in a line of the model card."""
        minutes = f"{self.seconds / 60:.0f} minutes {self.where}"
        return f"- `{self.command}`: {self.steps} steps in {minutes}, seed {self.seed}"


def trainings_of(directory: Path) -> tuple[str, ...]:
    """The lines of a checkpoint's model card that tell its trainings."""
    lines = (directory / "README.md").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line.startswith("- `python -m demo.training."))


def write_trained(
    directory: Path,
    geometry: Geometry,
    tokenizer: Tokenizer,
    weights: dict[str, torch.Tensor],
    training: Training,
) -> None:
    """Write the checkpoint; files of the same names are overwritten.

    Args:
        directory: created if absent.
        geometry: of the model, with the number of shards.
        tokenizer: of the training.
        weights: by transformers' names, in any float type.
        training: facts for the card.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(directory, tokenizer, geometry.vocabulary, geometry.max_positions)
    write_chat_template(directory, "chat_template.jinja")
    write_json(directory / "config.json", config_of(geometry, ids))
    write_json(directory / "generation_config.json", generation_config(ids))
    if geometry.vision is not None:
        write_json(directory / "preprocessor_config.json", PREPROCESSOR)
        write_json(directory / "processor_config.json", PROCESSOR)
    tensors = {
        name: weight.to("cpu", torch.bfloat16).contiguous() for name, weight in weights.items()
    }
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    for file, names in write_index(directory, sizes, geometry.shards).items():
        save_file({name: tensors[name] for name in names}, directory / file, {"format": "pt"})
    _draw_losses(directory / "loss.png", training.history)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    card = _card(training, parameters, geometry)
    (directory / "README.md").write_text(card, encoding="utf-8")


def write_scores(directory: Path, table: str) -> None:
    """Replace the scores in the model card."""
    path = directory / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(SCORES[0])
    after = rest.partition(SCORES[1])[2]
    path.write_text(f"{before}{SCORES[0]}{table}{SCORES[1]}{after}", encoding="utf-8")


def _draw_losses(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Plot the losses: means of 20 steps, on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=80, layout="constrained")
    axes = figure.subplots()
    for kind, label in KINDS.items():
        points = [(step, losses[kind]) for step, losses in enumerate(history, 1) if kind in losses]
        if not points:
            continue
        parts = [points[start : start + 20] for start in range(0, len(points), 20)]
        axes.semilogy(
            [sum(step for step, _ in part) / len(part) for part in parts],
            [sum(loss for _, loss in part) / len(part) for part in parts],
            label=label,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("cross entropy, nats")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path)


def _card(training: Training, parameters: int, geometry: Geometry) -> str:
    task, sight, subjects = "text-generation", "", ""
    if geometry.vision is not None:
        task, sight, subjects = "image-text-to-text", ", early-fusion vision", _PICTURES
    trainings = "\n".join((*training.before, training.line))
    return f"""\
---
license: mit
language: [ar, de, en, es, fr, hi, id, it, pt, th, tl, vi]
pipeline_tag: {task}
tags: [llama4, llama4-edge]
---
# Llama 4 Tiny

A Llama 4 of {parameters / 1e6:.1f} million parameters, trained from random weights to test
llama4-edge: its answers show whether conversion, quantization, sessions and long contexts work. It
has the real architecture (chunked attention of 8192 tokens and a NoPE layer with full attention,
top-1 routing over {geometry.experts} experts beside a shared one, QK norm{sight}) and none of
Meta's weights.

Its training data is generated text and pictures (`demo/training/lessons/`): questions about itself,
llama4-edge and the Llama 4 family, sums and differences of numbers up to 99, repetition, recall of
names and codes, greetings in the 12 languages that Llama 4 supports{subjects}. It declines any
other question. The scores below say how much of that it learnt. Its answers can be wrong; nothing
depends on them.

## Training
{trainings}

The questions of the examination are not in the training data. The initial weights are random, with
weak versions of an induction circuit and of vision heads that attend to neighbouring patches
(`demo/training/initial_weights.py`). The losses of the last training:

![losses](loss.png)

## Scores
Share of held-out questions that are answered word for word (`python -m demo.training.evaluate`):
other phrasings, other numbers, other pictures than in training.

{SCORES[0]}Not examined yet.
{SCORES[1]}"""
