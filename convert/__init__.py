"""What is in this checkpoint, and how does it become a GGUF?

``checkpoint`` reads headers, ``config`` and ``names`` say what must be there, ``tokenizer`` and
``metadata`` what is said about it, ``shards`` and ``hub`` bring the files, ``slabs`` cuts tensors,
``pipeline`` moves the numbers, ``numbers`` and ``fp8`` know how they are stored, ``output`` writes
the file, and ``converter`` is the job from top to bottom.
"""

from __future__ import annotations

from .converter import convert, inspect_checkpoint
from .report import Fallback, Progress, Report

__all__ = ["Fallback", "Progress", "Report", "convert", "inspect_checkpoint"]
