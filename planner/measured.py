"""What share of the planner's upper bounds was measured on GPUs of the table, and by whom.

A bound is what reading memory allows; a share is measured tokens a second by the bound that this
planner gives for the same model, quantization and placement. Promises nothing for a GPU on which
nobody is known to have measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .gpus import known_gpu
from .machine import MachineDevice


@dataclass(frozen=True)
class MeasuredShare:
    """From ``low`` to ``high`` of a bound, of what, and where that can be read."""

    low: float
    high: float
    what: str
    source: str


# By chip. llama-bench at an empty context against a bound of 25.8 tokens/s, on a Framework Desktop:
# 17.23 with ROCm, 19.88 with Vulkan. Others measured between: 19.07 (MS-S1 MAX, Vulkan on Windows).
# llama4 bench on an H100 80GB HBM3: 78.4 tokens/s at an empty context of a bound of 264, and 68.6
# of 216 after 32,768 tokens; llama-bench's are 80.1 and 67.8.
_MEASURED = {
    "H100": MeasuredShare(
        0.30,
        0.32,
        "Scout in int4 all on the GPU, at 78 tokens/s with an empty context and 69 after 32,768 "
        "tokens",
        "benchmarks/RESULTS.md, 2026-11-26",
    ),
    "Strix Halo": MeasuredShare(
        0.67,
        0.77,
        "Scout in Q4_K_M all on the GPU, of whose 25.8 tokens/s llama-bench reached 17.2 with "
        "ROCm and 19.9 with Vulkan (tg128)",
        "https://forum.level1techs.com/t/strix-halo-llm-inference-notes/249466",
    ),
}


def measured_share(gpus: Sequence[MachineDevice]) -> MeasuredShare | None:
    """What was measured on GPUs like these, all of one kind; None where nothing was."""
    known = [known_gpu(gpu.name) or known_gpu(gpu.description) for gpu in gpus]
    chips = {gpu.chip if gpu else "" for gpu in known}
    return _MEASURED.get(chips.pop()) if len(chips) == 1 else None
