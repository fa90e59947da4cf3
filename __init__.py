"""Run Meta's Llama 4 family offline: convert its safetensors to GGUF, and talk to it.

    >>> import llama4_edge
    >>> llama4_edge.convert("Llama-4-Scout-17B-16E-Instruct", "scout-int4.gguf", recipe="int4")
    >>> print(llama4_edge.plan("scout-int4.gguf").fits)
    True
    >>> with llama4_edge.Model("scout-int4.gguf") as model:
    ...     print(model.chat([{"role": "user", "content": "Hello!"}]).text)

Each name is imported when it is first used: ``import llama4_edge`` loads neither NumPy nor
llama.cpp.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

# The package before the function of the same name: whichever is imported last has the name.
from . import convert as _package  # noqa: F401
from ._version import __version__
from .conversion import convert

if TYPE_CHECKING:
    from .async_model import AsyncModel, AsyncStream
    from .calibration import CalibrationProgress, calibrate
    from .chat.answer import Completion, Stream
    from .chat.conversation import Conversation, Message
    from .chat.conversation_file import read_conversations
    from .chat.documents import with_documents
    from .chat.events import (
        AnswerEnded,
        TextPiece,
        ToolCallBegun,
        ToolCallEnded,
        ToolCallPiece,
    )
    from .chat.pictures import with_images, with_video
    from .chat.session import Session
    from .chat.tool_calls import ToolCall
    from .chat.tool_results import ToolResult
    from .comparison import (
        Difference,
        MetadataDifference,
        MetadataValue,
        TensorDifference,
        diff,
    )
    from .conversion import convert_lora
    from .convert.report import Fallback, MatrixUse, Report
    from .errors import (
        AllocationError,
        BusyError,
        CheckpointError,
        ContextFullError,
        DamagedTensorError,
        EngineError,
        FormError,
        HubError,
        ImageError,
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
    from .evaluation import Candidate, CompareProgress, compare
    from .fitting import fit
    from .gguf_conversion import merge, split
    from .hub.pull import Pulled, pull
    from .inspection import Inspection, inspect
    from .measure.calibrated import Calibration
    from .measure.choice import Fit
    from .measure.divergence import Estimate, Statistics
    from .measure.questions import Question, read_questions
    from .measure.reasons import FitReason, FittedTensor
    from .measure.results import Accuracy, Comparison, ModelResult
    from .measure.speed import BenchGrid, BenchResult, BenchTest, bench
    from .model import Model
    from .planner.plan import Plan
    from .planner.planning import plan
    from .progress import Progress
    from .quant.recipe_file import make_recipe, read_recipe, write_recipe
    from .quant.recipes import RECIPES, Recipe
    from .quant.starved import ExpertCounts
    from .quant.summary import FileSummary, RoleSummary, TensorSummary
    from .runtime.adapters import Adapter, ControlVector
    from .runtime.doctor import Diagnosis, Finding, doctor
    from .runtime.files.damage import Damage
    from .runtime.files.difference import NumberDifference
    from .runtime.logprobs import TokenLogprobs
    from .runtime.placement import Placement
    from .runtime.sampling import Sampling
    from .runtime.settings import EngineSettings
    from .tool_loop import ToolRound, ToolRun, run_tools
    from .vision.images import ImageTiles, image_tiles

_MODULES = {
    "Accuracy": "measure.results",
    "Adapter": "runtime.adapters",
    "AllocationError": "errors",
    "AnswerEnded": "chat.events",
    "AsyncModel": "async_model",
    "AsyncStream": "async_model",
    "BenchGrid": "measure.speed",
    "BenchResult": "measure.speed",
    "BenchTest": "measure.speed",
    "BusyError": "errors",
    "Calibration": "measure.calibrated",
    "CalibrationProgress": "calibration",
    "Candidate": "evaluation",
    "CheckpointError": "errors",
    "CompareProgress": "evaluation",
    "Comparison": "measure.results",
    "Completion": "chat.answer",
    "ContextFullError": "errors",
    "ControlVector": "runtime.adapters",
    "Conversation": "chat.conversation",
    "Damage": "runtime.files.damage",
    "DamagedTensorError": "errors",
    "Diagnosis": "runtime.doctor",
    "Difference": "comparison",
    "EngineError": "errors",
    "EngineSettings": "runtime.settings",
    "Estimate": "measure.divergence",
    "ExpertCounts": "quant.starved",
    "Fallback": "convert.report",
    "FileSummary": "quant.summary",
    "Finding": "runtime.doctor",
    "Fit": "measure.choice",
    "FitReason": "measure.reasons",
    "FittedTensor": "measure.reasons",
    "FormError": "errors",
    "HubError": "errors",
    "ImageError": "errors",
    "ImageTiles": "vision.images",
    "Inspection": "inspection",
    "Llama4EdgeError": "errors",
    "MatrixUse": "convert.report",
    "Message": "chat.conversation",
    "MetadataDifference": "comparison",
    "MetadataValue": "comparison",
    "Model": "model",
    "ModelFileError": "errors",
    "ModelResult": "measure.results",
    "NumberDifference": "runtime.files.difference",
    "OutputError": "errors",
    "Placement": "runtime.placement",
    "Plan": "planner.plan",
    "Progress": "progress",
    "Pulled": "hub.pull",
    "Question": "measure.questions",
    "RECIPES": "quant.recipes",
    "Recipe": "quant.recipes",
    "RecipeError": "errors",
    "Report": "convert.report",
    "RoleSummary": "quant.summary",
    "Sampling": "runtime.sampling",
    "Session": "chat.session",
    "SessionError": "errors",
    "SettingError": "errors",
    "Statistics": "measure.divergence",
    "Stream": "chat.answer",
    "TemplateError": "errors",
    "TensorDifference": "comparison",
    "TensorSummary": "quant.summary",
    "TextPiece": "chat.events",
    "TokenLogprobs": "runtime.logprobs",
    "ToolCall": "chat.tool_calls",
    "ToolCallBegun": "chat.events",
    "ToolCallEnded": "chat.events",
    "ToolCallPiece": "chat.events",
    "ToolResult": "chat.tool_results",
    "ToolRound": "tool_loop",
    "ToolRun": "tool_loop",
    "UnsupportedError": "errors",
    "VocabularyError": "errors",
    "WorkerError": "errors",
    "bench": "measure.speed",
    "calibrate": "calibration",
    "compare": "evaluation",
    "convert_lora": "conversion",
    "diff": "comparison",
    "doctor": "runtime.doctor",
    "fit": "fitting",
    "image_tiles": "vision.images",
    "inspect": "inspection",
    "make_recipe": "quant.recipe_file",
    "merge": "gguf_conversion",
    "plan": "planner.planning",
    "pull": "hub.pull",
    "read_conversations": "chat.conversation_file",
    "read_questions": "measure.questions",
    "read_recipe": "quant.recipe_file",
    "run_tools": "tool_loop",
    "split": "gguf_conversion",
    "with_documents": "chat.documents",
    "with_images": "chat.pictures",
    "with_video": "chat.pictures",
    "write_recipe": "quant.recipe_file",
}
"""The module that each name comes from (PEP 562)."""

__all__ = [
    "RECIPES",
    "Accuracy",
    "Adapter",
    "AllocationError",
    "AnswerEnded",
    "AsyncModel",
    "AsyncStream",
    "BenchGrid",
    "BenchResult",
    "BenchTest",
    "BusyError",
    "Calibration",
    "CalibrationProgress",
    "Candidate",
    "CheckpointError",
    "CompareProgress",
    "Comparison",
    "Completion",
    "ContextFullError",
    "ControlVector",
    "Conversation",
    "Damage",
    "DamagedTensorError",
    "Diagnosis",
    "Difference",
    "EngineError",
    "EngineSettings",
    "Estimate",
    "ExpertCounts",
    "Fallback",
    "FileSummary",
    "Finding",
    "Fit",
    "FitReason",
    "FittedTensor",
    "FormError",
    "HubError",
    "ImageError",
    "ImageTiles",
    "Inspection",
    "Llama4EdgeError",
    "MatrixUse",
    "Message",
    "MetadataDifference",
    "MetadataValue",
    "Model",
    "ModelFileError",
    "ModelResult",
    "NumberDifference",
    "OutputError",
    "Placement",
    "Plan",
    "Progress",
    "Pulled",
    "Question",
    "Recipe",
    "RecipeError",
    "Report",
    "RoleSummary",
    "Sampling",
    "Session",
    "SessionError",
    "SettingError",
    "Statistics",
    "Stream",
    "TemplateError",
    "TensorDifference",
    "TensorSummary",
    "TextPiece",
    "TokenLogprobs",
    "ToolCall",
    "ToolCallBegun",
    "ToolCallEnded",
    "ToolCallPiece",
    "ToolResult",
    "ToolRound",
    "ToolRun",
    "UnsupportedError",
    "VocabularyError",
    "WorkerError",
    "__version__",
    "bench",
    "calibrate",
    "compare",
    "convert",
    "convert_lora",
    "diff",
    "doctor",
    "fit",
    "image_tiles",
    "inspect",
    "make_recipe",
    "merge",
    "plan",
    "pull",
    "read_conversations",
    "read_questions",
    "read_recipe",
    "run_tools",
    "split",
    "with_documents",
    "with_images",
    "with_video",
    "write_recipe",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
