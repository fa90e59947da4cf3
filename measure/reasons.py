"""Why tensors have the types that were chosen for them, by kind of tensor.

Promises that every figure comes from what was measured. Chooses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..quant.types import TensorType
from .sensitivity import Measurement, kind_of

_SHORT = 48  # characters


@dataclass(frozen=True)
class FittedTensor:
    """A tensor and the type that was chosen for it.

    Args:
        type: its name.
        bytes: of its data.
        error: of its output relative to it, activation-weighted.
        share: of the residual stream's power that its block's output is, where it is added.
        cost: the KL divergence, in nats, that this is estimated to add.
        fixed: whether there was no choice.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    type: str
    bytes: int
    error: float
    share: float
    cost: float
    fixed: bool


@dataclass(frozen=True)
class FitReason:
    """Why a kind of tensors has its types.

    Args:
        kind: of tensors, by the name in a layer: ``ffn_down_exps``.
        types: by layer, in words.
        bytes, parameters: of all of them.
        worth: what a byte costs here, were all tensors of one type, as a multiple of the average.
        shares: the least and the largest share of the residual stream that a block's output is.
        cost: the KL divergence that they are estimated to add together.
        why: the same in words.
    """

    kind: str
    types: str
    bytes: int
    parameters: int
    worth: float
    shares: tuple[float, float]
    cost: float
    why: str

    @property
    def bits_per_weight(self) -> float:
        """Bits that one number takes."""
        return self.bytes * 8 / self.parameters


def reasons_for(
    tensors: Sequence[FittedTensor],
    measured: Mapping[str, Measurement],
    outside: Collection[str] = (),
) -> tuple[FitReason, ...]:
    """Why each kind of tensors has its types, from the kind where a byte is worth most on."""
    kinds: dict[str, list[FittedTensor]] = defaultdict(list)
    for one in tensors:
        _, kind, suffix = kind_of(one.name)
        kinds[kind + suffix].append(one)
    counted = [one for one in tensors if one.name not in outside]
    yardstick = _most_used(counted, measured)
    average = _worth(counted, measured, yardstick)
    reasons = []
    for kind, group in kinds.items():
        worth = _worth(group, measured, yardstick) / average if average else 1.0
        reasons.append(
            FitReason(
                kind=kind,
                types=_types_text(group),
                bytes=sum(one.bytes for one in group),
                parameters=sum(prod(one.shape) for one in group),
                worth=worth,
                shares=(min(one.share for one in group), max(one.share for one in group)),
                cost=sum(one.cost for one in group),
                why=_why(group, worth, outside),
            )
        )
    return tuple(sorted(reasons, key=lambda it: (-it.worth, it.kind)))


def _most_used(
    tensors: Sequence[FittedTensor], measured: Mapping[str, Measurement]
) -> TensorType | None:
    """The type that most bytes are of, among those that every tensor could have and that cost."""
    sizes: dict[str, int] = defaultdict(int)
    for one in tensors:
        sizes[one.type] += one.bytes
    common = [
        it
        for it in next(iter(measured.values())).errors
        if all(it in one.errors for one in measured.values())
        and any(one.errors[it] for one in measured.values())
    ]
    return max(common, key=lambda it: (sizes.get(it.name, 0), -it.bits_per_weight), default=None)


def _worth(
    tensors: Sequence[FittedTensor],
    measured: Mapping[str, Measurement],
    yardstick: TensorType | None,
) -> float:
    """What a byte of these tensors costs, were they all of one type."""
    if yardstick is None:
        return 0.0
    cost = sum(measured[one.name].cost(yardstick) for one in tensors)
    return cost / sum(yardstick.nbytes(one.shape) for one in tensors)


def _why(group: Sequence[FittedTensor], worth: float, outside: Collection[str]) -> str:
    if all(one.name in outside for one in group):
        return "in main memory, outside the budget"
    if all(one.fixed for one in group):
        return "as was given"
    low, high = min(one.share for one in group), max(one.share for one in group)
    shares = f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"
    if len(group) == 1 and "." not in group[0].name.removesuffix(".weight"):
        return f"an error costs {worth:.2g} times the average a byte"
    return (
        f"an error costs {worth:.2g} times the average a byte: {shares} of the residual stream "
        "where it is added"
    )


def _types_text(group: Sequence[FittedTensor]) -> str:
    """The types of a kind, the most frequent one first: with their layers, or how many these are
    where that would be long."""
    layers: dict[str, list[int]] = defaultdict(list)
    for one in group:
        layers[one.type].append(kind_of(one.name)[0] or 0)
    first, *others = sorted(layers, key=lambda it: (-len(layers[it]), it))
    text = "; ".join([first, *(f"{it} in {ranges_text(layers[it])}" for it in others)])
    if len(text) <= _SHORT:
        return text
    return ", ".join(f"{it} x{len(layers[it])}" for it in (first, *others))


def ranges_text(numbers: Sequence[int]) -> str:
    """``0-3, 7``: whole numbers, neighbours as a range."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{begin}" if begin == end else f"{begin}-{end}" for begin, end in parts)
