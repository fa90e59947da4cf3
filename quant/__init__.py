"""Which type does each tensor get, and how do numbers become those bytes?

``recipes`` is the policy, with llama.cpp's ``mixes`` and anybody's in a ``recipe_file``; ``encode``
the mechanism, ``types`` and ``roles`` the words both use, and ``summary`` what they add up to.
"""

from __future__ import annotations

from .mixes import TensorSpec
from .recipe_file import as_recipe
from .recipes import (
    DEFAULT_RECIPE,
    KEEP,
    RECIPES,
    Assignment,
    Recipe,
    assign_types,
    file_type_of,
    recipe_named,
    recipe_notes,
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
    "as_recipe",
    "assign_types",
    "file_type_of",
    "recipe_named",
    "recipe_notes",
    "role_of",
    "summarize",
    "type_named",
    "type_overrides",
]
