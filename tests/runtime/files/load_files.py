"""Loads model files that were accepted, as a child process: an abort of llama.cpp ends only it.

Usage: load_files.py LIST. LIST names a file a line; for each, what became of it is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llama4_edge.errors import Llama4EdgeError
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.settings import EngineSettings


def main(paths: list[str]) -> None:
    settings = EngineSettings(n_ctx=32, n_ubatch=8, n_threads=1, use_extra_bufts=False)
    for path in paths:
        sys.stdout.write(f"{path} ")
        sys.stdout.flush()
        try:
            with Engine(path, settings) as engine:
                engine.logits([0, 1, 2])
            sys.stdout.write("loaded\n")
        except Llama4EdgeError as error:
            sys.stdout.write(f"{' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_text().splitlines())
