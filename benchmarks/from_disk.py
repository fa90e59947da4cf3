"""Decoding of a model that main memory has no room for, beside what the plan says.

    python -m benchmarks.from_disk [--directory DIR] [--tokens 20]

Makes a model of random weights (2 GB), plans it for a machine on which a share of its experts has
no room, and decodes with as large a share dropped from the mapping and from the page cache before
each token, each time another one: so the memory of the machine stays everybody's. In the last row
nothing stays in memory. Prints a table in Markdown. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.peer import OUT
from demo.checkpoint import TEXT_ONLY, write_checkpoint
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.measure.synthetic import synthetic_file
from llama4_edge.planner import Plan, plan
from llama4_edge.planner.machine import ram_bandwidth
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.files.gguf_file import TensorInfo, read_gguf

GEOMETRY = replace(
    TEXT_ONLY, hidden=2048, layers=8, heads=16, kv_heads=4, head_dim=128, expert_ffn=4096,
    dense_ffn=8192,
)  # fmt: skip
N_CTX = 1024
SHARES = (0.0, 0.25, 0.5, 1.0)
_MADV_DONTNEED = 4


def main() -> None:
    """Make the model, and compare for each share of experts without room."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=OUT)
    parser.add_argument("--tokens", type=int, default=20)
    arguments = parser.parse_args()
    checkpoint = write_checkpoint(arguments.directory / "from-disk", GEOMETRY, holes=True)
    drawing = blueprint(os.fspath(checkpoint), recipe="int4", synthetic=True)
    with synthetic_file(drawing, arguments.directory) as path:
        os.sync()
        print("| experts without room | planned | disk | at most | measured | read from the disk |")
        print("|---|---|---|---|---|---|")
        for share in SHARES:
            compare(path, share, arguments.tokens)


def compare(path: Path, share: float, tokens: int) -> None:
    """Print a row: the plan with no room for a share of the experts, and what is measured."""
    planned = planned_with(path, share)
    tensors = read_gguf(path).tensors
    experts = [tensor for tensor in tensors if "_exps" in tensor.name]
    everything = [(tensor.offset, tensor.nbytes) for tensor in tensors]
    rng = np.random.default_rng(0)
    times, read = [], []
    with Engine(path, replace(planned.settings, use_extra_bufts=False)) as engine:
        engine.prefill([1, 2, 3])
        for _ in range(tokens):
            drop(path, absent(experts, share, rng) if share < 1.0 else everything)
            before, begun = bytes_read(), time.perf_counter()
            engine.append(int(rng.integers(0, 900)))
            times.append(time.perf_counter() - begun)
            read.append(bytes_read() - before)
    load, disk = planned.host.load, planned.disk
    seconds = load.read_bytes / ram_bandwidth()
    if disk is not None and disk.seconds is not None:
        seconds += disk.seconds
    rate = f"{disk.bandwidth / 1e9:.2f} GB/s" if disk and disk.bandwidth else ""
    expected = f"{disk.read_bytes / 2**20:.0f} MiB a token" if disk else "nothing"
    print(
        f"| {share:.0%} | {expected} | {rate} | {1 / seconds:.1f} tokens/s "
        f"| {1 / statistics.median(times):.1f} | {statistics.mean(read) / 2**20:.0f} MiB a token |",
        flush=True,
    )


def planned_with(path: Path, share: float) -> Plan:
    """The plan for a machine on which so large a share of the experts has no room."""
    roomy = plan(path, ram=2**40, n_ctx=N_CTX)
    load = roomy.host.load
    # A token reads a row of the embedding: the rest leaves memory before any expert.
    first = load.bytes_of("embedding") if share else 0
    needed = roomy.host.used_bytes - roomy.host.repacking_bytes
    return plan(path, ram=needed - first - int(load.bytes_of("expert") * share), n_ctx=N_CTX)


def absent(
    experts: list[TensorInfo], share: float, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Offsets and lengths in the file of a share of all experts, at random."""
    sizes = [(tensor.offset, tensor.nbytes // GEOMETRY.experts) for tensor in experts]
    count = round(GEOMETRY.experts * share)
    return [
        (offset + int(number) * size, size)
        for offset, size in sizes
        for number in rng.permutation(GEOMETRY.experts)[:count]
    ]


def drop(path: Path, ranges: list[tuple[int, int]]) -> None:
    """Drop parts of a file from this process's mappings of it, and from the page cache."""
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    mappings = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(path.name):
            addresses, _, offset, *_ = line.split()
            begin, end = (int(address, 16) for address in addresses.split("-"))
            mappings.append((begin, end - begin, int(offset, 16)))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for place, wanted in ranges:
            first = -(-place // mmap.PAGESIZE) * mmap.PAGESIZE
            length = wanted // mmap.PAGESIZE * mmap.PAGESIZE
            for address, size, start in mappings:
                begin, end = max(first, start), min(first + length, start + size)
                if begin < end:
                    advise(address + begin - start, end - begin, _MADV_DONTNEED)
            os.posix_fadvise(descriptor, first, length, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def bytes_read() -> int:
    """Bytes that this process has had read from disks."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, count = line.split(": ")
        if name == "read_bytes":
            return int(count)
    raise AssertionError("no read_bytes in /proc/self/io")


if __name__ == "__main__":
    main()
