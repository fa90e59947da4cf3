"""What `inspect --diff` shows: how two files differ, a line for each key and each tensor.

Promises that every number comes from the value at hand. Does not read files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from ..units import count_text
from .tables import facts_grid, metadata_text, table_of, title
from .visible import LONGEST_NAME, shortened

if TYPE_CHECKING:
    from ..comparison import Difference, MetadataDifference, MetadataValue, TensorDifference


def difference_view(difference: Difference) -> RenderableType:
    """Metadata that differ, tensors that differ, and how many do not."""
    parts: list[RenderableType] = [title(f"{difference.a} → {difference.b}")]
    if difference.metadata:
        parts.append(facts_grid(map(_metadata_line, difference.metadata)))
        parts.append("")
    if difference.tensors:
        parts.append(_tensors_table(difference.tensors))
        parts.append("")
    return Group(*parts, facts_grid(_totals(difference)))


def _metadata_line(difference: MetadataDifference) -> tuple[str, str]:
    key = shortened(difference.key, LONGEST_NAME)
    a, b = difference.a, difference.b
    if b is None:
        return key, f"only in the first: {_value_text(a)}"
    if a is None:
        return key, f"only in the second: {_value_text(b)}"
    texts = (_value_text(a), _value_text(b))
    kinds = (f" ({a.type})", f" ({b.type})") if a.type != b.type else ("", "")
    place = "" if difference.index is None else f"from item {difference.index:,} on "
    return key, f"{place}{texts[0]}{kinds[0]} → {texts[1]}{kinds[1]}"


def _value_text(value: MetadataValue | None) -> str:
    if value is None:
        return ""
    text = metadata_text(value.value)
    return text if value.length is None else f"{text} of {value.length:,}"


def _tensors_table(tensors: Sequence[TensorDifference]) -> RenderableType:
    table = table_of(
        "*tensor", "*type", "*shape", ">differ", ">largest", ">relative", ">RMS", ">relative"
    )
    for tensor in tensors:
        table.add_row(
            shortened(tensor.name, LONGEST_NAME),
            _change(tensor.type_a, tensor.type_b),
            _change(_shape_text(tensor.shape_a), _shape_text(tensor.shape_b)),
            *_numbers(tensor),
        )
    return table


def _numbers(tensor: TensorDifference) -> Iterator[str]:
    numbers = tensor.numbers
    if numbers is None:
        yield from ("not compared", "", "", "", "")
        return
    gaps = f" ({count_text(numbers.not_finite)} not finite)" if numbers.not_finite else ""
    yield f"{numbers.differing / max(numbers.numbers, 1):.2%}{gaps}"
    for value in (
        numbers.largest, numbers.largest_relative, numbers.rms, numbers.relative_rms,
    ):  # fmt: skip
        yield f"{value:.3g}"


def _shape_text(shape: tuple[int, ...] | None) -> str | None:
    return None if shape is None else "x".join(map(str, shape))


def _change(a: str | None, b: str | None) -> str:
    return str(a) if a == b else f"{a or 'none'} → {b or 'none'}"


def _totals(difference: Difference) -> list[tuple[str, str]]:
    if difference.equal:
        return [("equal", f"metadata, and all {difference.equal_tensors:,} tensors")]
    metadata = f"{len(difference.metadata):,} keys" if difference.metadata else "no key"
    return [
        ("different", f"{metadata}, {len(difference.tensors):,} tensors"),
        ("equal", f"{difference.equal_tensors:,} tensors"),
    ]
