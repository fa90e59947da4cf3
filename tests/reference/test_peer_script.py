"""Files against llama.cpp's own convert_hf_to_gguf.py: tensors, metadata, and its mmproj files.

The script comes out of llama-cpp-python's source package, which is fetched: hence `make test-all`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from benchmarks.conversion import same_tensors
from benchmarks.peer import peer_sources
from demo.checkpoint import SCOUT_LIKE, Vision
from llama4_edge import convert
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.runtime.files.gguf_file import read_gguf
from llama4_edge.runtime.files.projector_file import mended_name, misnamed_tensors
from tests.fixtures import MakeCheckpoint, MakeProjector

DEMO = Path(__file__).parents[2] / "demo" / "Llama-4-Tiny"

# llama.cpp does not find Llama 4's ends of turn by their text, so ours names them. What ours leaves
# out is false by default.
ONLY_OURS = {
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "llama4_edge.recipe",
}
ONLY_THEIRS = {"tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token"}
# The header's own counts, which the reader shows as if they were metadata.
COUNTS = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}


def metadata(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name not in COUNTS}


def by_the_peer(checkpoint: Path, directory: Path, *flags: str, outtype: str = "bf16") -> Path:
    """The file that the script makes."""
    peer = peer_sources(directory)
    made = directory / "theirs.gguf"
    subprocess.run(
        [
            sys.executable, str(peer / "convert_hf_to_gguf.py"), "--outtype", outtype, *flags,
            "--outfile", str(made), str(checkpoint),
        ],
        env={**os.environ, "PYTHONPATH": str(peer / "gguf-py")},
        check=True,
    )  # fmt: skip
    return made


@pytest.mark.heavy
def test_bf16_is_what_convert_hf_to_gguf_writes(
    full_vocabulary_checkpoint: Path, full_vocabulary_bf16: Path, tmp_path: Path
) -> None:
    theirs = by_the_peer(full_vocabulary_checkpoint, tmp_path)
    assert same_tensors(full_vocabulary_bf16, theirs)
    ours, others = metadata(full_vocabulary_bf16), metadata(theirs)
    assert ours.keys() - others.keys() == ONLY_OURS
    assert others.keys() - ours.keys() == ONLY_THEIRS
    assert [others[name] for name in sorted(ONLY_THEIRS)] == [False, False]
    shared = ours.keys() & others.keys()
    assert {name: ours[name] for name in shared} == {name: others[name] for name in shared}


@pytest.mark.heavy
@pytest.mark.parametrize("vision_type", ["f16", "bf16", "q8_0", "f32"])
def test_a_projector_is_what_the_script_writes_but_for_the_names_that_it_gets_wrong(
    make_projector: MakeProjector, tmp_path: Path, vision_type: str
) -> None:
    theirs = by_the_peer(DEMO, tmp_path, "--mmproj", outtype=vision_type)
    ours = make_projector(DEMO, vision_type)
    mended = {tensor.name: tensor for tensor in GGUFReader(theirs).tensors}
    assert len(misnamed_tensors(read_gguf(theirs))) == 3 * 2
    made = {tensor.name: tensor for tensor in GGUFReader(ours).tensors}
    assert made.keys() == {mended_name(name) for name in mended}
    for name, tensor in mended.items():
        same = made[mended_name(name)]
        assert same.tensor_type == tensor.tensor_type
        assert same.shape.tolist() == tensor.shape.tolist()
        assert same.data.tobytes() == tensor.data.tobytes()
    # A projector samples nothing.
    others = {
        name: value
        for name, value in metadata(theirs).items()
        if not name.startswith("general.sampling.")
    }
    assert metadata(ours) == others
    report = convert(theirs, tmp_path / "mended.gguf")
    assert same_tensors(ours, Path(report.output))


@pytest.mark.heavy
def test_the_vision_tower_weighs_what_the_script_s_mmproj_does(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    # Of a tower with fewer layers the script does not know the adapter's second matrix.
    geometry = replace(SCOUT_LIKE, vision=Vision(layers=3))
    checkpoint = Path(shutil.copytree(make_checkpoint(geometry), tmp_path / "checkpoint"))
    normalized = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(normalized))
    made = by_the_peer(checkpoint, tmp_path, "--mmproj", outtype="f16")
    tensors = GGUFReader(made).tensors
    projector = sum(int(one.n_bytes) for one in tensors if one.name.startswith("mm."))
    tower = sum(int(one.n_bytes) for one in tensors if one.name.startswith("v."))
    assert len(tensors) == 7 + 3 + 3 * 16
    vision = blueprint(checkpoint).vision
    assert vision is not None
    assert (vision.tower, vision.projector) == (tower, projector)
