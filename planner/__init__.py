"""What fits where, before anything is loaded."""

from .plan import Alternative, DevicePlan, Images, Plan
from .planning import fallback, plan

__all__ = ["Alternative", "DevicePlan", "Images", "Plan", "fallback", "plan"]
