"""How an engine is set up: what llama.cpp is given, each thing in its range.

Promises that settings which exist are ones llama.cpp takes without ending the process. Knows
nothing of models, or of what fits into memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..architecture import MAX_EXPERTS_USED, Hyperparameters
from ..errors import SettingError
from ..quant.types import TYPES, TensorType
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
from .adapters import Adapter, ControlVector, as_adapters, as_control_vectors, as_layers
from .placement import Placement

KVType = Literal["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""What keys or values are kept as: 16, 16, 8.5, 6, 5.5, 5, 4.5 or 4.5 bits a number."""

KVTypes = KVType | tuple[KVType, KVType]
"""What the KV cache is kept as: keys and values alike, or each for itself, keys first."""

LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"]
"""llama.cpp's ways to bring a file into main memory."""

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
        load_mode: how weights on the CPU come into main memory. "mmap" maps the file, so that they
            are read from it as they are needed; "none" copies them as the model is loaded, "dio"
            too, past the page cache. "mlock" and "mmap+mlock" keep copied, or mapped, weights from
            being paged out, and repack none, which llama.cpp would not lock. "auto" is mmap, but
            for devices that cannot. A mapped file must not become shorter: the process would end
            (SIGBUS).
        n_parallel: requests that are answered at the same time, each with room for ``n_ctx``
            tokens in the KV cache.
        placement: where layers, tensors and the KV cache go.
        kv_type: what keys and values are kept as, as in ``"q8_0"``, or ``("q8_0", "q4_0")`` for
            keys and values apart; quantized values need flash attention.
        n_expert_used: routed experts that a token visits; None is as many as the file says.
        flash_attention: "auto" is on wherever every device can do it.
        cache_ram: bytes of main memory for what finished sequences had read, so that it is not read
            again when they are gone on with; 0 keeps none. None is 8 GiB, or a quarter of what is
            left beside the model if that is less.
        workers: ``"HOST:PORT"`` of other machines that run `llama4 worker`; their devices come
            before those of this machine.
        adapters: LoRA adapters that are loaded beside the model, with the scales that hold where a
            request does not say: files, pairs of a file and a scale, or `Adapter`.
        control_vectors: what is added to the outputs of layers, given in the same way.
        control_vector_layers: the first and the last layer after which they are added, layer 0
            being the model's first, which they never are; None is all.

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
    load_mode: LoadMode = "auto"
    n_parallel: int = 1
    placement: Placement = field(default_factory=Placement)
    kv_type: KVTypes = "f16"
    n_expert_used: int | None = None
    flash_attention: FlashAttention = "auto"
    cache_ram: int | None = None
    workers: tuple[str, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    control_vectors: tuple[ControlVector, ...] = ()
    control_vector_layers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None or "threads" not in name:
                check_whole(name, value, least, most)
        check_whole("cache_ram", self.cache_ram, 0, or_none=True)
        check_whole("n_expert_used", self.n_expert_used, 1, MAX_EXPERTS_USED, or_none=True)
        check_choice("load_mode", self.load_mode, get_args(LoadMode))
        if not isinstance(self.placement, Placement):
            raise wrong_type("placement", self.placement, "a Placement")
        if self.n_batch < self.n_parallel:
            expected = f"at least n_parallel, {self.n_parallel}"
            raise outside("n_batch", self.n_batch, expected)
        object.__setattr__(self, "kv_type", _kv_types(self.kv_type))
        check_choice("flash_attention", self.flash_attention, get_args(FlashAttention))
        if tensor_type(self.type_v).quantized and self.flash_attention == "off":
            raise SettingError(
                f"values of the KV cache in {self.type_v} need flash attention",
                found="flash_attention off",
                hint="Turn flash attention on, or keep the values in f16 or bf16.",
            )
        object.__setattr__(self, "workers", _endpoints(self.workers))
        object.__setattr__(self, "adapters", as_adapters(self.adapters))
        object.__setattr__(self, "control_vectors", as_control_vectors(self.control_vectors))
        layers = as_layers(self.control_vector_layers)
        object.__setattr__(self, "control_vector_layers", layers)
        if layers is not None and not self.control_vectors:
            raise SettingError(
                "control_vector_layers is given without control_vectors", found=value_text(layers)
            )

    @property
    def type_k(self) -> KVType:
        """What keys are kept as."""
        return self.kv_type if isinstance(self.kv_type, str) else self.kv_type[0]

    @property
    def type_v(self) -> KVType:
        """What values are kept as."""
        return self.kv_type if isinstance(self.kv_type, str) else self.kv_type[1]

    @property
    def kv_text(self) -> str:
        """Both types in words."""
        return kv_text(self.kv_type)

    @property
    def mapped(self) -> bool:
        """Whether the file is mapped, so that not all weights need be in memory at once."""
        return self.load_mode in ("auto", "mmap", "mmap+mlock")

    @property
    def locked(self) -> bool:
        """Whether the weights on the CPU are kept from being paged out."""
        return self.load_mode in ("mlock", "mmap+mlock")


def tensor_type(kv_type: KVType) -> TensorType:
    """ggml's type of that name."""
    return TYPES[kv_type.upper()]


def kv_bits(kv_type: KVTypes) -> float:
    """Bits that a key and a value take together."""
    kinds = (kv_type, kv_type) if isinstance(kv_type, str) else kv_type
    return sum(tensor_type(kind).bits_per_weight for kind in kinds)


def kv_text(kv_type: KVTypes) -> str:
    """``q8_0``, or ``K q8_0 and V q4_0``."""
    return kv_type if isinstance(kv_type, str) else "K {} and V {}".format(*kv_type)


def check_settings_of_model(settings: EngineSettings, hparams: Hyperparameters, model: str) -> None:
    """Whether settings are possible for the model with these hyperparameters.

    Args:
        model: its name or file, for errors.

    Raises:
        SettingError: it has not so many experts or layers, or its heads are no whole number of
            blocks of the KV cache's types. llama.cpp would end the process, or give up.
    """
    used = settings.n_expert_used
    if used is not None and used > hparams.n_expert:
        raise SettingError(
            f"{model}: n_expert_used is more than the model has",
            found=used,
            expected=f"1 to {hparams.n_expert}",
        )
    layers = settings.control_vector_layers
    if layers is not None and layers[1] >= hparams.n_layer:
        raise SettingError(
            f"{model}: control_vector_layers goes beyond the model's layers",
            found=f"{layers[0]} to {layers[1]}",
            expected=f"1 to {hparams.n_layer - 1}",
        )
    for what, kind in (("keys", settings.type_k), ("values", settings.type_v)):
        if not kv_type_fits(kind, hparams):
            raise SettingError(
                f"{model}: {what} of its heads cannot be kept as {kind}",
                found=f"heads of {hparams.head_dim} numbers",
                expected=f"a multiple of {tensor_type(kind).block}, the block of {kind}",
                hint="Give kv_type=f16.",
            )


def kv_type_fits(kv_type: KVTypes, hparams: Hyperparameters) -> bool:
    """Whether the model's heads are whole numbers of blocks of the types."""
    kinds = (kv_type,) if isinstance(kv_type, str) else kv_type
    return all(tensor_type(kind).fits(hparams.head_dim) for kind in kinds)


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


def _kv_types(kv_type: object) -> KVTypes:
    """One type, or two that differ, keys first."""
    pair: Any = kv_type if isinstance(kv_type, list | tuple) else (kv_type, kv_type)
    if len(pair) != 2:
        raise wrong_type("kv_type", kv_type, "a type, or a pair of types: of keys and of values")
    for kind in pair:
        check_choice("kv_type", kind, get_args(KVType))
    type_k, type_v = pair
    return type_k if type_k == type_v else (type_k, type_v)


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
