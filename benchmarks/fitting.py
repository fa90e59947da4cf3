"""Types that `llama4_edge.fit` chooses beside fixed recipes and published presets of equal size.

    python -m benchmarks.fitting [CHECKPOINT] [--chunks 40] [--json fit.json]
    python -m benchmarks.fitting --slice
    python -m benchmarks.fitting --perturb Q8_0,Q6_K,Q4_K,Q3_K,Q2_K --chunks 10

Converts a checkpoint with each recipe of ours and of llama-quantize's, and with mixes that people
publish (`PRESETS`: what llama-quantize makes with --tensor-type), then fits it to the size of each
of those files, all with the same activation statistics. Prints for every file the KL divergence
from bf16 on held-out text; the one that the estimate expects, with the errors of all rows (of large
matrices, every fourth piece); and the reconstruction error, weighted with activations, as a share
of the residual stream where it is added, summed over all matrices: the same without the factors of
their kinds. In the end, whether files are in the same order by both divergences.

--slice takes four layers of Scout's widths, whose weights have the statistics of the demo model's
(`benchmarks.slices`), on few tokens; token embedding and output, a thousand rows of 202,048, are in
Q8_0 in all files. --perturb tries the other way to sensitivities: each tensor alone in each type,
its cost measured by running the model; what is chosen by those costs stands beside what the
estimate chooses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from benchmarks.conversion import SLICE
from benchmarks.peer import OUT
from benchmarks.quality_texts import calibration_text, held_out_text
from benchmarks.slices import write_trained_slice
from demo.training import MODEL
from llama4_edge import Fit, Recipe, calibrate, compare, convert, fit
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

SLICE_RECIPES = "int4,q4_k_m,iq4_xs,q3_k_m,q2_k"
SLICE_TYPES = (("^(token_embd|output)\\.", "q8_0"),)

_NUMBERS = 1 << 22  # that are decoded at a time
_STRIDE = 4  # of larger matrices, one piece in so many is


@dataclass(frozen=True)
class Row:
    """One file: its bytes, its KL divergence from bf16 and the expected one, and the sum of its
    matrices' reconstruction errors as shares of the residual stream."""

    name: str
    bytes: int
    kl: float
    kl_error: float
    expected_kl: float
    stream_error: float


@dataclass(frozen=True)
class Price:
    """What a relative error of 1 of a tensor's output is, of the stream and in nats."""

    share: float
    factor: float


@dataclass(frozen=True)
class Setting:
    """What all files are made and measured with."""

    checkpoint: Path
    directory: Path
    imatrix: Path
    reference: Path
    bf16: Path
    threads: int | None
    types: tuple[tuple[str, str], ...] = ()

    def row(
        self,
        name: str,
        prices: Mapping[str, Price],
        recipe: str | Recipe,
        types: Sequence[tuple[str, str]] = (),
    ) -> Row:
        """Convert with these types, measure, and remove the file."""
        path = self.directory / "candidate.gguf"
        convert(
            self.checkpoint, path, recipe=recipe, types=[*self.types, *types],
            imatrix=self.imatrix, vision=False, force=True,
        )  # fmt: skip
        found = compare(self.reference, [path], n_threads=self.threads).candidates[0].statistics
        assert found is not None
        errors = relative_errors(self.bf16, path, read_importance(self.imatrix), prices)
        row = Row(
            name=name,
            bytes=path.stat().st_size,
            kl=found.kl_mean.value,
            kl_error=found.kl_mean.error,
            expected_kl=sum(prices[name].factor * error for name, error in errors.items()),
            stream_error=sum(prices[name].share * error for name, error in errors.items()),
        )
        path.unlink()
        return row

    def fitted(self, size: int) -> Fit:
        """The fit to a size."""
        return fit(
            self.checkpoint, target_size=size, types=self.types, imatrix=self.imatrix, vision=False
        )


def main() -> None:
    """Convert, fit, compare, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", default=MODEL)
    parser.add_argument("--slice", action="store_true")
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--recipes")
    parser.add_argument("--no-presets", action="store_true")
    parser.add_argument("--perturb", default="")
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, default=OUT / "fitting")
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint
    if arguments.slice:
        arguments.chunks, arguments.tokens = arguments.chunks or 4, arguments.tokens or 128
        checkpoint = arguments.directory / f"trained-slice-{arguments.experts}"
        if not checkpoint.is_dir():
            geometry = replace(SLICE, vocabulary=1024, experts=arguments.experts)
            write_trained_slice(checkpoint, geometry)
    setting = prepared(checkpoint, arguments)
    recipes = arguments.recipes or (SLICE_RECIPES if arguments.slice else RECIPES)
    pairs = list(compared(setting, recipes.split(","), presets=not arguments.no_presets))
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
        n_ctx=arguments.tokens or 512, n_chunks=arguments.chunks,
    )  # fmt: skip
    compare(
        bf16, text=held_out_text(), special=True, n_ctx=arguments.tokens or 512,
        n_chunks=arguments.chunks, save=reference, n_threads=arguments.threads,
    )  # fmt: skip
    types = SLICE_TYPES if arguments.slice else ()
    return Setting(checkpoint, directory, imatrix, reference, bf16, arguments.threads, types)


def compared(
    setting: Setting, recipes: Sequence[str], *, presets: bool
) -> Iterator[tuple[Row, Row]]:
    """Each fixed mix and the fit of its size, which are printed."""
    mixes: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {it: (it, ()) for it in recipes}
    mixes |= PRESETS if presets else {}
    prices = prices_of(setting)
    columns = ("MB", "KL x 1000", "expected", "error")
    print(_LINE.format("mix", *columns, *(f"fit {one}" for one in columns)))
    for name, (recipe, types) in mixes.items():
        fixed = setting.row(name, prices, recipe, types)
        ours = setting.row(f"fit to {name}", prices, setting.fitted(fixed.bytes).recipe)
        print_pair(fixed, ours)
        yield fixed, ours


_LINE = "{:36} {:>8} {:>15} {:>8} {:>8} {:>8} {:>15} {:>12} {:>9}"


def print_pair(fixed: Row, ours: Row) -> None:
    """A line of the table."""
    cells = [fixed.name]
    for row in (fixed, ours):
        cells += [f"{row.bytes / 1e6:.2f}", f"{row.kl * 1e3:.2f} ± {row.kl_error * 1e3:.2f}"]
        cells += [f"{row.expected_kl * 1e3:.2f}", f"{row.stream_error:.2e}"]
    print(_LINE.format(*cells), flush=True)


def summary(pairs: Sequence[tuple[Row, Row]]) -> str:
    """How often the fit is better, by how much on average, and how good the estimate is."""
    lines = []
    for name, field in (("KL", "kl"), ("error", "stream_error")):
        ratios = [getattr(ours, field) / getattr(fixed, field) for fixed, ours in pairs]
        lines.append(
            f"{name} of the fit: less in {sum(it < 1 for it in ratios)} of {len(ratios)}, "
            f"{np.exp(np.mean(np.log(ratios))):.2f} times on geometric average, "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )
    for name, rows in (
        ("all files", [row for pair in pairs for row in pair]),
        ("fits", [ours for _, ours in pairs]),
    ):
        if len(rows) > 2:
            correlation = rank_correlation([it.kl for it in rows], [it.expected_kl for it in rows])
            lines.append(f"rank correlation of expected and measured KL, {name}: {correlation:.2f}")
    return "\n".join(lines)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, of numbers that all differ."""
    ranks = [np.argsort(np.argsort(one)) for one in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def prices_of(setting: Setting) -> dict[str, Price]:
    """What a relative error of each tensor costs, by the estimate."""
    types = [(".", "q8_0")]
    found = fit(setting.checkpoint, target_bpw=16, types=types, imatrix=setting.imatrix)
    return {one.name: Price(one.share, one.cost / one.error) for one in found.tensors if one.error}


def relative_errors(
    reference: Path, candidate: Path, importance: Importance, names: Collection[str]
) -> dict[str, float]:
    """The relative errors of these tensors, of every row."""
    others = {one.name: one for one in read_gguf(candidate).tensors}
    tensors = [one for one in read_gguf(reference).tensors if one.name in names]

    def error(one: TensorInfo) -> float:
        return relative_error(reference, one, candidate, others[one.name], importance)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((one.name for one in tensors), pool.map(error, tensors), strict=True))


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
    stride = step * (_STRIDE if step < rows // matrices else 1)
    for matrix in range(matrices):
        for begin in range(0, rows // matrices, stride):
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
    prices = prices_of(setting)
    shapes = {
        one.name: one.shape[::-1] for one in read_gguf(setting.bf16).tensors if one.name in prices
    }
    measured: dict[tuple[str, str], float] = {}
    for name in shapes:
        for kind in types:
            row = setting.row(name, {}, "bf16", [(exactly(name), kind)])
            measured[name, kind] = row.kl
        print(f"perturbed {name}", flush=True)
    estimated = {
        (one.name, kind): one.cost for kind in types for one in setting_fit(setting, kind).tensors
    }
    print("types by the estimate, and as fit by perturbation:")
    for fixed, _ in pairs:
        rows = []
        for label, costs in (("estimate", estimated), ("perturbation", measured)):
            chosen = chosen_types(shapes, types, costs, fixed.bytes)
            if chosen is None:
                break
            pairs_of = [(exactly(name), kind) for name, kind in chosen.items()]
            rows.append(setting.row(f"{label}, {fixed.name}", prices, "bf16", pairs_of))
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
