"""Experts fused or one by one, in whichever dtype: each becomes the same file, or is named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from demo.checkpoint import Geometry
from llama4_edge import convert
from llama4_edge.convert.converter import inspect_checkpoint
from llama4_edge.errors import CheckpointError

from .saved import (
    DENSE_TOO,
    LINEAR_EXPERTS,
    ONE_FILE,
    MakeForms,
    Stored,
    experts_apart,
    stacked,
)


@pytest.mark.parametrize("name_of", list(LINEAR_EXPERTS.values()), ids=list(LINEAR_EXPERTS))
@pytest.mark.parametrize("geometry", [ONE_FILE, DENSE_TOO], ids=["scout", "maverick"])
def test_experts_one_by_one_are_read_in_bf16(
    forms: MakeForms, geometry: Geometry, name_of: Callable[[int, str], str]
) -> None:
    made = forms(geometry)
    made.write(dict(experts_apart(made.tensors, name_of)))
    made.notes_of_the_same_file()


def test_experts_of_each_matrix_in_one_tensor_are_read(forms: MakeForms) -> None:
    made = forms(ONE_FILE)
    made.write(stacked(made.tensors))
    made.notes_of_the_same_file()


def test_each_layer_s_experts_may_have_a_layout_of_their_own(forms: MakeForms) -> None:
    """Layer 0 is fused, 1 has linear experts, 2 stacked ones, 3 linear ones but for `down_proj`."""
    made = forms(ONE_FILE)
    apart = dict(experts_apart(made.tensors, LINEAR_EXPERTS["one by one"]))
    axolotl = dict(experts_apart(made.tensors, LINEAR_EXPERTS["Axolotl"]))
    layers = [made.tensors, apart, stacked(made.tensors), axolotl]
    mixed = {name: one for name, one in made.tensors.items() if ".experts." not in name}
    for number, tensors in enumerate(layers):
        mixed |= {
            name: one
            for name, one in tensors.items()
            if f"layers.{number}.feed_forward.experts." in name
            and not (number == 3 and "down" in name)
        }
    down = "language_model.model.layers.3.feed_forward.experts.down_proj"
    made.write({**mixed, down: made.tensors[down]})
    made.notes_of_the_same_file()
    assert convert(made.other, dry_run=True).layout["experts"] == (
        "gate and up fused, down fused (1); gate and up one by one, down one by one (1); "
        "gate and up stacked, down stacked (1); gate and up one by one, down fused (1)"
    )


def test_experts_that_are_stored_in_two_layouts_are_refused(forms: MakeForms) -> None:
    made = forms(ONE_FILE)
    apart = dict(experts_apart(made.tensors, LINEAR_EXPERTS["one by one"]))
    made.write(made.tensors | {name: one for name, one in apart.items() if "layers.2." in name})
    with pytest.raises(CheckpointError, match=r"layers\.2.*experts.* stored once: fused"):
        convert(made.other, dry_run=True)


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ("experts.3.up_proj.weight", r"layers\.2\.feed_forward\.experts\.3\.up_proj\.weight is"),
        (
            "experts.0.down_proj.weight",
            r"layers\.2\.feed_forward\.experts\.0\.down_proj\.weight is",
        ),
        ("", r"layers\.2\.feed_forward\.experts\.0\.gate_proj\.weight is missing"),
    ],
)
def test_an_expert_that_is_missing_is_named(forms: MakeForms, ending: str, said: str) -> None:
    made = forms(ONE_FILE)
    apart = dict(experts_apart(made.tensors, LINEAR_EXPERTS["one by one"]))
    made.write(
        {
            name: one
            for name, one in apart.items()
            if not (".layers.2." in name and ".experts." in name and name.endswith(ending))
        }
    )
    with pytest.raises(CheckpointError, match=said):
        convert(made.other, dry_run=True)


# Dtypes -----------------------------------------------------------------------------------------


def as_dtype(stored: Stored, dtype: str) -> Stored:
    """The same numbers, which each of these has exactly but for F16, as another dtype."""
    floats = (stored.words.astype(np.uint32) << 16).view(np.float32)
    numbers = floats.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])
    return Stored(dtype, stored.shape, numbers.tobytes())


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_wider_numbers_become_the_same_file(forms: MakeForms, dtype: str) -> None:
    made = forms(ONE_FILE)
    made.write({name: as_dtype(one, dtype) for name, one in made.tensors.items()})
    assert made.notes_of_the_same_file() == ()


def test_what_is_stored_how_is_said(forms: MakeForms) -> None:
    made = forms(ONE_FILE)
    apart = dict(experts_apart(made.tensors, LINEAR_EXPERTS["one by one"]))
    router = "language_model.model.layers.1.feed_forward.router.weight"
    scale = "language_model.model.layers.1.self_attn.k_scale"
    apart |= {router: as_dtype(apart[router], "F32"), scale: Stored("F32", (1,), bytes(4))}
    made.write(apart)
    summary = inspect_checkpoint(made.other)
    report = convert(made.other, dry_run=True)
    count = len(apart)
    example = next(name for name in apart if ".layers." in name and "language" in name)
    layout = {
        "stored": f"{count:,} tensors in 1 file, BF16 ({count - 2}); F32 (2)",
        "names": f"such as {example}",
        "experts": "one by one",
    }
    assert summary.layout == report.layout == layout
    assert summary.left_out == report.left_out == (scale,)
    assert summary.notes == report.notes


def test_dtypes_may_differ_between_tensors(forms: MakeForms) -> None:
    """Norms and routers in F32, as training leaves them."""
    made = forms(ONE_FILE)
    made.write(
        {
            name: as_dtype(one, "F32") if "norm" in name or "router" in name else one
            for name, one in made.tensors.items()
        }
    )
    assert made.notes_of_the_same_file() == ()
