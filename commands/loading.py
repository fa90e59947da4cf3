"""Opens the model that a command was asked for, placed as it was asked for or as planned.

Promises that what does not fit is said before it is tried, and that nothing is planned where there
is nothing to choose. Does not know what the model is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..terminal.console import note, show_log
from ..terminal.progress import loading_progress
from ..units import bytes_text
from .options import MODEL, PLACEMENT, VERBOSE, placement_of

if TYPE_CHECKING:
    from ..model import Model
    from ..planner import Plan


@contextmanager
def opened_model(ctx: click.Context, path: Path) -> Iterator[Model]:
    """The model that was asked for, with its loading shown and its log where it was wanted.

    Flags that place it are followed. Without any, it goes where `llama4 plan` says.
    """
    from ..model import Model
    from ..system.memory import host_memory

    show_log(verbose=ctx.meta[VERBOSE])
    wishes = dict(ctx.meta.get(MODEL, {}))
    plan = _plan(ctx, path, wishes)
    if plan is None:
        wishes["placement"] = placement_of(ctx)
    else:
        wishes = {name: wishes[name] for name in ("n_batch", "n_threads") if name in wishes}
        for text in [] if plan.fits else plan.notes:
            note(text)
        if ctx.meta[VERBOSE]:
            note(str(plan))
    memory = host_memory()
    with loading_progress(path.name) as progress:
        model = Model(path, plan=plan, on_load_progress=progress, **wishes)
    with model:
        if plan is None and memory is not None and model.info.bytes > memory.free:
            note(
                f"The file has {bytes_text(model.info.bytes)} and main memory had "
                f"{bytes_text(memory.free)} free: what has no place is read from the disk again "
                "and again."
            )
        yield model


def _plan(ctx: click.Context, path: Path, wishes: dict[str, Any]) -> Plan | None:
    """The plan for this machine; None where flags place the model, or there is only the CPU."""
    from ..planner import plan
    from ..runtime.bindings.devices import offload_devices

    placement = ctx.meta.get(PLACEMENT, {})
    devices = placement.get("devices")
    workers = wishes.get("workers", ())
    if placement.keys() - {"devices"} or devices == () or not (workers or offload_devices()):
        return None
    given = {"kv_type": "kv_type", "n_ubatch": "ubatch", "flash_attention": "flash_attention"}
    asked = {ours: wishes[theirs] for theirs, ours in given.items() if theirs in wishes}
    return plan(
        path, context=wishes.get("n_ctx", "usual"), workers=workers, devices=devices, **asked
    )
