"""ggml's own types: the blocks of a GGUF, as they are, or decoded as ggml does.

Promises the bytes that llama-quantize would write: numbers are encoded as ggml decodes them,
without a rounding in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...quant.encode import Bytes, Floats, are_valid, decode_blocks
from ...quant.types import TensorType
from .form import CODES, Block, Decoder, Form, ReadPart, Region, Weight, expect


@dataclass(frozen=True)
class Blocks(Form):
    """Rows of blocks of one type.

    With `checked`, a row that is copied may hold neither NaN nor infinity.
    """

    encoding: TensorType
    checked: bool

    suffixes: ClassVar[Mapping[str, str]] = {CODES: ""}
    dtypes: ClassVar[Mapping[str, tuple[str, ...]]] = {CODES: ("U8",)}

    @property
    def label(self) -> str:
        """The type's name."""
        return self.encoding.name

    @property
    def title(self) -> str:
        """The same."""
        return self.encoding.name

    def check(self, weight: Weight) -> None:
        """The bytes of each row."""
        rows, length = weight.shape
        expect(weight, CODES, (rows, self.encoding.row_bytes(length)))

    def decoder(self, weight: Weight, region: Region, read: ReadPart) -> Decoder:
        """Blocks have all that decoding them takes."""
        return _Rows(self.encoding, self.checked)


@dataclass(frozen=True)
class _Rows(Decoder):
    encoding: TensorType
    checked: bool

    exact: ClassVar[bool] = True

    def decode(self, codes: Block, begin: int, end: int) -> Floats:
        length = codes.shape[1] // self.encoding.block_bytes * self.encoding.block
        floats = np.empty((len(codes), length), np.float32)
        decode_blocks(codes, self.encoding, floats)
        return floats

    def holds(self, tensor_type: TensorType) -> bool:
        return tensor_type == self.encoding

    def repack(
        self, codes: Block, begin: int, end: int, tensor_type: TensorType, place: Bytes
    ) -> None:
        if self.checked and not are_valid(codes, self.encoding):
            raise ValueError("NaN or infinity")
        place[:] = codes.reshape(-1)
