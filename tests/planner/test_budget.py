"""What a machine's words mean, and how much weight it has room for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from llama4_edge.convert.blueprint import blueprint
from llama4_edge.errors import SettingError
from llama4_edge.planner.budget import MachineTarget, machine_target, weights_room

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "gpus", "vram", "ram", "n_ctx"),
    [
        ("h100, 131072 tokens", ("h100",), (), None, 131072),
        ("2x rtx-4090, 64gb ram, 32768 tokens", ("2x rtx-4090",), (), 64 * GIB, 32768),
        ("RTX 4090, rtx 3090, 32k tokens", ("RTX 4090", "rtx 3090"), (), None, 32768),
        ("24GiB VRAM, 24 G vram, 1M ctx", (), (24 * GIB, 24 * GIB), None, 2**20),
        ("64 GB of RAM", (), (), 64 * GIB, None),
        ("8192 tokens", (), (), None, 8192),
        ("strix halo 64gb, 16k tokens", ("strix halo 64gb",), (), None, 16384),
    ],
)
def test_words_of_a_machine(
    text: str, gpus: tuple[str, ...], vram: tuple[int, ...], ram: int | None, n_ctx: int | None
) -> None:
    assert machine_target(text) == MachineTarget(text, gpus, vram, ram, n_ctx)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("h1000, 8k tokens", "no GPU called 'h1000'.*Did you mean"),
        ("h100, many tokens", "no GPU called 'many tokens'"),
        ("h100, 32k", "no GPU called '32k'.*131072 tokens.*Write '24gb vram' for any other GPU"),
        ("h100, 0 tokens", "fit has no tokens"),
        ("h100,, 8k tokens", "empty part"),
        ("", "empty part"),
        ("8k tokens, 16k tokens", "two numbers of tokens"),
        ("64gb ram, 32gb ram", "two numbers of ram"),
    ],
)
def test_other_words_are_refused(text: str, error: str) -> None:
    with pytest.raises(SettingError, match=error):
        machine_target(text)


class Scout:
    """Scout with the types of the recipe that comes nearest to a number of bytes from below."""

    RECIPES = ("q4_0", "int4", "int8", "bf16")

    def __init__(self) -> None:
        self.asked: list[tuple[int | None, bool]] = []
        self._blueprints = [blueprint("scout", recipe=recipe) for recipe in self.RECIPES]
        self.sizes = [
            sum(one.nbytes for one in it.tensors if one.role != "embedding")
            for it in self._blueprints
        ]

    def draw(self, nbytes: int | None, outside: bool) -> AbstractContextManager[Path]:
        @contextmanager
        def drawn() -> Iterator[Path]:
            from llama4_edge.system.temporary import temporary_path

            self.asked.append((nbytes, outside))
            fitting = [it for it, size in enumerate(self.sizes) if size <= (nbytes or 0)]
            with temporary_path("test-budget-") as path:
                yield self._blueprints[fitting[-1] if fitting else 0].write_header(path)

        return drawn()


def test_room_on_gpus_is_what_a_plan_leaves_there() -> None:
    scout = Scout()
    room = weights_room(machine_target("h100, 32768 tokens"), scout.draw)
    assert room is not None and room.on_gpus
    # int4 is the largest that fits: its plan, and the budget for which it was drawn.
    assert sum(gpu.load.weights_bytes for gpu in room.plan.gpus) == scout.sizes[1]
    assert room.nbytes == scout.sizes[1] + room.plan.gpus[0].left_bytes
    assert all(outside for _, outside in scout.asked)
    assert len(scout.asked) <= 2


def test_where_the_fewest_bits_do_not_fit_on_gpus_all_memory_counts() -> None:
    scout = Scout()
    room = weights_room(machine_target("rtx 4090, 128gb ram, 8k tokens"), scout.draw)
    assert room is not None and not room.on_gpus
    assert room.plan.fits and room.plan.experts_on_cpu
    weights = sum(device.load.weights_bytes for device in room.plan.devices)
    assert scout.sizes[2] < weights < scout.sizes[3]
    assert room.plan.host.left_bytes >= 128 * GIB // 32


def test_no_room_is_none() -> None:
    assert weights_room(machine_target("rtx 3060, 16gb ram, 8k tokens"), Scout().draw) is None
