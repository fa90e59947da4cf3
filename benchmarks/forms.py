"""Conversion of published forms beside the limits of this machine, and beside the peer's steps.

    python -m benchmarks.forms [--experts 4] [--layers 4] [--forms w4a16,nvfp4] [--peer] [--tiny]

Writes a slice of Scout (its widths, a few layers of a few experts) in each form, then converts it
with the recipes that suit the form, the page cache cold. Prints a row for each: seconds, GB of
source a second, peak memory, and the limit, which is the longer of two: reading the source and
writing the file at the disk's speed, and encoding on all cores. With --peer, llama.cpp's script
converts the same checkpoint to bf16 and its quantizer that to the recipe's type, if the script can.
--tiny takes a narrow model of 0.2 GB, to see that everything runs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.conversion import (
    _QUANTIZE,
    SLICE,
    Step,
    disk_bytes_per_second,
    encoder_seconds,
    measure,
    prepare,
)
from benchmarks.form_writers import FORMS, write_form
from benchmarks.peer import OUT, peer_sources
from demo.checkpoint import SCOUT_LIKE, Geometry
from llama4_edge.runtime.files.gguf_file import read_gguf

TINY = replace(SCOUT_LIKE, vocabulary=SLICE.vocabulary, vision=None)
_COLUMNS = "{:24} {:>7} {:>7} {:>7} {:>6} {:>8} {:>8} {:>8} {:>7}  {}"
_HEADINGS = _COLUMNS.format(
    "form, recipe", "read GB", "s", "GB/s", "RSS GB", "read s", "write s", "encode s", "x limit",
    "peer",
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """llama.cpp's sources, and its first step on a checkpoint: the file and what it took."""

    sources: Path
    bf16: Path
    first: Step | None


def ready(directory: Path, name: str, geometry: Geometry, tokenizer: Path) -> Path:
    """The checkpoint in the form called `name`, which is written unless it exists."""
    widths = f"{geometry.hidden}x{geometry.layers}x{geometry.experts}"
    checkpoint, unfinished = directory / f"{name}-{widths}", directory / f"{name}-{widths}.new"
    if not checkpoint.is_dir():
        print(f"writing {checkpoint} …", file=sys.stderr, flush=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        write_form(unfinished, name, geometry, tokenizer)
        unfinished.rename(checkpoint)
    return checkpoint


def reading_seconds(shards: Sequence[Path]) -> float:
    """How long the disk takes to read these files."""
    prepare(list(shards), warm=False)
    started = time.monotonic()
    for shard in shards:
        with shard.open("rb", buffering=0) as file:
            while file.read(64 << 20):
                pass
    return time.monotonic() - started


def compare(checkpoint: Path, name: str, recipe: str, disk: float, peer: Peer | None) -> None:
    """Convert, and print a row; `disk` is how many bytes it writes a second."""
    shards = sorted(checkpoint.glob("*.safetensors"))
    source = sum(shard.stat().st_size for shard in shards)
    output = checkpoint.with_name(f"{checkpoint.name}.{recipe}.gguf")
    reading = reading_seconds(shards)
    prepare(shards, warm=False)
    llama4 = str(Path(sys.executable).with_name("llama4"))
    step = measure(
        [llama4, "convert", str(checkpoint), "-o", str(output), "--recipe", recipe, "--force"]
    )
    writing = output.stat().st_size / disk
    encoding = 0.0 if recipe == "keep" else encoder_seconds(output)
    limit = max(reading + writing, encoding)
    file_type = read_gguf(output).metadata["general.file_type"]
    assert isinstance(file_type, int)
    theirs = "" if peer is None else peer_steps(peer, shards, output, file_type)
    output.unlink()
    print(
        _COLUMNS.format(
            f"{name}, {recipe}", f"{source / 1e9:.2f}", f"{step.seconds:.1f}",
            f"{source / 1e9 / step.seconds:.2f}", f"{step.peak_bytes / 1e9:.2f}",
            f"{reading:.1f}", f"{writing:.1f}", f"{encoding:.1f}", f"{step.seconds / limit:.2f}",
            theirs,
        ).rstrip(),
        flush=True,
    )  # fmt: skip


def first_step(checkpoint: Path, sources: Path) -> Peer:
    """Convert with the peer's script to bf16, if it can."""
    bf16 = checkpoint.with_name(f"{checkpoint.name}.peer.gguf")
    prepare(sorted(checkpoint.glob("*.safetensors")), warm=False)
    script = [sys.executable, str(sources / "convert_hf_to_gguf.py"), "--outtype", "bf16"]
    try:
        first = measure(
            [*script, "--outfile", str(bf16), str(checkpoint)], PYTHONPATH=str(sources / "gguf-py")
        )
    except SystemExit as refusal:
        print(f"peer: {str(refusal).strip().splitlines()[-1]}", file=sys.stderr, flush=True)
        bf16.unlink(missing_ok=True)
        return Peer(sources, bf16, None)
    return Peer(sources, bf16, first)


def peer_steps(peer: Peer, shards: Sequence[Path], ours: Path, file_type: int) -> str:
    """What both steps of the peer's take to a file of the same type."""
    if peer.first is None:
        return "cannot"
    prepare([*shards, peer.bf16, ours], warm=False)
    small = ours.with_name(f"{ours.name}.peer")
    second = measure([sys.executable, "-c", _QUANTIZE, str(peer.bf16), str(small), str(file_type)])
    small.unlink()
    both = peer.first + second
    return (
        f"{both.seconds:.1f} s ({peer.first.seconds:.1f} + {second.seconds:.1f}), "
        f"{both.peak_bytes / 1e9:.2f} GB"
    )


def main() -> None:
    """Write each form, then convert it with each recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--recipes", help="these alone")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    geometry = replace(
        TINY if arguments.tiny else SLICE,
        layers=arguments.layers, experts=arguments.experts, shards=1,
    )  # fmt: skip

    from tests.reference.real_tokenizer import write_real_tokenizer

    tokenizer = directory / "tokenizer"
    if not tokenizer.exists():
        write_real_tokenizer(tokenizer)
    disk = disk_bytes_per_second(directory, (64 << 20) if arguments.tiny else (2 << 30))
    sources = peer_sources(directory) if arguments.peer else None
    print(f"the disk writes {disk / 1e6:.0f} MB/s", flush=True)
    print(_HEADINGS, flush=True)
    for name in arguments.forms.split(","):
        checkpoint = ready(directory, name, geometry, tokenizer)
        peer = None if sources is None else first_step(checkpoint, sources)
        recipes = arguments.recipes.split(",") if arguments.recipes else FORMS[name].recipes
        for recipe in recipes:
            compare(checkpoint, name, recipe, disk, peer)
        if peer is not None:
            peer.bf16.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
