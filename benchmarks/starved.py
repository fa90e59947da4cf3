"""How many tokens an expert needs for statistics of its own, and what helps one that saw fewer.

    python -m benchmarks.starved [CHECKPOINT] [--lessons 400]

The model, the demo model unless another of its kind is given, reads lessons of the kind that it was
trained on. An expert's matrices are encoded in Q4_K, weighed with an estimate of what their columns
are multiplied with, from the few tokens of some of these lessons: what is lost, weighed with all
that the expert saw, relative to what is lost where the estimate is just that. "others" is the mean
of the other experts of the layer, "flat" the same number for every column; "own" what the expert
saw, and "own and" what it saw beside so many tokens' worth of the others' mean or of a flat one.
`quant/starved.py` has what follows.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize

from demo.training import MODEL
from demo.training.lessons.mixture import lesson
from llama4_edge import Model, convert
from llama4_edge.quant.encode import decode_blocks, encode_rows
from llama4_edge.quant.types import TYPES
from llama4_edge.runtime.activations import ActivationSums, Total

Floats = npt.NDArray[np.floating[Any]]

SEEN = (2, 4, 8, 16, 32, 64, 128)
BESIDE = (1, 2, 4, 8, 32)
DRAWS = 3
EXPERTS = 8  # of a layer, at most
ENCODING = TYPES["Q4_K"]


def main() -> None:
    """Print a table for each tensor of experts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, default=MODEL)
    parser.add_argument("--lessons", type=int, default=400)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="starved-") as directory:
        path = Path(directory) / "model.gguf"
        convert(arguments.checkpoint, path, recipe="bf16", vision=False)
        pieces = list(each_lesson(path, arguments.lessons))
        matrices = {
            tensor.name: np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
            for tensor in GGUFReader(path).tensors
            if tensor.name in pieces[0]
        }
    for kind in ("ffn_up_exps", "ffn_down_exps"):  # that of ffn_gate_exps is multiplied as ffn_up's
        names = [name for name in matrices if kind in name]
        tables = [losses(matrices[name], [piece[name] for piece in pieces]) for name in names]
        print_table(f"{kind} of {len(names)} layers", tables)


def each_lesson(path: Path, count: int) -> Iterator[dict[str, Total]]:
    """What the experts were multiplied with in each."""
    rng = random.Random(5)
    sums = ActivationSums(output=False, logits=False)
    with Model(path, n_ctx=4096, n_outputs=512, cache_ram=0) as model:
        model.engine.observe(sums)
        for _ in range(count):
            messages: list[dict[str, Any]] = []
            for turn in lesson(rng).turns:
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": turn.answer})
            tokens = model.chat_prompt(messages).positions
            sums.restore({}, 0)
            model.engine.in_thread(sums.begin)
            model.engine.each_logits(tokens, len(tokens), lambda _place, _rows: None)
            model.engine.in_thread(sums.add)
            yield {name: total for name, total in sums.totals.items() if "_exps" in name}
    sums.close()


def losses(matrix: Floats, pieces: list[Total]) -> dict[tuple[str, int], list[float]]:
    """Of a tensor's experts with each estimate, by its name and how many tokens an expert saw."""
    sums = np.sum([piece.sums for piece in pieces], axis=0)
    counts = np.sum([piece.counts for piece in pieces], axis=0)
    found: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for expert in np.flatnonzero(counts > 8 * max(SEEN))[:EXPERTS]:
        truth = sums[expert] / counts[expert]
        others = (sums.sum(0) - sums[expert]) / (counts.sum() - counts[expert])
        flat = np.full_like(others, others.mean())
        least = loss(matrix[expert], truth, truth)
        for seen in SEEN:
            found["others", seen].append(loss(matrix[expert], others, truth) / least)
            found["flat", seen].append(loss(matrix[expert], flat, truth) / least)
            for own, n in draws(pieces, expert, seen):
                found["own", seen].append(loss(matrix[expert], own / n, truth) / least)
                for k in BESIDE:
                    for word, mean in (("others'", others), ("flat", flat)):
                        estimate = (own + k * mean) / (n + k)
                        lost = loss(matrix[expert], estimate, truth) / least
                        found[f"own and {k} {word}", seen].append(lost)
    return found


def loss(matrix: Floats, importance: Floats, truth: Floats) -> float:
    """What an encoder that weighs with `importance` loses, weighed with `truth`."""
    rows = np.ascontiguousarray(matrix, np.float32)
    data, decoded = np.empty(ENCODING.nbytes(rows.shape), np.uint8), np.empty_like(rows)
    encode_rows(rows, ENCODING, data, np.ascontiguousarray(importance, np.float32))
    decode_blocks(data, ENCODING, decoded)
    return float((np.square(decoded - rows) * truth).sum())


def print_table(title: str, tables: list[dict[tuple[str, int], list[float]]]) -> None:
    """The losses with each estimate, means over experts and draws."""
    print(f"\n{title}\n  " + "tokens seen".ljust(18) + "".join(f"{seen:8}" for seen in SEEN))
    for word in dict.fromkeys(word for word, _ in tables[0]):
        means = [fmean(lost for table in tables for lost in table[word, seen]) for seen in SEEN]
        print(f"  {word:<18}" + "".join(f"{mean:8.3f}" for mean in means), flush=True)


def draws(pieces: list[Total], expert: int, least: int) -> Iterator[tuple[Floats, int]]:
    """What an expert saw in a few lessons: as many as have so many tokens of it."""
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        total, count = np.zeros_like(pieces[0].sums[expert]), 0
        for at in rng.permutation(len(pieces)):
            total = total + pieces[at].sums[expert]
            count += int(pieces[at].counts[expert])
            if count >= least:
                break
        yield total, count


if __name__ == "__main__":
    main()
