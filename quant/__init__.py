"""Which type does each tensor get, and how do numbers become those bytes?

``recipes`` is the policy, ``encode`` the mechanism, ``types`` and ``roles`` the words both use, and
``summary`` what they add up to.
"""

from __future__ import annotations

from .recipes import (
    DEFAULT_RECIPE,
    KEEP,
    RECIPES,
    Assignment,
    Recipe,
    TensorSpec,
    assign_types,
    recipe_named,
)
from .roles import ROLES, role_of
from .summary import FileSummary, RoleSummary, TensorSummary, summarize
from .types import TensorType, type_named, type_overrides

__all__ = [
    "DEFAULT_RECIPE",
    "KEEP",
    "RECIPES",
    "ROLES",
    "Assignment",
    "FileSummary",
    "Recipe",
    "RoleSummary",
    "TensorSpec",
    "TensorSummary",
    "TensorType",
    "assign_types",
    "recipe_named",
    "role_of",
    "summarize",
    "type_named",
    "type_overrides",
]
