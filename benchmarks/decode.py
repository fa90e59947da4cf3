"""Prefill and decode speed compared with llama-bench: same file, threads and tokens, one run.

    python -m benchmarks.decode [--recipes int4,q4_0] [--layers 4] [--rounds 3]

Makes a slice of Scout (all widths, a few layers, random weights) and measures it alternately with
llama-bench and with `llama4 bench`. Both load the libraries of llama-cpp-python, and both take
their tokens from C's rand(), so that they use the same experts. Every round is a process of its own
and prints tokens a second and the ratio. The last lines have the medians, and the best repetition
of each, which is more reliable on a machine with other work.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median

from benchmarks.peer import OUT, llama_bench, our_bench
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.measure.synthetic import synthetic_file


def main() -> None:
    """Compare recipe by recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="scout")
    parser.add_argument("--recipes", default="int4,q4_0")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", default="512")
    parser.add_argument("--generate", default="32")
    parser.add_argument("--depth", default="0")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    options = [
        "-p", arguments.prompt, "-n", arguments.generate, "-d", arguments.depth,
        "-t", str(arguments.threads), "-r", str(arguments.repetitions),
    ]  # fmt: skip
    for recipe in arguments.recipes.split(","):
        model = blueprint(arguments.model, recipe=recipe, layers=arguments.layers, synthetic=True)
        with synthetic_file(model, arguments.directory, keep=True) as path:
            print(f"{path.name}, {model.nbytes / 1e9:.1f} GB, {arguments.threads} threads")
            compare(path, options, arguments.rounds, arguments.directory)


def compare(path: Path, options: list[str], rounds: int, directory: Path) -> None:
    """Run both tools alternately; each is first in every second round."""
    means: dict[str, list[tuple[float, float]]] = {}
    bests: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        tools = [lambda: our_bench(path, *options)]
        tools.append(lambda: llama_bench(path, *options, directory=directory))
        order = (0, 1) if number % 2 == 0 else (1, 0)
        records = {index: tools[index]() for index in order}
        for ours, peer in zip(records[0], records[1], strict=True):
            assert ours["model_n_params"] == peer["model_n_params"]
            kind = "pp" if ours["n_prompt"] else "tg"
            name = f"{kind}{ours['n_prompt'] or ours['n_gen']} @ d{ours['n_depth']}"
            means.setdefault(name, []).append((ours["avg_ts"], peer["avg_ts"]))
            bests.setdefault(name, []).append((max(ours["samples_ts"]), max(peer["samples_ts"])))
            print(line(name, *means[name][-1]), flush=True)
    for word, choose, rates in (("median", median, means), ("best", max, bests)):
        for name, pairs in rates.items():
            ours, peer = (choose(values) for values in zip(*pairs, strict=True))
            print(f"{word} {line(name, ours, peer)}", flush=True)


def line(name: str, ours: float, peer: float) -> str:
    """Both rates and their ratio."""
    return f"{name}: ours {ours:.2f} tokens/s, llama-bench {peer:.2f}, ratio {ours / peer:.3f}"


if __name__ == "__main__":
    main()
