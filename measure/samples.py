"""Rows of a model that is not converted yet: a few of each tensor, spread over all of it.

A checkpoint, of whatever form, or a GGUF: what is planned to be converted is read through the
conversion's own pipeline, but only the lines that are asked for. Promises the same rows for the
same shapes, and that nothing is held but a few megabytes at a time. Knows neither types nor models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ..convert.forms import Region
from ..convert.job import Job
from ..convert.pipeline import Tally, run_pipeline
from ..convert.shard_header import DTYPE_BYTES
from ..convert.slabs import Output, Share, Slab, slabs_of
from ..convert.text_model import MappedTensor
from ..progress import Progress
from ..quant.encode import Floats
from ..quant.types import F32

SAMPLE_NUMBERS = 1 << 19
"""Numbers of a tensor that are read, all of a smaller one: 2,048 superblocks, of which the error of
a type is known to about one part in a hundred."""

MOST_MATRICES = 8
"""Experts of a tensor that are read."""

_BANDS = 8  # of neighbouring rows in a matrix, for the same reason
_ALIGNED = 32  # rows: whole items of every form, and of use to a disk


@dataclass(frozen=True)
class Rows:
    """Rows of one matrix of a tensor: [n, row_length], of expert number `matrix`, else 0."""

    tensor: str
    matrix: int
    rows: Floats


def read_samples(
    job: Job,
    shapes: Mapping[str, tuple[int, ...]],
    take: Callable[[Rows], None],
    *,
    matrices: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Read rows of the tensors in `shapes`, and hand them over in the order of the files.

    Args:
        job: a planned conversion.
        shapes: of the tensors that are wanted, by their names in the GGUF.
        take: called in one thread, for some rows after the other; they change when it returns.
        matrices: which matrices of each tensor to read, where it is not read as a whole; None is
            all of all tensors, every row.
        progress: called with the bytes read so far.

    Raises:
        DamagedTensorError: a number is NaN or infinite.
        CheckpointError: a file cannot be read.
    """
    names = list(shapes)
    outputs = {
        name: Output(name, F32, shape, number, 0)
        for number, (name, shape) in enumerate(shapes.items())
    }
    slabs = []
    for tensor in sorted(job.tensors, key=lambda it: (it.stored.file, it.stored.offset)):
        slabs += _slabs(tensor, outputs, matrices)
    total, done = sum(slab.source_bytes for slab in slabs), 0

    def on_slab(slab: Slab) -> None:
        nonlocal done
        done += slab.source_bytes
        if progress is not None:
            progress(Progress(done, total, slab.shares[0].output.name))

    sink = _Sink([outputs[name] for name in names], take)
    run_pipeline(slabs, job.shards, sink, threads=1, seconds=Tally(), on_slab=on_slab)


def _slabs(
    tensor: MappedTensor,
    outputs: Mapping[str, Output],
    matrices: Mapping[str, Sequence[int]] | None,
) -> list[Slab]:
    """The parts of a stored tensor that are read."""
    if not any(target.name in outputs for target in tensor.targets):
        return []
    # Fused matrices are laid out together, also where one of them alone is wanted.
    places = [
        outputs.get(target.name) or Output(target.name, F32, target.shape, -1, 0)
        for target in tensor.targets
    ]
    slabs = slabs_of(
        tensor.stored, places, experts=tensor.experts, expert=tensor.expert, weight=tensor.weight
    )
    return [
        cut
        for slab in slabs
        for share in slab.shares
        if share.output.part >= 0
        for cut in _cuts(slab, share, matrices)
    ]


def _cuts(slab: Slab, share: Share, matrices: Mapping[str, Sequence[int]] | None) -> list[Slab]:
    """What is wanted of a slab's share."""
    count = share.last - share.first
    if matrices is None:
        return [_cut(slab, share, share.first, count)]
    cuts = []
    for begin, end in wanted_rows(share.output.shape, matrices[share.output.name]):
        first, last = max(begin, share.row), min(end, share.row + count)
        if first < last:
            cuts.append(_cut(slab, share, share.first + first - share.row, last - first))
    return cuts


def wanted_rows(shape: tuple[int, ...], taken: Sequence[int]) -> list[tuple[int, int]]:
    """The rows of a tensor that are sampled, counted through all its matrices: begins and ends.

    Args:
        taken: the matrices that are sampled, where they are not read as a whole.
    """
    count, rows = prod(shape[:-2]), shape[-2]
    if prod(shape) <= SAMPLE_NUMBERS:
        return [(0, count * rows)]
    bands = _BANDS if count == 1 else 1
    band = SAMPLE_NUMBERS // shape[-1] // len(taken) // bands
    band = min(max(band // _ALIGNED, 1) * _ALIGNED, rows)
    ranges = []
    for order, matrix in enumerate(taken):
        for number in range(bands):
            # Another place in every matrix.
            part = (number + order / len(taken)) / bands
            begin = int((rows - band) * part) // _ALIGNED * _ALIGNED
            ranges.append((matrix * rows + begin, matrix * rows + begin + band))
    return ranges


def _cut(slab: Slab, share: Share, first: int, count: int) -> Slab:
    """Lines `first` to ``first + count`` of a slab, which are of one share."""
    per, size = slab.lines_per_item, DTYPE_BYTES[slab.stored.dtype]
    target = share.target + (first - share.first) * share.output.row_bytes
    region = slab.region
    if region is not None:
        region = Region(region.expert, region.first + first, region.first + first + count)
    cut = replace(slab, region=region, shares=(Share(share.output, target, 0, count),))
    if slab.transposed:
        return replace(cut, source=slab.source + first // per * size, columns=-(-count // per))
    return replace(cut, source=slab.source + first * slab.stride * size, rows=count)


class _Sink:
    """Hands over what the pipeline writes."""

    def __init__(self, outputs: Sequence[Output], take: Callable[[Rows], None]) -> None:
        self._outputs, self._take = outputs, take

    def write(self, part: int, offset: int, data: memoryview) -> None:
        output = self._outputs[part]
        length = output.shape[-1]
        rows = np.frombuffer(data, np.float32).reshape(-1, length)
        first, per = offset // output.row_bytes, output.shape[-2] if len(output.shape) > 1 else 1
        while len(rows):
            count = min(len(rows), per - first % per)
            self._take(Rows(output.name, first // per, rows[:count]))
            rows, first = rows[count:], first + count

    def slab_done(self, settled: Callable[[bool], None] | None = None) -> None:
        if settled is not None:
            settled(True)
