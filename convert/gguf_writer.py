"""The gguf package's writer, with all strings and numbers of a vocabulary packed at once.

Promises the same bytes: the package packs the 840,000 of Llama 4 one by one, which takes seconds.
Knows nothing of what the metadata says.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import chain
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGUFValueType

# The type of a value that is bytes already, its type among them.
_PACKED: Any = object()


class GGUFWriter(gguf.GGUFWriter):  # type: ignore[misc]  # no type information is published
    """Holds the metadata and tensor infos of one file; opens none.

    Args:
        architecture: what the file says that it is, by default a Llama 4 text model.
    """

    def __init__(self, architecture: str = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA4]) -> None:
        super().__init__(None, architecture)

    @classmethod
    def copying(cls, metadata: Mapping[str, bytes], alignment: int) -> GGUFWriter:
        """A writer that holds the metadata of another file, and nothing else.

        Args:
            metadata: for each key its value's type and bytes, as they stand in that file.
            alignment: of the tensors, which the metadata say too where it is not the default.
        """
        writer = cls()
        writer.kv_data[0].clear()
        writer.data_alignment = alignment
        for key, packed in metadata.items():
            writer.kv_data[0][key] = gguf.GGUFValue(packed, _PACKED)
        return writer

    def _pack_val(
        self,
        val: Any,
        vtype: GGUFValueType,
        add_vtype: bool,
        sub_type: GGUFValueType | None = None,
    ) -> bytes:
        if vtype is _PACKED:
            return bytes(val)
        if vtype == GGUFValueType.ARRAY and add_vtype and sub_type is None:
            kinds = set(map(type, val))
            if kinds == {str}:
                return _array(GGUFValueType.STRING, len(val), _strings(val))
            if kinds == {int}:
                return _array(GGUFValueType.INT32, len(val), np.array(val, "<i4").tobytes())
        packed: bytes = super()._pack_val(val, vtype, add_vtype, sub_type)
        return packed


def packed(value: int | str) -> bytes:
    """A number as u32, or a text, as it stands in a file with its type before it."""
    if isinstance(value, int):
        return struct.pack("<II", GGUFValueType.UINT32, value)
    data = value.encode()
    return struct.pack("<IQ", GGUFValueType.STRING, len(data)) + data


def _array(kind: GGUFValueType, length: int, items: bytes) -> bytes:
    return struct.pack("<IIQ", GGUFValueType.ARRAY, kind, length) + items


def _strings(texts: list[str]) -> bytes:
    encoded = [text.encode() for text in texts]
    lengths = np.array(list(map(len, encoded)), "<u8").tobytes()
    prefixes = (lengths[at : at + 8] for at in range(0, len(lengths), 8))
    return b"".join(chain.from_iterable(zip(prefixes, encoded, strict=True)))
