"""The tensor types of ggml that a conversion can write: names, numbers, block sizes.

Block sizes come from the ``gguf`` package (``GGML_QUANT_SIZES``), never from a table of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import RecipeError


@dataclass(frozen=True)
class TensorType:
    """One of ggml's types: `block` numbers take `block_bytes` bytes."""

    name: str
    ggml_id: int
    block: int
    block_bytes: int

    @property
    def quantized(self) -> bool:
        """Whether the type groups numbers into blocks, as ggml's ``is_quantized`` says."""
        return self.block > 1

    def fits(self, row_length: int) -> bool:
        """Whether a row of `row_length` numbers is a whole number of blocks."""
        return row_length % self.block == 0

    def row_bytes(self, row_length: int) -> int:
        """Bytes that one row of `row_length` numbers takes."""
        assert self.fits(row_length), f"{self.name} cannot hold rows of {row_length}"
        return row_length // self.block * self.block_bytes

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes that a tensor of `shape` takes; its last axis holds the rows."""
        rows = 1
        for size in shape[:-1]:
            rows *= size
        return rows * self.row_bytes(shape[-1])

    @property
    def bits_per_weight(self) -> float:
        """Bits that one number takes, scales included."""
        return self.block_bytes * 8 / self.block


# The types llama-quantize writes without an importance matrix, in its own spelling.
WRITABLE = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K",
    "Q5_1",
    "Q5_0",
    "Q4_K",
    "Q4_1",
    "Q4_0",
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
    "IQ3_S",
    "Q3_K",
    "Q2_K",
)


def _from_gguf(name: str) -> TensorType:
    member = GGMLQuantizationType[name]
    block, block_bytes = GGML_QUANT_SIZES[member]
    return TensorType(name, int(member), int(block), int(block_bytes))


TYPES: dict[str, TensorType] = {name: _from_gguf(name) for name in WRITABLE}

F32, F16, BF16 = TYPES["F32"], TYPES["F16"], TYPES["BF16"]
Q8_0, Q6_K, Q5_K = TYPES["Q8_0"], TYPES["Q6_K"], TYPES["Q5_K"]
Q4_K, Q4_0 = TYPES["Q4_K"], TYPES["Q4_0"]


def type_named(name: str) -> TensorType:
    """The type called `name`, in any case (``q4_k``, ``Q8_0``).

    Raises:
        RecipeError: no such type, or one that llama.cpp writes only with an importance matrix.
    """
    found = TYPES.get(name.upper())
    if found is None:
        raise RecipeError(
            "unknown tensor type",
            found=repr(name),
            expected="one of " + ", ".join(known.lower() for known in WRITABLE),
        )
    return found
