"""How an engine is set up: the counts that llama.cpp is given, each in its range.

Promises that settings which exist are ones llama.cpp takes without ending the process. Knows
nothing of models, or of what fits into memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SettingError
from .cores import MAX_THREADS

_MOST = 2**31 - 1  # what llama.cpp's int32_t can hold
# What each count of ``EngineSettings`` may be. ggml aborts on far more threads than it has room for
# (GGML_MAX_N_THREADS in ggml.h).
_RANGES = {
    "n_ctx": (1, _MOST),
    "n_batch": (1, _MOST),
    "n_ubatch": (1, _MOST),
    "n_outputs": (1, _MOST),
    "n_threads": (1, MAX_THREADS),
    "n_threads_batch": (1, MAX_THREADS),
    "n_gpu_layers": (-1, _MOST),
}


@dataclass(frozen=True)
class EngineSettings:
    """How a model is loaded and how much it can hold.

    Args:
        n_ctx: tokens the context holds, prompt and answer together.
        n_batch: tokens handed to llama.cpp in one call.
        n_ubatch: tokens computed at once; the compute buffers grow with it.
        n_outputs: rows of logits one call may return. Each takes ``4 * n_vocab`` bytes in two
            buffers, 51 MiB each for 64 rows of Llama 4; only ``logits`` wants more than one.
        n_threads: threads that generate; None is one for each physical core,
            or each logical one where those cannot be told apart.
        n_threads_batch: threads that read prompts; None is ``n_threads``, and if that is None too,
            one for each logical core.
        n_gpu_layers: layers on GPUs; -1 is all, where there is one. Any other number is a wish
            that a warning answers where there is none.
        use_extra_bufts: whether weights are repacked for the CPU at hand (AMX among others).

    Raises:
        SettingError: a count outside its range.
    """

    n_ctx: int = 8192
    n_batch: int = 2048
    n_ubatch: int = 512
    n_outputs: int = 64
    n_threads: int | None = None
    n_threads_batch: int | None = None
    n_gpu_layers: int = -1
    use_extra_bufts: bool = True

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is None and "threads" in name:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise SettingError(
                    f"{name} is outside its range",
                    found=repr(value),
                    expected=f"a whole number from {least} to {most}",
                )
