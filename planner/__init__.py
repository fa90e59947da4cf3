"""What fits where, asked before anything is loaded."""

from .plan import Cost, DevicePlan, Images, Plan
from .planning import plan

__all__ = ["Cost", "DevicePlan", "Images", "Plan", "plan"]
