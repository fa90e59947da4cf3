"""Trains demo/Llama-4-Tiny from random weights on generated text and pictures.

    torchrun --nproc-per-node 2 -m demo.training.train      # one process per core
    python -m demo.training.train --device cuda             # on a GPU

Promises: transformers' own ``Llama4ForConditionalGeneration``; the same lessons for the same seed,
with any number of processes and after any interruption (the same command resumes); at the end a
checkpoint in demo/Llama-4-Tiny with the files of the published ones.

One layer of four has full attention, the others have attention chunks of 8192 tokens. Training on
32,768 tokens takes too long on two cores, so long conversations are taught with chunks of a few
hundred tokens: the skill, retrieval across chunks in the full-attention layer, is the same. A few
rows of thousands of tokens train the other layers on long chunks. In the last steps half of the
rows are long and cut into chunks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MethodType

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import Llama4Config, Llama4ForConditionalGeneration
from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextMoe

from demo.checkpoint import Geometry, Rope, Vision, config_of
from demo.tokenizer import train_tokenizer
from demo.training import MODEL, OUT
from demo.training.batches import Batch, Batches, mask
from demo.training.encoding import pixel_values
from demo.training.initial_weights import draft_circuits
from demo.training.lessons.haystack import hay
from demo.training.lessons.mixture import (
    lesson,
    picture_lesson,
    questions_and_answers,
    training_picture,
)
from demo.training.lessons.picture import Picture
from demo.training.naming import Naming
from demo.training.publish import KINDS, Training, write_trained

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
STATE = OUT / "training.pt"


@dataclass(frozen=True)
class Recipe:
    """The training's settings. A step has ``SHARES`` micro-batches, divided among the processes.

    Before step ``together_from`` the vision tower is trained on labels of its pictures, apart from
    the language model, which is trained on text. Before step ``drill_to`` most of that text is
    lists to repeat. Trained on everything from the first step, the model could neither copy nor
    recognize shapes after 600 steps.
    """

    steps: int = 1900
    stretch: int = 120  # further steps at a fifth of the learning rate, half of them long rows
    seed: int = 4
    rate: float = 2.5e-3
    sight_rate: float = 1.5e-3
    warm_up: int = 60
    decay: float = 0.5  # the last part of the steps, in which the learning rates fall to 0
    rows: int = 3  # text rows of a micro-batch
    row: int = 512  # tokens of a text row
    longest: int = 4096  # tokens of the longest rows
    pictures: int = 3  # of a micro-batch
    pictures_apart: int = 8  # the same, before ``together_from``
    drill_to: int = 200
    together_from: int = 550
    balance: float = 0.02  # weight of the load-balancing loss

    @property
    def last(self) -> int:
        """The number of all steps."""
        return self.steps + self.stretch


# Micro-batches of a step: the same step results from one process or from two.
SHARES = 2


def main() -> None:
    """Train, or resume training, and write the checkpoint."""
    parser = options(__doc__, Recipe(), STATE)
    arguments = vars(parser.parse_args())
    device, state, out = (arguments.pop(name) for name in ("device", "state", "out"))
    recipe = Recipe(**arguments)
    train(lambda: Trainer(recipe, device), state, out)


def options(
    document: str | None, recipe: Recipe, state: Path, out: Path = MODEL
) -> argparse.ArgumentParser:
    """A training's flags: the settings of ``recipe``, the device, and where its files are."""
    parser = argparse.ArgumentParser(description=(document or "").split("\n")[0])
    for name, default in asdict(recipe).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--state", type=Path, default=state)
    parser.add_argument("--out", type=Path, default=out)
    return parser


def train(make: Callable[[], Trainer], state: Path, out: Path) -> None:
    """Train what ``make`` gives, from ``state`` on if it exists, and write the checkpoint."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    trainer = make()
    if state.exists():
        trainer.restore(state)
    trainer.run(state)
    if trainer.rank == 0:
        trainer.write(out)
    if dist.is_initialized():
        dist.destroy_process_group()


def corpus(seed: int) -> list[str]:
    """The tokenizer's training text: every fixed sentence, and samples of the random ones.

    Digits are removed, so that every digit becomes a token of its own.
    """
    rng = random.Random(f"{seed} corpus")
    texts = questions_and_answers()
    for _ in range(4000):
        texts += [part for turn in lesson(rng).turns for part in (turn.question, turn.answer)]
        texts.append(hay(rng))
    for _ in range(200):
        turns = picture_lesson(rng).turns
        texts += [part for turn in turns for part in (turn.question, turn.answer)]
    digits = str.maketrans("", "", "0123456789")
    return [text.translate(digits) for text in texts]


def sparse_moe(self: Llama4TextMoe, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``Llama4TextMoe.forward``, computing only the expert that the router chose for each token.

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
    # Unbound once: the gradient of a matrix that was indexed is as large as that of all experts.
    experts = zip(self.experts.gate_up_proj.unbind(), self.experts.down_proj.unbind(), strict=True)
    for rows, (gate_up, down) in zip(torch.split(inputs, counts), experts, strict=True):
        gate, up = (rows @ gate_up).chunk(2, dim=-1)
        outputs.append((up * self.experts.act_fn(gate)) @ down)
    return self.shared_expert(hidden).index_add(0, order, torch.cat(outputs)), logits


class Trainer:
    """The model, its optimizer, and the state of the training."""

    MODULE = "demo.training.train"
    RECIPE = Recipe()

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.device = recipe, device
        self.rank, self.processes = 0, 1
        if dist.is_initialized():
            self.rank, self.processes = dist.get_rank(), dist.get_world_size()
        self.tokenizer, self.model, self.naming = self.beginning()
        self.model.to(device)
        self.naming.to(device)
        self.batches = Batches(
            self.tokenizer, rows=recipe.rows, row=recipe.row, longest=recipe.longest, device=device
        )
        model = self.model
        sight = [model.vision_model, model.multi_modal_projector, self.naming]
        groups = [
            {"params": [*model.language_model.parameters()], "peak": recipe.rate},
            {
                "params": [p for module in sight for p in module.parameters()],
                "peak": recipe.sight_rate,
            },
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.routings: list[torch.Tensor] = []
        for module in self.model.modules():
            if isinstance(module, Llama4TextMoe):
                module.forward = MethodType(sparse_moe, module)
            if isinstance(module, Llama4Router):
                module.register_forward_hook(
                    lambda _module, _inputs, outputs: self.routings.append(outputs[1])
                )
        cores = "one core" if self.processes == 1 else f"{self.processes} cores"
        self.where = f"on {cores}" if device == "cpu" else f"on {device}"
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        # The trainings of the weights that this one begins with, as the model card tells them.
        self.before: tuple[str, ...] = ()

    def beginning(self) -> tuple[Tokenizer, Llama4ForConditionalGeneration, torch.nn.Module]:
        """The tokenizer, the model and the classifiers before the first step."""
        seed = self.recipe.seed
        tokenizer = train_tokenizer(GEOMETRY.vocabulary, corpus(seed))
        ids = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items()}
        torch.manual_seed(seed)
        model = Llama4ForConditionalGeneration(Llama4Config.from_dict(config_of(GEOMETRY, ids)))
        draft_circuits(model)
        return tokenizer, model, Naming(GEOMETRY.hidden)

    def run(self, state: Path) -> None:
        """Train to the last step, and save the state every five minutes."""
        last_save = last_line = time.monotonic()
        last = self.recipe.last
        while self.step < last:
            start = time.monotonic()
            self.history.append(self.train_step())
            self.step += 1
            now = time.monotonic()
            self.seconds += now - start
            if self.rank != 0:
                continue
            if now - last_line > 20 or self.step == last:
                last_line = now
                self.show()
            if now - last_save > 300 or self.step == last:
                last_save = now
                self.save(state)

    def write(self, directory: Path) -> None:
        """Write the checkpoint."""
        weights = self.model.state_dict()
        write_trained(directory, GEOMETRY, self.tokenizer, weights, self.summary())

    def train_step(self) -> dict[str, float]:
        """One step of the optimizer; the mean loss of this process' micro-batches, by kind."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.rate_factor()
        self.optimizer.zero_grad(set_to_none=False)
        losses: dict[str, float] = {}
        shares = range(self.rank, SHARES, self.processes)
        for share in shares:
            rng = random.Random(f"{self.recipe.seed} {self.step} {share}")
            share_losses = self.losses(rng)
            total = sum(share_losses.values(), torch.zeros((), device=self.device))
            (total / SHARES).backward()
            for kind, loss in share_losses.items():
                losses[kind] = losses.get(kind, 0.0) + loss.item() / len(shares)
        self.sum_gradients()
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimizer.step()
        return losses

    def losses(self, rng: random.Random) -> dict[str, torch.Tensor]:
        """The losses of one micro-batch of this step, by kind."""
        kind, batch = self.text_batch(rng)
        losses = {kind: self.loss(batch)}
        if self.step < self.recipe.together_from:
            pictures = [training_picture(rng) for _ in range(self.recipe.pictures_apart)]
            return losses | {"sight": self.naming(pictures, self.image_features(pictures))}
        lessons = [picture_lesson(rng) for _ in range(self.recipe.pictures)]
        pictures = [picture for lesson in lessons for picture in lesson.pictures]
        features = self.image_features(pictures)
        losses["picture"] = self.loss(self.batches.pictures(lessons, features))
        return losses | {"sight": self.naming(pictures, features)}

    def text_batch(self, rng: random.Random) -> tuple[str, Batch]:
        """The text of one micro-batch of this step, and its kind."""
        batches, step = self.batches, self.step
        if step < self.recipe.drill_to:
            kind = ("text", "drill", "text", "drill", "drill")[step % 5]
        elif step < self.recipe.steps:
            kind = ("text", "sums", "text", "text", "long")[step % 5]
        else:
            kind = ("long", "text", "long", "sums")[step % 4]
        if kind == "long":
            whole = step % 100 == 99
            return kind, batches.long(rng, whole or step >= self.recipe.steps, cut=not whole)
        makers = {"text": batches.text, "drill": batches.drill, "sums": batches.sums}
        return kind, makers[kind](rng)

    def sum_gradients(self) -> None:
        """Replace the gradients by their sums over all processes."""
        if self.processes == 1:
            return
        groups = self.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        sums = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view_as(gradient))

    def rate_factor(self) -> float:
        """The factor of the learning rates at this step: warm-up, decay, then the long rows."""
        recipe, left = self.recipe, self.recipe.steps - self.step
        if left > 0:
            return min(1.0, (self.step + 1) / recipe.warm_up, left / recipe.steps / recipe.decay)
        return 0.2 * (1 + left / recipe.stretch)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The loss of the batch's tokens, plus ``balance`` times the load-balancing loss."""
        self.routings.clear()
        masks = {
            "full_attention": mask(batch.talks),
            "chunked_attention": mask(batch.chunks),
        }
        hidden = self.model.language_model.model(
            inputs_embeds=self.embeddings(batch), attention_mask=masks, use_cache=False
        ).last_hidden_state
        balance = self.balance(batch.present) - 1
        return self.token_loss(hidden, batch) + self.recipe.balance * balance

    def token_loss(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean cross entropy of the answers, from the last states [rows, tokens, hidden]."""
        return self.cross_entropy(hidden, batch.ids, batch.answers[:, 1:])

    def cross_entropy(
        self, hidden: torch.Tensor, ids: torch.Tensor, predicted: torch.Tensor
    ) -> torch.Tensor:
        """The mean cross entropy of the `predicted` of all tokens but each row's first."""
        logits = self.model.language_model.lm_head(hidden[:, :-1][predicted])
        return cross_entropy(logits, ids[:, 1:][predicted])

    def embeddings(self, batch: Batch) -> torch.Tensor:
        """The embeddings of a batch's tokens; those of image tokens are the pictures' features."""
        embeddings: torch.Tensor = self.model.get_input_embeddings()(batch.ids)
        if batch.features is None:
            return embeddings
        places = (batch.ids == self.model.config.image_token_id).unsqueeze(-1)
        return embeddings.masked_scatter(places, batch.features)

    def image_features(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """The pictures' features, [pictures, 144, hidden]."""
        pixels = torch.from_numpy(np.stack([pixel_values(picture) for picture in pictures]))
        tower = self.model.get_image_features(pixel_values=pixels.to(self.device), return_dict=True)
        features: torch.Tensor = self.model.multi_modal_projector(tower.last_hidden_state)
        return features

    def balance(self, present: torch.Tensor) -> torch.Tensor:
        """Experts x sum of (share of tokens x mean probability): Switch Transformer, eq. 4.

        1 when every expert gets the same share.
        """
        total = torch.zeros((), device=self.device)
        for logits in self.routings:
            real = logits[present.reshape(-1)]
            probability = real.softmax(-1).mean(0)
            share = torch.bincount(real.argmax(-1), minlength=real.shape[1]) / len(real)
            total = total + real.shape[1] * (share * probability).sum()
        return total / len(self.routings)

    def summary(self) -> Training:
        """What the model card says of the training."""
        defaults = asdict(self.RECIPE)
        flags = [
            f" --{name.replace('_', '-')} {value}"
            for name, value in asdict(self.recipe).items()
            if value != defaults[name]
        ]
        command = f"python -m {self.MODULE}{''.join(flags)}"
        return Training(
            command,
            self.step,
            self.seconds,
            self.where,
            self.recipe.seed,
            self.history,
            self.before,
        )

    # State --------------------------------------------------------------------------------------

    def show(self) -> None:
        """Print the mean losses of the last 60 steps, the speed and the time left."""
        recent = self.history[-60:]
        means = []
        for kind in KINDS:
            values = [losses[kind] for losses in recent if kind in losses]
            if values:
                means.append(f"{kind} {sum(values) / len(values):.4f}")
        seconds = self.seconds / self.step
        minutes_left = (self.recipe.last - self.step) * seconds / 60
        print(
            f"step {self.step}/{self.recipe.last}  {'  '.join(means)}  "
            f"{seconds:.2f} s a step, {minutes_left:.0f} min left",
            flush=True,
        )

    def save(self, path: Path) -> None:
        """Save what resuming needs: written beside the path, then renamed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "naming": self.naming.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "where": self.where,
            "history": self.history,
            "before": list(self.before),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Resume from a saved state.

        Raises:
            SystemExit: it belongs to a training with another recipe.
        """
        state = torch.load(path, weights_only=True, map_location=self.device)
        if state["recipe"] != asdict(self.recipe):
            sys.exit(
                f"train: {path} belongs to a training with other settings, "
                f"{json.dumps(state['recipe'])}: delete it to start again"
            )
        self.model.load_state_dict(state["model"])
        self.naming.load_state_dict(state["naming"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.where, self.history = state["where"], state["history"]
        self.before = tuple(state["before"])


if __name__ == "__main__":
    main()
