"""What `inspect` shows, whatever kind of file it is of.

Does not read files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from .importance_view import importance_view
from .tables import damage_view, session_view, summary_view

if TYPE_CHECKING:
    from ..inspection import Inspection


def inspection_view(inspection: Inspection, *, tensors: bool) -> RenderableType:
    """What is there and, where it was checked, what is wrong with it."""
    if inspection.session is not None:
        shown = session_view(inspection.session)
    elif inspection.importance is not None:
        shown = importance_view(inspection.importance)
    else:
        shown = summary_view(inspection.summary, tensors=tensors)
    if inspection.damage is None:
        return shown
    if inspection.summary.kind in ("session", "imatrix"):
        found = damage_view(inspection.damage, "all of it was read, and is whole")
    else:
        found = damage_view(inspection.damage)
    return Group(shown, "", found)
