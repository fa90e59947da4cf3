"""What this machine has, what fits where, and what the model says.

What talks with a model is imported on first use: templates and vocabularies take their time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversation import Conversation, Message
    from .model import Completion, FinishReason, Model, Stream
    from .placement import Placement
    from .sampling import Sampling

_HOMES = {
    "Completion": "model",
    "Conversation": "conversation",
    "FinishReason": "model",
    "Message": "conversation",
    "Model": "model",
    "Placement": "placement",
    "Sampling": "sampling",
    "Stream": "model",
}

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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
