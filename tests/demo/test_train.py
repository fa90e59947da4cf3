"""The training computes what transformers computes, and an interruption changes nothing."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Llama4Config
from transformers.models.llama4 import modeling_llama4 as theirs

from demo.training import train
from demo.training.batches import mask
from demo.training.encoding import encode
from demo.training.lessons.mixture import training_picture
from demo.training.lessons.skills import drill
from demo.training.train import Recipe, Trainer, sparse_moe

ROOT = Path(__file__).resolve().parents[2]

# A step of each kind, and of the tower learning apart and together with the words.
SMALL = Recipe(
    steps=7,
    stretch=2,
    rows=1,
    row=448,
    longest=640,
    pictures=1,
    pictures_apart=2,
    drill_to=2,
    together_from=2,
    warm_up=1,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def test_routing_each_token_to_its_expert_alone_gives_transformers_outputs_and_gradients() -> None:
    config = Llama4Config().text_config
    config.update(
        {"hidden_size": 32, "intermediate_size": 48, "num_local_experts": 4, "num_hidden_layers": 1}
    )
    torch.manual_seed(0)
    moe = theirs.Llama4TextMoe(config)
    for weight in moe.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    tokens = torch.randn(3, 17, 32)
    results = []
    for forward in (theirs.Llama4TextMoe.forward, sparse_moe):
        inputs = tokens.clone().requires_grad_()
        moe.zero_grad()
        outputs, logits = forward(moe, inputs)
        outputs.square().sum().backward()
        gradients = [weight.grad.clone() for weight in moe.parameters()]
        results.append([outputs.reshape(-1, 32), logits, inputs.grad, *gradients])
    for ours, reference in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


def test_only_the_model_in_training_routes_so() -> None:
    before = theirs.Llama4TextMoe.forward
    Trainer(SMALL, "cpu")
    assert theirs.Llama4TextMoe.forward is before


def test_a_training_that_was_interrupted_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = Trainer(SMALL, "cpu")
    whole.run(tmp_path / "whole.pt")

    stopped = Trainer(SMALL, "cpu")
    for _ in range(3):
        stopped.history.append(stopped.train_step())
        stopped.step += 1
    stopped.save(tmp_path / "stopped.pt")
    resumed = Trainer(SMALL, "cpu")
    resumed.restore(tmp_path / "stopped.pt")
    resumed.run(tmp_path / "stopped.pt")

    assert resumed.step == whole.step == 9
    assert {kind for step in whole.history for kind in step} == {
        "text",
        "drill",
        "sums",
        "long",
        "sight",
        "picture",
    }
    assert resumed.history == whole.history
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_the_rate_rises_and_falls_and_is_a_fifth_for_the_long_conversations_at_the_end() -> None:
    trainer = Trainer(Recipe(steps=1000, stretch=100, warm_up=50, decay=0.5), "cpu")
    paces = []
    for trainer.step in (0, 49, 500, 750, 999, 1000, 1050, 1099):
        paces.append(trainer.rate_factor())
    assert paces == pytest.approx([0.02, 1, 1, 0.5, 0.002, 0.2, 0.1, 0.002])


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, "cpu")
    trainer.save(tmp_path / "state.pt")
    other = Trainer(Recipe(**{**vars(SMALL), "seed": 5}), "cpu")
    with pytest.raises(SystemExit, match=r'belongs to a training with other settings, .*"seed": 4'):
        other.restore(tmp_path / "state.pt")


def test_rows_hold_several_talks_that_do_not_see_each_other() -> None:
    trainer = Trainer(SMALL, "cpu")
    batch = trainer.batches.text(random.Random(3))
    assert batch.talks is not None
    assert batch.talks.max() >= 1
    visible = mask(batch.talks)
    assert visible is not None
    talks = batch.talks[0].tolist()
    for row, talk in enumerate(talks):
        attended = [column for column in range(len(talks)) if visible[0, 0, row, column]]
        assert attended == [c for c in range(row + 1) if talks[c] == talk]


def test_the_initial_weights_already_copy_a_little() -> None:
    trainer = Trainer(SMALL, "cpu")
    rng = random.Random(3)
    correct = total = 0.0
    for _ in range(4):
        encoded = encode(trainer.tokenizer, drill(rng))
        ids = torch.tensor([encoded.ids])
        with torch.inference_mode():
            predictions = trainer.model(input_ids=ids, use_cache=False).logits[0, :-1].argmax(-1)
        learnt = torch.tensor(encoded.answers[1:], dtype=torch.bool)
        correct += (predictions == ids[0, 1:])[learnt].sum().item()
        total += learnt.sum().item()
    # Random weights predict one of 2048 tokens.
    assert correct / total > 0.2


def test_the_initial_tower_attends_to_neighbours() -> None:
    trainer = Trainer(SMALL, "cpu")
    tower = trainer.model.vision_model
    tower.config._attn_implementation = "eager"
    attentions: list[torch.Tensor] = []
    for layer in tower.model.layers:
        layer.self_attn.register_forward_hook(
            lambda _m, _i, outputs: attentions.append(outputs[1][0])
        )
    with torch.inference_mode():
        trainer.image_features([training_picture(random.Random(3))])
    row, column, patches = 11, 12, 24
    for distance, weights in enumerate(attentions, 1):
        for head, (right, down) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1))):
            there = (row + down * distance) * patches + column + right * distance
            # Evenly spread, each of 577 patches would have 0.002.
            assert weights[head, row * patches + column, there] > 0.5


@pytest.mark.heavy
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in vars(SMALL).items()]
    weights = []
    for name, command in (
        ("one", [sys.executable]),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]),
    ):
        out = tmp_path / name
        paths = [f"--state={out}.pt", f"--out={out}"]
        subprocess.run([*command, "-m", train.__name__, *settings, *paths], check=True, cwd=ROOT)
        weights.append(
            {k: v for file in sorted(out.glob("*.safetensors")) for k, v in load_file(file).items()}
        )
    assert weights[0].keys() == weights[1].keys()
    # Gradients are summed in another order; where one is nearly zero, Adam may step the other way.
    first, second = weights
    differences = [(second[name].double() - first[name].double()).norm() for name in first]
    norms = [weight.double().norm() for weight in first.values()]
    assert torch.stack(differences).norm() < 0.01 * torch.stack(norms).norm()
