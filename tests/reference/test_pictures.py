"""Tiles and tokens are those of transformers, and Meta's where these agree with them.

`picture_goldens.json` has their answers with the versions that gave them; its script is beside it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from llama_models.llama4.tokenizer import Tokenizer
from PIL import Image

from llama4_edge.vision.images import ImageTiles, image_tiles
from llama4_edge.vision.layout import image_token_names
from tests.reference.pictures import (
    GOLDENS,
    SIZES,
    name_of,
    noise,
    run_lengths,
    sample_places,
)

RECORD: dict[str, Any] = json.loads(GOLDENS.read_text(encoding="utf-8"))


def differences(tiles: ImageTiles, golden: dict[str, Any], ids: dict[str, int]) -> list[str]:
    """What is not as in the golden, the coarsest first."""
    data = tiles.levels.tobytes()
    tokens = [ids[name] for name in image_token_names(tiles.grid)]
    samples = np.frombuffer(data, np.uint8)[sample_places(len(data))].tolist()
    sums = tiles.levels.sum(axis=(1, 2, 3), dtype=np.int64).tolist()
    checks = {
        "grid": list(tiles.grid) == golden["grid"],
        "tokens": run_lengths(tokens) == golden["tokens"],
        "count": tiles.n_tokens == len(tokens),
        "samples": samples == golden["samples"],
        "sums": sums == golden["sums"],
        "bytes": hashlib.sha256(data).hexdigest() == golden["sha256"],
    }
    return [name for name, right in checks.items() if not right]


def test_every_byte_of_every_tile_and_every_token_is_that_of_transformers() -> None:
    assert len(SIZES) >= 100
    assert set(RECORD["pictures"]) == {name_of(*size) for size in SIZES}
    ids = Tokenizer.get_instance().special_tokens
    faults = {}
    for size in SIZES:
        golden = RECORD["pictures"][name_of(*size)]
        if found := differences(image_tiles(noise(*size)), golden, ids):
            faults[size] = found
    assert not faults


def test_the_goldens_say_how_far_bfloat16_and_metas_resizing_are_apart() -> None:
    # Half of bfloat16's last bit below 1, which the last step of the published processor rounds to.
    assert 2**-9 < RECORD["bfloat16_error"] < 2**-8
    # Two roundings of Pillow's against two of torch's, on noise.
    assert max(golden["meta_levels_apart"] for golden in RECORD["pictures"].values()) == 2
    same = [size for size in SIZES if RECORD["pictures"][name_of(*size)]["meta_levels_apart"] == 0]
    assert (336, 336) in same


@pytest.mark.parametrize("size", [(640, 480), (1280, 720), (13, 17), (300, 800), (1345, 1344)])
def test_tiles_are_pillows_within_a_level_where_a_picture_is_smooth(size: tuple[int, int]) -> None:
    columns, rows = np.meshgrid(np.linspace(0, 6, size[0]), np.linspace(0, 4, size[1]))
    waves = [np.sin(columns + k) * np.cos(rows * (k + 1)) for k in range(3)]
    picture = ((np.stack(waves, axis=-1) + 1) * 127.5).astype(np.uint8)
    tiles = image_tiles(picture)
    whole = np.array(Image.fromarray(picture).resize((336, 336), Image.Resampling.BILINEAR))
    if len(tiles) > 1:
        assert np.abs(tiles.levels[-1].astype(int) - whole).max() <= 1


@pytest.mark.heavy
def test_the_processor_itself_gives_the_same_for_pictures_of_chance() -> None:
    """Where torchvision is; see `make_picture_goldens`."""
    pytest.importorskip("torchvision")
    from tests.reference.make_picture_goldens import Judges

    judges = Judges()
    rng = np.random.default_rng(int.from_bytes(sys.version.encode()[:4], "little"))
    for _ in range(100):
        columns, rows = (int(2 ** rng.uniform(0, 11.5)) for _ in range(2))
        picture: npt.NDArray[np.uint8] = noise(columns, rows)
        levels, grid, ids = judges.transformers(picture)
        ours = image_tiles(picture)
        names = judges.meta.tokenizer.special_tokens
        assert ours.grid == grid, (columns, rows)
        assert np.array_equal(ours.levels, levels), (columns, rows)
        assert [names[name] for name in image_token_names(grid)] == ids
