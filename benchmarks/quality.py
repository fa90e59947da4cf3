"""What each recipe costs a small model, with and without activation statistics.

    python -m benchmarks.quality
    python -m benchmarks.quality demo/out/Llama-4-Tiny-32E --imatrix --plot kl.png --json kl.json
    python -m benchmarks.quality --recipes int4,q4_k_m,mine.json

Converts the checkpoint with each recipe, llama.cpp's own among them (to llama-quantize's bytes),
and compares every file with the one in bf16 by `llama4_edge.compare`: on the held-out conversations
of the model in the box, every token of them, and on questions whose wrong answers differ from the
right one in a word or a digit. The statistics (`--imatrix`) are those of other conversations.
Beside what was measured stands what the recipe would weigh for Scout and for Maverick.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peer import OUT
from benchmarks.quality_texts import calibration_text, held_out_text, questions
from demo.training import MODEL
from llama4_edge import (
    CompareProgress,
    Comparison,
    Llama4EdgeError,
    ModelResult,
    calibrate,
    compare,
    convert,
    inspect,
)
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.figures import check_figure
from llama4_edge.measure.divergence_plot import plot
from llama4_edge.quant.recipe_file import as_recipe

RECIPES = "int8,q6_k,q5_k_m,q5_k_s,int4,q4_k_m,q4_k_s,iq4_xs,int3,q3_k_m,q3_k_s,q2_k"
_PRESETS = ("scout", "maverick")


@dataclass(frozen=True)
class Quantized:
    """A file of a recipe: `bits` of an expert's weight, and bytes of the presets with it."""

    recipe: str
    imatrix: bool
    file: Path
    bits: float
    sizes: dict[str, int]

    def as_dict(self, result: ModelResult) -> dict[str, Any]:
        """What is known of it, for JSON."""
        names = {"recipe": self.recipe, "imatrix": self.imatrix, "expert_bits": self.bits}
        sizes = {f"{preset}_bytes": size for preset, size in self.sizes.items()}
        return {**names, **sizes, **result.as_dict()}


def main() -> int:
    """Convert, compare, and print; the exit status."""
    try:
        run()
    except Llama4EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run() -> None:
    """Convert, compare, and print what was asked for.

    Raises:
        Llama4EdgeError: the checkpoint, a recipe or the plot's name is none.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", default=MODEL)
    parser.add_argument("--recipes", default=RECIPES, help="names and recipe files")
    parser.add_argument("--imatrix", action="store_true", help="each with statistics as well")
    parser.add_argument("--chunks", type=int, help="of 512 tokens; all by default")
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--directory", type=Path, default=OUT / "quality")
    arguments = parser.parse_args()
    recipes = arguments.recipes.split(",")
    for recipe in recipes:  # hours before the last of them is needed
        as_recipe(recipe)
    if arguments.plot is not None:
        check_figure(arguments.plot)
    convert(arguments.checkpoint, recipe="bf16", vision=False, dry_run=True)
    directory = arguments.directory / arguments.checkpoint.name
    directory.mkdir(parents=True, exist_ok=True)
    reference = directory / "bf16.gguf"
    convert(arguments.checkpoint, reference, recipe="bf16", vision=False, force=True)
    imatrix = statistics_of(reference) if arguments.imatrix else None
    files = list(quantized(arguments.checkpoint, directory, recipes, imatrix))
    found = compare(
        reference,
        [one.file for one in files],
        text=held_out_text(),
        special=True,
        questions=questions(arguments.questions),
        n_chunks=arguments.chunks,
        n_threads=arguments.threads,
        progress=show,
    )
    Console(width=160).print(table_of(files, found))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(record_of(files, found), indent=1) + "\n")
    if arguments.plot is not None:
        plot(found, arguments.plot)


def statistics_of(reference: Path) -> Path:
    """The activation statistics of the calibration text, taken once."""
    imatrix = reference.with_name("imatrix.gguf")
    imatrix.unlink(missing_ok=True)
    calibrate(reference, imatrix, text=calibration_text(), special=True, perplexity=False)
    return imatrix


def quantized(
    checkpoint: Path, directory: Path, recipes: Iterable[str], imatrix: Path | None
) -> Iterable[Quantized]:
    """A file of each recipe, and where there are statistics another with them."""
    for recipe in recipes:
        sizes = {preset: blueprint(preset, recipe=recipe).nbytes for preset in _PRESETS}
        name = Path(recipe).stem
        for statistics in (None, imatrix) if imatrix else (None,):
            label = name if statistics is None else f"{name}, imatrix"
            file = directory / f"{label}.gguf"
            convert(checkpoint, file, recipe=recipe, imatrix=statistics, vision=False, force=True)
            yield Quantized(name, statistics is not None, file, expert_bits(file), sizes)


def expert_bits(file: Path) -> float:
    """Bits of an expert's weight."""
    roles = {role.role: role for role in inspect(file).summary.roles}
    return roles["expert"].bits_per_weight


def show(progress: CompareProgress) -> None:
    """A line for each model that is done."""
    if progress.done == progress.total:
        print(f"compared {Path(progress.model).stem}", flush=True)


def table_of(files: Iterable[Quantized], found: Comparison) -> Table:
    """What was found, a row for each file."""
    table = Table(title=f"{found.n_tokens:,} predictions, {found.n_questions} questions")
    for heading in ("recipe", "imatrix"):
        table.add_column(heading)
    for heading in (
        *("MB", "experts' bits", "mean KL", "median", "99%", "max", "same top"),
        *("perplexity", "right", *(f"{preset.capitalize()}, GB" for preset in _PRESETS)),
    ):
        table.add_column(heading, justify="right")
    table.add_row("bf16", "", *cells_of(found.reference, 16.0, {}))
    for one, result in zip(files, found.candidates, strict=True):
        cells = cells_of(result, one.bits, one.sizes)
        table.add_row(one.recipe, "yes" if one.imatrix else "", *cells)
    return table


def cells_of(result: ModelResult, bits: float, sizes: dict[str, int]) -> list[str]:
    """A row's numbers."""
    perplexity, right = result.perplexity, result.accuracy
    assert result.bytes is not None and perplexity is not None
    cells = [f"{result.bytes / 1e6:.2f}", f"{bits:.2f}"]
    if result.statistics is None:
        cells += ["", "", "", "", ""]
    else:
        kl, one = result.statistics.kl_mean, result.statistics
        cells += [f"{kl.value:.2e} ± {kl.error:.0e}", f"{one.kl_median:.1e}", f"{one.kl_p99:.1e}"]
        cells += [f"{one.kl_max:.2f}", f"{one.same_top.value:.2%}"]
    cells.append(f"{perplexity.value:.4g}")
    cells.append("" if right is None else f"{right.value:.1%}")
    return [*cells, *(f"{size / 1e9:.1f}" for size in sizes.values())]


def record_of(files: Iterable[Quantized], found: Comparison) -> dict[str, Any]:
    """All of it, for JSON."""
    pairs = zip(files, found.candidates, strict=True)
    return {**found.as_dict(), "candidates": [one.as_dict(result) for one, result in pairs]}


if __name__ == "__main__":
    sys.exit(main())
