"""What contexts of Scout take, as llama.cpp itself counts it: caches, compute buffers, sequences.

    python -m benchmarks.contexts [--model scout]

Writes the header of the model into a sparse file and has llama.cpp count for one GPU that is not
here; nothing is loaded. Prints two tables in Markdown: contexts by KV cache types and ubatch, and
several sequences with a cache for each (what this project uses) and with one for all (`kv_unified`
of llama.cpp).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from llama4_edge.planner.geometry import open_geometry
from llama4_edge.planner.table import CONTEXTS
from llama4_edge.runtime.bindings import memory
from llama4_edge.runtime.bindings.memory import DeviceMemory, measure
from llama4_edge.runtime.bindings.parameters import context_params
from llama4_edge.runtime.placement import Placement
from llama4_edge.runtime.settings import EngineSettings, KVTypes, kv_text
from llama4_edge.runtime.workers.simulated_gpus import simulated_gpus

KINDS: tuple[KVTypes, ...] = ("f16", "q8_0", ("q8_0", "q4_0"))
UBATCHES = (512, 128, 32)
GPU = "GPU"


def main() -> None:
    """Count, and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="scout")
    arguments = parser.parse_args()
    with open_geometry(arguments.model) as geometry:
        trained = geometry.hparams.n_ctx_train
        contexts_table(geometry.path, [n_ctx for n_ctx in CONTEXTS if 8192 <= n_ctx <= trained])
        sequences_table(geometry.path)


def contexts_table(path: Path, contexts: list[int]) -> None:
    """A row for each context: caches, and compute buffers of the GPU with each ubatch."""
    caches = [kv_text(kind) for kind in KINDS]
    buffers = [
        f"{'f16' if kind == 'f16' else 'quantized'}, ubatch {n_ubatch}"
        for kind in ("f16", "q8_0")
        for n_ubatch in UBATCHES
    ]
    row("GiB at a context of", *caches, *(f"compute, {name}" for name in buffers))
    row(*["---"] * (1 + len(caches) + len(buffers)))
    for n_ctx in contexts:
        kept = [counted(path, n_ctx=n_ctx, kv_type=kind).kv for kind in KINDS]
        used = [
            counted(path, n_ctx=n_ctx, kv_type=kind, n_ubatch=n_ubatch).compute
            for kind in ("f16", "q8_0")
            for n_ubatch in UBATCHES
        ]
        row(f"{n_ctx:,}", *(f"{nbytes / 2**30:.2f}" for nbytes in (*kept, *used)))


def sequences_table(path: Path) -> None:
    """A row for each number of sequences, with a cache for each and with one for all."""
    print()
    row("GiB", "caches apart", "compute", "one cache", "compute")
    row(*["---"] * 5)
    for n_ctx in (32_768, 131_072):
        for n_parallel in (1, 2, 4, 8, 16):
            cells = []
            for unified in (False, True):
                with unified_cache(unified):
                    count = counted(path, n_ctx=n_ctx, n_parallel=n_parallel)
                cells += [f"{count.kv / 2**30:.2f}", f"{count.compute / 2**30:.2f}"]
            row(f"{n_parallel} of {n_ctx:,} tokens", *cells)


def counted(path: Path, **settings: Any) -> DeviceMemory:
    """What llama.cpp would allocate on a GPU that holds everything."""
    placement = Placement(devices=(GPU,))
    return measure(
        path,
        EngineSettings(placement=placement, use_extra_bufts=False, **settings),
        simulated_gpus([GPU]),
    ).on(GPU)


@contextmanager
def unified_cache(unified: bool) -> Iterator[None]:
    """A block in which contexts are counted with one cache for all sequences, or not."""

    def params(settings: EngineSettings) -> Any:
        native = context_params(settings)
        native.kv_unified = unified
        return native

    replaced: Callable[[EngineSettings], Any] = params
    with patch.object(memory, "context_params", replaced):
        yield


def row(*cells: str) -> None:
    """Print a row of a table."""
    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
