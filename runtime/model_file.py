"""Is this GGUF a whole Llama 4 text model? Answered before llama.cpp sees the file.

llama.cpp aborts the process on some files: everything that can make it do so is refused here, with
one clear error. Knows nothing of devices, memory or text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .gguf_file import GGUFFile


@dataclass(frozen=True)
class ModelInfo:
    """The hyperparameters of a Llama 4 text model, as its GGUF states them.

    ``n_ff`` is the width of a dense layer's feed-forward network, ``n_ff_expert`` that of an
    expert; ``moe_step`` says that layer i holds experts where ``(i + 1) % moe_step == 0``.
    """

    path: Path
    name: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_ff_expert: int
    n_expert: int
    n_expert_used: int
    moe_step: int
    n_vocab: int
    n_ctx_train: int
    rope_freq_base: float
    file_type: str
    chat_template: str | None
    bos_id: int
    eos_id: int
    eog_ids: tuple[int, ...]
    bytes: int
    gguf: GGUFFile


def check_model_file(path: str | os.PathLike[str]) -> ModelInfo:
    """Read the header of a Llama 4 GGUF and check all that llama.cpp relies on.

    Raises:
        ModelFileError: the file cannot be read, is damaged, or is not a Llama 4 text model.
    """
    raise NotImplementedError
