"""Trains demo/Llama-4-Tiny further, on conversations with several pictures.

    torchrun --nproc-per-node 2 -m demo.training.tune       # after demo.training.train

Promises: begins with a checkpoint's weights, and leaves its vision tower and projector as they are;
half of each step are the first training's lessons, with three long rows in four in the last steps;
resumes after an interruption like the first training; the checkpoint keeps the names and shapes of
its tensors.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.utils.hooks import RemovableHandle
from transformers import Llama4ForConditionalGeneration

from demo.training import MODEL, OUT
from demo.training.batches import Batch
from demo.training.encoding import ids_of
from demo.training.lessons.conversation import Conversation
from demo.training.lessons.mixture import REFRESHING, picture_lesson, training_picture
from demo.training.lessons.several_pictures import several_pictures
from demo.training.publish import trainings_of
from demo.training.summaries import NO_PICTURE, Summaries, attention_loss
from demo.training.train import GEOMETRY, Recipe, Trainer, options, train

STATE = OUT / "tuning.pt"
RECIPE = Recipe(
    steps=2400, stretch=120, seed=15, rows=2, row=448, rate=1.3e-3, warm_up=40, decay=0.75
)
# For each number of pictures in a conversation: how many make a micro-batch, and how often.
ROWS = {1: 3, 2: 2, 3: 2, 4: 1}
WEIGHTS = (1.2, 2.5, 4.5, 1.5)
# Where a picture is told from others, and where an answer finds it: the layer with full attention.
MIDDLE, LAST = 1, 3


def main() -> None:
    """Train, or resume training, and write the checkpoint."""
    parser = options(__doc__, RECIPE, STATE)
    parser.add_argument("--base", type=Path, default=MODEL, help="checkpoint to begin with")
    arguments = vars(parser.parse_args())
    device, state, out, base = (arguments.pop(key) for key in ("device", "state", "out", "base"))
    recipe = Recipe(**arguments)
    train(lambda: Tuner(recipe, device, base), state, out)


class Tuner(Trainer):
    """A trained model, learning what comes with a second picture."""

    MODULE = "demo.training.tune"
    RECIPE = RECIPE

    def __init__(self, recipe: Recipe, device: str, base: Path) -> None:
        self.base = base
        # What the hooks keep of the last call: the state in the middle, queries and keys.
        self.states: dict[str, torch.Tensor] = {}
        super().__init__(recipe, device)
        self.before = trainings_of(base)
        layers = self.model.language_model.model.layers
        self.keep("middle", layers[MIDDLE])
        self.keep("queries", layers[LAST].self_attn.q_proj)
        self.keep("keys", layers[LAST].self_attn.k_proj)

    def keep(self, name: str, module: torch.nn.Module) -> RemovableHandle:
        """Keep what a module returns, [rows, tokens, numbers]."""

        def hook(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            self.states[name] = output

        return module.register_forward_hook(hook)

    def beginning(self) -> tuple[Tokenizer, Llama4ForConditionalGeneration, torch.nn.Module]:
        """The checkpoint's tokenizer and model, and new classifiers."""
        tokenizer = Tokenizer.from_file(str(self.base / "tokenizer.json"))
        model = Llama4ForConditionalGeneration.from_pretrained(self.base, dtype=torch.float32)
        model.vision_model.requires_grad_(False)
        model.multi_modal_projector.requires_grad_(False)
        torch.manual_seed(self.recipe.seed)
        return tokenizer, model, Summaries(GEOMETRY.hidden)

    def losses(self, rng: random.Random) -> dict[str, torch.Tensor]:
        """The losses of one micro-batch of this step, by kind."""
        kind, batch = self.text_batch(rng)
        losses = {kind: self.loss(batch)}
        count = rng.choices(tuple(ROWS), WEIGHTS)[0]
        lessons = [
            picture_lesson(rng)
            if count == 1
            else several_pictures(rng, [training_picture(rng) for _ in range(count)])
            for _ in range(ROWS[count])
        ]
        with torch.no_grad():
            features = self.image_features([p for lesson in lessons for p in lesson.pictures])
        batch = self.batches.pictures(lessons, features)
        losses["picture" if count == 1 else "pictures"] = self.loss(batch)
        return losses | {"look-up": self.look_up(lessons, batch)}

    def look_up(self, lessons: list[Conversation], batch: Batch) -> torch.Tensor:
        """The auxiliary losses of the batch that the model was just called with."""
        ends = batch.ids == self.model.config.eoi_token_index
        about = [
            NO_PICTURE if turn.about is None else turn.about
            for lesson in lessons
            for turn in lesson.turns
            for _ in ids_of(self.tokenizer, f"{turn.answer}<|eot|>")
        ]
        middle = self.states["middle"]
        answering = middle[:, :-1][batch.answers[:, 1:]]
        pictures = [lesson.pictures for lesson in lessons]
        loss: torch.Tensor = self.naming(pictures, middle[ends], about, answering)
        queries = self.states["queries"][..., : GEOMETRY.head_dim]
        return loss + attention_loss(queries, self.states["keys"], batch.answers, ends, about)

    def text_batch(self, rng: random.Random) -> tuple[str, Batch]:
        """The text of one micro-batch of this step, and its kind."""
        batches, step = self.batches, self.step
        kind = ("long", "text", "drill", "text", "sums", "text")[step % 6]
        if step >= self.recipe.steps:
            kind = ("long", "long", "text", "long")[step % 4]
        if kind == "long":
            whole = step % 100 == 0
            return kind, batches.long(rng, whole or step >= self.recipe.steps, cut=not whole)
        if kind == "text":
            return kind, batches.text(rng, REFRESHING)
        return kind, batches.sums(rng) if kind == "sums" else batches.drill(rng)


if __name__ == "__main__":
    main()
