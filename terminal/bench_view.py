"""What `bench` shows: the tests while they run, and then a line for each.

Promises that a setting is a column only where its values differ. Does not measure anything; whoever
shows results has made their texts visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..units import bytes_text, count_text
from .console import screen
from .visible import LONGEST_LINE, shortened

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..measure.speed import BenchGrid, BenchResult, BenchTest

# Columns that are shown only where their values differ: field, heading.
_VARYING = (
    ("n_gpu_layers", "ngl"),
    ("n_cpu_moe", "ncmoe"),
    ("n_threads", "threads"),
    ("n_batch", "n_batch"),
    ("n_ubatch", "n_ubatch"),
    ("type_k", "type_k"),
    ("type_v", "type_v"),
    ("flash_attn", "fa"),
)


@contextmanager
def bench_progress(grid: BenchGrid) -> Iterator[Callable[[BenchTest], None] | None]:
    """Say on stderr which test is running; yields what to give to ``bench(on_test=…)`` or None."""
    err = screen()
    if err is None:
        yield None
        return
    from rich.text import Text

    with err.status("loading") as status:
        done, total = 0, len(list(grid.cases()))

        def show(test: BenchTest) -> None:
            nonlocal done
            done += 1
            status.update(Text(f"{test.name} ({done} of {total})"))

        yield show


def bench_view(results: Sequence[BenchResult]) -> RenderableType:
    """What was measured, a line a test."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    records = [result.as_dict() for result in results]
    varying = [
        (field, heading)
        for field, heading in _VARYING
        if len({record[field] for record in records}) > 1
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for _, heading in varying:
        table.add_column(heading, justify="right")
    table.add_column("test")
    table.add_column("tokens/s", justify="right")
    table.add_column("±", justify="right")
    for result, record in zip(results, records, strict=True):
        table.add_row(
            *(str(record[field]) for field, _ in varying),
            result.case.test.name,
            f"{result.avg_ts:.2f}",
            f"{result.stddev_ts:.2f}",
        )
    first = records[0]
    title = Text(shortened(first["model_filename"], LONGEST_LINE), style="bold")
    facts = [
        first["model_type"],
        bytes_text(first["model_size"]),
        f"{count_text(first['model_n_params'])} parameters",
        first["backends"],
    ]
    if (asked := results[0].case.settings.n_expert_used) is not None:
        facts.append(f"{asked} experts a token")
    if "threads" not in dict(varying).values():
        facts.append(f"{first['n_threads']} threads")
    return Group(title, shortened(", ".join(facts), LONGEST_LINE), "", table)
