"""How many tokens an expert needs for statistics of its own, and what helps one that saw fewer.

    python -m benchmarks.starved [--lessons 400]

The demo model reads lessons of the kind that it was trained on. What an expert's columns are
multiplied with is estimated from the few tokens of some of these, and compared with all that the
expert saw: the error is the root mean square of the estimate's logarithm, weighted, its level left
out, because encoders look at nothing but proportions. "others" is the mean of the other experts of
the layer, "flat" the same number for every column; "own" what the expert saw, and "own and" what it
saw beside so many tokens' worth of the others' mean or of a flat one. `quant/starved.py` has what
follows.
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

from demo.training import MODEL
from demo.training.lessons.mixture import lesson
from llama4_edge import Model, convert
from llama4_edge.runtime.activations import ActivationSums, Total

Floats = npt.NDArray[np.float64]

SEEN = (8, 16, 32, 64, 128, 256, 512)
BESIDE = (16, 32, 64)
DRAWS = 20


def main() -> None:
    """Print a table for each tensor of experts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lessons", type=int, default=400)
    with TemporaryDirectory(prefix="starved-") as directory:
        path = Path(directory) / "demo.gguf"
        convert(MODEL, path, recipe="bf16", vision=False)
        pieces = list(each_lesson(path, parser.parse_args().lessons))
    for name in sorted(pieces[0]):
        if "ffn_gate_exps" not in name:  # which has the input of ffn_up_exps
            print_table(name, [piece[name] for piece in pieces])


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


def print_table(name: str, pieces: list[Total]) -> None:
    """The errors of each estimate, means over experts and draws."""
    sums = np.sum([piece.sums for piece in pieces], axis=0)
    counts = np.sum([piece.counts for piece in pieces], axis=0)
    errors: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for expert, count in enumerate(counts):
        truth = sums[expert] / count
        others = (sums.sum(0) - sums[expert]) / (counts.sum() - count)
        flat = np.full_like(others, others.mean())
        errors["others", 0].append(error(others, truth))
        errors["flat", 0].append(error(flat, truth))
        for seen in SEEN:
            for own, n in draws(pieces, expert, seen):
                errors["own", seen].append(error(own / n, truth))
                for k in BESIDE:
                    for word, mean in (("others'", others), ("flat", flat)):
                        estimate = (own + k * mean) / (n + k)
                        errors[f"own and {k} {word}", seen].append(error(estimate, truth))
    print(f"\n{name}: {counts.min():,} to {counts.max():,} tokens an expert")
    for word in ("others", "flat"):
        print(f"  {word:<18}{fmean(errors[word, 0]):8.3f}")
    print("  " + "tokens seen".ljust(18) + "".join(f"{seen:8}" for seen in SEEN))
    words = ["own", *(f"own and {k} {word}" for word in ("others'", "flat") for k in BESIDE)]
    for word in words:
        print(f"  {word:<18}" + "".join(f"{fmean(errors[word, seen]):8.3f}" for seen in SEEN))


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


def error(estimate: Floats, truth: Floats) -> float:
    """Of the logarithm, root mean square, weighted with the truth and without its level."""
    logarithm = np.log((estimate + 1e-12) / (truth + 1e-12))
    logarithm -= np.average(logarithm, weights=truth)
    return float(np.sqrt(np.average(np.square(logarithm), weights=truth)))


if __name__ == "__main__":
    main()
