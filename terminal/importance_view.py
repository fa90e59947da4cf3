"""What `inspect` shows of activation statistics: of each tensor, and of the experts of each layer.

Computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from .tables import facts_grid, table_of, title
from .visible import LONGEST_NAME, shortened

if TYPE_CHECKING:
    from ..quant.importance_summary import ImportanceSummary, TensorStatistics
    from ..quant.starved import ExpertCounts

_LEGEND = (
    ("sum, mean, max", "of the columns' mean squares"),
    ("active", "columns whose mean square is above 1e-5"),
    ("evenness", "entropy of the mean squares; 100% is all columns alike"),
    ("outliers", "columns more than a standard deviation above the mean"),
    ("similarity", "cosine between the sums and those of the layer before"),
)


def importance_view(summary: ImportanceSummary) -> RenderableType:
    """What a file of statistics says, experts last."""
    parts: list[RenderableType] = [title(summary.path), facts_grid(_facts(summary))]
    if summary.tensors:
        parts += ["", _tensors_table(summary.tensors), "", facts_grid(_LEGEND)]
    if summary.layers:
        parts += ["", experts_table(summary.layers)]
    return Group(*parts)


def experts_table(layers: tuple[ExpertCounts, ...]) -> RenderableType:
    """How many tokens the experts of each layer saw, and which of them too few."""
    is_any = any(layer.starved for layer in layers)
    table = table_of(
        *(">layer", ">fewest tokens", ">median", ">most"),
        *(["*starved experts (tokens)"] if is_any else []),
    )
    for layer in layers:
        counts = layer.counts
        cells = [layer.layer, min(counts), round(median(counts)), max(counts)]
        starved = ", ".join(f"{expert} ({counts[expert]:,})" for expert in layer.starved)
        table.add_row(*(f"{cell:,}" for cell in cells), *([starved] if is_any else []))
    return table


def _facts(summary: ImportanceSummary) -> Iterator[tuple[str, str]]:
    chunks = f"{summary.n_chunks:,} chunks"
    if summary.chunk_size:
        chunks += f" of {summary.chunk_size:,} tokens"
    yield "read", chunks
    yield "texts", ", ".join(summary.datasets) or "the file names none"
    yield "statistics", f"of {len(summary.tensors):,} tensors"
    count = sum(len(layer.counts) for layer in summary.layers)
    if count:
        starved = sum(len(layer.starved) for layer in summary.layers)
        yield "experts", f"{count:,} in {len(summary.layers):,} layers, {starved:,} of them starved"


def _tensors_table(tensors: tuple[TensorStatistics, ...]) -> RenderableType:
    table = table_of(
        *("tensor", ">tokens", ">sum", ">mean", ">max"),
        *(">active", ">evenness", ">outliers", ">similarity"),
    )
    for one in tensors:
        table.add_row(
            shortened(one.name.removesuffix(".weight"), LONGEST_NAME),
            f"{one.n_tokens:,}",
            *(f"{number:,.4g}" for number in (one.sum, one.mean, one.maximum)),
            *(f"{share:.2%}" for share in (one.active, one.evenness, one.outliers)),
            "" if one.similarity is None else f"{one.similarity:.4f}",
        )
    return table
