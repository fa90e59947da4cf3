"""What a sequence's state is of: two states with equal fingerprints can stand for each other.

Promises that a model which was moved, renamed or split into parts keeps its fingerprint, and that
another quantization or finetune has another one. Knows nothing of the state itself.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from ..architecture import Hyperparameters
from ..errors import SessionError
from ..quant.types import TYPES
from ..units import bytes_text
from ..untrusted import Record, brief
from .bindings.library import llama_cpp_python
from .files.gguf_file import GGUFFile, TensorInfo
from .files.model_file import ModelInfo
from .settings import EngineSettings, FlashAttention, KVType

_SAMPLES, _SAMPLE_BYTES = 4, 64  # of each tensor; a finetune changes nearly all of its numbers
_ROTATED_HEADS = 64  # llama-kv-cache.cpp rotates heads that are a multiple of this


@dataclass(frozen=True)
class UsedAdapter:
    """An adapter with which a state was read.

    Args:
        digest: see `digest_of`.
        scale: never 0.0.
        name: of its file then, which does not count.
    """

    digest: str
    scale: float
    name: str = field(default="", compare=False)

    @classmethod
    def of_record(cls, record: Record) -> UsedAdapter:
        """The one in a file.

        Raises:
            SessionError: an entry is missing, or is of another type.
        """
        return cls(record.text("digest"), record.number("scale"), record.text("name"))


@dataclass(frozen=True)
class Fingerprint:
    """What must be equal for a state to be restored; ``model``, ``bytes`` and ``recipe`` are told.

    Args:
        model: its name.
        bytes: of its tensors.
        recipe: llama.cpp's name for it, such as ``MOSTLY_Q4_0``.
        weights: a digest of its hyperparameters and tensors: names, shapes, types, and samples of
            their bytes.
        type_k, type_v: what keys and values are kept as.
        rotation: which of them llama.cpp rotates: "none", "k", "v" or "kv".
        flash_attention: "on" or "off"; values are kept transposed without it.
        n_expert_used: routed experts that a token visited.
        llama_cpp: the release of llama-cpp-python.
        byte_order: of the machine, "little" or "big".
        adapters: those that the tokens were read with.
        control_vector: a digest of what was added after layers, "" for nothing.
    """

    model: str
    bytes: int
    recipe: str
    weights: str
    type_k: str
    type_v: str
    rotation: str
    flash_attention: str
    n_expert_used: int
    llama_cpp: str
    byte_order: str
    adapters: tuple[UsedAdapter, ...] = ()
    control_vector: str = ""

    @classmethod
    def of(cls, info: ModelInfo, settings: EngineSettings) -> Fingerprint:
        """That of the states of a model with these settings, without its adapters.

        Raises:
            SessionError: its file cannot be read any more.
        """
        hparams = info.hparams
        return cls(
            model=info.name,
            bytes=sum(tensor.nbytes for tensor in info.tensors),
            recipe=info.file_type,
            weights=_weights(info),
            type_k=settings.type_k,
            type_v=settings.type_v,
            rotation=_rotation(settings.type_k, settings.type_v, hparams),
            flash_attention=_flash_attention(settings.flash_attention),
            n_expert_used=settings.n_expert_used or hparams.n_expert_used,
            llama_cpp=llama_cpp_python(),
            byte_order=sys.byteorder,
        )

    @classmethod
    def of_record(cls, record: Record) -> Fingerprint:
        """The one in a file.

        Raises:
            SessionError: an entry is missing, or is of another type.
        """
        values: dict[str, Any] = {
            item.name: record.integer(item.name) if item.type == "int" else record.text(item.name)
            for item in fields(cls)
            if item.default is MISSING
        }
        used = record.records("adapters", default=[])
        # Sessions of earlier releases have neither.
        vector = record.text("control_vector") if "control_vector" in record else ""
        return cls(
            **values, adapters=tuple(map(UsedAdapter.of_record, used)), control_vector=vector
        )

    @property
    def model_text(self) -> str:
        """The model in words."""
        return f"{brief(self.model)}, {brief(self.recipe)}, {bytes_text(self.bytes)}"

    def check(self, current: Fingerprint, name: str) -> None:
        """Whether a state of this fingerprint is one of the `current`.

        Args:
            name: of the file that it is in, for errors.

        Raises:
            SessionError: it is not; says which part differs.
        """
        for difference in self._differences(current, name):
            raise difference

    def _differences(self, current: Fingerprint, name: str) -> Iterator[SessionError]:
        """An error for each part that differs, what weighs most first."""
        if self.weights != current.weights:
            yield SessionError(
                f"{name}: the session is of another model",
                found=self.model_text,
                expected=f"{current.model_text} with the same weights",
                hint="Open it with the model that it was made with.",
            )
        if self.adapters != current.adapters:
            found, expected = (_adapters_text(one.adapters) for one in (self, current))
            hint = "Open the model with the adapters that the session was made with."
            yield _differs(name, "it was read with other adapters", found, expected, hint)
        if self.control_vector != current.control_vector:
            found, expected = (
                "another control vector" if one.control_vector else "no control vector"
                for one in (self, current)
            )
            expected = expected.replace("another", "this")
            hint = "Open the model with the control vectors that the session was made with."
            yield _differs(name, "it was read with another control vector", found, expected, hint)
        kept, keep = (f"K {one.type_k} and V {one.type_v}" for one in (self, current))
        if kept != keep:
            kinds = brief(self.type_k), brief(self.type_v)
            hint = f"Give kv_type={kinds[0] if kinds[0] == kinds[1] else kinds}."
            yield _differs(name, "its KV cache is of other types", brief(kept), keep, hint)
        if self.rotation != current.rotation:
            rotated, rotate = (_ROTATED.get(one.rotation, "?") for one in (self, current))
            hint = "LLAMA_ATTN_ROT_DISABLE decides that: set it as it was."
            yield _differs(name, "its KV cache is rotated otherwise", rotated, rotate, hint)
        if self.flash_attention != current.flash_attention:
            hint = f"Give flash_attention={brief(self.flash_attention)}."
            found, expected = (f"flash attention {brief(one.flash_attention)}" for one in (
                self, current,
            ))  # fmt: skip
            yield _differs(name, "its KV cache is laid out otherwise", found, expected, hint)
        if self.n_expert_used != current.n_expert_used:
            hint = f"Give n_expert_used={self.n_expert_used}."
            found, expected = (f"{one.n_expert_used} experts a token" for one in (self, current))
            yield _differs(
                name, "it was read with another number of experts", found, expected, hint
            )
        if self.llama_cpp != current.llama_cpp:
            found, expected = (
                f"llama-cpp-python {brief(one.llama_cpp)}" for one in (self, current)
            )
            hint = "Open it with the release that saved it."
            yield _differs(name, "another llama-cpp-python saved it", found, expected, hint)
        if self.byte_order != current.byte_order:
            found, expected = (f"{brief(one.byte_order)} endian" for one in (self, current))
            hint = "Open it on such a machine."
            yield _differs(name, "another kind of machine saved it", found, expected, hint)


def _adapters_text(adapters: Sequence[UsedAdapter]) -> str:
    return ", ".join(f"{brief(one.name)}={one.scale:g}" for one in adapters) or "none"


_ROTATED = {
    "none": "neither K nor V rotated",
    "k": "K rotated",
    "v": "V rotated",
    "kv": "K and V rotated",
}


def _differs(name: str, problem: str, found: str, expected: str, hint: str) -> SessionError:
    problem = f"{name}: the session does not go with this model's settings: {problem}"
    return SessionError(problem, found=found, expected=expected, hint=hint)


def _rotation(type_k: KVType, type_v: KVType, hparams: Hyperparameters) -> str:
    """Which of keys and values this llama.cpp rotates (llama-kv-cache.cpp, ``attn_rot_k``)."""
    number = re.match(r"\s*[+-]?0*([1-9]?)", os.environ.get("LLAMA_ATTN_ROT_DISABLE", ""))
    disabled = number is not None and bool(number[1])
    if disabled or hparams.head_dim % _ROTATED_HEADS:
        return "none"
    kinds = (("k", type_k), ("v", type_v))
    return "".join(name for name, kind in kinds if TYPES[kind.upper()].quantized) or "none"


def _flash_attention(setting: FlashAttention) -> str:
    """Whether it is on; "auto" is, wherever llama.cpp can do it."""
    return "off" if setting == "off" else "on"


def _weights(info: ModelInfo) -> str:
    """A digest of what the model computes with, in whichever files it is."""
    try:
        return sampled_digest("llama4.", info.parts).hex()
    except OSError as error:
        raise SessionError(
            f"{info.path} cannot be read any more", found=error.strerror or str(error)
        ) from None


def sampled_digest(prefix: str, parts: Sequence[GGUFFile]) -> bytes:
    """32 bytes by which the weights in a file, or in its parts, are told from others.

    Args:
        prefix: of the keys that count, in the first part.

    Raises:
        OSError: a part cannot be read.
    """
    digest = hashlib.sha256()
    for key, value in sorted(parts[0].metadata.items()):
        if key.startswith(prefix):
            digest.update(repr((key, value)).encode())
    tensors = [each for part in parts for each in _samples(part)]
    for tensor, sample in sorted(tensors, key=lambda pair: pair[0].name):
        digest.update(repr((tensor.name, tensor.shape, tensor.type)).encode())
        digest.update(sample)
    return digest.digest()


def _samples(part: GGUFFile) -> Iterator[tuple[TensorInfo, bytes]]:
    """The tensors of a file, with bytes from all over each."""
    with part.path.open("rb", buffering=0) as file:
        for tensor in part.tensors:
            step = max(tensor.nbytes // _SAMPLES, 1)
            sample = b""
            for at in range(step // 2, tensor.nbytes, step):
                file.seek(tensor.offset + at)
                sample += file.read(min(_SAMPLE_BYTES, tensor.nbytes - at))
            yield tensor, sample
