"""How an engine is set up: what llama.cpp is given, each thing in its range.

Promises that settings which exist are ones llama.cpp takes without ending the process. Knows
nothing of models, or of what fits into memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ..errors import SettingError
from ..ranges import (
    MAX_INT32,
    as_tuple,
    check_choice,
    check_whole,
    outside,
    value_text,
    wrong_type,
)
from ..system.cores import MAX_THREADS
from ..untrusted import shown
from .placement import Placement

KVType = Literal["f16", "q8_0", "q4_0"]
"""What the KV cache is kept as: 16, 8.5 or 4.5 bits a number."""

FlashAttention = Literal["auto", "on", "off"]

DEFAULT_CONTEXT = 32_768
"""Tokens that a context holds unless another number is asked for."""

Context = int | Literal["max"] | None
"""Tokens of a context: a number, the longest that fits, or None for `DEFAULT_CONTEXT`."""

# What each count of ``EngineSettings`` may be. ggml aborts on far more threads than it has room for
# (GGML_MAX_N_THREADS in ggml.h).
_RANGES = {
    "n_ctx": (1, MAX_INT32),
    "n_batch": (1, MAX_INT32),
    "n_ubatch": (1, MAX_INT32),
    "n_outputs": (1, MAX_INT32),
    "n_threads": (1, MAX_THREADS),
    "n_threads_batch": (1, MAX_THREADS),
    "n_parallel": (1, 256),  # llama_max_parallel_sequences
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
        use_extra_bufts: whether weights are repacked for the CPU at hand (AMX among others).
        mmap: whether the file is mapped into memory, so that weights on the CPU are read from it as
            they are needed; without, they are copied into main memory as the model is loaded. A
            mapped file must not become shorter: the process would end (SIGBUS).
        n_parallel: requests that are answered at the same time, each with room for ``n_ctx``
            tokens in the KV cache.
        placement: where layers, tensors and the KV cache go.
        kv_type: what keys and values are kept as; all but f16 need flash attention.
        flash_attention: "auto" is on wherever every device can do it.
        workers: ``"HOST:PORT"`` of other machines that run `llama4 worker`; their devices come
            before those of this machine.

    Raises:
        SettingError: something is outside its range, or does not go together.
    """

    n_ctx: int = DEFAULT_CONTEXT
    n_batch: int = 2048
    n_ubatch: int = 512
    n_outputs: int = 64
    n_threads: int | None = None
    n_threads_batch: int | None = None
    use_extra_bufts: bool = True
    mmap: bool = True
    n_parallel: int = 1
    placement: Placement = field(default_factory=Placement)
    kv_type: KVType = "f16"
    flash_attention: FlashAttention = "auto"
    workers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None or "threads" not in name:
                check_whole(name, value, least, most)
        if not isinstance(self.mmap, bool):
            raise outside("mmap", self.mmap, "True or False")
        if not isinstance(self.placement, Placement):
            raise wrong_type("placement", self.placement, "a Placement")
        if self.n_batch < self.n_parallel:
            expected = f"at least n_parallel, {self.n_parallel}"
            raise outside("n_batch", self.n_batch, expected)
        check_choice("kv_type", self.kv_type, get_args(KVType))
        check_choice("flash_attention", self.flash_attention, get_args(FlashAttention))
        if self.kv_type != "f16" and self.flash_attention == "off":
            raise SettingError(
                f"a KV cache of {self.kv_type} needs flash attention",
                found="flash_attention off",
                hint="Turn flash attention on, or keep the cache in f16.",
            )
        object.__setattr__(self, "workers", _endpoints(self.workers))


def context_length(n_ctx: Context, n_ctx_train: int, model: str) -> int:
    """The tokens of a model's context; for "max", of which the planner decides, the default.

    Args:
        n_ctx_train: tokens that the model was trained for.
        model: its name or file, for errors.

    Raises:
        SettingError: it is not a number of tokens, or more than the model was trained for.
    """
    if n_ctx is None or n_ctx == "max":
        return min(DEFAULT_CONTEXT, n_ctx_train)
    if isinstance(n_ctx, bool) or not isinstance(n_ctx, int) or n_ctx < 1:
        expected = f'None, "max", or a whole number from 1 to {n_ctx_train}'
        raise outside("n_ctx", n_ctx, expected)
    if n_ctx > n_ctx_train:
        raise SettingError(
            f"{model}: n_ctx is more than the model was trained for",
            found=f"{value_text(n_ctx)} tokens",
            expected=f"at most {n_ctx_train}",
            hint="Lower n_ctx.",
        )
    return n_ctx


def _endpoints(workers: object) -> tuple[str, ...]:
    """The workers' addresses, each taken apart and put together again."""
    listed = as_tuple("workers", workers, "HOST:PORT")
    endpoints = tuple(f"{host}:{port}" for host, port in map(split_endpoint, listed))
    for endpoint in endpoints:
        if endpoints.count(endpoint) > 1:
            raise SettingError("a worker is named twice", found=endpoint)
    return endpoints


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """``HOST:PORT`` taken apart.

    Raises:
        SettingError: it has another form. (ggml knows no IPv6.)
    """
    host, _, port = endpoint.partition(":") if isinstance(endpoint, str) else ("", "", "")
    if not (host and host.isprintable() and " " not in host) or not (
        port.isascii() and port.isdecimal() and len(port) < 6 and 1 <= int(port) <= 65535
    ):
        raise SettingError(
            "not a worker's address",
            found=shown(endpoint),
            expected="HOST:PORT, as in 192.168.0.7:50052",
        )
    return host, int(port)
