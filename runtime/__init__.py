"""What this machine has, what fits where, and what the model says."""

from __future__ import annotations

from .conversation import Conversation, Message
from .model import Completion, FinishReason, Model, Stream
from .placement import Placement
from .sampling import Sampling

__all__ = [
    "Completion",
    "Conversation",
    "FinishReason",
    "Message",
    "Model",
    "Placement",
    "Sampling",
    "Stream",
]
