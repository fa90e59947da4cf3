"""Conversion of published forms beside the limits of this machine, and beside the peer's steps.

    python -m benchmarks.forms [--experts 4] [--layers 4] [--forms w4a16,w8a16,fp8]
        [--recipes keep,int4] [--peer]

Writes a slice of Scout (its widths, a few layers of a few experts) with each expert's matrices in a
form, then converts it with each recipe, the page cache cold. Prints seconds, GB of source and file
a second, peak memory, the seconds that reading the source takes and writing the file does at the
disk's speed, and those that the encoders take. With --peer, llama.cpp's script converts the same
checkpoint to bf16 and its quantizer that to Q4_0, if the script can.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conversion import (
    _QUANTIZE,
    SLICE,
    disk_bytes_per_second,
    encoder_seconds,
    measure,
    prepare,
)
from benchmarks.peer import OUT, peer_sources
from demo.checkpoint import write_checkpoint

Part = tuple[str, str, np.ndarray]  # a suffix of the matrix's name, a dtype, the data
Writer = Callable[[np.random.Generator, int, int], list[Part]]


def _bf16(floats: np.ndarray) -> np.ndarray:
    return (floats.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def _packed(bits: int, group: int | None) -> Writer:
    def parts(rng: np.random.Generator, rows: int, length: int) -> list[Part]:
        groups = 1 if group is None else length // group
        words = np.frombuffer(rng.bytes(rows * length * bits // 8), np.int32)
        scales = _bf16(rng.uniform(1e-3, 2e-3, (rows, groups)))
        return [
            (".weight_packed", "I32", words.reshape(rows, -1)),
            (".weight_scale", "BF16", scales),
            (".weight_shape", "I64", np.array([rows, length])),
        ]

    return parts


def _fp8(rng: np.random.Generator, rows: int, length: int) -> list[Part]:
    codes = np.frombuffer(rng.bytes(rows * length), np.uint8).reshape(rows, length) & 0xF7
    return [
        (".weight", "F8_E4M3", codes),
        (".weight_scale", "BF16", _bf16(np.full((rows, 1), 1e-3))),
    ]


FORMS: dict[str, tuple[Writer, str, dict[str, Any]]] = {
    "w4a16": (_packed(4, 128), "pack-quantized",
              {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}),
    "w8a16": (_packed(8, None), "pack-quantized",
              {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "fp8": (_fp8, "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
}  # fmt: skip


def write_form(directory: Path, name: str, layers: int, experts: int, tokenizer: Path) -> Path:
    """A checkpoint in the form called `name`, unless it exists.

    What is not of an expert is bf16, as the demo's writer has it.
    """
    checkpoint = directory / f"{name}-{layers}x{experts}"
    if (checkpoint / "done").is_file():
        return checkpoint
    print(f"writing {checkpoint} …", flush=True)
    geometry = replace(SLICE, layers=layers, experts=experts, shards=1)
    write_checkpoint(checkpoint, geometry, tokenizer=tokenizer)
    _quantize(checkpoint, name)
    _, layout, weights = FORMS[name]
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "ignore": ["re:.*self_attn.*", "re:.*lm_head", "re:.*router"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            **weights, "symmetric": True, "dynamic": False}}},
    }  # fmt: skip
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "done").touch()
    return checkpoint


def _quantize(checkpoint: Path, name: str) -> None:
    """Put each expert's matrices in place of the fused ones, with random codes."""
    rng, (writer, *_) = np.random.default_rng(0), FORMS[name]
    for number, shard in enumerate(sorted(checkpoint.glob("*.safetensors"))):
        with shard.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        entries: dict[str, Any] = {}
        data = shard.with_suffix(".data")
        with data.open("wb") as out, shard.open("rb") as file:
            for tensor, entry in header.items():
                before, found, kind = tensor.partition(".experts.")
                if not found:
                    begin, end = entry["data_offsets"]
                    file.seek(start + begin)
                    _append(
                        entries, out, tensor, entry["dtype"], entry["shape"], file.read(end - begin)
                    )
                    continue
                count, length, outputs = entry["shape"]
                kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
                for expert in range(count):
                    for part in kinds:
                        for suffix, dtype, array in writer(rng, outputs // len(kinds), length):
                            called = f"{before}.experts.{expert}.{part}{suffix}"
                            _append(entries, out, called, dtype, list(array.shape), array.tobytes())
        raw = json.dumps(entries).encode()
        with (checkpoint / f"quantized-{number}").open("wb") as out, data.open("rb") as file:
            out.write(len(raw).to_bytes(8, "little") + raw)
            while piece := file.read(64 << 20):
                out.write(piece)
        data.unlink()
        (checkpoint / f"quantized-{number}").replace(shard)
    (checkpoint / "model.safetensors.index.json").unlink(missing_ok=True)


def _append(
    entries: dict[str, Any], out: Any, name: str, dtype: str, shape: list[int], data: bytes
) -> None:
    begin = out.tell()
    out.write(data)
    entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, out.tell()]}


def compare(checkpoint: Path, recipe: str, disk: float) -> None:
    """Convert and print."""
    shards = sorted(checkpoint.glob("*.safetensors"))
    source = sum(shard.stat().st_size for shard in shards)
    output = checkpoint.with_suffix(f".{recipe}.gguf")
    prepare(shards, warm=False)
    started = time.monotonic()
    for shard in shards:
        with shard.open("rb", buffering=0) as file:
            while file.read(64 << 20):
                pass
    reading = time.monotonic() - started
    prepare(shards, warm=False)
    llama4 = str(Path(sys.executable).with_name("llama4"))
    step = measure([llama4, "convert", str(checkpoint), "-o", str(output), "--recipe", recipe])
    written = output.stat().st_size
    encoding = 0.0 if recipe == "keep" else encoder_seconds(output)
    print(
        f"{checkpoint.name} {recipe}: {step.seconds:.1f} s, {step.peak_bytes / 1e9:.2f} GB RSS; "
        f"{source / 1e9:.1f} GB read, {source / 1e9 / step.seconds:.2f} GB/s; "
        f"{written / 1e9:.1f} GB written, {written / 1e9 / step.seconds:.2f} GB/s; "
        f"reading alone {reading:.1f} s, writing at the disk's speed {written / disk:.1f} s, "
        f"encoders {encoding:.1f} s",
        flush=True,
    )
    output.unlink()


def compare_peer(checkpoint: Path, directory: Path) -> None:
    """The peer's script and quantizer, or the last line of what the script says."""
    peer = peer_sources(directory)
    bf16, small = checkpoint.with_suffix(".peer.gguf"), checkpoint.with_suffix(".peer-q4_0.gguf")
    script = [sys.executable, str(peer / "convert_hf_to_gguf.py"), "--outtype", "bf16"]
    try:
        first = measure(
            [*script, "--outfile", str(bf16), str(checkpoint)], PYTHONPATH=str(peer / "gguf-py")
        )
    except SystemExit as refusal:
        print(f"peer: cannot convert {checkpoint.name}: {str(refusal).strip().splitlines()[-1]}")
        return
    second = measure([sys.executable, "-c", _QUANTIZE, str(bf16), str(small), "2"])
    both = first + second
    print(f"peer, bf16 then Q4_0: {both.seconds:.1f} s, {both.peak_bytes / 1e9:.2f} GB RSS")
    bf16.unlink()
    small.unlink()


def main() -> None:
    """Write each form, then convert it with each recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--recipes", default="keep,int4")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    directory: Path = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)

    from tests.reference.real_tokenizer import write_real_tokenizer

    tokenizer = directory / "tokenizer"
    if not tokenizer.exists():
        write_real_tokenizer(tokenizer)
    disk = disk_bytes_per_second(directory)
    print(f"disk {disk / 1e6:.0f} MB/s", flush=True)
    for name in arguments.forms.split(","):
        checkpoint = write_form(directory, name, arguments.layers, arguments.experts, tokenizer)
        for recipe in arguments.recipes.split(","):
            compare(checkpoint, recipe, disk)
        if arguments.peer:
            compare_peer(checkpoint, directory)


if __name__ == "__main__":
    main()
