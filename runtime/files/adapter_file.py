"""Is this GGUF a LoRA adapter that fits the model? Answered before llama.cpp sees the file.

Its loader compares two axes of each matrix and believes the rest: experts that are too few are read
beyond their end, and an adapter of a tied embedding aborts the process. What it would leave out
without a word (norms, and matrices that its graph adds no adapter to) is refused. The rules follow
``llama_adapter_lora_init_impl`` in llama.cpp's src/llama-adapter.cpp and the calls of
``build_lora_mm`` in src/llama-graph.cpp and src/models/llama4.cpp.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import ModelFileError
from ...untrusted import brief
from .gguf_file import GGUFFile, TensorInfo, read_gguf
from .model_file import MATRIX_TYPES, ModelInfo

ADAPTER_TYPE = "adapter"
"""What an adapter's file has as its ``general.type``."""
_SUFFIXES = (".lora_a", ".lora_b")
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_RECONVERT = "Fetch it again, or make it from the PEFT adapter: llama4 convert-lora ADAPTER"
_OTHER_MODEL = "Take the adapter of this model, or the model that it was trained on."

# The matrices to whose products llama.cpp's Llama 4 adds an adapter's.
_ADAPTED = re.compile(
    r"blk\.\d{1,3}\.(?:attn_(?:q|k|v|output)|ffn_gate_inp"
    r"|ffn_(?:gate|up|down)(?:_exps|_shexp)?)\.weight"
)

# What llama.cpp reads, with the one type that it takes: it aborts on any other.
_KEY_TYPES: Mapping[str, str] = {
    "general.type": "str",
    "general.architecture": "str",
    "adapter.type": "str",
    "adapter.lora.alpha": "f32",
}
# Activated LoRA: it takes effect behind these tokens only, which llama.cpp leaves to its server.
_ACTIVATION = "adapter.alora.invocation_tokens"


@dataclass(frozen=True)
class LowRank:
    """What is added to one matrix of the model: the product of `b` and `a`, scaled.

    In ggml's order, `a` is [in, rank] and `b` [rank, out], with the experts as a third axis where
    the matrix has one; of the embedding, `a` is [rank, tokens] and `b` [rank, embedding].
    """

    a: TensorInfo
    b: TensorInfo

    @property
    def rank(self) -> int:
        """How many products of a column and a row it is the sum of."""
        return self.b.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes that llama.cpp allocates for it, in the kind of memory where the matrix lies."""
        return self.a.nbytes + self.b.nbytes


@dataclass(frozen=True)
class AdapterInfo:
    """A LoRA adapter, as its GGUF describes it.

    `matrices` maps the model's tensors to what is added to them. `alpha` over the rank scales them;
    where it is 0, llama.cpp takes 1. ``bytes`` is the length of the file.
    """

    path: Path
    name: str
    alpha: float
    matrices: Mapping[str, LowRank]
    bytes: int
    gguf: GGUFFile

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(pair.nbytes for pair in self.matrices.values())


def is_adapter(gguf: GGUFFile) -> bool:
    """Whether a file says that it is an adapter, of whatever model."""
    return gguf.metadata.get("general.type") == ADAPTER_TYPE


def check_adapter_file(
    path: str | os.PathLike[str], model: ModelInfo | None = None, *, whole: bool = True
) -> AdapterInfo:
    """Read the header of an adapter, and check all that llama.cpp relies on.

    Args:
        path: the file.
        model: that it is to be applied to, None where none is at hand.
        whole: refuse a file that ends before its last tensor does.

    Raises:
        ModelFileError: it cannot be read or is damaged, is not an adapter of a Llama 4, or is of
            another model than `model`.
        EngineError: llama.cpp's library does not load.
    """
    info = check_adapter(read_gguf(path, whole=whole))
    if model is not None:
        _check_fit(info, model)
    return info


def check_adapter(gguf: GGUFFile) -> AdapterInfo:
    """The same for a header that was read, without a model.

    Raises:
        ModelFileError: as `check_adapter_file`.
    """
    _check_keys(gguf)
    alpha = gguf.metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise _bad_key(gguf, "adapter.lora.alpha", alpha, "a finite number")
    return AdapterInfo(
        path=gguf.path,
        name=brief(gguf.metadata.get("general.name", gguf.path.stem), 120),
        alpha=alpha,
        matrices=_matrices(gguf),
        bytes=gguf.size,
        gguf=gguf,
    )


def _check_keys(gguf: GGUFFile) -> None:
    for key, expected in _KEY_TYPES.items():
        kind = gguf.types.get(key)
        if kind is not None and kind != expected:
            raise _bad_key(gguf, key, f"type {kind}", f"type {expected}")
    if not is_adapter(gguf):
        said = gguf.metadata.get("general.type")
        raise ModelFileError(
            f"{gguf.path} is not an adapter",
            found="no general.type" if said is None else f"general.type {brief(said)}",
            expected=ADAPTER_TYPE,
            hint="Make one from a PEFT adapter: llama4 convert-lora ADAPTER",
        )
    for key, wanted in {"general.architecture": "llama4", "adapter.type": "lora"}.items():
        value = gguf.metadata.get(key)
        if value != wanted:
            found = f"no {key}" if value is None else f"{key} {brief(value)}"
            raise ModelFileError(
                f"{gguf.path} is not a LoRA adapter of a Llama 4", found=found, expected=wanted
            )
    if _ACTIVATION in gguf.metadata:
        raise ModelFileError(
            f"{gguf.path} is an activated LoRA, which is to work behind certain tokens only",
            found=_ACTIVATION,
            expected="an adapter that works everywhere",
        )


def _bad_key(gguf: GGUFFile, key: str, found: object, expected: object) -> ModelFileError:
    return ModelFileError(
        f"{gguf.path} has an invalid value of {key}",
        found=brief(found),
        expected=expected,
        hint=_RECONVERT,
    )


def _matrices(gguf: GGUFFile) -> dict[str, LowRank]:
    """The pairs of tensors, by the name of the tensor that they are added to."""
    halves: dict[str, dict[str, TensorInfo]] = {}
    for tensor in gguf.tensors:
        target, suffix = tensor.name[:-7], tensor.name[-7:]
        if suffix not in _SUFFIXES or not _is_adapted(target):
            raise _bad_tensor(
                gguf,
                f"has a tensor that llama.cpp does not apply: {brief(tensor.name)}",
                hint="Merge the PEFT adapter instead: llama4 convert BASE --merge-lora ADAPTER",
            )
        if tensor.type not in MATRIX_TYPES:
            expected = " or ".join(sorted(MATRIX_TYPES))
            problem = f"has a tensor of a type that ggml does not compute with: {tensor.name}"
            raise _bad_tensor(gguf, problem, tensor.type, expected)
        if suffix in halves.setdefault(target, {}):
            raise _bad_tensor(gguf, f"has the tensor {tensor.name} twice")
        halves[target][suffix] = tensor
    if not halves:
        raise _bad_tensor(gguf, "has no tensors")
    for target, found in halves.items():
        for suffix in _SUFFIXES:
            if suffix not in found:
                raise _bad_tensor(gguf, f"has no tensor {target}{suffix}", f"{target} without it")
    pairs = {target: LowRank(*(found[it] for it in _SUFFIXES)) for target, found in halves.items()}
    for target, pair in pairs.items():
        _check_pair(gguf, target, pair)
    return pairs


def _is_adapted(target: str) -> bool:
    return target in (_EMBEDDING, _OUTPUT) or _ADAPTED.fullmatch(target) is not None


def _axes(tensor: TensorInfo) -> tuple[int, int, int]:
    """All three of them; the header's shape has no trailing ones."""
    first, second, third = (*tensor.shape, 1, 1)[:3]
    return first, second, third


def _check_pair(gguf: GGUFFile, target: str, pair: LowRank) -> None:
    """Whether both have the same rank, and as many experts."""
    if max(len(pair.a.shape), len(pair.b.shape)) > 3 or 0 in (*pair.a.shape, *pair.b.shape):
        shapes = f"{list(pair.a.shape)} and {list(pair.b.shape)}"
        raise _bad_tensor(gguf, f"has misshapen tensors of {target}", shapes)
    a, b = _axes(pair.a), _axes(pair.b)
    rank = a[0] if target == _EMBEDDING else a[1]
    if rank != b[0] or a[2] != b[2]:
        raise _bad_tensor(
            gguf,
            f"has tensors that do not go together: {target}.lora_a and .lora_b",
            f"{list(a)} and {list(b)}",
            "one rank, and as many experts",
        )


def _check_fit(info: AdapterInfo, model: ModelInfo) -> None:
    """Whether each product has the shape of the matrix that it is added to.

    Raises:
        ModelFileError: names the first that has not.
    """
    shapes = {tensor.name: _axes(tensor) for tensor in model.tensors}
    for target, pair in info.matrices.items():
        a, b = _axes(pair.a), _axes(pair.b)
        product = (b[1], a[1], a[2]) if target == _EMBEDDING else (a[0], b[1], a[2])
        if target == _OUTPUT and target not in shapes:
            raise _tied(info, model, "changes the output, which is the embedding too", target)
        if shapes.get(target) != product:
            raise ModelFileError(
                f"{info.path} is an adapter of another model than {model.path}",
                found=f"{target} {_shown(product)}",
                expected="no such tensor" if target not in shapes else _shown(shapes[target]),
                hint=_OTHER_MODEL,
            )
        if target == _EMBEDDING and _OUTPUT not in shapes:
            raise _tied(info, model, "changes the embedding, which is the output too", target)


def _tied(info: AdapterInfo, model: ModelInfo, problem: str, target: str) -> ModelFileError:
    return ModelFileError(
        f"{info.path} {problem} in {model.path}",
        found=target,
        hint="llama.cpp cannot change one of the two alone: use a model with an output of its own.",
    )


def _shown(shape: tuple[int, ...]) -> str:
    return str([size for place, size in enumerate(shape) if place < 2 or size > 1])


def _bad_tensor(
    gguf: GGUFFile,
    problem: str,
    found: object = None,
    expected: object = None,
    *,
    hint: str = _RECONVERT,
) -> ModelFileError:
    return ModelFileError(f"{gguf.path} {problem}", found=found, expected=expected, hint=hint)
