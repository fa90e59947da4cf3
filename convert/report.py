"""What a conversion did, or in a dry run would do: a value to be printed or read by a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..quant.roles import VISION_ROLES
from ..quant.summary import RoleSummary, role_as_dict


@dataclass(frozen=True)
class Fallback:
    """A tensor whose rows the recipe's type cannot hold, and the type it got instead."""

    tensor: str
    wanted: str
    got: str


@dataclass(frozen=True)
class MatrixUse:
    """What an importance matrix did for a conversion.

    `entries` is how many tensors the `file` has weights of, `weighed` how many were encoded with
    them; `without` names those that could have been, of which it has none. Of weighed tensors,
    `unseen` has the experts that no token reached, whose columns all weigh the same, and
    `substituted` those that too few did, for which the file has substitutes.
    """

    file: str
    entries: int
    weighed: int
    without: tuple[str, ...]
    unseen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    substituted: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            "file": self.file,
            "entries": self.entries,
            "weighed": self.weighed,
            "without": list(self.without),
            "unseen": {name: list(experts) for name, experts in self.unseen.items()},
            "substituted": {name: list(experts) for name, experts in self.substituted.items()},
        }


@dataclass(frozen=True)
class Report:
    """A conversion: what went in, what came out, and what deserves a look.

    `bytes` is the size of all files, headers and padding included; `outputs` names them, of which
    `output` is the one to load, and `projector` the one for pictures, None where there is none;
    `layout` says how the source stores the text model, a line each for what is ``stored``, under
    which ``names``, and how the ``experts`` are;
    `seconds` is 0 for a dry run; `resumed_at` is the share of the
    source that an earlier, interrupted conversion had done, 0 to 1. `stage_seconds` has by role
    the seconds since then in each stage: waited for in reading and writing, a core's time in
    transposing and encoding. `importance` says what the importance matrix did, where one was given.
    """

    source: str
    output: str
    recipe: str
    dry_run: bool
    bytes: int
    source_bytes: int
    parameters: int
    seconds: float
    roles: tuple[RoleSummary, ...]
    stage_seconds: dict[str, dict[str, float]]
    outputs: tuple[str, ...]
    resumed_at: float
    projector: str | None
    fallbacks: tuple[Fallback, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    layout: Mapping[str, str] = field(default_factory=dict)
    importance: MatrixUse | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits that one number of the text model takes on average.

        Of the projector, where that alone is written: the recipe is not its.
        """
        text = [role for role in self.roles if role.role not in VISION_ROLES] or self.roles
        return sum(role.bytes for role in text) * 8 / sum(role.parameters for role in text)

    def as_dict(self) -> dict[str, Any]:
        """The whole report, ready for JSON."""
        return {
            "source": self.source,
            "output": self.output,
            "recipe": self.recipe,
            "dry_run": self.dry_run,
            "bytes": self.bytes,
            "source_bytes": self.source_bytes,
            "parameters": self.parameters,
            "bits_per_weight": self.bits_per_weight,
            "seconds": self.seconds,
            "roles": [
                {**role_as_dict(role), "seconds": self.stage_seconds.get(role.role, {})}
                for role in self.roles
            ],
            "outputs": list(self.outputs),
            "projector": self.projector,
            "resumed_at": self.resumed_at,
            "fallbacks": [vars(fallback) for fallback in self.fallbacks],
            "left_out": list(self.left_out),
            "notes": list(self.notes),
            "layout": dict(self.layout),
            "importance": self.importance and self.importance.as_dict(),
        }
