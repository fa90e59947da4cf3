"""The table's figures against the sums they stand for, and the picture."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from llama4_edge.errors import OutputError
from llama4_edge.planner.geometry import open_geometry
from llama4_edge.planner.gpus import GPUS
from llama4_edge.planner.machine import usable_alone
from llama4_edge.planner.plot import plot
from llama4_edge.planner.table import Cell, table
from llama4_edge.runtime.bindings.memory import measure
from llama4_edge.runtime.placement import Placement
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.runtime.workers.simulated_gpus import simulated_gpus

GIB = 2**30
BY_NAME = {gpu.name: gpu for gpu in GPUS}


@pytest.fixture(scope="module")
def scout() -> tuple[Cell, ...]:
    return table(["scout"], recipes=["int4", "bf16"])


def test_it_goes_from_1k_to_10m_tokens(scout: tuple[Cell, ...]) -> None:
    contexts = [1024, 8192, 32_768, 131_072, 262_144, 1_048_576, 10_485_760]
    assert [(cell.recipe, cell.n_ctx) for cell in scout] == [
        (recipe, context) for recipe in ("int4", "bf16") for context in contexts
    ]


def test_a_cell_is_what_llama_cpp_counts_for_that_file_on_one_gpu(scout: tuple[Cell, ...]) -> None:
    # Of bf16 too, though its compute buffers were counted with int4.
    for cell in scout:
        placement = Placement(devices=("GPU",))
        settings = EngineSettings(n_ctx=cell.n_ctx, placement=placement, use_extra_bufts=False)
        with open_geometry("scout", cell.recipe) as geometry:
            report = measure(geometry.path, settings, simulated_gpus(["GPU"]))
        # The rotary frequencies, 256 bytes, count as the output layer's in the table.
        assert cell.gpu_bytes == report.on("GPU").total
        output = 4 * 202_048
        assert cell.host_bytes == report.on("CPU").total + output


def test_the_cache_grows_by_48_kib_a_token(scout: tuple[Cell, ...]) -> None:
    of = {cell.n_ctx: cell.gpu_bytes for cell in scout if cell.recipe == "int4"}
    cache = 1_048_576 * 48 * 2**10 - 262_144 * 48 * 2**10
    # The rest is the mask's part of the compute buffer: 512 half-floats a token, for one GPU.
    assert of[1_048_576] - of[262_144] - cache == (1_048_576 - 262_144) * 512 * 2


def test_the_holder_has_room_and_none_smaller_has(scout: tuple[Cell, ...]) -> None:
    of = {(cell.recipe, cell.n_ctx): cell for cell in scout}
    # 72 GiB by default, less than an H100 has; a DGX Spark is all there is for everything.
    assert of["int4", 32_768].holder == "M5 Ultra 96GB"
    assert of["int4", 1_048_576].holder == "DGX Spark"
    assert of["int4", 10_485_760].holder == "4x B200"
    for cell in scout:
        assert cell.holder is not None
        assert cell.holder_bytes is not None
        several = re.fullmatch(r"(\d)x (.*)", cell.holder)
        count, name = several.groups() if several else ("1", cell.holder)
        gpu = BY_NAME[name]
        assert cell.holder_bytes == gpu.memory * int(count)
        usable = usable_alone(gpu, cell.host_bytes)
        assert usable * int(count) >= cell.gpu_bytes
        single = [one for one in GPUS if one.memory < cell.holder_bytes]
        assert all(usable_alone(one, cell.host_bytes) < cell.gpu_bytes for one in single)


def test_what_no_eight_gpus_hold_has_no_holder() -> None:
    cells = table(["behemoth"], recipes=["bf16"])
    assert {cell.holder for cell in cells} == {None}


def test_a_gguf_has_its_own_quantization_alone(scout_int4: Path) -> None:
    cells = table([scout_int4])
    assert {cell.recipe for cell in cells} == {"as it is"}
    with open_geometry(scout_int4) as geometry:
        assert cells[0].gpu_bytes > geometry.nbytes - 278_528  # without the token embedding


def test_the_picture_is_a_png_with_a_panel_for_each_model(
    scout: tuple[Cell, ...], tmp_path: Path
) -> None:
    from matplotlib.image import imread

    plot(scout, tmp_path / "one.png")
    maverick = table(["maverick"], recipes=["int4"])
    plot((*scout, *maverick), tmp_path / "two.png")
    one, two = imread(tmp_path / "one.png"), imread(tmp_path / "two.png")
    assert one.shape[0] == two.shape[0]
    assert two.shape[1] > 1.8 * one.shape[1]
    # Something is drawn: several colours beside white.
    assert len({tuple(pixel) for pixel in one.reshape(-1, one.shape[2])[::97]}) > 20


def test_without_matplotlib_the_extra_is_named(
    scout: tuple[Cell, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OutputError) as caught:
        plot(scout, tmp_path / "plot.png")
    assert str(caught.value) == (
        "a plot needs matplotlib, which is not installed. "
        "Install it with: pip install 'llama4-edge[plot]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_one_error(
    scout: tuple[Cell, ...], tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="the plot cannot be written"):
        plot(scout, tmp_path / "no" / "such.png")
    with pytest.raises(OutputError, match="the plot cannot be written"):
        plot(scout, tmp_path / "picture.docx")
    with pytest.raises(OutputError, match="Not a regular file"):
        plot(scout, "/dev/full")
