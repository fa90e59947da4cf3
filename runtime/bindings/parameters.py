"""llama.cpp's two parameter structs, filled from settings: the one place that fills them.

Promises that what it returns is what llama.cpp accepts without ending the process, and that every
piece of memory the structs point to lives as long as they do. Loads nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...system.cores import decoding_threads, usable_threads
from ..placement import CPU, check_count, check_split
from ..settings import EngineSettings, tensor_type
from .devices import NativeDevice, cpu_buffer_type, no_device, offload_devices
from .library import llama
from .observer import Observer
from .thread import NativeThread

_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type (llama.h)
_SPLIT_MODE_LAYER = 1  # enum llama_split_mode
# enum llama_load_mode (llama.h)
_LOAD_MODES = {"auto": -1, "none": 0, "mmap": 1, "mlock": 2, "mmap+mlock": 3, "dio": 4}
LOAD_MODE_NONE = _LOAD_MODES["none"]
_TAG_INT = 0  # enum llama_model_kv_override_type
_EXPERTS_USED = b"llama4.expert_used_count"


class _Override(ctypes.Structure):
    """``struct llama_model_tensor_buft_override``; the bindings leave it out."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


@dataclass(frozen=True)
class ModelParams:
    """``llama_model_params`` and what it points to, which must outlive the loading.

    ``devices`` are those that layers are shared among, in llama.cpp's order.
    """

    native: Any
    devices: tuple[NativeDevice, ...]
    kept: tuple[object, ...]


def model_params(
    settings: EngineSettings, workers: Sequence[NativeDevice] = (), *, no_alloc: bool = False
) -> ModelParams:
    """How a model is loaded.

    Args:
        workers: the devices of ``settings.workers``, which are connected.
        no_alloc: read the metadata only; weights and buffers are counted and not made.

    Raises:
        SettingError: the placement names a device that is not here, or not in use.
        EngineError: llama.cpp's library does not load.
    """
    placement = settings.placement
    devices = _devices(placement.devices, (*workers, *offload_devices()))
    native = llama().llama_model_default_params()
    native.n_gpu_layers = placement.n_gpu_layers
    native.split_mode = _SPLIT_MODE_LAYER
    # llama.cpp locks no buffer of repacked weights.
    native.use_extra_bufts = settings.use_extra_bufts and not settings.locked
    native.no_alloc = no_alloc
    native.load_mode = LOAD_MODE_NONE if no_alloc else _LOAD_MODES[settings.load_mode]
    # One more element than devices: llama.cpp reads up to a null.
    handles = (ctypes.c_void_p * (len(devices) + 1))(*(device.handle for device in devices))
    native.devices = ctypes.cast(handles, ctypes.c_void_p)
    kept: list[object] = [handles]
    if placement.tensor_split:
        check_split(placement.tensor_split, [device.name for device in devices])
        total = sum(placement.tensor_split)
        # llama.cpp copies one for each device that it could have.
        split = (ctypes.c_float * int(llama().llama_max_devices()))(
            *(share / total for share in placement.tensor_split)
        )
        native.tensor_split = ctypes.cast(split, ctypes.POINTER(ctypes.c_float))
        kept.append(split)
    if placement.overrides:
        overrides = _overrides(placement.overrides, devices)
        native.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        kept.append(overrides)
    if settings.n_expert_used is not None:
        keys = _key_overrides({_EXPERTS_USED: settings.n_expert_used})
        native.kv_overrides = ctypes.cast(keys, ctypes.POINTER(type(keys[0])))
        kept.append(keys)
    return ModelParams(native, devices, tuple(kept))


def context_params(settings: EngineSettings, observer: Observer | None = None) -> Any:
    """How a context is made; ``llama_context_params``, which points to nothing else.

    Args:
        observer: sees each graph, and has to outlive the context.

    Raises:
        EngineError: llama.cpp's library does not load.
    """
    params = llama().llama_context_default_params()
    params.n_ctx = settings.n_ctx * settings.n_parallel
    params.n_seq_max = settings.n_parallel
    params.n_batch = settings.n_batch
    params.n_ubatch = settings.n_ubatch
    n_outputs = min(settings.n_outputs, settings.n_ctx * settings.n_parallel, settings.n_batch)
    # A row for each sequence is reserved in any case, and llama.cpp aborts where that is more.
    params.n_outputs_max = max(n_outputs, settings.n_parallel)
    params.n_threads = settings.n_threads or decoding_threads()
    params.n_threads_batch = settings.n_threads_batch or settings.n_threads or usable_threads()
    params.type_k = tensor_type(settings.type_k).ggml_id
    params.type_v = tensor_type(settings.type_v).ggml_id
    params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attention]
    params.offload_kqv = settings.placement.offload_kqv
    # The cache of the chunked layers holds one chunk: 1.2 GiB for Scout instead of 36 of 48
    # layers' share of the whole context.
    params.swa_full = False
    if observer is not None:
        params.cb_eval = ctypes.cast(observer.callback, type(params.cb_eval))
        params.cb_eval_user_data = observer.argument
    return params


def progress_callback(thread: NativeThread, on_progress: Callable[[float], object]) -> Any:
    """A ``llama_progress_callback`` that reports to the thread's caller, and stops with its call.

    It has to be kept for as long as llama.cpp loads.

    Args:
        on_progress: called with the fraction loaded, 0.0 to 1.0; returning False stops the loading.
    """

    def during(fraction: float, _: object) -> bool:
        thread.report(lambda: on_progress(fraction))
        return not thread.stopping

    return llama().llama_progress_callback(during)


def _devices(
    names: tuple[str, ...] | None, devices: Sequence[NativeDevice]
) -> tuple[NativeDevice, ...]:
    """The devices of these names, in their order; all of them for None."""
    if names is None:
        check_count([device.name for device in devices])
        return tuple(devices)
    return tuple(_find(name, devices, f"there is no device {name} here") for name in names)


def _find(name: str, devices: Sequence[NativeDevice], problem: str) -> NativeDevice:
    for device in devices:
        if name == device.name:
            return device
    raise no_device(problem, name, [device.name for device in devices])


def _key_overrides(values: Mapping[bytes, int]) -> Any:
    """Whole numbers instead of the file's; the array ends with an empty key."""
    rows = (llama().llama_model_kv_override * (len(values) + 1))()
    for row, (key, value) in zip(rows, values.items(), strict=False):
        row.tag, row.key, row.value.val_i64 = _TAG_INT, key, value
    return rows


def _overrides(overrides: Sequence[tuple[str, str]], devices: Sequence[NativeDevice]) -> Any:
    """The array that ends with a null pattern."""
    rows = (_Override * (len(overrides) + 1))()
    for row, (pattern, name) in zip(rows, overrides, strict=False):
        row.pattern = pattern.encode("ascii")
        if name == CPU:
            row.buffer_type = cpu_buffer_type()
            continue
        # llama.cpp only computes on the devices of the model, and aborts on a tensor elsewhere.
        problem = f"the override {pattern}={name} names a device that this model does not use"
        row.buffer_type = _find(name, devices, problem).buffer_type
    return rows
