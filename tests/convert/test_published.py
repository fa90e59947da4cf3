"""The published models' own geometry, from headers alone: shards that are holes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from demo.checkpoint import SCOUT_LIKE, Geometry, Vision, write_checkpoint
from llama4_edge import convert

SCOUT = replace(
    SCOUT_LIKE,
    hidden=5120, layers=48, heads=40, kv_heads=8, head_dim=128, expert_ffn=8192, dense_ffn=16384,
    vocabulary=202_048, shards=50,
    vision=Vision(hidden=1408, layers=34, heads=16, image_size=336, projector=4096),
)  # fmt: skip
MAVERICK = replace(
    SCOUT, experts=128, moe_step=2, qk_norm=False, rope=None, max_positions=1_048_576, shards=55
)


@pytest.mark.parametrize(
    ("geometry", "source_gb", "text_billions", "recipe", "gib"),
    [
        # The sum of the repository's shards; parameters of the text model; the size at which
        # Scout's Q4_K_M is published elsewhere.
        (SCOUT, 217.3, 107.8, "q4_k_m", 60.9),
        (MAVERICK, 803.2, 400.7, "int4", 214.5),
    ],
)
def test_a_dry_run_over_the_published_geometry(
    tmp_path: Path,
    real_tokenizer_dir: Path,
    geometry: Geometry,
    source_gb: float,
    text_billions: float,
    recipe: str,
    gib: float,
) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "model", geometry, tokenizer=real_tokenizer_dir, holes=True
    )
    shards = list(checkpoint.glob("*.safetensors"))
    assert round(sum(shard.stat().st_size for shard in shards) / 1e9, 1) == source_gb
    both = convert(checkpoint, tmp_path / "out.gguf", recipe=recipe, dry_run=True)
    report = convert(checkpoint, tmp_path / "out.gguf", recipe=recipe, dry_run=True, vision=False)
    assert round(report.parameters / 1e9, 1) == text_billions
    assert round(report.bytes / 2**30, 1) == gib
    assert both.parameters - report.parameters == 871_932_416
    assert round((both.bytes - report.bytes) / 2**30, 2) == 1.63
    assert not (tmp_path / "out.gguf").exists()
