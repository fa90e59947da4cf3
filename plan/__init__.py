"""What fits where, asked before anything is loaded."""

from .planning import plan
from .value import Cost, DevicePlan, Images, Plan

__all__ = ["Cost", "DevicePlan", "Images", "Plan", "plan"]
