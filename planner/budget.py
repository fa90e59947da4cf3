"""How many bytes of weights a machine has room for, beside a context: what `convert --fit` asks.

Promises that the answer is a plan of a file of that size, counted by llama.cpp itself: whatever
the plan keeps for the cache, the compute buffers and the system is not the weights'. Does not know
which types the weights have.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingError
from ..vision.layout import TILE_SIZE
from .gpus import gpus_named
from .plan import DevicePlan, Plan
from .planning import plan
from .search import HOST_RESERVE

_ROUNDS = 12
_NEAR = 512  # one part in so many of the budget is not worth another plan

_TOKENS = re.compile(r"(\d+)\s*([km]?)\s*(?:tokens?|ctx|context)", re.IGNORECASE)
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([mgt])(?:i?b)?\s*(?:of\s+)?(ram|vram)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_EXPECTED = "'h100, 131072 tokens' or '2x rtx 4090, 64gb ram, 32k tokens'"


@dataclass(frozen=True)
class MachineTarget:
    """A machine and a context: what `plan` is asked for.

    Without GPUs and memory it is this machine.
    """

    text: str
    gpus: tuple[str, ...]
    vram: tuple[int, ...]
    ram: int | None
    n_ctx: int | None

    def plan(self, path: Path, projector: Path | None = None) -> Plan:
        """Where a model goes there, with a cache in f16, and with room for its projector."""
        return plan(
            path, n_ctx=self.n_ctx, kv_type="f16", gpus=self.gpus, vram=self.vram, ram=self.ram,
            projector=projector, image_size=None if projector is None else (TILE_SIZE, TILE_SIZE),
        )  # fmt: skip


def machine_target(text: str) -> MachineTarget:
    """What ``'2x rtx 4090, 64gb ram, 32768 tokens'`` means.

    Parts with commas between them: names of GPUs as `plan` takes them, ``24gb vram`` of a GPU that
    is not in the table, ``64gb ram``, and ``32768 tokens`` or ``32k tokens``.

    Raises:
        SettingError: a part is none of those, or is there twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise SettingError("fit has an empty part", found=repr(text), expected=_EXPECTED)
    gpus: list[str] = []
    vram: list[int] = []
    ram: list[int] = []
    tokens: list[int] = []
    for part in parts:
        counted, memory = _TOKENS.fullmatch(part), _MEMORY.fullmatch(part)
        if counted:
            tokens.append(int(counted[1]) * 1024 ** _POWERS[counted[2].lower()])
        elif memory:
            size = int(float(memory[1]) * 1024 ** _POWERS[memory[2].lower()])
            (vram if memory[3].lower() == "vram" else ram).append(size)
        else:
            _check_gpu(part)
            gpus.append(part)
    for name, found in (("tokens", tokens), ("ram", ram)):
        if len(found) > 1:
            raise SettingError(
                f"fit has two numbers of {name}", found=repr(text), expected=_EXPECTED
            )
    if tokens == [0]:
        raise SettingError("fit has no tokens", found=repr(text), expected=_EXPECTED)
    return MachineTarget(
        text=text,
        gpus=tuple(gpus),
        vram=tuple(vram),
        ram=ram[0] if ram else None,
        n_ctx=tokens[0] if tokens else None,
    )


def _check_gpu(part: str) -> None:
    """Refuse what is no GPU, saying how `fit` names others."""
    try:
        gpus_named(part)
    except SettingError as error:
        hint = (error.hint or "").replace("Give vram=BYTES for", "Write '24gb vram' for")
        raise SettingError(
            error.problem,
            found=error.found,
            expected=f"{error.expected}; or {_EXPECTED}",
            hint=hint,
        ) from None


@dataclass(frozen=True)
class Room:
    """A budget of weights and the plan that shows that there is room for them.

    ``on_gpus`` is whether all lie on GPUs but the token embedding, which is outside the budget.
    """

    nbytes: int
    plan: Plan
    on_gpus: bool


Draw = Callable[[int | None, bool], AbstractContextManager[Path]]
"""Gives a file with weights of so many bytes at most, of which the header counts; None is the
smallest. With True, the token embedding is not counted."""


def smallest_room(target: MachineTarget, draw: Draw, projector: Path | None = None) -> Room | None:
    """The room that the smallest weights take, or None where they have none.

    Args:
        projector: the file for pictures, for which room is kept too.
    """
    for outside in (True, False):
        with draw(None, outside) as path:
            smallest = target.plan(path, projector)
        on_gpus = outside and _is_on_gpus(smallest)
        if _has_room(smallest, on_gpus=on_gpus):
            return Room(_weights(smallest, on_gpus=on_gpus), smallest, on_gpus)
    return None


def weights_room(
    target: MachineTarget,
    draw: Draw,
    projector: Path | None = None,
    on_plan: Callable[[int], None] | None = None,
) -> Room | None:
    """The most bytes of weights for which there is room, or None where the fewest have none.

    All on the GPUs if the smallest weights fit there; otherwise in all memory together, experts in
    main memory first, as a plan has it.

    Args:
        projector: the file for pictures, for which room is kept too.
        on_plan: called with the bytes of weights that are planned for next.
    """
    best = smallest_room(target, draw, projector)
    if best is None:
        return None
    on_gpus = best.on_gpus
    low, high = best.nbytes, _most(best.plan, on_gpus=on_gpus)
    nbytes = high
    for _ in range(_ROUNDS):
        if on_plan is not None:
            on_plan(nbytes)
        with draw(nbytes, on_gpus) as path:
            found = target.plan(path, projector)
        if _has_room(found, on_gpus=on_gpus):
            best, low = Room(nbytes, found, on_gpus), nbytes
        else:
            high = nbytes
        if high - low <= max(high // _NEAR, 1):
            break
        nbytes = (low + high) // 2
    return best


def _is_on_gpus(found: Plan) -> bool:
    """Whether no weight is in main memory but the token embedding, which always is."""
    used = any(not gpu.idle for gpu in found.gpus)
    return (
        used
        and found.settings.placement.offload_kqv
        and all(role == "embedding" for role, nbytes in found.host.load.weights if nbytes)
    )


def _has_room(found: Plan, *, on_gpus: bool) -> bool:
    """Whether it fits, and leaves the system a part of main memory where that is what is filled."""
    if not found.fits or (on_gpus and not _is_on_gpus(found)):
        return False
    return on_gpus or found.host.left_bytes >= _reserve(found)


def _reserve(found: Plan) -> int:
    return found.host.device.usable_bytes // HOST_RESERVE


def _filled(found: Plan, *, on_gpus: bool) -> tuple[DevicePlan, ...]:
    return found.gpus if on_gpus else found.devices


def _weights(found: Plan, *, on_gpus: bool) -> int:
    return sum(device.load.weights_bytes for device in _filled(found, on_gpus=on_gpus))


def _most(found: Plan, *, on_gpus: bool) -> int:
    """As many bytes as there could be room for, were all of it used."""
    left = sum(max(device.left_bytes, 0) for device in _filled(found, on_gpus=on_gpus))
    return _weights(found, on_gpus=on_gpus) + left - (0 if on_gpus else _reserve(found))
