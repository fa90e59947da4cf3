"""The cost of quantization: our recipes compared with llama.cpp's, on demo/Llama-4-Tiny.

    python -m benchmarks.quality [--recipes int8,q8_0,int4,q4_k_m,q4_0]

Converts the model with each recipe (llama.cpp's recipes give the bytes of llama-quantize) and asks
every file the questions of the examination. Prints for each recipe the bits a weight, the share of
correct answers, and, over the tokens of the correct answers, the mean KL divergence from the bf16
file's predictions and how often the likeliest token is the same. A model of 6 million parameters
has less redundancy than one of 108 billion: the figures do not hold for Scout.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.peer import OUT
from demo.training import MODEL
from demo.training.encoding import Encoded, encode
from demo.training.evaluate import text_scores
from demo.training.lessons.mixture import examination
from llama4_edge import Model, convert

Predictions = npt.NDArray[np.float64]


def main() -> None:
    """Convert and compare recipe by recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipes", default="int8,q8_0,int4,q4_k_m,q4_0")
    parser.add_argument("--directory", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    questions = examination()
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    encoded = [encode(tokenizer, question) for question in questions]
    table = Table("recipe", "bits a weight", "correct answers", "mean KL", "same token")
    reference: list[Predictions] = []
    for recipe in ("bf16", *arguments.recipes.split(",")):
        file = arguments.directory / f"llama-4-tiny-{recipe}.gguf"
        report = convert(MODEL, file, recipe=recipe, force=True)
        current = predictions(file, encoded)
        reference = reference or current
        divergence, same = compare(current, reference)
        score = text_scores(file, questions, [])["text"]
        table.add_row(
            recipe,
            f"{report.bits_per_weight:.2f}",
            f"{score:.1%}",
            f"{divergence:.2e}",
            f"{same:.2%}",
        )
    Console().print(table)


def predictions(file: Path, talks: list[Encoded]) -> list[Predictions]:
    """For each answer the log-probabilities before each of its tokens, [tokens, vocabulary]."""
    predictions = []
    with Model(file, n_ctx=2048, n_threads=1) as model:
        for talk in talks:
            before = np.flatnonzero(talk.answers) - 1
            logits = model.logits(talk.ids)[before].astype(np.float64)
            predictions.append(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    return predictions


def compare(ours: list[Predictions], reference: list[Predictions]) -> tuple[float, float]:
    """The mean KL divergence, and the share of tokens with the same likeliest token."""
    all_ours, all_theirs = np.concatenate(ours), np.concatenate(reference)
    divergence = (np.exp(all_theirs) * (all_theirs - all_ours)).sum(-1)
    return float(divergence.mean()), float((all_ours.argmax(-1) == all_theirs.argmax(-1)).mean())


if __name__ == "__main__":
    main()
