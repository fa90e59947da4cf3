"""What a model file holds, added up: by tensor, by role, and bits per weight overall.

The same value describes a GGUF and a checkpoint directory; whoever read the file fills it in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from .roles import ROLES, role_of

Kind = Literal["gguf", "checkpoint", "session", "imatrix"]


@dataclass(frozen=True)
class TensorSummary:
    """One tensor: its role, shape (rows last), type and bytes."""

    name: str
    role: str
    shape: tuple[int, ...]
    type: str
    bytes: int

    @property
    def parameters(self) -> int:
        """How many numbers the tensor holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class RoleSummary:
    """All tensors of one role; `types` counts the tensors of each type."""

    role: str
    tensors: int
    parameters: int
    bytes: int
    types: dict[str, int]

    @property
    def bits_per_weight(self) -> float:
        """Bits that one number takes on average."""
        return self.bytes * 8 / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class FileSummary:
    """A model file: its metadata, its roles in the order of `ROLES`, its tensors in file order.

    Of a checkpoint, `layout` says how it is stored, a line each; `left_out` names the tensors that
    a conversion leaves out, and `notes` says what else it would.
    """

    path: str
    kind: Kind
    metadata: dict[str, object]
    roles: tuple[RoleSummary, ...]
    tensors: tuple[TensorSummary, ...]
    layout: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers all tensors hold."""
        return sum(role.parameters for role in self.roles)

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, padding not counted."""
        return sum(role.bytes for role in self.roles)

    @property
    def bits_per_weight(self) -> float:
        """Bits that one number takes on average over the whole file."""
        return self.bytes * 8 / self.parameters if self.parameters else 0.0

    @property
    def expert_bits_per_weight(self) -> float | None:
        """The same for the routed experts alone; None when there are none."""
        return next((role.bits_per_weight for role in self.roles if role.role == "expert"), None)

    def as_dict(self) -> dict[str, Any]:
        """The whole summary, ready for JSON."""
        return {
            "path": self.path,
            "kind": self.kind,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight,
            "expert_bits_per_weight": self.expert_bits_per_weight,
            "layout": dict(self.layout),
            "left_out": list(self.left_out),
            "notes": list(self.notes),
            "roles": [role_as_dict(role) for role in self.roles],
            "metadata": self.metadata,
            "tensors": [
                {
                    "name": tensor.name,
                    "role": tensor.role,
                    "shape": list(tensor.shape),
                    "type": tensor.type,
                    "bytes": tensor.bytes,
                }
                for tensor in self.tensors
            ],
        }


def role_as_dict(role: RoleSummary) -> dict[str, Any]:
    """One role, ready for JSON."""
    return {
        "role": role.role,
        "tensors": role.tensors,
        "parameters": role.parameters,
        "bytes": role.bytes,
        "bits_per_weight": role.bits_per_weight,
        "types": role.types,
    }


def summarize(
    path: str,
    kind: Kind,
    metadata: Mapping[str, object],
    tensors: Iterable[tuple[str, tuple[int, ...], str, int]],
) -> FileSummary:
    """Add up `tensors`, each a (GGUF name, shape with rows last, type name, bytes)."""
    listed = tuple(
        TensorSummary(name, role_of(name), shape, type_name, nbytes)
        for name, shape, type_name, nbytes in tensors
    )
    return FileSummary(path, kind, dict(metadata), summarize_roles(listed), listed)


def summarize_roles(tensors: Iterable[TensorSummary]) -> tuple[RoleSummary, ...]:
    """Add up `tensors` by role, in the order of `ROLES`; roles without a tensor are left out."""
    by_role: dict[str, list[TensorSummary]] = {}
    for tensor in tensors:
        by_role.setdefault(tensor.role, []).append(tensor)
    return tuple(
        RoleSummary(
            role=role,
            tensors=len(members),
            parameters=sum(member.parameters for member in members),
            bytes=sum(member.bytes for member in members),
            types=dict(Counter(member.type for member in members)),
        )
        for role in ROLES
        if (members := by_role.get(role))
    )
