"""Run Meta's Llama 4 family offline: convert its safetensors to GGUF, and talk to it.

    >>> import llama4_edge
    >>> llama4_edge.convert("Llama-4-Scout-17B-16E-Instruct", "scout-int4.gguf", recipe="int4")
    >>> print(llama4_edge.plan("scout-int4.gguf").fits)
    True
    >>> with llama4_edge.Model("scout-int4.gguf") as model:
    ...     print(model.chat([{"role": "user", "content": "Hello!"}]).text)

`Model` and what goes with it load llama.cpp's native library on first use, not on import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .convert import Progress, Report, convert
from .errors import (
    AllocationError,
    CheckpointError,
    ContextFullError,
    DamagedTensorError,
    EngineError,
    HubError,
    Llama4EdgeError,
    ModelFileError,
    OutputError,
    RecipeError,
    SessionError,
    SettingError,
    TemplateError,
    UnsupportedError,
    VocabularyError,
    WorkerError,
)
from .planner import Plan, plan
from .quant import RECIPES

if TYPE_CHECKING:
    from .chat.answer import Completion, Stream
    from .chat.conversation import Message
    from .model import Model
    from .runtime.placement import Placement
    from .runtime.sampling import Sampling

_HOMES = {
    "Completion": "chat.answer",
    "Message": "chat.conversation",
    "Model": "model",
    "Placement": "runtime.placement",
    "Sampling": "runtime.sampling",
    "Stream": "chat.answer",
}

__all__ = [
    "RECIPES",
    "AllocationError",
    "CheckpointError",
    "Completion",
    "ContextFullError",
    "DamagedTensorError",
    "EngineError",
    "HubError",
    "Llama4EdgeError",
    "Message",
    "Model",
    "ModelFileError",
    "OutputError",
    "Placement",
    "Plan",
    "Progress",
    "RecipeError",
    "Report",
    "Sampling",
    "SessionError",
    "SettingError",
    "Stream",
    "TemplateError",
    "UnsupportedError",
    "VocabularyError",
    "WorkerError",
    "__version__",
    "convert",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
