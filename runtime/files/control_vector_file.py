"""Control vectors from a GGUF: a direction for each of some layers, that is added to its output.

Promises that what fits another model, or holds NaN, is refused with one error, and that the numbers
are those which llama.cpp's own tools add. The rules follow ``common_control_vector_load_one`` in
llama.cpp's common/common.cpp, which skips what it cannot use. Knows no strength.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...architecture import Hyperparameters
from ...errors import ModelFileError
from ...untrusted import brief
from .gguf_file import GGUFFile, TensorInfo, read_gguf

ARCHITECTURE = "controlvector"
"""What a control vector's file says that it is."""
_HINT_KEY = "controlvector.model_hint"
_DIRECTION = re.compile(r"direction\.([0-9]{1,4})")
_OTHER_MODEL = "Take the control vector of this model."


@dataclass(frozen=True)
class ControlVector:
    """A direction for layers of one model.

    ``directions`` is float32 [n_layer - 1, n_embd]: row 0 is added to the output of layer 1,
    counted from 0, as llama.cpp takes it; layers without a direction have zeros. ``layers`` are
    those that have one, in order.
    """

    path: Path
    layers: tuple[int, ...]
    directions: npt.NDArray[np.float32]


def is_control_vector(gguf: GGUFFile) -> bool:
    """Whether a file says that it is a control vector, or holds nothing but directions."""
    said = gguf.metadata.get("general.architecture")
    directions = bool(gguf.tensors) and all(
        _DIRECTION.fullmatch(tensor.name) for tensor in gguf.tensors
    )
    return said == ARCHITECTURE or (said is None and directions)


def read_control_vector(path: str | os.PathLike[str], hparams: Hyperparameters) -> ControlVector:
    """Read a control vector for a model.

    Args:
        path: the file.
        hparams: of the model.

    Raises:
        ModelFileError: it cannot be read or is damaged, is not a control vector, is one of another
            model, or holds NaN or infinity.
        EngineError: llama.cpp's library does not load.
    """
    gguf = read_gguf(path)
    if not is_control_vector(gguf):
        said = gguf.metadata.get("general.architecture")
        raise ModelFileError(
            f"{gguf.path} is not a control vector",
            found="no general.architecture" if said is None else f"architecture {brief(said)}",
            expected=f"{ARCHITECTURE}, as llama-cvector-generator writes it",
        )
    hinted = gguf.metadata.get(_HINT_KEY, "llama4")
    if not str(hinted).startswith("llama4"):
        raise ModelFileError(
            f"{gguf.path} is a control vector of another kind of model",
            found=f"{_HINT_KEY} {brief(hinted)}",
            expected="llama4",
            hint=_OTHER_MODEL,
        )
    if not gguf.tensors:
        raise ModelFileError(f"{gguf.path} has no tensors", expected="direction.1 and so on")
    directions = np.zeros((hparams.n_layer - 1, hparams.n_embd), np.float32)
    layers: set[int] = set()
    for tensor in gguf.tensors:
        layer = _layer(gguf, tensor, hparams)
        if layer in layers:
            raise _bad_tensor(gguf, f"has two directions for layer {layer}: {tensor.name}")
        layers.add(layer)
        directions[layer - 1] = _numbers(gguf, tensor)
    return ControlVector(gguf.path, tuple(sorted(layers)), directions)


def _layer(gguf: GGUFFile, tensor: TensorInfo, hparams: Hyperparameters) -> int:
    """The layer of a direction, which has the model's width."""
    named = _DIRECTION.fullmatch(tensor.name)
    if named is None:
        problem = f"has a tensor that is no direction: {brief(tensor.name)}"
        raise _bad_tensor(gguf, problem, expected="direction.1 and so on")
    layer, last = int(named[1]), hparams.n_layer - 1
    if not 1 <= layer <= last:
        raise ModelFileError(
            f"{gguf.path} has a direction for a layer that the model does not steer",
            found=tensor.name,
            expected=f"direction.1 to direction.{last}",
            hint=_OTHER_MODEL,
        )
    if tensor.type != "F32":
        problem = f"has a direction of another type: {tensor.name}"
        raise _bad_tensor(gguf, problem, found=tensor.type, expected="F32")
    if tensor.shape != (hparams.n_embd,):
        raise ModelFileError(
            f"{gguf.path} is a control vector of another model: {tensor.name}",
            found=f"{list(tensor.shape)} numbers",
            expected=f"[{hparams.n_embd}], as the model is wide",
            hint=_OTHER_MODEL,
        )
    return layer


def _numbers(gguf: GGUFFile, tensor: TensorInfo) -> npt.NDArray[np.float32]:
    try:
        with gguf.path.open("rb") as file:
            file.seek(tensor.offset)
            data = file.read(tensor.nbytes)
    except OSError as error:
        raise ModelFileError(f"cannot read {gguf.path}", found=error.strerror) from None
    if len(data) != tensor.nbytes:
        raise ModelFileError(f"{gguf.path} changed while it was read", found="a shorter file")
    numbers = np.frombuffer(data, "<f4")
    if not np.isfinite(numbers).all():
        place = int(np.flatnonzero(~np.isfinite(numbers))[0])
        problem = f"has a direction with NaN or infinity: {tensor.name}"
        raise _bad_tensor(gguf, problem, found=f"{numbers[place]} at {place}")
    return numbers


def _bad_tensor(
    gguf: GGUFFile, problem: str, found: object = None, expected: object = None
) -> ModelFileError:
    return ModelFileError(
        f"{gguf.path} {problem}",
        found=found,
        expected=expected,
        hint="Fetch it again, or make it again with llama-cvector-generator.",
    )
