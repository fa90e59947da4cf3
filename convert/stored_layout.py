"""How a checkpoint stores its tensors, in a line each, for people.

Promises nothing but what was found; decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from .checkpoint import Checkpoint
from .names import ExpertLayouts
from .shard_header import StoredTensor


def describe_layout(
    checkpoint: Checkpoint, text: Mapping[str, StoredTensor], layouts: ExpertLayouts
) -> dict[str, str]:
    """What is stored, under which names, and how the routed experts are.

    Args:
        checkpoint: its tensors and their files.
        text: the text model's tensors, by their names in the tables.
        layouts: how each layer with routed experts stores them.
    """
    tensors = checkpoint.tensors.values()
    files = len({tensor.file for tensor in tensors})
    lines = {
        "stored": f"{len(tensors):,} tensors in {files:,} file{'' if files == 1 else 's'}, "
        + _counted(tensor.dtype for tensor in tensors)
    }
    example = next((one.name for name, one in text.items() if ".layers." in name), None)
    if example is not None:
        lines["names"] = f"such as {example}"
    if layouts:
        lines["experts"] = _experts(layouts)
    return lines


def _experts(layouts: ExpertLayouts) -> str:
    """How the matrices of all layers are stored; where layers differ, how many layers each way."""
    if all(layout.gate_up is layout.down for layout in layouts.values()):
        return _counted(layout.gate_up.value for layout in layouts.values())
    return _counted(
        f"gate and up {layout.gate_up.value}, down {layout.down.value}"
        for layout in layouts.values()
    )


def _counted(values: Iterable[str]) -> str:
    """Each value, the most frequent first; how often, where there are several."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({count:,})" for value, count in counts.most_common())
