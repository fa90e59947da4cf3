"""Loads projector files that were accepted, as a child process: an abort of mtmd ends only it.

Usage: load_projectors.py LIST. LIST names a file a line; for each, what became of it is printed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from llama4_edge.runtime.files.projector_file import check_projector_file
from tests.gguf_maker import tiny_model
from tests.mtmd import mtmd_features, opened


def main(paths: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        text = tiny_model().write(Path(directory) / "tiny.gguf")
        for path in paths:
            sys.stdout.write(f"{path} ")
            sys.stdout.flush()
            shape = check_projector_file(path).shape
            with opened(text, Path(path)) as context:
                side = shape.image_size
                tile = np.zeros((side, side, 3), np.uint8)
                features = mtmd_features(context, tile, shape.n_embd)
            assert features.shape == (shape.side, shape.side, shape.n_embd)
            sys.stdout.write("loaded\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_text().splitlines())
