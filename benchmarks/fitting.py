"""Types that `llama4_edge.fit` chooses beside fixed recipes and published presets of equal size.

    python -m benchmarks.fitting [CHECKPOINT] [--chunks 40] [--json fit.json]
    python -m benchmarks.fitting --slice --experts 2 --chunks 2 --tokens 128
    python -m benchmarks.fitting --perturb Q8_0,Q6_K,Q4_K,Q3_K,Q2_K --chunks 10

Converts a checkpoint with each recipe of ours and of llama-quantize's, and with mixes that people
publish (`PRESETS`: what llama-quantize makes with --tensor-type), then fits it to the size of each
of those files, all with the same activation statistics. Prints for every pair the KL divergence
from bf16 on held-out text, and the reconstruction error over all rows, weighted with activations
and with the factors of `measure.sensitivity`. --slice takes random weights of Scout's widths.
--perturb tries the other way to sensitivities: each tensor alone in each type, its cost measured by
running the model; what is chosen by those costs stands beside what the estimate chooses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from benchmarks.conversion import SLICE
from benchmarks.peer import OUT
from benchmarks.quality_texts import calibration_text, held_out_text
from demo.checkpoint import write_checkpoint
from demo.training import MODEL
from llama4_edge import Fit, calibrate, compare, convert, fit
from llama4_edge.quant.encode import Floats, decode_blocks
from llama4_edge.quant.importance import Importance
from llama4_edge.quant.importance_file import read_importance
from llama4_edge.quant.knapsack import Choice, solve
from llama4_edge.quant.types import BF16, TYPES
from llama4_edge.runtime.files.gguf_file import TensorInfo, read_gguf

RECIPES = "int8,q6_k,q5_k_m,int4,q4_k_m,q4_k_s,iq4_xs,q4_0,q3_k_l,q3_k_m,q3_k_s,q2_k"

PRESETS: Mapping[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "q4_k_m, attention q8_0": ("q4_k_m", (("attn_", "q8_0"),)),
    "q4_k_m, attention and shared q8_0": (
        "q4_k_m",
        (("attn_|shexp|ffn_(gate|up|down)\\.", "q8_0"),),
    ),
    "q4_k_m, down_exps q6_k": ("q4_k_m", (("ffn_down_exps", "q6_k"),)),
    "q3_k_m, down_exps q4_k, rest q6_k": (
        "q3_k_m",
        (("ffn_down_exps", "q4_k"), ("ffn_(gate|up)_exps", "q3_k"), (".", "q6_k")),
    ),
    "q2_k, attention and shared q6_k": ("q2_k", (("attn_|shexp|token_embd|output", "q6_k"),)),
}
"""Mixes for models of experts, as people publish them: a recipe, and llama-quantize's flags."""

_NUMBERS = 1 << 24  # that are decoded at a time


@dataclass(frozen=True)
class Row:
    """One file: its bytes, its KL divergence from bf16, and its weighted reconstruction error."""

    name: str
    bytes: int
    kl: float
    kl_error: float
    weighted_error: float


@dataclass(frozen=True)
class Setting:
    """What all files are made and measured with."""

    checkpoint: Path
    directory: Path
    imatrix: Path
    reference: Path
    bf16: Path
    threads: int | None

    def row(self, name: str, factors: Mapping[str, float], **settings: object) -> Row:
        """Convert with these settings, measure, and remove the file."""
        path = self.directory / "candidate.gguf"
        convert(self.checkpoint, path, imatrix=self.imatrix, vision=False, force=True, **settings)  # type: ignore[arg-type]
        found = compare(self.reference, [path], n_threads=self.threads).candidates[0].statistics
        assert found is not None
        error = weighted_error(self.bf16, path, read_importance(self.imatrix), factors)
        row = Row(name, path.stat().st_size, found.kl_mean.value, found.kl_mean.error, error)
        path.unlink()
        return row

    def fitted(self, size: int) -> Fit:
        """The fit to a size."""
        return fit(self.checkpoint, target_size=size, imatrix=self.imatrix)


def main() -> None:
    """Convert, fit, compare, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", default=MODEL)
    parser.add_argument("--slice", action="store_true")
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--no-presets", action="store_true")
    parser.add_argument("--perturb", default="")
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, default=OUT / "fitting")
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint
    if arguments.slice:
        checkpoint = arguments.directory / f"slice-{arguments.experts}"
        if not checkpoint.is_dir():
            geometry = replace(SLICE, vocabulary=1024, experts=arguments.experts)
            write_checkpoint(checkpoint, geometry)
    setting = prepared(checkpoint, arguments)
    pairs = list(compared(setting, arguments.recipes.split(","), presets=not arguments.no_presets))
    print(summary(pairs))
    record = {"pairs": [[asdict(row) for row in pair] for pair in pairs]}
    if arguments.perturb:
        types = arguments.perturb.split(",")
        record["perturbed"] = [
            [asdict(row) for row in pair] for pair in perturbed(setting, types, pairs)
        ]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def prepared(checkpoint: Path, arguments: argparse.Namespace) -> Setting:
    """The file in bf16, its predictions, and its activation statistics."""
    directory: Path = arguments.directory / checkpoint.name
    directory.mkdir(parents=True, exist_ok=True)
    bf16, imatrix = directory / "bf16.gguf", directory / "imatrix.gguf"
    reference = directory / "reference"
    for path in (imatrix, reference):
        path.unlink(missing_ok=True)
    convert(checkpoint, bf16, recipe="bf16", vision=False, force=True)
    calibrate(
        bf16, imatrix, text=calibration_text(60 if arguments.slice else 600), special=True,
        n_ctx=arguments.tokens, n_chunks=arguments.chunks,
    )  # fmt: skip
    compare(
        bf16, text=held_out_text(), special=True, n_ctx=arguments.tokens,
        n_chunks=arguments.chunks, save=reference, n_threads=arguments.threads,
    )  # fmt: skip
    return Setting(checkpoint, directory, imatrix, reference, bf16, arguments.threads)


def compared(
    setting: Setting, recipes: Sequence[str], *, presets: bool
) -> Iterator[tuple[Row, Row]]:
    """Each fixed mix and the fit of its size, which are printed."""
    mixes: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {it: (it, ()) for it in recipes}
    mixes |= PRESETS if presets else {}
    factors = factors_of(setting)
    print(_LINE.format("mix", "MB", "KL", "error", "fit MB", "KL", "error", "KL ratio"))
    for name, (recipe, types) in mixes.items():
        fixed = setting.row(name, factors, recipe=recipe, types=types)
        found = setting.fitted(fixed.bytes)
        ours = setting.row(f"fit to {name}", factors, recipe=found.recipe)
        print_pair(fixed, ours)
        yield fixed, ours


_LINE = "{:36} {:>9} {:>17} {:>9} {:>9} {:>17} {:>9} {:>8}"


def print_pair(fixed: Row, ours: Row) -> None:
    """A line of the table."""
    cells = [fixed.name]
    for row in (fixed, ours):
        cells += [f"{row.bytes / 1e6:.3f}", f"{row.kl:.5f} ± {row.kl_error:.5f}"]
        cells.append(f"{row.weighted_error:.2e}")
    print(_LINE.format(*cells, f"{ours.kl / fixed.kl:.2f}"), flush=True)


def summary(pairs: Sequence[tuple[Row, Row]]) -> str:
    """How often the fit is better, and by how much on average."""
    kl = [ours.kl / fixed.kl for fixed, ours in pairs]
    error = [ours.weighted_error / fixed.weighted_error for fixed, ours in pairs]
    return (
        f"KL is less in {sum(it < 1 for it in kl)} of {len(kl)}, on average "
        f"{np.exp(np.mean(np.log(kl))):.2f} times as much; the weighted error in "
        f"{sum(it < 1 for it in error)}, {np.exp(np.mean(np.log(error))):.2f} times"
    )


def factors_of(setting: Setting) -> dict[str, float]:
    """What a relative error of each tensor costs, by the estimate."""
    types = [(".", "q8_0")]
    found = fit(setting.checkpoint, target_bpw=16, types=types, imatrix=setting.imatrix)
    return {one.name: one.cost / one.error for one in found.tensors if one.error}


def weighted_error(
    reference: Path, candidate: Path, importance: Importance, factors: Mapping[str, float]
) -> float:
    """The sum of relative errors of all tensors, of every row, times their factors."""
    total = 0.0
    others = {one.name: one for one in read_gguf(candidate).tensors}
    for one in read_gguf(reference).tensors:
        if one.name in factors:
            other = others[one.name]
            total += factors[one.name] * relative_error(
                reference, one, candidate, other, importance
            )
    return total


def relative_error(
    reference: Path, one: TensorInfo, candidate: Path, other: TensorInfo, importance: Importance
) -> float:
    """The activation-weighted error of a tensor, relative to its output."""
    rows, length = prod(one.shape[1:]), one.shape[0]
    matrices = prod(one.shape[2:])
    activations = importance.tensors.get(one.name)
    weights = np.ones((matrices, length)) if activations is None else activations.sums
    error = power = 0.0
    step = min(max(1, _NUMBERS // length), rows // matrices)
    for matrix in range(matrices):
        for begin in range(0, rows // matrices, step):
            count = min(step, rows // matrices - begin)
            first = matrix * (rows // matrices) + begin
            exact = decoded(reference, one, first, count)
            changed = decoded(candidate, other, first, count)
            error += float((np.square(changed - exact) @ weights[matrix]).sum(dtype=np.float64))
            power += float((np.square(exact) @ weights[matrix]).sum(dtype=np.float64))
    return error / power if power else 0.0


def decoded(path: Path, tensor: TensorInfo, first: int, count: int) -> Floats:
    """Rows of a tensor, [count, row_length]."""
    length, encoding = tensor.shape[0], tensor.encoding
    row = encoding.row_bytes(length)
    data = np.fromfile(path, np.uint8, count * row, offset=tensor.offset + first * row)
    floats = np.empty((count, length), np.float32)
    if encoding is BF16:
        floats.view(np.uint32)[:] = data.view(np.uint16).reshape(count, length)
        floats.view(np.uint32)[:] <<= 16
    else:
        decode_blocks(data, encoding, floats)
    return floats


# --- the other way to sensitivities


def perturbed(
    setting: Setting, types: Sequence[str], pairs: Sequence[tuple[Row, Row]]
) -> Iterator[tuple[Row, Row]]:
    """What is chosen by measured costs beside what is chosen by the estimate, of these types."""
    factors = factors_of(setting)
    shapes = {
        one.name: one.shape[::-1] for one in read_gguf(setting.bf16).tensors if one.name in factors
    }
    measured: dict[tuple[str, str], float] = {}
    for name in shapes:
        for kind in types:
            row = setting.row(name, {}, recipe="bf16", types=[(exactly(name), kind)])
            measured[name, kind] = row.kl
        print(f"perturbed {name}", flush=True)
    estimated = {
        (one.name, kind): one.cost for kind in types for one in setting_fit(setting, kind).tensors
    }
    print(_LINE.format("types by", "MB", "KL", "error", "measured", "KL", "error", "ratio"))
    for fixed, _ in pairs:
        rows = []
        for label, costs in (("estimate", estimated), ("perturbation", measured)):
            chosen = chosen_types(shapes, types, costs, fixed.bytes)
            if chosen is None:
                break
            pairs_of = [(exactly(name), kind) for name, kind in chosen.items()]
            rows.append(
                setting.row(f"{label}, {fixed.name}", factors, recipe="bf16", types=pairs_of)
            )
        if len(rows) == 2:
            print_pair(rows[0], rows[1])
            yield rows[0], rows[1]


def setting_fit(setting: Setting, kind: str) -> Fit:
    """All tensors in one type, for what that is estimated to cost."""
    return fit(setting.checkpoint, target_bpw=32, types=[(".", kind)], imatrix=setting.imatrix)


def chosen_types(
    shapes: Mapping[str, tuple[int, ...]],
    types: Sequence[str],
    costs: Mapping[tuple[str, str], float],
    size: int,
) -> dict[str, str] | None:
    """The best types by these costs for a file of so many bytes; None where none fit."""
    options = [
        [Choice(TYPES[kind.upper()].nbytes(shape), costs[name, kind]) for kind in types]
        for name, shape in shapes.items()
    ]
    try:
        found = solve(options, size)
    except ValueError:
        return None
    return {name: types[it] for name, it in zip(shapes, found.chosen, strict=True)}


def exactly(name: str) -> str:
    """The regular expression of one name."""
    return f"^{name.replace('.', chr(92) + '.')}$"


if __name__ == "__main__":
    main()
