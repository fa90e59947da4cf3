"""What a context multiplies its model's matrices with, summed in C++ while graphs are computed.

Promises that nothing is kept of a graph that was given up. Used in the thread that calls llama.cpp
alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import EngineError
from .candidates import native_library
from .library import native_function

_MOST_OPERATIONS = 256  # more than ggml has


class Observation(NamedTuple):
    """What the matrices of a tensor were multiplied with; views, good until the next batch.

    Args:
        name: of the tensor in the GGUF.
        sums: of the squares of each column, float64 of [n_matrices, row_length].
        counts: how many rows were summed, int64 of [n_matrices].
    """

    name: str
    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


class _Ggml(ctypes.Structure):
    """``struct Ggml`` of native/activations.cpp."""

    _fields_ = (
        ("buffer_is_host", ctypes.c_void_p),
        ("tensor_get", ctypes.c_void_p),
        ("nbytes", ctypes.c_void_p),
        ("mul_mat", ctypes.c_int32),
        ("mul_mat_id", ctypes.c_int32),
        ("f32", ctypes.c_int32),
    )


class _Observed(ctypes.Structure):
    """``struct Observed`` of native/activations.cpp."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("n_matrices", ctypes.c_int64),
        ("row_length", ctypes.c_int64),
        ("sums", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
    )


class Observer:
    """Sums what the graphs of a batch multiply matrices with. Close it after its context.

    Args:
        output: whether the output's matrix is one of them; it is large, and seldom quantized much.
        stops: whether what comes after the last layer is left out, logits among it.

    Raises:
        EngineError: the C++ of this package was not built.
    """

    def __init__(self, *, output: bool, stops: bool) -> None:
        self._library = _native()
        names = ("ggml_backend_buffer_is_host", "ggml_backend_tensor_get", "ggml_nbytes")
        functions: list[Any] = [native_function(name, None) for name in names]
        addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
        ggml = _Ggml(*addresses, _operation("MUL_MAT"), _operation("MUL_MAT_ID"), 0)
        self.argument: int | None = self._library.llama4_edge_observer(
            ctypes.byref(ggml), output, stops
        )
        if not self.argument:
            raise EngineError("no memory for activation statistics")
        self.callback: Any = self._library.llama4_edge_observe

    def close(self) -> None:
        """Forget all; closing twice is harmless."""
        argument, self.argument = self.argument, None
        if argument:
            self._library.llama4_edge_observer_free(argument)

    def begin(self) -> None:
        """Forget what was seen: a batch begins."""
        self._library.llama4_edge_observer_begin(self.argument)

    def observations(self) -> Iterator[Observation]:
        """What was seen since.

        Raises:
            EngineError: a graph is none that llama.cpp makes of a Llama 4.
        """
        if reason := self._library.llama4_edge_observer_error(self.argument):
            raise EngineError(
                "llama.cpp's graph has another form than was expected", found=reason.decode()
            )
        count = self._library.llama4_edge_observed(self.argument, None, 0)
        every = (_Observed * count)()
        self._library.llama4_edge_observed(self.argument, every, count)
        for one in every:
            shape = (one.n_matrices, one.row_length)
            yield Observation(
                one.name.decode(),
                _view(one.sums, ctypes.c_double, shape),
                _view(one.counts, ctypes.c_int64, shape[:1]),
            )


def _view(address: int, kind: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(kind)), shape=shape)


def _operation(name: str) -> int:
    """The number of one of ggml's operations."""
    name_of = native_function("ggml_op_name", ctypes.c_char_p, ctypes.c_int)
    return next(number for number in range(_MOST_OPERATIONS) if name_of(number) == name.encode())


def _native() -> ctypes.CDLL:
    library = native_library()
    # (None too where an editable installation was not built again.)
    if library is None or not hasattr(library, "llama4_edge_observed"):
        raise EngineError(
            "activation statistics need the C++ part of llama4-edge, which was not built",
            hint="Install a C++ compiler, and llama4-edge again.",
        )
    pointer = ctypes.c_void_p
    library.llama4_edge_observer.restype = pointer
    library.llama4_edge_observer.argtypes = [pointer, ctypes.c_int32, ctypes.c_int32]
    for name in ("begin", "free"):
        function = getattr(library, f"llama4_edge_observer_{name}")
        function.restype, function.argtypes = None, [pointer]
    library.llama4_edge_observed.restype = ctypes.c_int64
    library.llama4_edge_observed.argtypes = [pointer, pointer, ctypes.c_int64]
    library.llama4_edge_observer_error.restype = ctypes.c_char_p
    library.llama4_edge_observer_error.argtypes = [pointer]
    return library
