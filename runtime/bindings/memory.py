"""What llama.cpp allocates on each device, in its own bytes: before loading, and after.

Promises exact numbers that llama.cpp counted itself, for a loaded model and for one of which only
the header is read, even from a sparse file without weights. Knows nothing of how much memory a
machine has, or of which placement is good.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ...errors import EngineError
from ..checked_adapters import CheckedAdapters
from ..files.model_file import check_model_file
from ..placement import CPU
from ..settings import EngineSettings
from .adapters import NativeAdapters
from .devices import NativeDevice
from .library import CapturedLog, captured_log, llama, native_function, refused
from .parameters import (
    LOAD_MODE_NONE,
    ModelParams,
    context_params,
    model_params,
    progress_callback,
)
from .thread import native_thread


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device: ``weights``, the KV cache, the buffers that a decode computes in, and
    ``adapters``, control vectors among them."""

    device: str
    weights: int
    kv: int
    compute: int
    adapters: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.kv + self.compute + self.adapters


@dataclass(frozen=True)
class MemoryReport:
    """What llama.cpp allocates: an entry for each device that holds something, the CPU first."""

    devices: tuple[DeviceMemory, ...]

    def on(self, device: str) -> DeviceMemory:
        """The bytes on the device of that name; zeros where it holds nothing."""
        return next(
            (entry for entry in self.devices if entry.device == device),
            DeviceMemory(device, 0, 0, 0),
        )


def measure(
    path: str | os.PathLike[str],
    settings: EngineSettings,
    workers: Sequence[NativeDevice] = (),
    checked: CheckedAdapters | None = None,
    storing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> MemoryReport:
    """What llama.cpp would allocate for a model, counted in a tenth of a second for Scout.

    Args:
        path: a GGUF whose header is sound, or one that is nothing but a header and holes. Adapters
            of the settings are loaded onto the devices.
        workers: devices that are none of this machine's, as ``model_params`` takes them.
        checked: the adapters of the settings, where they were read already.
        storing: entered while adapters are loaded.

    Raises:
        SettingError: the settings name a device that is not here.
        ModelFileError: an adapter is damaged, or of another model.
        EngineError: llama.cpp refuses the model.
    """
    params = model_params(settings, workers, no_alloc=True)
    checked = checked or _checked(path, settings)

    # An interrupt that arrives while llama.cpp calls Python back, as it does for each line of its
    # log, would be lost in the main thread.
    with native_thread() as thread:
        return thread.call(
            lambda: _report(path, settings, params, _counted_twice, checked, storing)
        )


def measure_loaded(
    path: str | os.PathLike[str],
    settings: EngineSettings,
    workers: Sequence[NativeDevice] = (),
    *,
    on_progress: Callable[[float], object] | None = None,
) -> MemoryReport:
    """What llama.cpp allocates when it really loads a model; all of it is freed again.

    Weights are read into memory and not mapped from the file, since a mapping counts whatever lies
    between two tensors.

    Args:
        on_progress: called with the fraction loaded, 0.0 to 1.0.

    Raises:
        SettingError: the settings name a device that is not here.
        EngineError: llama.cpp refuses the model, or an allocation failed.
    """
    checked = _checked(path, settings)
    params = model_params(settings, workers)
    params.native.load_mode = LOAD_MODE_NONE

    def progress(fraction: float) -> None:
        if on_progress is not None:
            on_progress(fraction)

    with native_thread() as thread:
        params.native.progress_callback = callback = progress_callback(thread, progress)
        report = thread.call(
            lambda: _report(path, settings, params, lambda _context, _log: {}, checked)
        )
        del callback  # kept until here: llama.cpp knows only its address
        return report


def _report(
    path: str | os.PathLike[str],
    settings: EngineSettings,
    params: ModelParams,
    surplus: Callable[[Any, CapturedLog], Mapping[str, int]],
    checked: CheckedAdapters | None,
    storing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> MemoryReport:
    name = os.fspath(path)
    with captured_log() as log, _loaded(path, params, log) as model:
        adapters, context = None, None
        if checked is not None:
            with storing():
                adapters = NativeAdapters(model, checked, layers_in(log), name)
        try:
            context = llama().llama_init_from_model(model, context_params(settings))
            if not context:
                problem = f"llama.cpp refuses a context of {settings.n_ctx} tokens"
                raise refused(f"{name}: {problem}", log)
            if adapters is not None:
                scales = tuple(adapter.scale for adapter in settings.adapters)
                adapters.attach(context, settings.control_vector_layers, scales)
            return report_of(context, params.devices, surplus(context, log), adapters)
        finally:
            if context:
                llama().llama_free(context)
            if adapters is not None:
                adapters.close()


def _checked(path: str | os.PathLike[str], settings: EngineSettings) -> CheckedAdapters | None:
    if not (settings.adapters or settings.control_vectors):
        return None
    return CheckedAdapters.of(settings, check_model_file(path, needs_tokenizer=False, whole=False))


def layers_in(log: CapturedLog) -> dict[int, str]:
    """The device of each layer, by llama.cpp's name, as the log of loading a model has them."""
    return {int(layer): device for layer, device in _LAYER_PLACED.findall(log.text)}


_LAYER_PLACED = re.compile(r"load_tensors: layer +(\d+) assigned to device (\S+), is_swa")
_COPIES = re.compile(r"sched copies = (\d+)")


def _counted_twice(context: Any, log: CapturedLog) -> dict[str, int]:
    """Bytes of compute buffers that llama.cpp counts beforehand and never allocates, by device.

    Where several GPUs work on several batches at a time, each has copies of what comes from the one
    before. llama.cpp says which device a layer's norm belongs to, and forgets it again before it
    counts (``ggml_backend_sched_reset`` in ``ggml_backend_sched_reserve_size``): then the norm goes
    to the device before, and both its result and its input are copied. Allocating, it does not
    forget. Tests hold the difference against what is allocated.
    """
    copies = max(map(int, _COPIES.findall(log.text)), default=1)
    if copies == 1:
        return {}
    # The last one is the output layer, which has no norm of its own.
    in_order = dict.fromkeys(device for _, device in sorted(layers_in(log).items())[:-1])
    width = llama().llama_model_n_embd(llama().llama_get_model(context))
    size = copies * llama().llama_n_ubatch(context) * width * _FLOAT
    return dict.fromkeys(list(in_order)[1:], size)


_FLOAT = 4


@contextmanager
def _loaded(path: str | os.PathLike[str], params: ModelParams, log: CapturedLog) -> Iterator[Any]:
    model = llama().llama_model_load_from_file(os.fsencode(path), params.native)
    if not model:
        raise refused(f"{os.fspath(path)}: llama.cpp refuses the model", log)
    try:
        yield model
    finally:
        llama().llama_model_free(model)


def report_of(
    context: Any,
    devices: Sequence[NativeDevice] = (),
    surplus: Mapping[str, int] | None = None,
    adapters: NativeAdapters | None = None,
) -> MemoryReport:
    """What a ``llama_context`` and its model hold, loaded or not.

    Args:
        devices: those that have names of their own here; others go by llama.cpp's.
        surplus: bytes to leave out of the compute buffers, by llama.cpp's name of the device.
        adapters: those that were loaded, of which llama.cpp does not tell.

    Raises:
        EngineError: the library does not say (see ``build_command``).
    """
    names = {device.handle: device.name for device in devices}
    tally = {name: [0, 0, 0, 0] for name in (CPU, *names.values())}
    sizes = Counter[str]() if adapters is None else adapters.sizes.copy()
    for node in _nodes(_breakdown(context).root):
        sums = tally.setdefault(_device_of(node.buffer_type, names), [0, 0, 0, 0])
        sums[_ADAPTERS] += sizes.pop(_memory_of(node.buffer_type), 0)
        for place, count in enumerate((node.model, node.context, node.compute)):
            sums[place] += count
    # Where weights are repacked, adapters lie in memory of which the model has none.
    tally[CPU][_ADAPTERS] += sizes.total()
    ours = {_name_of(handle): name for handle, name in names.items()}
    for native, count in (surplus or {}).items():
        tally[ours.get(native, native)][_COMPUTE] -= count
    for native, count in ({} if adapters is None else adapters.vector_sizes).items():
        tally[ours.get(native, native)][_ADAPTERS] += count
    return MemoryReport(tuple(DeviceMemory(name, *sums) for name, sums in tally.items()))


_COMPUTE, _ADAPTERS = 2, 3  # places in a tally

# llama_get_memory_breakdown is the one function of llama.cpp that counts these bytes, for a model
# without allocations too. It returns a std::map (src/llama-ext.h): a red-black tree, laid out as
# the C++ ABI of GCC's library has it (bits/stl_tree.h). A structure of the same size comes back
# the same way. The tree's few nodes, of 64 bytes each, are not freed.
_FUNCTION = "_Z26llama_get_memory_breakdownPK13llama_context"
# More kinds of buffers than any set of devices has: memory that is not a map must not be walked.
_MOST_NODES = 256


class _Map(ctypes.Structure):
    """std::map<ggml_backend_buffer_type_t, llama_memory_breakdown_data>."""

    _fields_ = (
        ("compare", ctypes.c_size_t),
        ("color", ctypes.c_size_t),
        ("root", ctypes.c_void_p),
        ("leftmost", ctypes.c_void_p),
        ("rightmost", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
    )


class _Node(ctypes.Structure):
    """One pair of the map: a buffer type, and the bytes in its buffers."""

    _fields_ = (
        ("color", ctypes.c_size_t),
        ("parent", ctypes.c_void_p),
        ("left", ctypes.c_void_p),
        ("right", ctypes.c_void_p),
        ("buffer_type", ctypes.c_void_p),
        ("model", ctypes.c_size_t),
        ("context", ctypes.c_size_t),
        ("compute", ctypes.c_size_t),
    )


def _breakdown(context: Any) -> Any:
    result = native_function(_FUNCTION, _Map, ctypes.c_void_p)(context)
    if not 0 < result.count <= _MOST_NODES or not result.root:
        raise EngineError(
            "llama.cpp's count of its memory cannot be read",
            found=f"{result.count} kinds of buffers",
            expected="a few, in a std::map of GCC's C++ library",
        )
    return result


def _nodes(address: int | None) -> Iterator[Any]:
    """The nodes below an address, in order."""
    if not address:
        return
    node = _Node.from_address(address)
    yield from _nodes(node.left)
    yield node
    yield from _nodes(node.right)


def _device_of(buffer_type: int, names: Mapping[int, str]) -> str:
    """The device whose memory a buffer of this type takes."""
    is_host = native_function("ggml_backend_buft_is_host", ctypes.c_bool, ctypes.c_void_p)
    device_of = native_function("ggml_backend_buft_get_device", ctypes.c_void_p, ctypes.c_void_p)
    device = None if is_host(buffer_type) else device_of(buffer_type)
    if not device:
        return CPU
    # The CPU's repacked weights are of no host type; their device is called CPU too.
    return names.get(device) or _name_of(device)


def _memory_of(buffer_type: int) -> str:
    name = native_function("ggml_backend_buft_name", ctypes.c_char_p, ctypes.c_void_p)(buffer_type)
    return str(name.decode("utf-8", "replace"))


def _name_of(device: int) -> str:
    name = native_function("ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)(device)
    return str(name.decode("utf-8", "replace"))
