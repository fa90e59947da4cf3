"""How stored tensors are cut into slabs, and where in the GGUF each slab goes.

A slab is at most `SLAB_BYTES` however large its tensor is (20 GiB in Maverick). Knows shapes, types
and offsets; reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..quant.types import TensorType
from .shard_header import DTYPE_BYTES, StoredTensor

# An expert of Scout's gate_up_proj is 160 MiB, and is read in one piece; rows that only follow each
# other need no such large ones.
SLAB_BYTES = 160 << 20
ROW_SLAB_BYTES = 64 << 20


@dataclass(frozen=True)
class Output:
    """A GGUF tensor to be filled: its data begins at byte `offset` of part number `part`."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    part: int
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row."""
        return self.type.row_bytes(self.shape[-1])


@dataclass(frozen=True)
class Share:
    """What of a slab goes where: lines `first` to `last` of it, from byte `target` of the output.

    A line is a row of a plain slab and a column of a transposed one; it becomes a row.
    """

    output: Output
    target: int
    first: int
    last: int

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        return (self.last - self.first) * self.output.row_bytes


@dataclass(frozen=True)
class Slab:
    """Part of a stored tensor: `rows` rows of `columns` numbers.

    The first number lies at byte `source` of the shard, and a row begins `stride` numbers after the
    one before it. In FP8, row 0 is row `first_row` of the tensor, and takes that row's `scale`.
    """

    stored: StoredTensor
    source: int
    rows: int
    columns: int
    stride: int
    transposed: bool
    shares: tuple[Share, ...]
    scale: StoredTensor | None = None
    first_row: int = 0

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return self.rows * self.columns * DTYPE_BYTES[self.stored.dtype]


def slabs_of(
    stored: StoredTensor,
    outputs: Sequence[Output],
    *,
    experts: bool,
    expert: int | None = None,
    scale: StoredTensor | None = None,
) -> Iterator[Slab]:
    """Cut a stored tensor into slabs, in the order of its bytes.

    With `experts` it is [expert, in, out] and each of `outputs` takes an even share of ``out``, as
    [expert, out, in]; otherwise it has one output, of its own shape or, where it is of one
    `expert`, [expert, *its shape]. An FP8 tensor has a `scale` for each row.
    """
    if experts:
        yield from _expert_slabs(stored, outputs)
    else:
        yield from _plain_slabs(stored, outputs[0], expert or 0, scale)


def _expert_slabs(stored: StoredTensor, outputs: Sequence[Output]) -> Iterator[Slab]:
    count, inputs, total = stored.shape
    size = DTYPE_BYTES[stored.dtype]
    width = min(total, max(1, SLAB_BYTES // (inputs * size)))
    for expert in range(count):
        for column in range(0, total, width):
            columns = min(width, total - column)
            yield Slab(
                stored=stored,
                source=stored.offset + (expert * inputs * total + column) * size,
                rows=inputs,
                columns=columns,
                stride=total,
                transposed=True,
                shares=_expert_shares(outputs, expert, column, columns, total // len(outputs)),
            )


def _expert_shares(
    outputs: Sequence[Output], expert: int, column: int, columns: int, width: int
) -> tuple[Share, ...]:
    """How `columns` columns from `column` on fall to outputs that take `width` each."""
    shares = []
    for rank, output in enumerate(outputs):
        begin = max(column, rank * width)
        end = min(column + columns, (rank + 1) * width)
        if begin < end:
            row = expert * width + begin - rank * width
            target = output.offset + row * output.row_bytes
            shares.append(Share(output, target, begin - column, end - column))
    return tuple(shares)


def _plain_slabs(
    stored: StoredTensor, output: Output, expert: int, scale: StoredTensor | None
) -> Iterator[Slab]:
    length = stored.shape[-1]
    row_bytes = length * DTYPE_BYTES[stored.dtype]
    rows = stored.parameters // length
    target = output.offset + expert * rows * output.row_bytes
    step = max(1, ROW_SLAB_BYTES // row_bytes)
    for row in range(0, rows, step):
        count = min(step, rows - row)
        yield Slab(
            stored=stored,
            source=stored.offset + row * row_bytes,
            rows=count,
            columns=length,
            stride=length,
            transposed=False,
            shares=(Share(output, target + row * output.row_bytes, 0, count),),
            scale=scale,
            first_row=row,
        )
