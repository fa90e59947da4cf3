"""The tensor types of ggml that a conversion can write: names, numbers, block sizes.

The table is a literal, because importing ``gguf`` takes longer than all else that a command does; a
test compares it with gguf's ``GGML_QUANT_SIZES``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import RecipeError, did_you_mean
from ..ranges import value_text


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
    def needs_importance(self) -> bool:
        """Whether llama.cpp writes it only with an importance matrix."""
        return self.name in _NEED_IMPORTANCE

    @property
    def bits_per_weight(self) -> float:
        """Bits that one number takes, scales included."""
        return self.block_bytes * 8 / self.block


# What is left of numbers in so few bits would be garbage otherwise. Source: tensor_requires_imatrix
# in llama-quant.cpp.
_NEED_IMPORTANCE = frozenset({"IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})

# The types that llama-quantize writes, in its own spelling.
TYPES: dict[str, TensorType] = {
    tensor_type.name: tensor_type
    for tensor_type in (
        TensorType("F32", 0, 1, 4),
        TensorType("F16", 1, 1, 2),
        TensorType("BF16", 30, 1, 2),
        TensorType("Q8_0", 8, 32, 34),
        TensorType("Q6_K", 14, 256, 210),
        TensorType("Q5_K", 13, 256, 176),
        TensorType("Q5_1", 7, 32, 24),
        TensorType("Q5_0", 6, 32, 22),
        TensorType("Q4_K", 12, 256, 144),
        TensorType("Q4_1", 3, 32, 20),
        TensorType("Q4_0", 2, 32, 18),
        TensorType("IQ4_NL", 20, 32, 18),
        TensorType("IQ4_XS", 23, 256, 136),
        TensorType("MXFP4", 39, 32, 17),
        TensorType("IQ3_S", 21, 256, 110),
        TensorType("Q3_K", 11, 256, 110),
        TensorType("IQ3_XXS", 18, 256, 98),
        TensorType("Q2_K", 10, 256, 84),
        TensorType("IQ2_S", 22, 256, 82),
        TensorType("IQ2_XS", 17, 256, 74),
        TensorType("IQ2_XXS", 16, 256, 66),
        TensorType("IQ1_M", 29, 256, 56),
        TensorType("IQ1_S", 19, 256, 50),
    )
}

F32, F16, BF16 = TYPES["F32"], TYPES["F16"], TYPES["BF16"]
Q8_0, Q5_1, Q5_0 = TYPES["Q8_0"], TYPES["Q5_1"], TYPES["Q5_0"]
Q4_1, Q4_0, MXFP4 = TYPES["Q4_1"], TYPES["Q4_0"], TYPES["MXFP4"]
Q6_K, Q5_K, Q4_K = TYPES["Q6_K"], TYPES["Q5_K"], TYPES["Q4_K"]
Q3_K, Q2_K = TYPES["Q3_K"], TYPES["Q2_K"]
IQ4_NL, IQ4_XS, IQ3_S = TYPES["IQ4_NL"], TYPES["IQ4_XS"], TYPES["IQ3_S"]


def type_named(name: str) -> TensorType:
    """The type called `name`, in any case (``q4_k``, ``Q8_0``).

    Raises:
        RecipeError: no such type.
    """
    tensor_type = TYPES.get(name.upper())
    if tensor_type is None:
        raise RecipeError(
            "unknown tensor type",
            found=value_text(name),
            expected="one of " + ", ".join(known.lower() for known in TYPES),
            hint=did_you_mean(name, [known.lower() for known in TYPES]),
        )
    return tensor_type


def type_overrides(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, TensorType]]:
    """The (regex, type) pairs for (regex, type name) pairs.

    Raises:
        RecipeError: one of them is not such a pair, or there is no type of that name.
    """
    overrides = []
    for pair in pairs:
        if not (
            isinstance(pair, (tuple, list))
            and len(pair) == 2
            and all(isinstance(item, str) for item in pair)
        ):
            raise RecipeError(
                "types are of the wrong type",
                found=value_text(pair),
                expected='(regex, type name) pairs, as in ("ffn_down_exps", "q6_k")',
            )
        regex, name = pair
        overrides.append((regex, type_named(name)))
    return overrides
