"""Decoding one weight, whose parts are torch tensors, as a conversion does, slab by slab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from llama4_edge.convert.forms import CODES, VIEWS, Block, Form, Region, Weight, find_weight
from llama4_edge.convert.shard_header import DTYPE_BYTES, StoredTensor

DTYPES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8",
    torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64",
}  # fmt: skip

NAME = "model.layers.0.feed_forward.experts.3.up_proj.weight"


@dataclass
class Stored:
    """A weight in memory, in place of shards."""

    form: Form
    shape: tuple[int, ...]
    parts: Mapping[str, torch.Tensor]
    data: dict[str, Block] = field(default_factory=dict)

    def weight(self, name: str = NAME) -> Weight:
        """Found by its parts' names, as in a checkpoint; parts are held against its shape."""
        stored = {}
        for part, tensor in self.parts.items():
            called = self.form.part_name(name, part)
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            dtype = DTYPES[tensor.dtype]
            shape = tuple(tensor.shape)
            stored[called] = StoredTensor(called, dtype, shape, Path("one"), 0, raw.nbytes)
            self.data[called] = raw.view(VIEWS[dtype])
        found = find_weight(self.form, name, self.shape, stored)
        assert found is not None
        return found

    def read(self, part: StoredTensor, first: int, count: int) -> Block:
        items = self.data[part.name][first : first + count]
        assert len(items) == count, f"{part.name} has no {first} to {first + count}"
        return items


def regions(weight: Weight, step: int) -> Iterator[Region]:
    """All of it, `step` lines at a time."""
    for expert in range(weight.shape[0] if weight.fused else 1):
        for first in range(0, weight.lines, step):
            yield Region(expert, first, min(first + step, weight.lines))


def decoded(
    form: Form, shape: tuple[int, ...], parts: Mapping[str, torch.Tensor], step: int = 1 << 30
) -> np.ndarray:
    """The numbers of a weight of this shape, [out, in] or [expert, out, in].

    Each slab has `step` lines, and is decoded in two pieces.
    """
    stored = Stored(form, shape, parts)
    weight = stored.weight()
    items = form.items(weight)
    assert (
        weight.codes.nbytes == stored.data[weight.codes.name].size * DTYPE_BYTES[weight.codes.dtype]
    )
    blocks = stored.data[weight.parts[CODES].name]
    lines = blocks.reshape(shape[0], items, -1) if weight.fused else blocks.reshape(-1, items)
    per = form.lines_per_item
    pieces = []
    for region in regions(weight, step):
        decoder = form.decoder(weight, region, stored.read)
        codes = lines[region.expert].T if weight.fused else lines
        middle = region.count // 2 // per * per
        for begin, end in ((0, middle), (middle, region.count)):
            if begin < end:
                numbers = decoder.decode(
                    codes[(region.first + begin) // per : (region.first + end) // per], begin, end
                )
                assert numbers.dtype == np.float32
                assert numbers.shape == (end - begin, weight.length)
                pieces.append(numbers)
    numbers = np.concatenate(pieces)
    return numbers.reshape(shape[0], -1, shape[1]) if weight.fused else numbers
