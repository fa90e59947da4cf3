"""Logits after prompts with pictures are those of transformers, in float32.

Both sides are given the same tokens and our own tiles, which test_pictures.py compares. The weights
of the text model are bf16, as in test_logits.py. There is one routed expert: of thousands of
features some would have two that tie, where rounding decides for everything that comes after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import Llama4ForConditionalGeneration

from demo.checkpoint import SCOUT_LIKE, Vision
from llama4_edge import Model, image_tiles
from llama4_edge.vision import projector
from tests.fixtures import MakeCheckpoint, MakeGGUF, MakeProjector

from .pictures import noise
from .test_logits import MAX_KL, kl_divergence

# As Scout's but for widths and experts; tiles are 336 by 336, which are 144 features.
SEEING = replace(SCOUT_LIKE, experts=1, vision=Vision(image_size=336))
# Attention of thousands of positions to thousands, in float32, takes gigabytes.
LONG = replace(SEEING, hidden=64, heads=2, kv_heads=1, head_dim=32, expert_ffn=64)

DEMO = Path(__file__).parents[2] / "demo" / "Llama-4-Tiny"

WORDS = ("Look at this: ", " and at that. ", "What is it? ", "Compare them, ", "please: ")


@dataclass(frozen=True)
class Sides:
    """The logits of both, [positions, vocabulary]; ``is_text`` where there is no feature."""

    ours: npt.NDArray[np.float32]
    theirs: npt.NDArray[np.float32]
    is_text: npt.NDArray[np.bool_]

    @property
    def divergence(self) -> npt.NDArray[np.float64]:
        result: npt.NDArray[np.float64] = kl_divergence(self.theirs, self.ours)
        return result

    @property
    def has_same_top(self) -> npt.NDArray[np.bool_]:
        result: npt.NDArray[np.bool_] = self.ours.argmax(-1) == self.theirs.argmax(-1)
        return result


def messages(pictures: list[npt.NDArray[np.uint8]], before: str = "") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": before or "Hello. "}]
    for picture, words in zip(pictures, WORDS, strict=False):
        parts += [{"type": "image", "image": picture}, {"type": "text", "text": words}]
    return [{"role": "user", "content": parts}]


def pictures_of(count: int) -> list[npt.NDArray[np.uint8]]:
    """Of two to five tiles."""
    sizes = ((500, 400), (337, 300), (340, 340), (300, 700), (600, 200))
    return [noise(*size) for size in sizes[:count]]


def compared(
    model: Model,
    checkpoint: Path,
    pictures: list[npt.NDArray[np.uint8]],
    *,
    before: str = "",
    last: int | None = None,
) -> Sides:
    """Both sides at all positions, or at the last so many."""
    prompt = model.chat_prompt(messages(pictures, before))
    kept = slice(None if last is None else -last, None)
    network = Llama4ForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    pixels = np.concatenate([image_tiles(picture).pixels for picture in pictures])
    with torch.inference_mode():
        output = network(
            input_ids=torch.tensor([prompt.token_ids]),
            pixel_values=torch.from_numpy(pixels),
            use_cache=False,
            logits_to_keep=torch.arange(len(prompt))[kept],
        )
    is_text = np.array([one >= 0 for one in prompt.positions])
    return Sides(model.logits(prompt)[kept], output.logits[0].numpy(), is_text[kept])


def assert_same_predictions(sides: Sides, most: float) -> None:
    """As far apart as `most` at text, where the model's words come from."""
    assert sides.is_text.sum() > 20
    assert sides.divergence[sides.is_text].max() <= most
    # A feature is followed by nothing that the model would say.
    assert sides.divergence.max() <= 3 * most
    best = np.sort(sides.theirs, axis=-1)
    # Where the two likeliest are as likely, rounding decides.
    is_clear = sides.is_text & (best[:, -1] - best[:, -2] > 0.01)
    assert sides.has_same_top[is_clear].all()
    assert is_clear.sum() > 0.9 * sides.is_text.sum()


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(SEEING)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_logits_around_pictures_are_those_of_transformers(
    count: int, checkpoint: Path, make_gguf: MakeGGUF, make_projector: MakeProjector
) -> None:
    tower = make_projector(checkpoint, "f32")
    with Model(make_gguf(checkpoint), n_ctx=4096, projector=tower) as model:
        assert_same_predictions(compared(model, checkpoint, pictures_of(count)), MAX_KL)


def test_a_tower_in_q8_0_costs_little(
    checkpoint: Path, make_gguf: MakeGGUF, make_projector: MakeProjector
) -> None:
    tower = make_projector(checkpoint, "q8_0")
    with Model(make_gguf(checkpoint), n_ctx=2048, projector=tower) as model:
        assert_same_predictions(compared(model, checkpoint, pictures_of(2)), 1e-3)


def test_in_the_order_of_mtmd_the_model_sees_something_else(
    checkpoint: Path,
    make_gguf: MakeGGUF,
    make_projector: MakeProjector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As all that is built on llama.cpp shows pictures to the model."""
    monkeypatch.setattr(projector, "in_reading_order", lambda features: features)
    tower = make_projector(checkpoint, "f32")
    with Model(make_gguf(checkpoint), n_ctx=2048, projector=tower) as model:
        wrong = compared(model, checkpoint, pictures_of(2))
    # Of noise, whose features are much alike. The last feature of a tile stands in its place.
    assert np.median(wrong.divergence[wrong.is_text][10:]) > 5 * MAX_KL
    assert np.median(wrong.divergence[~wrong.is_text]) > 1000 * MAX_KL


def test_the_demo_model_predicts_what_transformers_predicts(
    make_gguf: MakeGGUF, make_projector: MakeProjector
) -> None:
    with Model(make_gguf(DEMO), n_ctx=4096, projector=make_projector(DEMO, "f32")) as model:
        sides = compared(model, DEMO, pictures_of(5))
    # It was trained, so that its probabilities are far from even: bf16 costs it as much before the
    # first picture.
    assert sides.divergence[sides.is_text].max() <= 1e-3
    assert sides.has_same_top[sides.is_text].mean() > 0.95


@pytest.mark.heavy
def test_pictures_across_the_end_of_a_chunk_are_seen_as_by_transformers(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF, make_projector: MakeProjector
) -> None:
    checkpoint = make_checkpoint(LONG)
    tower = make_projector(checkpoint, "f32")
    with Model(make_gguf(checkpoint), n_ctx=10240, projector=tower) as model:
        text = "Once upon a time, "
        count = 7800 // len(model.tokenize(text))
        sides = compared(model, checkpoint, pictures_of(2), before=text * count, last=1300)
    assert_same_predictions(sides, MAX_KL)
