"""How stored tensors are cut into slabs, and where in the GGUF each slab goes.

A slab is at most `SLAB_BYTES` however large its tensor is (20 GiB in Maverick). Knows shapes, types
and offsets; reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..quant.encode import Floats
from ..quant.types import TensorType
from .forms import Region, Weight
from .shard_header import DTYPE_BYTES, StoredTensor

# An expert of Scout's gate_up_proj is 160 MiB, and is read in one piece; rows that only follow each
# other need no such large ones.
SLAB_BYTES = 160 << 20
ROW_SLAB_BYTES = 64 << 20


class RowChange(Protocol):
    """What becomes of a tensor's numbers before they are encoded."""

    def add(self, rows: Floats, first: int) -> None:
        """Add to rows [n, length], the first of which is row `first` through all experts."""


class Columns(Protocol):
    """How much the columns of a tensor's matrices matter."""

    @property
    def rows(self) -> int:
        """Rows of one matrix."""

    def of(self, matrix: int) -> Floats:
        """The weights [row_length] for the rows of a matrix, which in experts is one of them."""


@dataclass(frozen=True)
class Output:
    """A GGUF tensor to be filled: its data begins at byte `offset` of part number `part`.

    Where there is a `merge`, that changes its rows before they are encoded. Where there are
    `columns`, errors are weighed with them.
    """

    name: str
    type: TensorType
    shape: tuple[int, ...]
    part: int
    offset: int
    merge: RowChange | None = None
    columns: Columns | None = None

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
    def row(self) -> int:
        """Which row of the output, through all experts, line `first` becomes."""
        return (self.target - self.output.offset) // self.output.row_bytes

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        return (self.last - self.first) * self.output.row_bytes


@dataclass(frozen=True)
class Slab:
    """Part of a stored tensor: `rows` rows of `columns` items, which are numbers or a form's codes.

    The first item lies at byte `source` of the shard, and a row begins `stride` items after the one
    before it. In a form, it is the codes of a `region` of a `weight`; `beside_bytes` are those of
    its other parts, all of which count as the first slab's. An output of the type `kept` takes the
    codes as they are.
    """

    stored: StoredTensor
    source: int
    rows: int
    columns: int
    stride: int
    transposed: bool
    shares: tuple[Share, ...]
    weight: Weight | None = None
    region: Region | None = None
    beside_bytes: int = 0
    kept: TensorType | None = None

    @property
    def lines_per_item(self) -> int:
        """Lines that a column holds of a transposed slab; see `Form.lines_per_item`."""
        return 1 if self.weight is None else self.weight.form.lines_per_item

    @property
    def block_bytes(self) -> int:
        """Bytes of its rows."""
        return self.rows * self.columns * DTYPE_BYTES[self.stored.dtype]

    @property
    def source_bytes(self) -> int:
        """Bytes that are read."""
        return self.block_bytes + self.beside_bytes


def slabs_of(
    stored: StoredTensor,
    outputs: Sequence[Output],
    *,
    experts: bool,
    expert: int | None = None,
    weight: Weight | None = None,
    kept: TensorType | None = None,
) -> Iterator[Slab]:
    """Cut a stored tensor into slabs, in the order of its bytes.

    With `experts` it is [expert, in, out] and each of `outputs` takes an even share of ``out``, as
    [expert, out, in]; otherwise it has one output, of its own shape or, where it is of one
    `expert`, [expert, *its shape]. A tensor of codes is of a `weight`, whose shape counts; see
    `Slab.kept`.
    """
    if experts:
        slabs = _expert_slabs(stored, outputs, weight)
    else:
        slabs = _plain_slabs(stored, outputs[0], expert or 0, weight)
    yield from slabs if kept is None else (replace(slab, kept=kept) for slab in slabs)


def _line_bytes(length: int, items: int, stored: StoredTensor) -> int:
    """Bytes of memory to count for a line: as stored, or as bf16 where that is more."""
    return max(items * DTYPE_BYTES[stored.dtype], 2 * length)


def _expert_slabs(
    stored: StoredTensor, outputs: Sequence[Output], weight: Weight | None
) -> Iterator[Slab]:
    count, length, total = stored.shape if weight is None else weight.shape
    inputs = length if weight is None else weight.form.items(weight)
    per = 1 if weight is None else weight.form.lines_per_item
    size = DTYPE_BYTES[stored.dtype]
    width = SLAB_BYTES // _line_bytes(length, inputs, stored)
    width = min(total, max(per, width - width % per))
    for expert in range(count):
        for column in range(0, total, width):
            columns = min(width, total - column)
            yield Slab(
                stored=stored,
                source=stored.offset + (expert * inputs * total + column) // per * size,
                rows=inputs,
                columns=columns // per,
                stride=total // per,
                transposed=True,
                shares=_expert_shares(outputs, expert, column, columns, total // len(outputs)),
                weight=weight,
                region=Region(expert, column, column + columns),
                beside_bytes=0 if expert or column else _beside_bytes(weight),
            )


def _beside_bytes(weight: Weight | None) -> int:
    return 0 if weight is None else weight.nbytes - weight.codes.nbytes


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
    stored: StoredTensor, output: Output, expert: int, weight: Weight | None
) -> Iterator[Slab]:
    length = stored.shape[-1] if weight is None else weight.length
    items = length if weight is None else weight.form.items(weight)
    rows = stored.parameters // items
    size = items * DTYPE_BYTES[stored.dtype]
    target = output.offset + expert * rows * output.row_bytes
    step = max(1, ROW_SLAB_BYTES // _line_bytes(length, items, stored))
    for row in range(0, rows, step):
        count = min(step, rows - row)
        yield Slab(
            stored=stored,
            source=stored.offset + row * size,
            rows=count,
            columns=items,
            stride=items,
            transposed=False,
            shares=(Share(output, target + row * output.row_bytes, 0, count),),
            weight=weight,
            region=Region(0, row, row + count),
            beside_bytes=0 if row else _beside_bytes(weight),
        )
