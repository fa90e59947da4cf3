"""What each type of each tensor costs in predictions, estimated without running the model.

For each tensor and type some rows are encoded and decoded. The error is the activation-weighted
one, ``sum_j E[x_j^2] (w - q(w))_j^2`` over the rows and, by how often each is chosen, the experts;
divided by the same of ``w``, it is the error of the tensor's output relative to that output.

What such an error costs in KL divergence is a factor of each tensor, the same for all types: as
small errors are independent, it is the curvature of the divergence in the direction of the tensor's
output. The output of a block is added to the residual stream, which is normalized before it is used
again: an error of a share of the stream is one of that share wherever the stream is used. So the
factor is the block's share of the stream's power where it is added (`Measurement.share`), times a
factor of the tensor's kind, which was measured on the demo model (`FACTORS`; benchmarks/fitting.py
measures it again). Powers come from the activation statistics, or without them from the norms.

Promises the same figures for the same files. Knows neither budgets nor recipes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
import numpy.typing as npt

from ..convert.job import Job
from ..progress import Progress
from ..quant.encode import Floats, decode_blocks, encode_rows
from ..quant.importance import Activations, Importance
from ..quant.roles import role_of
from ..quant.types import TensorType
from ..system.cores import usable_threads
from ..system.threads import end
from .samples import MOST_MATRICES, Rows, read_samples

FACTORS: Mapping[str, float] = {
    "token_embd": 0.34,
    "output": 0.06,
    "attn_q": 0.15,
    "attn_k": 0.18,
    "attn_v": 0.15,
    "attn_output": 0.15,
    "ffn_gate": 0.06,
    "ffn_up": 0.035,
    "ffn_down": 0.10,
}
"""KL divergence, in nats, for an output whose error is as large as itself and whose block is all of
the residual stream; by kind of tensor, those of experts and shared experts with the dense ones."""

_KIND = re.compile(r"(?:blk\.(\d+)\.)?(\w+?)(_exps|_shexp)?\.weight")
_PRODUCT_POWER = 12.0
"""How much larger the mean square of ``silu(gate) * up`` is than of independent normal ones, where
there are no statistics that would say it; measured on the demo model, 7 to 18."""
_ROUTED_POWER = 0.5
"""The mean square of a router's weight, a sigmoid of a chosen expert's score, where there are no
statistics that would say it."""


@dataclass(frozen=True)
class Measurement:
    """What is known of one tensor.

    Args:
        errors: by type, of the output relative to it; types that cannot hold it are not there.
        power: mean square of the output for one token, summed over its rows.
        share: of the power of the residual stream that its block's output is, where it is added.
        factor: what a relative error of 1 costs in nats.
    """

    name: str
    shape: tuple[int, ...]
    errors: Mapping[TensorType, float]
    power: float
    share: float
    factor: float

    def cost(self, tensor_type: TensorType) -> float:
        """What the type costs, in nats of KL divergence."""
        return self.factor * self.errors[tensor_type]


def measure_tensors(
    job: Job,
    shapes: Mapping[str, tuple[int, ...]],
    types: Sequence[TensorType],
    importance: Importance | None,
    *,
    n_expert_used: int,
    n_layer: int,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Measurement]:
    """Measure the tensors in `shapes`, by their names.

    Args:
        job: a planned conversion of the model, whose source is read.
        shapes: of the tensors whose type is to be chosen.
        types: those that are tried, where rows are whole blocks of them.
        importance: activation statistics of this model, which weigh columns as a conversion with
            them does.
        progress: called with the bytes read so far.

    Raises:
        DamagedTensorError: a number is NaN or infinite.
        CheckpointError: a file cannot be read.
    """
    inputs = _Inputs(job, shapes, importance)
    pool = ThreadPoolExecutor(threads or usable_threads(), "fit")
    try:
        sums = {name: _Sums(name, shape, types, inputs) for name, shape in shapes.items()}
        read_samples(
            job,
            shapes,
            lambda rows: sums[rows.tensor].add(rows, pool),
            matrices={name: inputs.sampled(name) for name in shapes},
            progress=progress,
        )
    finally:
        end(pool)
    powers = _powers(sums, shapes, inputs, n_expert_used)
    shares = _shares(powers, n_layer)
    return {
        name: Measurement(
            name, shape, sums[name].errors(), powers[name], shares[name], factor_of(name, shares)
        )
        for name, shape in shapes.items()
    }


def kind_of(name: str) -> tuple[int | None, str, str]:
    """The layer, the kind (one of `FACTORS`) and the suffix of a tensor's name."""
    match = _KIND.fullmatch(name)
    assert match is not None, name
    return None if match[1] is None else int(match[1]), match[2], match[3] or ""


def factor_of(name: str, shares: Mapping[str, float]) -> float:
    """What a relative error of 1 of a tensor's output costs, in nats."""
    return FACTORS[kind_of(name)[1]] * shares[name]


class _Inputs:
    """The mean squares of what each tensor is multiplied with, and how often each expert is."""

    def __init__(
        self, job: Job, shapes: Mapping[str, tuple[int, ...]], importance: Importance | None
    ) -> None:
        self._importance = importance
        self._norms = _norms(job)
        self._shapes = shapes

    def weights(self, name: str) -> Floats | None:
        """What a conversion weighs columns with, [n_matrices, row_length]."""
        found = self._activations(name)
        return None if found is None else found.weights()

    def uses(self, name: str) -> npt.NDArray[np.float64]:
        """The share of tokens that each matrix sees, [n_matrices]."""
        found = self._activations(name)
        counts = None if found is None else found.measured().counts
        if counts is None or not counts.any():
            count = prod(self._shapes[name][:-2])
            return np.full(count, 1 / count)
        uses: npt.NDArray[np.float64] = counts / counts.sum()
        return uses

    def sampled(self, name: str) -> list[int]:
        """Which matrices to look at: those that are used most, or any that are evenly spread."""
        uses = self.uses(name)
        count, taken = len(uses), min(len(uses), MOST_MATRICES)
        if len(set(uses.tolist())) == 1:
            return [number * count // taken for number in range(taken)]
        return sorted(np.argsort(-uses, kind="stable")[:taken].tolist())

    def _activations(self, name: str) -> Activations | None:
        shape = self._shapes[name]
        if self._importance is None or name not in self._importance:
            return None
        return self._importance.tensors[name].reshaped((prod(shape[:-2]), shape[-1]))

    def powers(self, name: str) -> Floats | None:
        """Mean squares, [n_matrices, row_length] or [1, row_length]; None where they are unknown
        but the same for all columns."""
        weights = self.weights(name)
        if weights is not None:
            return weights
        layer, kind, suffix = kind_of(name)
        norm = {"output": "output_norm.weight"}.get(
            kind, f"blk.{layer}.{_NORM_OF.get(kind)}.weight"
        )
        if norm not in self._norms:
            return None
        squares = np.square(self._norms[norm])[None]
        return squares * np.float32(_ROUTED_POWER) if suffix == "_exps" else squares


_NORM_OF = {
    "attn_q": "attn_norm",
    "attn_k": "attn_norm",
    "attn_v": "attn_norm",
    "ffn_gate": "ffn_norm",
    "ffn_up": "ffn_norm",
}


def _norms(job: Job) -> dict[str, Floats]:
    """The weights of all norms, by name."""
    shapes = {
        target.name: target.shape
        for tensor in job.tensors
        for target in tensor.targets
        if role_of(target.name) == "norm"
    }
    norms: dict[str, Floats] = {}

    def take(rows: Rows) -> None:
        norms[rows.tensor] = rows.rows.reshape(-1).copy()

    read_samples(job, shapes, take)
    return norms


class _Sums:
    """What is added up of one tensor while its rows go by."""

    def __init__(
        self, name: str, shape: tuple[int, ...], types: Sequence[TensorType], inputs: _Inputs
    ) -> None:
        self._types = [one for one in types if one.fits(shape[-1])]
        self._weights, self._powers = inputs.weights(name), inputs.powers(name)
        self._uses = inputs.uses(name)
        self._errors: defaultdict[TensorType, float] = defaultdict(float)
        self._refused: set[TensorType] = set()
        self._power, self._rows = 0.0, 0.0

    def add(self, rows: Rows, pool: ThreadPoolExecutor) -> None:
        """Encode rows in each type."""
        use = float(self._uses[rows.matrix])
        power = self._row(self._powers, rows.matrix, rows.rows.shape[1])
        weight = None if self._weights is None else self._weights[rows.matrix]
        signal = float((np.square(rows.rows) @ power).sum(dtype=np.float64))
        self._power += use * signal
        self._rows += use * len(rows.rows)
        tasks = [
            (one, pool.submit(_error, rows.rows, one, weight, power))
            for one in self._types
            if one not in self._refused
        ]
        for one, task in tasks:
            error = task.result()
            if error is None:
                self._refused.add(one)
            else:
                self._errors[one] += use * error

    @staticmethod
    def _row(powers: Floats | None, matrix: int, length: int) -> Floats:
        if powers is None:
            return np.ones(length, np.float32)
        row: Floats = powers[matrix if len(powers) > 1 else 0]
        return row

    def errors(self) -> dict[TensorType, float]:
        """The relative error of each type."""
        return {
            one: self._errors[one] / self._power if self._power else 0.0
            for one in self._types
            if one not in self._refused
        }

    @property
    def row_power(self) -> float:
        """The mean square of a row's output."""
        return self._power / self._rows if self._rows else 0.0


def _error(
    rows: Floats, tensor_type: TensorType, importance: Floats | None, power: Floats
) -> float | None:
    """The weighted sum of the squares of what a type changes in rows; None where they are too large
    for it."""
    encoded = np.empty(len(rows) * tensor_type.row_bytes(rows.shape[1]), np.uint8)
    try:
        encode_rows(rows, tensor_type, encoded, importance)
    except ValueError:
        return None
    decoded = np.empty_like(rows)
    decode_blocks(encoded, tensor_type, decoded)
    decoded -= rows
    return float((np.square(decoded, out=decoded) @ power).sum(dtype=np.float64))


# --- from errors to their price


def _powers(
    sums: Mapping[str, _Sums],
    shapes: Mapping[str, tuple[int, ...]],
    inputs: _Inputs,
    n_expert_used: int,
) -> dict[str, float]:
    """The mean square of what each tensor puts out for a token, summed over its rows."""
    powers: dict[str, float] = {}
    # Inputs come before what they go into: in a layer values before the output, gates before down.
    for name in sorted(shapes, key=lambda it: kind_of(it)[1] in ("attn_output", "ffn_down")):
        _, _, suffix = kind_of(name)
        used = n_expert_used if suffix == "_exps" else 1
        power = sums[name].row_power * shapes[name][-2] * used
        if inputs.powers(name) is None:
            power *= _input_power(name, powers, shapes)
        powers[name] = power
    return powers


def _input_power(
    name: str, powers: Mapping[str, float], shapes: Mapping[str, tuple[int, ...]]
) -> float:
    """The mean square of a column of what a tensor is multiplied with, by what that is made of."""
    layer, kind, suffix = kind_of(name)
    if kind == "attn_output":
        values = f"blk.{layer}.attn_v.weight"
        return powers[values] / shapes[values][-2]
    if kind == "ffn_down":
        gate, up = (f"blk.{layer}.ffn_{one}{suffix}.weight" for one in ("gate", "up"))
        rows = shapes[gate][-2]
        return _PRODUCT_POWER * _silu_power(powers[gate] / rows) * powers[up] / rows
    return 1.0  # a row of the embedding


def _silu_power(power: float) -> float:
    """The mean square of silu(x) where x is normally distributed with this mean square."""
    x = np.linspace(-8, 8, 401) * sqrt(power)
    density = np.exp(-np.square(x) / (2 * power)) if power else np.ones(1)
    with np.errstate(over="ignore"):
        silu = x / (1 + np.exp(-x))
    return float((np.square(silu) * density).sum() / density.sum())


def _shares(powers: Mapping[str, float], n_layer: int) -> dict[str, float]:
    """The share of the residual stream that the block of each tensor is, where it is added."""
    shares = {name: 1.0 for name in powers if kind_of(name)[0] is None}
    stream = powers["token_embd.weight"]
    for layer in range(n_layer):
        for kinds in (_ATTENTION, _FEED_FORWARD):
            added = {
                suffix: powers[f"blk.{layer}.{kinds[-1]}{suffix}.weight"]
                for suffix in ("", "_shexp", "_exps")
                if f"blk.{layer}.{kinds[-1]}{suffix}.weight" in powers
            }
            stream += sum(added.values())
            for suffix, power in added.items():
                for kind in kinds:
                    shares[f"blk.{layer}.{kind}{suffix}.weight"] = power / stream if stream else 1.0
    return {name: shares[name] for name in powers}


_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
