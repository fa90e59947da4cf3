"""A model of many experts is made of a trained one, and an interruption changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

from demo.training import MODEL
from demo.training.upcycle import RECIPE, Upcycler, clusters
from llama4_edge import convert

# A step with each kind of text, and so few experts that each has tokens.
SMALL = replace(RECIPE, steps=4, rows=1, row=256, experts=8, warm_up=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def test_every_layer_has_the_experts_and_attention_begins_as_it_was() -> None:
    upcycler = Upcycler(SMALL, "cpu", MODEL)
    blocks = [layer.feed_forward for layer in upcycler.model.language_model.model.layers]
    assert [block.num_experts for block in blocks] == [8] * 4
    ours = upcycler.model.state_dict()
    base = Upcycler(SMALL, "cpu", MODEL).model.state_dict()
    assert all(torch.equal(ours[name], base[name]) for name in ours), "the same seed"
    for block in blocks:
        assert isinstance(block, Llama4TextMoe)
        first, second = block.experts.gate_up_proj[:2]
        assert not torch.equal(first, second)


def test_an_interruption_changes_nothing_and_the_checkpoint_converts(tmp_path: Path) -> None:
    whole = Upcycler(SMALL, "cpu", MODEL)
    whole.run(tmp_path / "whole.pt")
    stopped = Upcycler(SMALL, "cpu", MODEL)
    stopped.history.append(stopped.train_step())
    stopped.step += 1
    stopped.save(tmp_path / "stopped.pt")
    resumed = Upcycler(SMALL, "cpu", MODEL)
    resumed.restore(tmp_path / "stopped.pt")
    resumed.run(tmp_path / "stopped.pt")
    assert resumed.history == whole.history
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name

    whole.write(tmp_path / "model")
    report = convert(tmp_path / "model", tmp_path / "model.gguf", recipe="bf16")
    assert report.bits_per_weight > 16  # the routers' and norms' 32
    card = (tmp_path / "model" / "README.md").read_text()
    assert "over 8 experts" in card and "pictures of 336" not in card
    assert "`python -m demo.training.tune" in card and "`python -m demo.training.upcycle" in card


def test_a_state_is_in_the_cluster_whose_centre_has_its_direction() -> None:
    generator = torch.Generator().manual_seed(1)
    axes = torch.eye(8)[:3].repeat_interleave(20, dim=0)
    states = (axes + 0.05 * torch.randn(60, 8, generator=generator)) * torch.rand(
        60, 1, generator=generator
    ).add(0.5)
    centres, members = clusters(states, 3, generator)
    assert torch.allclose(centres.norm(dim=-1), torch.ones(3))
    assert torch.equal(members, (states @ centres.T).argmax(-1))
    assert len({tuple(group.unique().tolist()) for group in members.split(20)}) == 3
