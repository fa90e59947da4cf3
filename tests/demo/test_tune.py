"""Further training teaches several pictures, and an interruption changes nothing."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from demo.training import MODEL
from demo.training.lessons.mixture import picture_lesson, training_picture
from demo.training.lessons.several_pictures import several_pictures
from demo.training.publish import trainings_of, write_trained
from demo.training.summaries import NO_PICTURE, attention_loss
from demo.training.train import GEOMETRY, Recipe
from demo.training.tune import RECIPE, Tuner

# A step with each kind of text.
SMALL = Recipe(steps=6, stretch=0, rows=1, row=448, longest=640, warm_up=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_tuning_that_was_interrupted_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = Tuner(SMALL, "cpu", MODEL)
    whole.run(tmp_path / "whole.pt")

    stopped = Tuner(SMALL, "cpu", MODEL)
    for _ in range(2):
        stopped.history.append(stopped.train_step())
        stopped.step += 1
    stopped.save(tmp_path / "stopped.pt")
    resumed = Tuner(SMALL, "cpu", MODEL)
    resumed.restore(tmp_path / "stopped.pt")
    resumed.run(tmp_path / "stopped.pt")

    kinds = {kind for step in whole.history for kind in step}
    assert kinds == {"text", "drill", "sums", "long", "picture", "pictures", "look-up"}
    assert resumed.history == whole.history
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_the_language_model_learns_and_the_tower_stays() -> None:
    tuner = Tuner(SMALL, "cpu", MODEL)
    before = {name: weight.clone() for name, weight in tuner.model.state_dict().items()}
    tuner.train_step()
    changed = {
        name
        for name, weight in tuner.model.state_dict().items()
        if not torch.equal(weight, before[name])
    }
    assert changed == {name for name in before if name.startswith("language_model.")}


def test_an_answer_attends_to_the_picture_asked_about_where_the_loss_is_small() -> None:
    # Two rows of six tokens, with pictures at 0 and 2 and answers from 4 on.
    ends = torch.tensor([[1, 0, 1, 0, 0, 0]] * 2).bool()
    answers = torch.tensor([[0, 0, 0, 0, 1, 1]] * 2).bool()
    keys = torch.eye(6).expand(2, 6, 6) * 50
    queries = torch.zeros(2, 6, 6)
    queries[0, 3:5, 2] = 1
    queries[1, 3, 0] = 1
    # The last answer token of the second row is about none.
    about = [1, 1, 0, NO_PICTURE]
    assert attention_loss(queries, keys, answers, ends, about) < 1e-6
    assert attention_loss(queries, keys, answers, ends, [0, *about[1:]]) > 1


def test_the_losses_are_about_the_pictures_in_the_batch() -> None:
    tuner = Tuner(SMALL, "cpu", MODEL)
    rng = random.Random(3)
    lessons = [picture_lesson(rng), several_pictures(rng, [training_picture(rng)] * 3)]
    pictures = [picture for lesson in lessons for picture in lesson.pictures]
    with torch.no_grad():
        batch = tuner.batches.pictures(lessons, tuner.image_features(pictures))
        tuner.loss(batch)
        loss = tuner.look_up(lessons, batch)
    assert (batch.ids == tuner.model.config.eoi_token_index).sum() == 4
    assert loss.isfinite()


def test_the_card_of_a_tuned_model_tells_every_training(tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(MODEL, start)
    told = trainings_of(start)
    assert told[0].startswith("- `python -m demo.training.train`: 2020 steps")
    tuner = Tuner(Recipe(**{**vars(RECIPE), "rate": 5e-4, "seed": 16}), "cpu", start)
    tuner.history.append({"text": 1.0})
    weights = tuner.model.state_dict()
    write_trained(start, GEOMETRY, tuner.tokenizer, weights, tuner.summary())
    assert trainings_of(start) == (
        *told,
        "- `python -m demo.training.tune --seed 16 --rate 0.0005`: 0 steps in 0 minutes on one "
        "core, seed 16",
    )
