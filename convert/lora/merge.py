"""Adapters that are merged into a model while it is converted: rows plus products, in float32.

Promises what PEFT's ``merge_and_unload`` computes on a model in float32: each product times its
scale, then added, one adapter after the other, before anything is encoded. What an adapter changes
is found by the GGUF's tensors, so that it does not matter how the source stores them. Memory
holds the matrices of a few tensors at a time.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...errors import CheckpointError, DamagedTensorError, UnsupportedError
from ...quant.encode import Floats
from ...untrusted import brief
from ..job import Job, all_slabs, identity_of
from ..names import Target
from ..shard_header import StoredTensor
from ..shards import DiskNeed, LocalShards, Shards
from ..spelling import VISION_PREFIXES
from ..text_model import FLOAT_DTYPES, MappedTensor
from ..vision import vision_target
from .adapter import Adapter, open_adapter, read
from .base import Base
from .deltas import Deltas, Pair, Place, place_of, read_deltas, vision_pair
from .factors import Factors, factors_of, sides_of

# Tensors whose matrices are held: gate and up of two adapters, while those before are encoded.
_HELD = 6
_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class Wanted:
    """An opened adapter that is to be merged, times `scale`."""

    adapter: Adapter
    scale: float

    @property
    def digest(self) -> str:
        """Changes when the adapter, or how much of it is merged, does."""
        digest = hashlib.sha256()
        for path in (self.adapter.path / "adapter_config.json", self.adapter.weights):
            with path.open("rb") as file:
                while data := file.read(_READ_BYTES):
                    digest.update(data)
        return f"{digest.hexdigest()[:32]} times {self.scale!r}"


@dataclass(frozen=True)
class _Product:
    """One product that is added to rows of a tensor: of all its experts, or of the `expert`."""

    factors: Factors | None
    pair: Pair
    scale: float
    expert: int | None = None


class _Held:
    """The matrices of the last few products; several threads ask for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sides: OrderedDict[int, tuple[Floats, Floats]] = OrderedDict()

    def of(self, product: _Product) -> tuple[Floats, Floats]:
        """Inputs [rank, in] and outputs [out, rank], with experts in front where it has them."""
        with self._lock:
            key = id(product)
            if key not in self._sides:
                self._sides[key] = _sides(product)
                while len(self._sides) > _HELD:
                    self._sides.popitem(last=False)
            self._sides.move_to_end(key)
            return self._sides[key]


def _sides(product: _Product) -> tuple[Floats, Floats]:
    if product.factors is None:
        return read(product.pair.a), read(product.pair.b)
    return sides_of(product.factors, product.pair, read)


class Merge:
    """What is added to one tensor of a GGUF."""

    def __init__(self, products: Sequence[_Product], held: _Held, rows_of_expert: int) -> None:
        self._products = products
        self._held = held
        self._rows = rows_of_expert

    def add(self, rows: Floats, first: int) -> None:
        """Add to rows [n, length], the first of which is row `first` through all experts.

        Raises:
            DamagedTensorError: an adapter's tensor holds NaN, or its product is too large.
        """
        at = 0
        while at < len(rows):
            expert, row = divmod(first + at, self._rows)
            count = min(len(rows) - at, self._rows - row)
            for product in self._products:
                if product.expert in (None, expert):
                    inner, outer = self._held.of(product)
                    fused = outer.ndim == 3
                    up, down = (outer[expert], inner[expert]) if fused else (outer, inner)
                    with np.errstate(over="ignore", invalid="ignore"):
                        delta = up[row : row + count] @ down
                        delta *= np.float32(product.scale)
                        rows[at : at + count] += delta
                    if not np.isfinite(delta).all():
                        raise _too_large(product)
            at += count


def _too_large(product: _Product) -> DamagedTensorError:
    return DamagedTensorError(
        f"{brief(product.pair.b.name)} times lora_A cannot be merged",
        found="numbers too large for float32",
        hint="Download the adapter again, or merge less of it: ADAPTER=SCALE.",
    )


class MergedShards:
    """A model's files, and the files of adapters that lie here."""

    def __init__(self, shards: Shards, here: Iterable[Path]) -> None:
        self._shards = shards
        self._here = frozenset(here)
        self._local = LocalShards()

    def _of(self, path: Path) -> Shards:
        return self._local if path in self._here else self._shards

    def names(self, directory: Path) -> list[str]:
        """The checkpoint's."""
        return self._shards.names(directory)

    def size(self, path: Path) -> int | None:
        """Bytes of a file of either."""
        return self._of(path).size(path)

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Bytes of a file of either."""
        return self._of(path).read(path, offset, length)

    def identity(self, path: Path) -> str:
        """Of a file of either."""
        return self._of(path).identity(path)

    def expect(self, paths: list[Path]) -> None:
        """The checkpoint's shards among them will be acquired."""
        self._shards.expect([path for path in paths if path not in self._here])

    def acquire(self, path: Path) -> None:
        """Return once all of the file lies at `path`."""
        self._of(path).acquire(path)

    def release(self, path: Path) -> None:
        """The file is not needed any more."""
        self._of(path).release(path)

    def disk_need(self, paths: Iterable[Path]) -> DiskNeed | None:
        """What the checkpoint's shards among them take."""
        return self._shards.disk_need([path for path in paths if path not in self._here])

    def close(self) -> None:
        """Nothing is needed any more."""
        self._shards.close()


def open_adapters(wanted: Sequence[tuple[str | os.PathLike[str], float]]) -> list[Wanted]:
    """Open what is to be merged, in that order.

    Raises:
        CheckpointError: as `open_adapter`; or one is named twice.
    """
    opened = [Wanted(open_adapter(source), scale) for source, scale in wanted]
    paths = [one.adapter.path.resolve() for one in opened]
    for path in paths:
        if paths.count(path) > 1:
            raise CheckpointError(f"{path} is to be merged twice", hint="Give it once, with a sum.")
    return opened


def merge_into(job: Job, wanted: Sequence[Wanted], base: Base | None) -> Job:
    """The same conversion, of the model with the adapters merged into it.

    Args:
        job: what is planned of the model.
        wanted: the adapters, in the order in which they are added; with none, the job is returned.
        base: the shapes of its text model; None of a projector alone.

    Raises:
        CheckpointError: an adapter is of another model, or two replace the same tensor.
        UnsupportedError: one is more than a plain LoRA.
    """
    if not wanted:
        return job
    plan = _Plan(job, base)
    notes = [_add(plan, one) for one in wanted]
    held = _Held()
    merges = {name: Merge(those, held, plan.rows[name]) for name, those in plan.products.items()}
    outputs = {name: replace(place, merge=merges.get(name)) for name, place in job.outputs.items()}
    tensors = tuple(_changed(job, plan, merges))
    anew = _kept(job.tensors) - _kept(tensors)
    if anew:
        notes.append(f"{anew} matrices are not kept as stored but encoded anew: they are changed")
    shards = MergedShards(job.shards, [one.adapter.weights for one in wanted])
    return replace(
        job,
        shards=shards,
        tensors=tensors,
        outputs=outputs,
        slabs=all_slabs(tensors, outputs),
        identity={
            **job.identity,
            **identity_of(shards, tensors, job.parts),
            **{f"merged adapter {place}": one.digest for place, one in enumerate(wanted, 1)},
        },
        notes=(*job.notes, *notes),
    )


def _kept(tensors: Iterable[MappedTensor]) -> int:
    return sum(tensor.kept is not None for tensor in tensors)


def _changed(job: Job, plan: _Plan, merges: Mapping[str, Merge]) -> Iterator[MappedTensor]:
    """The job's tensors, or an adapter's in their place; blocks that change cannot be kept."""
    yielded: set[str] = set()
    for tensor in job.tensors:
        other = plan.in_place_of(tensor)
        if other is None:
            changes = any(target.name in merges for target in tensor.targets)
            yield replace(tensor, kept=None) if changes else tensor
        elif other.name not in yielded:
            yielded.add(other.name)
            yield other


class _Plan:
    """What adapters do to a job, by its GGUF tensors: how these are stored does not matter.

    `products` are added, and `rows` are those of one expert, or of all of a tensor without.
    """

    def __init__(self, job: Job, base: Base | None) -> None:
        self.base = base
        self.shapes = {name: output.shape for name, output in job.outputs.items()}
        towers = sum(name.startswith(("v.", "mm.")) for name in self.shapes)
        self.has_vision, self.has_text = towers > 0, towers < len(self.shapes)
        self.products: defaultdict[str, list[_Product]] = defaultdict(list)
        self.rows: dict[str, int] = {}
        self._sources: defaultdict[str, list[MappedTensor]] = defaultdict(list)
        for tensor in job.tensors:
            for target in tensor.targets:
                self._sources[target.name].append(tensor)
        # By the name of the tensor, and the number of the expert where it is one's alone.
        self._replaced: dict[tuple[str, int | None], MappedTensor] = {}

    def add(self, name: str, rows: int, *products: _Product) -> None:
        """Note what is added to the GGUF tensor `name`, of so many rows for each expert."""
        self.rows[name] = rows
        self.products[name] += products

    def place(self, name: str) -> Place | None:
        """Where a whole tensor goes that the tables call `name`; None where there is none like it.

        Experts that are stored together have no place for one of them.
        """
        if name.startswith(VISION_PREFIXES):
            target = vision_target(name)
            if target is None or target not in self.shapes:
                return None
            shape = self.shapes[target]
            return Place(shape, (Target(target, shape),), experts=False, expert=None)
        assert self.base is not None
        place = place_of(name, self.base)
        names = {target.name for target in place.targets}
        sources = [it for target in names for it in self._sources.get(target, ())]
        if place.expert is not None:
            sources = [it for it in sources if it.expert == place.expert]
        whole = all(target.name in names for it in sources for target in it.targets)
        return place if sources and whole else None

    def replace(self, stored: StoredTensor, place: Place) -> bool:
        """Put a whole tensor in its place, unless another one is there already."""
        keys = [(target.name, place.expert) for target in place.targets]
        if any(key in self._replaced for key in keys):
            return False
        tensor = MappedTensor(stored, place.targets, place.experts, place.expert)
        self._replaced |= dict.fromkeys(keys, tensor)
        for name, _ in keys:  # what was to be added to the one before
            added = self.products.pop(name, ())
            if place.expert is not None and added:
                self.products[name] = [it for it in added if it.expert != place.expert]
        return True

    def in_place_of(self, tensor: MappedTensor) -> MappedTensor | None:
        """What stands in for a tensor of the job."""
        name = tensor.targets[0].name
        return self._replaced.get((name, None)) or self._replaced.get((name, tensor.expert))


def _add(plan: _Plan, one: Wanted) -> str:
    """Hold one adapter against the job's tensors; what is to be said about it.

    Raises:
        CheckpointError: it is of another model.
        UnsupportedError: it changes nothing that is converted, or replaces what one before does.
    """
    deltas = read_deltas(one.adapter, plan.base)
    replaced = sum(_replace(plan, one, name, stored) for name, stored in deltas.replaced.items())
    count = 0
    for factors in factors_of(deltas.deltas):
        name = factors.target.name
        if name in plan.shapes:
            products = (
                _Product(factors, it.pair, it.pair.scale * one.scale, it.expert)
                for it in factors.deltas
            )
            plan.add(name, factors.target.shape[-2], *products)
            count += 1
    if plan.has_vision:
        for name, pair in deltas.vision.items():
            target, product = _tower_product(plan, one, name, pair)
            plan.add(target, pair.b.shape[0], product)
            count += 1
    if not count and not replaced:
        raise UnsupportedError(
            f"{one.adapter.path} changes nothing of what is converted",
            found=f"{deltas.pairs} pairs of the text model, {len(deltas.vision)} of the "
            "vision tower",
            expected=f"some of the {'text model' if plan.has_text else 'vision tower'}",
            hint="Convert without it, or the other half of the model too.",
        )
    return _note(plan, one, count, replaced, deltas)


def _tower_product(plan: _Plan, one: Wanted, name: str, pair: Pair) -> tuple[str, _Product]:
    """What a pair adds to a matrix of the tower, and which tensor of a projector that is."""
    place = plan.place(name)
    shape = (pair.b.shape[0], pair.a.shape[1])
    if place is None or place.shape != shape:
        raise CheckpointError(
            f"{one.adapter.path} is an adapter of another vision tower: {brief(pair.module)}",
            found=list(shape),
            expected="no such tensor" if place is None else list(place.shape),
        )
    pair = vision_pair(one.adapter, pair)
    return place.targets[0].name, _Product(None, pair, pair.scale * one.scale)


def _replace(plan: _Plan, one: Wanted, name: str, stored: StoredTensor) -> bool:
    """Put a whole tensor of an adapter in place of the model's; False where that has no such half.

    Raises:
        CheckpointError: it is of another shape.
        UnsupportedError: an adapter before replaces the same.
    """
    if not (plan.has_vision if name.startswith(VISION_PREFIXES) else plan.has_text):
        return False
    place = plan.place(name)
    if place is None or stored.shape != place.shape or stored.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{one.adapter.path} cannot replace a tensor of the model: {brief(stored.name)}",
            found=list(stored.shape),
            expected="no such tensor" if place is None else list(place.shape),
            hint="Take the adapter's own base. Of a resized vocabulary, that is the base with "
            "its tokens: merge with PEFT and convert the result.",
        )
    if not plan.replace(stored, place):
        raise UnsupportedError(
            f"{one.adapter.path} replaces {brief(name)}, as an adapter before it does"
        )
    return True


def _note(plan: _Plan, one: Wanted, count: int, replaced: int, deltas: Deltas) -> str:
    """What was merged of an adapter, and what was not."""
    times = "" if one.scale == 1 else f" times {one.scale:g}"
    parts = [f"merged {one.adapter.path}{times}: added to {count} tensors"]
    if replaced:
        parts.append(f"replaced {replaced}")
    if deltas.vision and not plan.has_vision:
        parts.append(f"left {len(deltas.vision)} pairs of the vision tower out, as it is")
    if deltas.pairs and not plan.has_text:
        parts.append(f"left {deltas.pairs} pairs of the text model out, as it is")
    return ", ".join(parts)
