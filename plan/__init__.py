"""What fits where, asked before anything is loaded."""

from .planning import plan
from .value import Cost, DevicePlan, Plan

__all__ = ["Cost", "DevicePlan", "Plan", "plan"]
