"""Trains the small Llama 4 of this folder, from nothing, on text and pictures made here.

    torchrun --nproc-per-node 2 demo/train.py      # a process a core
    python demo/train.py --device cuda             # on a GPU

Promises: transformers' own ``Llama4ForConditionalGeneration``; the same lessons for the same seed,
however many processes there are and whatever was interrupted (run the command again to go on); at
the end a checkpoint in demo/Llama-4-Tiny that looks like the published ones.

One layer of four sees the whole conversation, the others see chunks of 8192 tokens. Nobody trains
on 32,768 tokens in an hour on two cores, so long conversations are taught with chunks of a few
hundred: what must be learnt, finding something across chunks in the layer that can, is the same.
A few rows of thousands of tokens teach the other layers not to be lost in a long chunk, and half of
the last steps are such rows, cut.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from transformers import Llama4Config, Llama4ForConditionalGeneration
from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextMoe

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from demo.batches import Batch, Batches, mask  # noqa: E402 (found by the line above)
from demo.beginning import begin  # noqa: E402
from demo.checkpoint import Geometry, Rope, Vision, config_of  # noqa: E402
from demo.encoding import pixel_values  # noqa: E402
from demo.naming import Naming  # noqa: E402
from demo.publish import Training, write_trained  # noqa: E402
from demo.tokenizer import train_tokenizer  # noqa: E402
from demo.world.haystack import hay  # noqa: E402
from demo.world.lessons import (  # noqa: E402
    draw_taught,
    lesson,
    picture_lesson,
    questions_and_answers,
)
from demo.world.picture import Picture  # noqa: E402

GEOMETRY = Geometry(
    hidden=256,
    layers=4,
    heads=4,
    kv_heads=1,
    head_dim=128,
    expert_ffn=256,
    dense_ffn=256,
    experts=4,
    moe_step=2,
    vocabulary=2048,
    max_positions=65536,
    rope_theta=10_000.0,
    rope=Rope(8.0, 1.0, 4.0),
    vision=Vision(hidden=128, layers=3, heads=4, image_size=336, patch_size=14, projector=256),
    config_form="rope_parameters",
    shards=2,
)
MODEL = ROOT / "demo" / "Llama-4-Tiny"
STATE = ROOT / "demo" / "out" / "training.pt"


@dataclass(frozen=True)
class Recipe:
    """How it is trained. A step is made of ``SHARES`` shares, which processes divide among them.

    Until ``together_from`` the vision tower learns apart, from the names of what it sees, while the
    language model learns words; until ``drill_to`` most of these are lists to be repeated. A model
    that began with everything at once had learnt neither to copy nor to see after 600 steps.
    """

    steps: int = 1900
    stretch: int = 120  # further steps at a fifth of the rate, half of them of ``longest`` tokens
    seed: int = 4
    rate: float = 2.5e-3
    sight_rate: float = 1.5e-3
    warm_up: int = 60
    decay: float = 0.5  # the share of steps, at the end, in which the rates fall to nothing
    rows: int = 3  # of text in a share
    row: int = 512  # tokens
    longest: int = 4096  # tokens of a row that comes now and then
    pictures: int = 3  # in a share
    pictures_apart: int = 8
    drill_to: int = 200
    together_from: int = 550
    balance: float = 0.02

    @property
    def last(self) -> int:
        """All steps."""
        return self.steps + self.stretch


# A step is the same whether one process does both or two processes do one each.
SHARES = 2


def main() -> None:
    """Train, or go on training, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--state", type=Path, default=STATE)
    parser.add_argument("--out", type=Path, default=MODEL)
    arguments = vars(parser.parse_args())
    device, state, out = (arguments.pop(name) for name in ("device", "state", "out"))
    recipe = Recipe(**arguments)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    trainer = Trainer(recipe, device)
    if state.exists():
        trainer.restore(state)
    trainer.run(state)
    if trainer.rank == 0:
        weights = trainer.model.state_dict()
        write_trained(out, GEOMETRY, trainer.tokenizer, weights, trainer.told())
    if dist.is_initialized():
        dist.destroy_process_group()


def corpus(seed: int) -> list[str]:
    """Text for the tokenizer: every fixed sentence, and some that are drawn.

    Numbers are left out, so that every digit is a token of its own.
    """
    chance = random.Random(f"{seed} corpus")
    texts = questions_and_answers()
    for _ in range(4000):
        texts += [part for turn in lesson(chance).turns for part in (turn.said, turn.answer)]
        texts.append(hay(chance))
    for _ in range(200):
        turns = picture_lesson(chance).turns
        texts += [part for turn in turns for part in (turn.said, turn.answer)]
    digits = str.maketrans("", "", "0123456789")
    return [text.translate(digits) for text in texts]


def routed(self: Llama4TextMoe, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``Llama4TextMoe.forward`` computes, without multiplying what its router set to zero.

    Args:
        hidden: [rows, tokens, hidden].

    Returns:
        [rows x tokens, hidden], and the router's logits [rows x tokens, experts].
    """
    hidden = hidden.reshape(-1, self.hidden_dim)
    scores, logits = self.router(hidden)
    best = logits.argmax(-1)
    order = best.argsort()
    inputs = (hidden * scores.gather(1, best[:, None]))[order]
    outputs = []
    counts = torch.bincount(best, minlength=self.num_experts).tolist()
    for expert, mine in enumerate(inputs.split(counts)):
        gate, up = (mine @ self.experts.gate_up_proj[expert]).chunk(2, dim=-1)
        outputs.append((up * self.experts.act_fn(gate)) @ self.experts.down_proj[expert])
    return self.shared_expert(hidden).index_add(0, order, torch.cat(outputs)), logits


class Trainer:
    """The model, its optimizer, and where the training stands."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.device = recipe, device
        self.rank, self.processes = 0, 1
        if dist.is_initialized():
            self.rank, self.processes = dist.get_rank(), dist.get_world_size()
        self.tokenizer = train_tokenizer(GEOMETRY.vocabulary, corpus(recipe.seed))
        ids = {t.content: i for i, t in self.tokenizer.get_added_tokens_decoder().items()}
        torch.manual_seed(recipe.seed)
        config = Llama4Config.from_dict(config_of(GEOMETRY, ids))
        self.model = Llama4ForConditionalGeneration(config)
        begin(self.model)
        self.model.to(device)
        self.naming = Naming(GEOMETRY.hidden).to(device)
        self.batches = Batches(
            self.tokenizer, rows=recipe.rows, row=recipe.row, longest=recipe.longest, device=device
        )
        model = self.model
        sight = [model.vision_model, model.multi_modal_projector, self.naming]
        groups = [
            {"params": [*model.language_model.parameters()], "peak": recipe.rate},
            {"params": [p for one in sight for p in one.parameters()], "peak": recipe.sight_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.routings: list[torch.Tensor] = []
        for module in self.model.modules():
            if isinstance(module, Llama4TextMoe):
                module.forward = MethodType(routed, module)
            if isinstance(module, Llama4Router):
                module.register_forward_hook(lambda _m, _i, made: self.routings.append(made[1]))
        cores = "one core" if self.processes == 1 else f"{self.processes} cores"
        self.where = f"on {cores}" if device == "cpu" else f"on {device}"
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []

    def run(self, state: Path) -> None:
        """Train to the last step, leaving the state behind every few minutes."""
        saved = shown = time.monotonic()
        last = self.recipe.last
        while self.step < last:
            begun = time.monotonic()
            self.history.append(self.train_step())
            self.step += 1
            now = time.monotonic()
            self.seconds += now - begun
            if self.rank != 0:
                continue
            if now - shown > 20 or self.step == last:
                shown = now
                self.show()
            if now - saved > 300 or self.step == last:
                saved = now
                self.save(state)

    def train_step(self) -> dict[str, float]:
        """One step of the optimizer; the mean losses of this process' shares, by kind."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.pace()
        self.optimizer.zero_grad(set_to_none=False)
        losses: dict[str, float] = {}
        mine = range(self.rank, SHARES, self.processes)
        for share in mine:
            chance = random.Random(f"{self.recipe.seed} {self.step} {share}")
            kinds = self.losses(chance)
            (sum(kinds.values()) / SHARES).backward()
            for kind, loss in kinds.items():
                losses[kind] = losses.get(kind, 0.0) + loss.item() / len(mine)
        self.add_up()
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        return losses

    def losses(self, chance: random.Random) -> dict[str, torch.Tensor]:
        """What a share of this step is to learn, kind by kind."""
        kind, batch = self.words(chance)
        losses = {kind: self.loss(batch)}
        if self.step < self.recipe.together_from:
            pictures = [draw_taught(chance) for _ in range(self.recipe.pictures_apart)]
            return losses | {"sight": self.naming(pictures, self.seen(pictures))}
        lessons = [picture_lesson(chance) for _ in range(self.recipe.pictures)]
        pictures = [one.picture for one in lessons if one.picture is not None]
        features = self.seen(pictures)
        losses["picture"] = self.loss(self.batches.pictures(lessons, features))
        return losses | {"sight": self.naming(pictures, features)}

    def words(self, chance: random.Random) -> tuple[str, Batch]:
        """What a share of this step has to read, and of what kind that is."""
        batches, step = self.batches, self.step
        if step < self.recipe.drill_to:
            kind = ("text", "drill", "text", "drill", "drill")[step % 5]
        elif step < self.recipe.steps:
            kind = ("text", "sums", "text", "text", "long")[step % 5]
        else:
            kind = ("long", "text", "long", "sums")[step % 4]
        if kind == "long":
            uncut = step % 100 == 99
            return kind, batches.long(chance, uncut or step >= self.recipe.steps, cut=not uncut)
        makers = {"text": batches.text, "drill": batches.drill, "sums": batches.sums}
        return kind, makers[kind](chance)

    def add_up(self) -> None:
        """Add the gradients of all processes."""
        if self.processes == 1:
            return
        groups = self.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        flat = torch.cat([one.reshape(-1) for one in gradients])
        dist.all_reduce(flat)
        parts = flat.split([one.numel() for one in gradients])
        for one, summed in zip(gradients, parts, strict=True):
            one.copy_(summed.view_as(one))

    def pace(self) -> float:
        """The part of the learning rate that holds for this step."""
        recipe, left = self.recipe, self.recipe.steps - self.step
        if left > 0:
            return min(1.0, (self.step + 1) / recipe.warm_up, left / recipe.steps / recipe.decay)
        return 0.2 * (1 + left / recipe.stretch)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The mean cross entropy of the answers, and a little of the load-balancing loss."""
        self.routings.clear()
        masks = {
            "full_attention": mask(batch.talks),
            "chunked_attention": mask(batch.chunks),
        }
        made = self.model.language_model.model(
            inputs_embeds=self.embedded(batch), attention_mask=masks, use_cache=False
        ).last_hidden_state
        answers = batch.answers[:, 1:]
        logits = self.model.language_model.lm_head(made[:, :-1][answers])
        said = cross_entropy(logits, batch.ids[:, 1:][answers])
        return said + self.recipe.balance * (self.balance(batch.present) - 1)

    def embedded(self, batch: Batch) -> torch.Tensor:
        """The embeddings of a batch's tokens, with pictures where their tokens stand."""
        embedded = self.model.get_input_embeddings()(batch.ids)
        if batch.features is None:
            return embedded
        places = (batch.ids == self.model.config.image_token_id).unsqueeze(-1)
        return embedded.masked_scatter(places, batch.features)

    def seen(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """The features of pictures, [pictures, 144, hidden]."""
        pixels = torch.from_numpy(np.stack([pixel_values(one) for one in pictures]))
        tower = self.model.get_image_features(pixel_values=pixels.to(self.device), return_dict=True)
        features: torch.Tensor = self.model.multi_modal_projector(tower.last_hidden_state)
        return features

    def balance(self, present: torch.Tensor) -> torch.Tensor:
        """Experts x sum of (share of tokens x mean probability): Switch Transformer, eq. 4.

        1 when every expert has its even share.
        """
        total = torch.zeros((), device=self.device)
        for logits in self.routings:
            real = logits[present.reshape(-1)]
            probability = real.softmax(-1).mean(0)
            share = torch.bincount(real.argmax(-1), minlength=real.shape[1]) / len(real)
            total = total + real.shape[1] * (share * probability).sum()
        return total / len(self.routings)

    def told(self) -> Training:
        """What the model's card tells of the training."""
        return Training(self.step, self.seconds, self.where, self.recipe.seed, self.history)

    # State --------------------------------------------------------------------------------------

    def show(self) -> None:
        """A line about the last steps."""
        recent = self.history[-60:]
        means = []
        for kind in ("text", "drill", "sums", "long", "sight", "picture"):
            values = [one[kind] for one in recent if kind in one]
            if values:
                means.append(f"{kind} {sum(values) / len(values):.4f}")
        pace = self.seconds / self.step
        left = (self.recipe.last - self.step) * pace / 60
        print(
            f"step {self.step}/{self.recipe.last}  {'  '.join(means)}  "
            f"{pace:.2f} s a step, {left:.0f} min left",
            flush=True,
        )

    def save(self, path: Path) -> None:
        """Leave everything behind that going on needs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "naming": self.naming.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "where": self.where,
            "history": self.history,
        }
        beside = path.with_suffix(".partial")
        torch.save(whole, beside)
        beside.replace(path)

    def restore(self, path: Path) -> None:
        """Go on where a training stopped.

        Raises:
            SystemExit: it was another training.
        """
        whole = torch.load(path, weights_only=True, map_location=self.device)
        if whole["recipe"] != asdict(self.recipe):
            sys.exit(
                f"train: {path} is of a training with {json.dumps(whole['recipe'])}; delete it"
            )
        self.model.load_state_dict(whole["model"])
        self.naming.load_state_dict(whole["naming"])
        self.optimizer.load_state_dict(whole["optimizer"])
        self.step, self.seconds = whole["step"], whole["seconds"]
        self.where, self.history = whole["where"], whole["history"]


if __name__ == "__main__":
    main()
