"""The bf16 file against llama.cpp's own convert_hf_to_gguf.py, tensors and metadata.

The script comes out of llama-cpp-python's source package, which is fetched: hence `make test-all`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from benchmarks.conversion import peer_sources, same_tensors

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


@pytest.mark.heavy
def test_bf16_is_what_convert_hf_to_gguf_writes(
    full_vocabulary_checkpoint: Path, full_vocabulary_bf16: Path, tmp_path: Path
) -> None:
    peer = peer_sources(tmp_path)
    theirs = tmp_path / "theirs.gguf"
    subprocess.run(
        [
            sys.executable, str(peer / "convert_hf_to_gguf.py"), "--outtype", "bf16",
            "--outfile", str(theirs), str(full_vocabulary_checkpoint),
        ],
        env={**os.environ, "PYTHONPATH": str(peer / "gguf-py")},
        check=True,
    )  # fmt: skip
    assert same_tensors(full_vocabulary_bf16, theirs)
    ours, others = metadata(full_vocabulary_bf16), metadata(theirs)
    assert ours.keys() - others.keys() == ONLY_OURS
    assert others.keys() - ours.keys() == ONLY_THEIRS
    assert [others[name] for name in sorted(ONLY_THEIRS)] == [False, False]
    shared = ours.keys() & others.keys()
    assert {name: ours[name] for name in shared} == {name: others[name] for name in shared}
