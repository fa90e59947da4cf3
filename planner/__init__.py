"""What fits where, before anything is loaded."""

from .pictures import Images
from .plan import Alternative, DevicePlan, Plan
from .planning import fallback, plan

__all__ = ["Alternative", "DevicePlan", "Images", "Plan", "fallback", "plan"]
