"""Reading and answering beside llama-bench: the same file, threads and tokens, in one run.

    python -m benchmarks.decode [--recipes int4,q4_0] [--layers 4] [--rounds 3]

Makes a slice of Scout (all widths, a few layers, random weights) and measures it by turns with
llama-bench and with `llama4 bench`, which both load the libraries of llama-cpp-python and visit the
same experts, because both draw their tokens from C's rand(). Every round is a process of its own,
and prints tokens a second and the ratio; the last lines have the medians, and the best repetition
of each, which says more where other work disturbs.
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
    measured = [
        "-p", arguments.prompt, "-n", arguments.generate, "-d", arguments.depth,
        "-t", str(arguments.threads), "-r", str(arguments.repetitions),
    ]  # fmt: skip
    for recipe in arguments.recipes.split(","):
        drawn = blueprint(arguments.model, recipe=recipe, layers=arguments.layers, synthetic=True)
        with synthetic_file(drawn, arguments.directory, keep=True) as path:
            print(f"{path.name}, {drawn.nbytes / 1e9:.1f} GB, {arguments.threads} threads")
            compare(path, measured, arguments.rounds, arguments.directory)


def compare(path: Path, measured: list[str], rounds: int, directory: Path) -> None:
    """Both tools by turns, each first every other time."""
    means: dict[str, list[tuple[float, float]]] = {}
    bests: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        tools = [lambda: our_bench(path, *measured)]
        tools.append(lambda: llama_bench(path, *measured, directory=directory))
        order = (0, 1) if number % 2 == 0 else (1, 0)
        records = {index: tools[index]() for index in order}
        for ours, peer in zip(records[0], records[1], strict=True):
            assert ours["model_n_params"] == peer["model_n_params"]
            kind = "pp" if ours["n_prompt"] else "tg"
            name = f"{kind}{ours['n_prompt'] or ours['n_gen']} @ d{ours['n_depth']}"
            means.setdefault(name, []).append((ours["avg_ts"], peer["avg_ts"]))
            bests.setdefault(name, []).append((max(ours["samples_ts"]), max(peer["samples_ts"])))
            print(line(name, *means[name][-1]), flush=True)
    for word, choose, seen in (("median", median, means), ("best", max, bests)):
        for name, pairs in seen.items():
            ours, peer = (choose(one) for one in zip(*pairs, strict=True))
            print(f"{word} {line(name, ours, peer)}", flush=True)


def line(name: str, ours: float, peer: float) -> str:
    """Both rates and their ratio."""
    return f"{name}: ours {ours:.2f} tokens/s, llama-bench {peer:.2f}, ratio {ours / peer:.3f}"


if __name__ == "__main__":
    main()
