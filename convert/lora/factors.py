"""The two matrices that llama.cpp multiplies with, made of what PEFT stored.

llama.cpp scales every product of a file by its ``adapter.lora.alpha`` over the rank; where PEFT's
scale is another one, it is multiplied into `b`, in float32. Experts that no pair changes get zeros,
and experts of a lower rank are filled up with them. Holds one tensor's numbers at a time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...quant.encode import Floats
from ..names import Target
from ..shard_header import StoredTensor
from .deltas import Delta, Pair

Read = Callable[[StoredTensor], Floats]


@dataclass(frozen=True)
class Factors:
    """What is added to one tensor of a GGUF: a product of the rank `rank`, of one or more pairs.

    `share` is which even share of the outputs it takes, of `shares`.
    """

    target: Target
    deltas: tuple[Delta, ...]
    rank: int
    share: int
    shares: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of lora_a and of lora_b, with rows along the last axis."""
        *experts, out, inner = self.target.shape
        if self.deltas[0].pair.embedding:
            return (out, self.rank), (inner, self.rank)
        return (*experts, self.rank, inner), (*experts, out, self.rank)

    def numbers(self, read: Read, alpha: float) -> tuple[Floats, Floats]:
        """Both matrices, in a file of this ``adapter.lora.alpha``.

        Raises:
            CheckpointError: a tensor cannot be read, or holds NaN.
        """
        delta = self.deltas[0]
        if delta.expert is not None:
            return self._of_experts(read, alpha)
        a, b = _sides(delta, read)
        return a, _scaled(self._own(b), delta, self.rank, alpha)

    def _own(self, b: Floats) -> Floats:
        """The rows of the outputs' matrix that are this tensor's."""
        return np.ascontiguousarray(np.split(b, self.shares, axis=-2)[self.share])

    def _of_experts(self, read: Read, alpha: float) -> tuple[Floats, Floats]:
        """Those of experts with a pair each, one behind the other."""
        a, b = (np.zeros(shape, np.float32) for shape in self.shapes)
        for delta in self.deltas:
            down, up = _sides(delta, read)
            assert delta.expert is not None
            a[delta.expert, : delta.rank] = down
            b[delta.expert, :, : delta.rank] = _scaled(up, delta, self.rank, alpha)
        return a, b


def factors_of(deltas: Mapping[str, Delta]) -> list[Factors]:
    """The products that deltas, by the tables' names, come to, in the order of a GGUF."""
    found: defaultdict[Target, list[Delta]] = defaultdict(list)
    for delta in sorted(deltas.values(), key=lambda delta: (delta.order, delta.expert or 0)):
        for target in delta.targets:
            found[target].append(delta)
    return [
        Factors(
            target=target,
            deltas=tuple(those),
            rank=max(delta.rank for delta in those),
            share=those[0].targets.index(target),
            shares=len(those[0].targets),
        )
        for target, those in found.items()
    ]


def sides_of(factors: Factors, pair: Pair, read: Read) -> tuple[Floats, Floats]:
    """The matrices of one of its pairs without any scale: inputs [rank, in], outputs [out, rank].

    The tensor's rows are their product; where all experts have one, they are in front.
    """
    delta = next(delta for delta in factors.deltas if delta.pair is pair)
    a, b = _sides(delta, read)
    if pair.embedding:
        return np.ascontiguousarray(b.T), a
    return a, factors._own(b)


def common_alpha(factors: Sequence[Factors]) -> float:
    """The ``adapter.lora.alpha`` with which the most products need no other scale."""
    alphas = Counter(
        float(np.float32(delta.pair.scale * it.rank)) for it in factors for delta in it.deltas
    )
    return alphas.most_common(1)[0][0]


def _scaled(b: Floats, delta: Delta, rank: int, alpha: float) -> Floats:
    """`b` with what llama.cpp's scale lacks of the delta's."""
    missing = np.float32(delta.pair.scale * rank / alpha)
    return b if missing == 1 else b * missing


def _sides(delta: Delta, read: Read) -> tuple[Floats, Floats]:
    """The inputs' matrix [rank, in] and the outputs' [out, rank], with experts in front."""
    a, b = read(delta.pair.a), read(delta.pair.b)
    if delta.pair.embedding:
        return np.ascontiguousarray(a.T), b
    if not delta.rule.experts:
        return a, b
    experts = a.shape[0] // delta.rank
    # PEFT has lora_A's experts one behind the other, and lora_B's side by side for each rank.
    one = a.reshape(experts, delta.rank, a.shape[1])
    other = b.reshape(b.shape[0], delta.rank, experts).transpose(2, 0, 1)
    if delta.swapped:
        one, other = other.transpose(0, 2, 1), one.transpose(0, 2, 1)
    return np.ascontiguousarray(one), np.ascontiguousarray(other)
