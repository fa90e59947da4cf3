"""Makes a model of many experts of demo/Llama-4-Tiny: nine tenths of its weights, as in Scout.

    torchrun --nproc-per-node 2 -m demo.training.upcycle    # into demo/out/Llama-4-Tiny-32E
    python -m demo.training.upcycle --steps 300 --experts 16

In the model in the box the experts are a third of the weights, so that it says little of what types
of experts cost. Here every layer has 32 of them ("Sparse Upcycling", Komatsuzaki et al., 2022): its
tokens are clustered, each cluster gets an expert that begins as the block it comes from, with some
neurons drawn anew ("Drop-Upcycling", Nakamura et al., 2025), and the router begins with the
clusters' centres. Training on the same lessons then makes the experts different; what is asked is
learnt there too, so that every token of a conversation is predicted.

Promises: text only, in rows of 256 tokens; attention, embeddings and output begin as they are;
resumes after an interruption like the first training; a checkpoint of ``Llama4ForCausalLM`` beside
the one in the box. Git ignores it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from transformers import Llama4Config, Llama4ForConditionalGeneration
from transformers.models.llama4.modeling_llama4 import Llama4TextMLP, Llama4TextMoe

from demo.checkpoint import config_of
from demo.training import MODEL, OUT
from demo.training.batches import Batch, Batches, mask
from demo.training.lessons.mixture import REFRESHING
from demo.training.publish import trainings_of, write_trained
from demo.training.train import GEOMETRY, Recipe, Trainer, options, train

STATE = OUT / "upcycling.pt"
MANY_EXPERTS = OUT / "Llama-4-Tiny-32E"

# Batches of text whose tokens are clustered.
_SAMPLES = 16
_ROUNDS = 20
# A router's logit at the centre of its cluster, before training: 0.95 as a score.
_LOGIT = 3.0
# The share of a dense block's output that its experts take over; the rest is the shared expert's.
_ROUTED = 0.75
# The share of each expert's neurons that are drawn anew.
_REDRAWN = 0.3
# The weight of a question's tokens beside the answers'.
_ASKED = 0.25


@dataclass(frozen=True)
class UpcyclingRecipe(Recipe):
    """The training's settings, and the number of experts in each layer."""

    experts: int = 32


RECIPE = UpcyclingRecipe(
    steps=320, stretch=0, seed=17, rows=4, row=256, rate=1e-3, warm_up=20, decay=0.75
)


def main() -> None:
    """Train, or resume training, and write the checkpoint."""
    parser = options(__doc__, RECIPE, STATE, MANY_EXPERTS)
    parser.add_argument("--base", type=Path, default=MODEL, help="checkpoint to begin with")
    arguments = vars(parser.parse_args())
    device, state, out, base = (arguments.pop(key) for key in ("device", "state", "out", "base"))
    recipe = UpcyclingRecipe(**arguments)
    train(lambda: Upcycler(recipe, device, base), state, out)


class Upcycler(Trainer):
    """A trained model whose blocks become many experts, learning to use them."""

    MODULE = "demo.training.upcycle"
    RECIPE = RECIPE

    def __init__(self, recipe: UpcyclingRecipe, device: str, base: Path) -> None:
        self.base = base
        self.geometry = replace(GEOMETRY, experts=recipe.experts, moe_step=1)
        super().__init__(recipe, device)
        self.before = trainings_of(base)

    def beginning(self) -> tuple[Tokenizer, Llama4ForConditionalGeneration, torch.nn.Module]:
        """The checkpoint's tokenizer, its model with many experts, and no classifiers."""
        recipe = self.recipe
        tokenizer = Tokenizer.from_file(str(self.base / "tokenizer.json"))
        ids = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items()}
        base = Llama4ForConditionalGeneration.from_pretrained(self.base, dtype=torch.float32)
        model = Llama4ForConditionalGeneration(
            Llama4Config.from_dict(config_of(self.geometry, ids))
        )
        batches = Batches(
            tokenizer, rows=recipe.rows, row=recipe.row, longest=recipe.row, device="cpu"
        )
        rng = random.Random(f"{recipe.seed} clusters")
        samples = [batches.text(rng, REFRESHING) for _ in range(_SAMPLES)]
        upcycle(model, base, samples, torch.Generator().manual_seed(recipe.seed))
        model.vision_model.requires_grad_(False)
        model.multi_modal_projector.requires_grad_(False)
        return tokenizer, model, torch.nn.Identity()

    def losses(self, rng: random.Random) -> dict[str, torch.Tensor]:
        """The loss of one micro-batch of this step, by kind."""
        kind = ("text", "sums", "text", "drill", "text")[self.step % 5]
        if kind == "text":
            return {kind: self.loss(self.batches.text(rng, REFRESHING))}
        batch = self.batches.sums(rng) if kind == "sums" else self.batches.drill(rng)
        return {kind: self.loss(batch)}

    def token_loss(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean cross entropy of the answers, and a part of that of the questions."""
        assert batch.talks is not None
        answers = batch.answers[:, 1:]
        same = batch.talks[:, 1:] == batch.talks[:, :-1]
        asked = batch.present[:, 1:] & same & ~answers
        answered = self.cross_entropy(hidden, batch.ids, answers)
        return answered + _ASKED * self.cross_entropy(hidden, batch.ids, asked)

    def write(self, directory: Path) -> None:
        """Write the checkpoint, without the vision tower."""
        prefix = "language_model."
        weights = {
            name.removeprefix(prefix): weight
            for name, weight in self.model.state_dict().items()
            if name.startswith(prefix)
        }
        geometry = replace(self.geometry, vision=None, text_only=True)
        write_trained(directory, geometry, self.tokenizer, weights, self.summary())


@torch.no_grad()
def upcycle(
    model: Llama4ForConditionalGeneration,
    base: Llama4ForConditionalGeneration,
    samples: list[Batch],
    generator: torch.Generator,
) -> None:
    """Give `model`, which has experts in every layer, the weights of `base`.

    `samples` are what is clustered; a block of `base` may have experts or be dense.
    """
    inputs = _block_inputs(base, samples)
    _copy_what_is_shared(model, base)
    for layer, theirs in enumerate(base.language_model.model.layers):
        block: Llama4TextMoe = model.language_model.model.layers[layer].feed_forward
        centres, members = clusters(inputs[layer], block.num_experts, generator)
        own = (inputs[layer] * centres[members]).sum(-1)
        block.router.weight.copy_(centres * (_LOGIT / own.mean()))
        scores = (own * (_LOGIT / own.mean())).sigmoid()
        if isinstance(theirs.feed_forward, Llama4TextMoe):
            _from_experts(block, theirs.feed_forward, inputs[layer], members, scores)
        else:
            _from_dense(block, theirs.feed_forward, members, scores)
        _redraw(block, generator)


def clusters(
    states: torch.Tensor, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spherical k-means: unit centres [count, numbers], and the cluster of each state."""
    directions = normalize(states, dim=-1)
    centres = directions[torch.randperm(len(states), generator=generator)[:count]]
    for _ in range(_ROUNDS):
        members = (directions @ centres.T).argmax(-1)
        sums = torch.zeros_like(centres).index_add_(0, members, directions)
        empty = torch.bincount(members, minlength=count) == 0
        others = torch.randperm(len(states), generator=generator)[:count]
        centres = normalize(torch.where(empty[:, None], directions[others], sums), dim=-1)
    return centres, (directions @ centres.T).argmax(-1)


def _block_inputs(base: Llama4ForConditionalGeneration, samples: list[Batch]) -> list[torch.Tensor]:
    """What each layer's feed-forward block is given for the samples, [tokens, hidden]."""
    layers = base.language_model.model.layers
    inputs: list[list[torch.Tensor]] = [[] for _ in layers]
    hooks = [
        layer.feed_forward.register_forward_pre_hook(
            lambda _, arguments, kept=kept: kept.append(arguments[0])
        )
        for layer, kept in zip(layers, inputs, strict=True)
    ]
    for batch in samples:
        masks = {"full_attention": mask(batch.talks), "chunked_attention": mask(batch.chunks)}
        base.language_model.model(input_ids=batch.ids, attention_mask=masks, use_cache=False)
        for kept in inputs:
            kept[-1] = kept[-1][batch.present]
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept) for kept in inputs]


def _copy_what_is_shared(
    model: Llama4ForConditionalGeneration, base: Llama4ForConditionalGeneration
) -> None:
    """Everything but routers and routed experts, whose shapes differ."""
    ours: Mapping[str, torch.Tensor] = model.state_dict()
    for name, weight in base.state_dict().items():
        if name in ours and ours[name].shape == weight.shape:
            ours[name].copy_(weight)


def _from_dense(
    block: Llama4TextMoe, dense: Llama4TextMLP, members: torch.Tensor, scores: torch.Tensor
) -> None:
    """Experts and a shared expert that together give what the dense block gives."""
    gate, up, down = (part.weight for part in (dense.gate_proj, dense.up_proj, dense.down_proj))
    block.shared_expert.gate_proj.weight.copy_(gate)
    block.shared_expert.up_proj.weight.copy_(up)
    block.shared_expert.down_proj.weight.copy_((1 - _ROUTED) * down)
    for expert in range(block.num_experts):
        score = scores[members == expert].mean()
        block.experts.gate_up_proj[expert] = torch.cat([gate, up]).T / score
        block.experts.down_proj[expert] = _ROUTED * down.T


def _from_experts(
    block: Llama4TextMoe,
    theirs: Llama4TextMoe,
    states: torch.Tensor,
    members: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """Each expert begins as the one that most tokens of its cluster went to."""
    logits = theirs.router.weight @ states.T
    chosen, strength = logits.argmax(0), logits.amax(0).sigmoid()
    for expert in range(block.num_experts):
        mine = members == expert
        first = int(torch.bincount(chosen[mine]).argmax())
        # The router's score multiplies an expert's input.
        factor = strength[mine & (chosen == first)].mean() / scores[mine].mean()
        block.experts.gate_up_proj[expert] = factor * theirs.experts.gate_up_proj[first]
        block.experts.down_proj[expert] = theirs.experts.down_proj[first]


def _redraw(block: Llama4TextMoe, generator: torch.Generator) -> None:
    """Draw some neurons of each expert anew, as large as the others."""
    gate_up, down = block.experts.gate_up_proj, block.experts.down_proj
    width = down.shape[1]
    for expert in range(block.num_experts):
        drawn = torch.rand(width, generator=generator) < _REDRAWN
        for part, columns in (
            (gate_up[expert], torch.cat([drawn, drawn])),
            (down[expert].T, drawn),
        ):
            new = torch.randn(part.shape, generator=generator) * part.std()
            part.copy_(torch.where(columns, new, part))


if __name__ == "__main__":
    main()
