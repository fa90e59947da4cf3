"""What a form is: the stored tensors that make up a matrix, and how they become numbers.

A matrix is [out, in], a linear layer's, or [expert, in, out], where all experts are one tensor. Its
*lines* are what becomes rows of the GGUF: ``in`` numbers that go to one output. Its numbers lie in
one large part, the codes, which is read in slabs; scales and the like are its other parts. Either
way a form sees codes as [lines, items of a line], so that it decodes both orientations alike.

Knows no file, no type of ggml's but where a form's numbers are already one's blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import CheckpointError, DamagedTensorError
from ...quant.encode import Bytes, Floats
from ...quant.types import BF16, TensorType
from ...untrusted import shown
from ..shard_header import DTYPE_BYTES, StoredTensor
from ..shards import Shards

Block = npt.NDArray[Any]

CODES = "codes"

# How numpy holds each dtype that a part can have. bf16 is held as its raw 16-bit words.
VIEWS: dict[str, type] = {
    "BF16": np.uint16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "I8": np.int8,
    "U8": np.uint8,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
}


@dataclass(frozen=True)
class Weight:
    """A matrix in a `form`: its shape as numbers, and its stored parts, `CODES` among them."""

    form: Form
    shape: tuple[int, ...]
    parts: Mapping[str, StoredTensor]

    @property
    def codes(self) -> StoredTensor:
        """The part that is read in slabs."""
        return self.parts[CODES]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def name(self) -> str:
        """Its stored name, without what the form adds to call the codes."""
        return self.codes.name.removesuffix(self.form.suffixes[CODES])

    @property
    def fused(self) -> bool:
        """Whether it is [expert, in, out], so that a line is a column of the stored codes."""
        return len(self.shape) == 3

    @property
    def length(self) -> int:
        """Numbers in a line."""
        return self.shape[1]

    @property
    def lines(self) -> int:
        """Lines, of one expert where it is fused."""
        return self.shape[-1] if self.fused else self.shape[0]


@dataclass(frozen=True)
class Region:
    """Lines `first` to `last` of a weight, of its `expert` by number where it is fused, else 0."""

    expert: int
    first: int
    last: int

    @property
    def count(self) -> int:
        """How many lines."""
        return self.last - self.first


class ReadPart(Protocol):
    """Access to the parts beside the codes."""

    def __call__(self, part: StoredTensor, first: int, count: int) -> Block:
        """Items `first` to ``first + count`` of a part, counted through all its axes, 1-D.

        They are as `VIEWS` has the part's dtype.
        """


@dataclass(frozen=True)
class Rounded:
    """Of `groups` groups of numbers that were kept, how many are not to the bit what was stored."""

    count: int
    groups: int

    def __add__(self, other: Rounded) -> Rounded:
        return Rounded(self.count + other.count, self.groups + other.groups)


class Decoder(ABC):
    """The lines of one region, whose scales are read and checked."""

    exact: ClassVar[bool] = False
    """Whether the numbers are encoded as they are; otherwise they are rounded to bf16 first."""

    @abstractmethod
    def decode(self, codes: Block, begin: int, end: int) -> Floats:
        """The numbers of lines `begin` to `end` of the region.

        Args:
            codes: those lines' codes [end - begin, items], perhaps with contiguous columns.
            begin: counted from the region's first line.
            end: the same.

        Returns:
            Exact, or rounded once from the exact product, [end - begin, length]; contiguous.

        Raises:
            ValueError: a code is NaN.
        """

    def holds(self, tensor_type: TensorType) -> bool:
        """Whether the lines become blocks of this type by `repack`, without being decoded."""
        return False

    def repack(
        self, codes: Block, begin: int, end: int, tensor_type: TensorType, place: Bytes
    ) -> None:
        """The same lines as blocks of the type that `Form.kept_as` gave, into `place`.

        Raises:
            ValueError: a number is too large for the type.
        """
        raise NotImplementedError

    def rounded(self) -> Rounded:
        """What of the region `repack` cannot keep to the bit."""
        raise NotImplementedError


class Form(ABC):
    """One way of storing matrices, with the settings that a checkpoint has for it."""

    suffixes: ClassVar[Mapping[str, str]]
    """Part to what its name has after the weight's, as ``_scale``; `CODES` may have nothing."""

    dtypes: ClassVar[Mapping[str, tuple[str, ...]]]
    """Part to the dtypes that it may have."""

    optional: ClassVar[frozenset[str]] = frozenset()
    """Parts that a weight may be without, as far as names go."""

    kept_by_default: ClassVar[bool] = False
    """Whether a checkpoint with such weights is converted with ``keep`` where nobody says."""

    fused: ClassVar[bool | None] = None
    """Whether it is one of fused weights alone (True) or of linear layers alone (False)."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What `inspect` calls the numbers' type: ``F8_E4M3``, ``INT4``."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What the report calls the form, with its settings."""

    @abstractmethod
    def check(self, weight: Weight) -> None:
        """Hold the parts' shapes against the weight's; `expect` does one.

        Raises:
            CheckpointError: one cannot be what its name says.
        """

    @abstractmethod
    def decoder(self, weight: Weight, region: Region, read: ReadPart) -> Decoder:
        """Read what decoding this region takes.

        Raises:
            DamagedTensorError: a scale that cannot be one; see `damaged`.
        """

    @property
    def lines_per_item(self) -> int:
        """Lines whose codes are in one item; of a fused weight, and a divisor of its lines."""
        return 1

    def part_name(self, weight: str, part: str) -> str:
        """What a part is called of the weight that is called `weight`."""
        return weight + self.suffixes[part]

    def kept_as(self, weight: Weight) -> TensorType | None:
        """The type of ggml's whose blocks hold the numbers as they are, if there is one.

        Asked before a scale is read. What single groups have to be rounded for all that is counted
        when they are met; see `Decoder.rounded`.
        """
        return None

    def in_order(self, weight: Weight, read: ReadPart) -> bool:
        """Whether small parts, which alone are read, agree with what `kept_as` says.

        Raises:
            DamagedTensorError: one holds what it cannot.
        """
        return True

    def encoded_as(self, weight: Weight) -> TensorType:
        """The type that recipe ``keep`` takes where none holds the numbers as they are."""
        return BF16

    def items(self, weight: Weight) -> int:
        """Stored items of a line's codes."""
        codes = weight.codes.parameters * self.lines_per_item
        return codes // (weight.lines * (weight.shape[0] if weight.fused else 1))


def find_weight(
    form: Form, name: str, shape: tuple[int, ...], stored: Mapping[str, StoredTensor]
) -> Weight | None:
    """The weight that the tables call `name`, if it is stored in this form.

    Args:
        form: the form.
        name: of the tables.
        shape: what its numbers must have.
        stored: tensors by their names in the tables, as far as those have one.

    Raises:
        CheckpointError: parts are missing, or of another dtype or shape.
    """
    codes = stored.get(form.part_name(name, CODES))
    if codes is None or codes.dtype not in form.dtypes[CODES]:
        return None
    if form.fused is not None and form.fused != (len(shape) == 3):
        return None
    names = {part: form.part_name(name, part) for part in form.suffixes}
    found = {part: stored[called] for part, called in names.items() if called in stored}
    weight = Weight(form, shape, found)
    for part in form.suffixes:
        if part not in found and part not in form.optional:
            raise missing(weight, part)
    form.check(weight)
    return weight


def find_in_any(
    forms: Sequence[Form], name: str, shape: tuple[int, ...], stored: Mapping[str, StoredTensor]
) -> Weight | None:
    """The same in the first of `forms` that fits; raises what the first one raises if none does."""
    first_error = None
    for form in forms:
        try:
            weight = find_weight(form, name, shape, stored)
        except CheckpointError as error:
            first_error = first_error or error
            continue
        if weight is not None:
            return weight
    if first_error is not None:
        raise first_error
    return None


def missing(weight: Weight, part: str) -> CheckpointError:
    """The error that a part is not stored."""
    return CheckpointError(
        f"tensor {weight.form.part_name(weight.name, part)} is missing",
        found=f"{weight.codes.name} stored as {weight.codes.dtype}",
        hint="The shards and config.json must be of the same model, and all of it.",
    )


def expect(weight: Weight, part: str, *shapes: tuple[int, ...]) -> None:
    """Raise unless a part is of one of its form's dtypes and of one of these shapes."""
    stored, dtypes = weight.parts[part], weight.form.dtypes[part]
    if stored.dtype in dtypes and stored.shape in shapes:
        return
    raise CheckpointError(
        f"{stored.name} in {stored.file.name} cannot be the {part} of {weight.name}",
        found=f"{stored.dtype} {list(stored.shape)}",
        expected=f"{' or '.join(dtypes)} {' or '.join(str(list(shape)) for shape in shapes)}, "
        f"for {list(weight.shape)} as {weight.form.title}",
    )


def damaged(part: StoredTensor, found: str) -> DamagedTensorError:
    """The error that a part holds what it cannot."""
    return DamagedTensorError(
        f"{part.name} in {part.file.name} cannot be converted",
        found=found,
        hint="Download that shard again.",
    )


def scales_of(part: StoredTensor, items: Block, first: int = 0) -> Floats:
    """The scales in `items`, which begin with item `first` of the part; exact.

    Raises:
        DamagedTensorError: one is negative, zero, infinite or NaN; the error names its row.
    """
    scales = floats_of(items, part.dtype)
    good = np.isfinite(scales) & (scales > 0)
    if not good.all():
        bad = int(np.flatnonzero(~good)[0])
        row = (first + bad) // max(1, prod(part.shape[1:]))
        value = float(scales[bad])
        raise damaged(part, f"a scale that is not a positive number: {shown(value)} in row {row}")
    return scales


def floats_of(items: Block, dtype: str) -> Floats:
    """Items that are stored as BF16, F16 or F32, widened; exact."""
    if dtype == "BF16":
        return (items.astype(np.uint32) << 16).view(np.float32)
    return items.astype(np.float32)


def part_reader(shards: Shards) -> ReadPart:
    """Reads parts from wherever they lie; of a shard that is not at hand, their bytes alone."""

    def read(part: StoredTensor, first: int, count: int) -> Block:
        size = DTYPE_BYTES[part.dtype]
        data = shards.read(part.file, part.offset + first * size, count * size)
        if len(data) != count * size:
            raise CheckpointError(
                f"{part.file} cannot be read where {part.name} lies",
                found=f"the file ends at byte {part.offset + first * size + len(data)}",
                hint="Check the file, then run the same command again.",
            )
        items: Block = np.frombuffer(data, VIEWS[part.dtype])
        return items

    return read


# What compressed-tensors takes where a group's weights do not say.
_DEFAULTS = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}


def mismatches(weights: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The settings of a group's weights that are not as `expected`.

    One that is absent has compressed-tensors' default, which is null for most.
    """
    return [
        f"weights.{field} {shown(weights.get(field))}"
        for field, value in expected.items()
        if weights.get(field, _DEFAULTS.get(field)) != value
    ]
