"""Conversion compared with llama.cpp's own two steps and with the limits of this machine.

    python -m benchmarks.conversion [--experts 6] [--recipes q8_0,q4_0,q4_k_m] [--warm] [--imatrix]

Writes a slice of Scout (its widths and vocabulary, four layers of a few experts, random weights),
then converts it with `llama4 convert` and with the peer: convert_hf_to_gguf.py to bf16, once, then
llama.cpp's quantizer for each recipe. The script is the one in llama-cpp-python's source package,
the quantizer that of the installed llama-cpp-python. Every step is a process of its own, whose wall
time and peak memory the kernel reports. Tensors are compared byte for byte. Every step starts with
a cold page cache, or with a warm one (--warm). With --imatrix both weigh errors with the same
importance matrix, of random numbers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import gguf
import numpy as np

from benchmarks.peer import OUT, peer_sources
from demo.checkpoint import SCOUT_LIKE, Geometry, write_checkpoint
from llama4_edge.quant import type_named
from llama4_edge.quant.encode import encode_bf16, f32_to_bf16
from llama4_edge.quant.importance import Activations, Importance
from llama4_edge.quant.importance_file import importance_bytes
from llama4_edge.runtime.files.gguf_file import read_gguf

SLICE = replace(
    SCOUT_LIKE, hidden=5120, heads=40, kv_heads=8, head_dim=128, expert_ffn=8192, dense_ffn=16384,
    vocabulary=202_048, vision=None, shards=4,
)  # fmt: skip
_QUANTIZE = """
import ctypes, sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = int(sys.argv[3])
if sys.argv[4:]:
    from llama4_edge.quant.importance_file import read_importance
    entry, pointer = llama_cpp.llama_model_imatrix_data, ctypes.POINTER(ctypes.c_float)
    weights = {name: one.weights() for name, one in read_importance(sys.argv[4]).tensors.items()}
    entries = [
        entry(name.encode(), data.ctypes.data_as(pointer), data.size)
        for name, data in weights.items()
    ]
    params.imatrix = (entry * (len(entries) + 1))(*entries, entry())
source, target = (path.encode() for path in sys.argv[1:3])
sys.exit(llama_cpp.llama_model_quantize(source, target, ctypes.byref(params)))
"""


@dataclass(frozen=True)
class Step:
    """Wall time and peak resident memory of a process."""

    seconds: float
    peak_bytes: int

    def __add__(self, other: Step) -> Step:
        return Step(self.seconds + other.seconds, max(self.peak_bytes, other.peak_bytes))


def prepare(paths: list[Path], *, warm: bool) -> None:
    """Read `paths` into the page cache, or drop their cached pages."""
    os.sync()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            if warm:
                while file.read(64 << 20):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(command: list[str], **environment: str) -> Step:
    """Run `command` and measure it."""
    started = time.monotonic()
    child = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    return Step(time.monotonic() - started, usage.ru_maxrss * 1024)


def disk_bytes_per_second(directory: Path, nbytes: int = 2 << 30) -> float:
    """The speed of sequential writes, including the final fsync."""
    block, path = np.random.default_rng(0).bytes(64 << 20), directory / "disk-rate"
    started = time.monotonic()
    with path.open("wb") as file:
        for _ in range(nbytes // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.monotonic() - started
    path.unlink()
    return nbytes / seconds


def encoder_numbers_per_second(name: str, *, weighed: bool) -> float:
    """The speed of the encoder of one type, on all cores."""
    tensor_type, cores = type_named(name), os.cpu_count() or 1
    rows = np.random.default_rng(0).standard_normal((256, 5120), dtype=np.float32)
    halves = f32_to_bf16(rows)
    weights = np.random.default_rng(1).lognormal(0, 2, 5120).astype(np.float32)

    def encode(_: int) -> None:
        out = np.empty(tensor_type.nbytes(rows.shape), np.uint8)
        encode_bf16(halves, tensor_type, out, weights if weighed else None)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(encode, range(cores)))
        started, rounds = time.monotonic(), 8 * cores
        list(pool.map(encode, range(rounds)))
    return rows.size * rounds / (time.monotonic() - started)


def same_tensors(our_path: Path, peer_path: Path) -> bool:
    """Whether both files hold the same tensors, of the same types, with the same bytes."""
    ours, theirs = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        for path in (our_path, peer_path)
    )
    if ours.keys() != theirs.keys():
        return False
    # Read, not mapped: a child's peak memory includes the pages that its parent had mapped.
    with our_path.open("rb") as first, peer_path.open("rb") as second:
        for name, tensor in ours.items():
            twin = theirs[name]
            if (tensor.tensor_type, tensor.n_bytes) != (twin.tensor_type, twin.n_bytes):
                return False
            first.seek(int(tensor.data_offset))
            second.seek(int(twin.data_offset))
            left = int(tensor.n_bytes)
            while left:
                piece = min(left, 64 << 20)
                if first.read(piece) != second.read(piece):
                    return False
                left -= piece
    return True


def encoder_seconds(path: Path, *, weighed: bool = False) -> float:
    """The least time to encode the tensors of a file, on all cores."""
    numbers: Counter[str] = Counter()
    # Not by the gguf package, which takes 1 GB for a vocabulary: a child counts that as its own.
    for tensor in read_gguf(path).tensors:
        numbers[tensor.type] += prod(tensor.shape)
    return sum(
        count / encoder_numbers_per_second(name, weighed=weighed) for name, count in numbers.items()
    )


def write_imatrix(bf16: Path, path: Path) -> Path:
    """Write an importance matrix of random numbers for the layers of a model."""
    rng = np.random.default_rng(0)
    tensors = {}
    for tensor in read_gguf(bf16).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            shape = (tensor.shape[2] if len(tensor.shape) == 3 else 1, tensor.shape[0])
            sums = rng.lognormal(0, 2, shape).astype(np.float32)
            tensors[tensor.name] = Activations(sums, np.full(shape[0], 512, np.int64))
    path.write_bytes(importance_bytes(Importance(tensors)))
    return path


def write_slice(directory: Path, geometry: Geometry, tokenizer: Path) -> Path:
    """Write the checkpoint unless it exists."""
    checkpoint = directory / f"slice-{geometry.layers}x{geometry.experts}"
    if not (checkpoint / "model.safetensors.index.json").is_file():
        print(f"writing {checkpoint} …", flush=True)
        write_checkpoint(checkpoint, geometry, tokenizer=tokenizer)
    return checkpoint


def main() -> None:
    """Write the slice, run the peer's first step, then compare recipe by recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--recipes", default="q8_0,q4_0,q4_k_m")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--imatrix", action="store_true")
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)

    from tests.reference.real_tokenizer import write_real_tokenizer

    tokenizer = directory / "tokenizer"
    if not tokenizer.exists():
        write_real_tokenizer(tokenizer)
    geometry = replace(SLICE, experts=arguments.experts)
    source = write_slice(directory, geometry, tokenizer)
    peer = peer_sources(directory)
    shards = sorted(source.glob("*.safetensors"))
    source_bytes = sum(shard.stat().st_size for shard in shards)
    disk = disk_bytes_per_second(directory)
    cache = "warm" if arguments.warm else "cold"
    print(
        f"{os.cpu_count()} cores, disk {disk / 1e6:.0f} MB/s, source {source_bytes / 1e9:.1f} GB, "
        f"page cache {cache}",
        flush=True,
    )

    bf16 = directory / "peer-bf16.gguf"
    script = [sys.executable, str(peer / "convert_hf_to_gguf.py"), "--outtype", "bf16"]
    prepare(shards, warm=arguments.warm)
    first = measure(
        [*script, "--outfile", str(bf16), str(source)], PYTHONPATH=str(peer / "gguf-py")
    )
    print(f"peer, step 1 (bf16): {first.seconds:.0f} s, {first.peak_bytes / 1e9:.2f} GB RSS")
    matrix = write_imatrix(bf16, directory / "imatrix.gguf") if arguments.imatrix else None
    for recipe in arguments.recipes.split(","):
        compare(recipe, source, bf16, first, disk, warm=arguments.warm, matrix=matrix)
    bf16.unlink()


def compare(
    recipe: str,
    source: Path,
    bf16: Path,
    first: Step,
    disk: float,
    *,
    warm: bool,
    matrix: Path | None,
) -> None:
    """Print times, memory, ratio, limit and equality of bytes for one recipe."""
    from llama4_edge.quant import recipe_named

    ours_path = bf16.with_name(f"ours-{recipe}.gguf")
    peer_path = bf16.with_name(f"peer-{recipe}.gguf")
    shards = sorted(source.glob("*.safetensors"))
    source_bytes = sum(shard.stat().st_size for shard in shards)
    prepare([bf16], warm=False)
    prepare(shards, warm=warm)
    command = Path(sys.executable).with_name("llama4")
    weighed = [] if matrix is None else ["--imatrix", str(matrix)]
    convert = [str(command), "convert", str(source), "-o", str(ours_path), "--recipe", recipe]
    ours = measure([*convert, *weighed, "--no-vision", "--force"])
    file_type = str(recipe_named(recipe).file_type)
    prepare(shards, warm=False)
    prepare([bf16], warm=warm)
    second = measure(
        [sys.executable, "-c", _QUANTIZE, str(bf16), str(peer_path), file_type, *weighed[1:]]
    )
    both = first + second
    encoder = encoder_seconds(ours_path, weighed=bool(weighed))
    transfer = ((0 if warm else source_bytes) + ours_path.stat().st_size) / disk
    same = same_tensors(ours_path, peer_path)
    print(
        f"{recipe}: ours {ours.seconds:.0f} s, {ours.peak_bytes / 1e9:.2f} GB RSS; "
        f"peer {both.seconds:.0f} s ({first.seconds:.0f} + {second.seconds:.0f}), "
        f"{both.peak_bytes / 1e9:.2f} GB RSS; {both.seconds / ours.seconds:.1f}x as fast; "
        f"limit {max(encoder, transfer):.0f} s (encoder {encoder:.0f}, disk {transfer:.0f}), "
        f"{ours.seconds / max(encoder, transfer):.2f}x of it; "
        f"tensors {'the same bytes' if same else 'DIFFER'}",
        flush=True,
    )
    for path in (ours_path, peer_path):
        path.unlink()


if __name__ == "__main__":
    main()
