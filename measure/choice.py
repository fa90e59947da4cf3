"""The choice of types for one model and one target, and what it is estimated to cost.

Asks the planner for the budget where the target is a machine (`planner.budget`), and solves the
choice exactly (`quant.knapsack`). Promises the same recipe for the same measurements. Reads no
weight, and writes no model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import gguf

from .._version import __version__
from ..convert.from_gguf import GGUFSource, plan_model
from ..convert.gguf_writer import packed
from ..convert.importance import ImportanceMatrix
from ..convert.job import Job
from ..convert.metadata import NO_TOKENIZER
from ..convert.part_layout import Part
from ..convert.request import Request
from ..errors import OutputError, SettingError
from ..planner import Plan
from ..planner.budget import MachineTarget, Room, smallest_room, weights_room
from ..quant import Recipe, TensorType, role_of
from ..quant.knapsack import Choice, Solution, solve
from ..quant.recipe_file import make_recipe, write_recipe
from ..quant.types import F16, TYPES
from ..ranges import as_path
from ..system.temporary import temporary_path
from ..units import bytes_text
from .reasons import FitReason, FittedTensor, reasons_for
from .sensitivity import Measurement

CANDIDATES = (
    "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
    "MXFP4", "Q3_K", "Q2_K",
)  # fmt: skip
"""The types that are chosen from."""


@dataclass(frozen=True)
class SizeTarget:
    """A file of so many bytes at most, and how that was said."""

    text: str
    nbytes: int


@dataclass(frozen=True)
class BitsTarget:
    """So many bits a weight on average, all tensors counted."""

    bits: float

    @property
    def text(self) -> str:
        """The target in words."""
        return f"{self.bits:g} bits a weight"


Target = MachineTarget | SizeTarget | BitsTarget
"""What a model is to fit."""

_EMBEDDING = "token_embd.weight"
_ALIGNMENT = 32  # of tensors in a GGUF
_HEADER_ROUNDS = 3  # until the header, which holds the recipe, has its size
_LONGEST_NAME, _LONGEST_SUMMARY = 64, 200


@dataclass(frozen=True)
class Fit:
    """Types for a budget, the reasons for them, and what they are estimated to cost.

    Args:
        source: what was measured.
        asked: the budget in words.
        recipe: what `convert` takes; `save` writes it to a file.
        budget: bytes that the tensors may take.
        bytes: of the GGUF's file, header and padding included.
        bits_per_weight: of all tensors.
        cost: the KL divergence from the source, in nats, that the errors are estimated to add up
            to.
        price: by how much ``cost`` would fall with one byte more.
        gap: by how much another choice might be better; 0 but for enormous models.
        tensors: those whose types can be chosen.
        reasons: by kind of tensor, from what is worth most a byte on.
        plan: of the file on the machine that was named.
        notes: what else is to be known.
    """

    source: str
    asked: str
    recipe: Recipe
    budget: int
    bytes: int
    bits_per_weight: float
    cost: float
    price: float
    gap: float
    tensors: tuple[FittedTensor, ...]
    reasons: tuple[FitReason, ...]
    plan: Plan | None
    notes: tuple[str, ...]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe to a file that ``recipe`` of `convert` and `plan` takes.

        Raises:
            OutputError: it cannot be written.
        """
        write_recipe(self.recipe, as_path("path", path))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "asked": self.asked,
            "recipe": self.recipe.name,
            "budget": self.budget,
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight,
            "cost": self.cost,
            "price": self.price,
            "gap": self.gap,
            "tensors": [{**vars(one), "shape": list(one.shape)} for one in self.tensors],
            "reasons": [
                {**vars(one), "bits_per_weight": one.bits_per_weight} for one in self.reasons
            ],
            "plan": None if self.plan is None else self.plan.as_dict(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Subject:
    """What is fitted: the plan of converting it to bf16, and the same as a GGUF's headers.

    ``shapes`` are of the tensors whose types can be chosen, ``fixed`` the types of those that
    somebody chose, and ``projector`` is the file for pictures that lies beside the model.
    """

    name: str
    job: Job
    headers: GGUFSource
    n_layer: int
    n_ctx_train: int
    n_expert: int
    n_expert_used: int
    shapes: Mapping[str, tuple[int, ...]]
    fixed: Mapping[str, TensorType]
    projector: Part | None

    @property
    def tied(self) -> bool:
        """Whether the token embedding is the output matrix too."""
        return "output.weight" not in self.shapes

    def planned(self, recipe: Recipe) -> Job:
        """The conversion with another recipe."""
        return self._planned(self.headers, recipe)

    def drawn(self, recipe: Recipe) -> Job:
        """The same without a tokenizer, which takes llama.cpp a second to read, and a plan needs
        not."""
        kept = {
            key: value
            for key, value in self.headers.metadata.items()
            if not key.startswith("tokenizer.")
        }
        kept[gguf.Keys.Tokenizer.MODEL] = packed(NO_TOKENIZER)
        return self._planned(replace(self.headers, metadata=kept), recipe)

    def _planned(self, headers: GGUFSource, recipe: Recipe) -> Job:
        return plan_model(
            headers, request_for(recipe), None,
            n_layer=self.n_layer, n_expert=self.n_expert, requantize=True,
        )  # fmt: skip


def request_for(recipe: Recipe, overrides: Sequence[tuple[str, TensorType]] = ()) -> Request:
    """A conversion of the text model into one file."""
    return Request(
        text=True, vision=False, recipe=recipe, overrides=overrides, matrix=None, split_size=None,
        matrices=F16,
    )  # fmt: skip


def recipe_until_chosen(target: Target) -> Recipe:
    """A recipe of the name that types for this target will have, with about the fewest bits."""
    return make_recipe(_recipe_name(target), [], "q2_k", summary="until types are chosen")


def _recipe_name(target: Target) -> str:
    name = re.sub(r"[^a-z0-9.]+", "-", f"fit-{target.text.lower()}").strip("-.")
    return name[:_LONGEST_NAME]


@contextmanager
def header_file(part: Part) -> Iterator[Path]:
    """A file with the header that a conversion would write, and a hole in place of each tensor."""
    with temporary_path("llama4-fit-") as path:
        try:
            with path.open("wb") as file:
                file.write(part.header)
                file.truncate(part.nbytes)
        except OSError as error:
            raise OutputError(
                "the header of a planned file cannot be written to a temporary file",
                found=error.strerror,
                hint="Set TMPDIR to a directory with room for it.",
            ) from None
        yield path


class Fitting:
    """The choice for one model and one target."""

    def __init__(self, model: Subject, target: Target, matrix: ImportanceMatrix | None) -> None:
        self._model, self._target, self._matrix = model, target, matrix
        self._measured: Mapping[str, Measurement] = {}
        self._untyped = sum(
            _padded(one.type, one.tensor.shape)
            for one in model.job.assignments
            if one.tensor.name not in model.shapes
        )
        # Looked up in main memory, where a machine's GPUs have no part in it.
        self._outside: frozenset[str] = frozenset()

    def check(self) -> None:
        """Refuse a target, before anything is measured, that even the fewest bits do not meet.

        Raises:
            SettingError: it is too small.
        """
        if isinstance(self._target, MachineTarget):
            self._check_context(self._target)
            with self._projector() as projector:
                if smallest_room(self._target, self._drawn, projector) is None:
                    raise self._no_room(self._target)
        else:
            self._check_budget(self._budget())

    def solved(
        self, measured: Mapping[str, Measurement], on_plan: Callable[[int], None] | None = None
    ) -> Fit:
        """The types for the target.

        Args:
            on_plan: as of `weights_room`.
        """
        self._measured = measured
        if isinstance(self._target, MachineTarget):
            return self._on_machine(self._target, on_plan)
        budget = self._budget()
        found = self._fitted(budget)
        if isinstance(self._target, SizeTarget):
            for _ in range(_HEADER_ROUNDS):
                if found.bytes <= self._target.nbytes:
                    break
                budget -= found.bytes - self._target.nbytes
                found = self._fitted(budget)
        return found

    def _budget(self) -> int:
        """What tensors may take of a file, or with so many bits."""
        tensors = self._model.job.assignments
        if isinstance(self._target, BitsTarget):
            return int(sum(prod(one.tensor.shape) for one in tensors) * self._target.bits / 8)
        assert isinstance(self._target, SizeTarget)
        (part,) = self._model.job.text
        header = part.nbytes - sum(_padded(one.type, one.tensor.shape) for one in tensors)
        return self._target.nbytes - header

    def _on_machine(self, target: MachineTarget, on_plan: Callable[[int], None] | None) -> Fit:
        """For the room that a plan leaves."""
        with self._projector() as projector:
            room = weights_room(target, self._drawn, projector, on_plan)
        if room is None:
            raise self._no_room(target)
        self._outside = self._unbudgeted(on_gpus=room.on_gpus)
        found = self._fitted(room.nbytes)
        images = room.plan.images and replace(room.plan.images, path="")
        plan = replace(room.plan, path=self._model.name, images=images)
        return replace(found, plan=plan, notes=(*_where(room), *found.notes))

    @contextmanager
    def _projector(self) -> Iterator[Path | None]:
        """The header of the file for pictures."""
        if self._model.projector is None:
            yield None
            return
        with header_file(self._model.projector) as path:
            yield path

    def _check_context(self, target: MachineTarget) -> None:
        """Refuse more tokens than the model was trained for."""
        trained = self._model.n_ctx_train
        if target.n_ctx is not None and target.n_ctx > trained:
            raise SettingError(
                f"fit asks for a longer context than {self._model.name} was trained for",
                found=f"{target.n_ctx} tokens in {target.text!r}",
                expected=f"at most {trained} tokens",
            )

    def _no_room(self, target: MachineTarget) -> SettingError:
        return SettingError(
            "fit names a machine without room for the model, even with the fewest bits",
            found=target.text,
            expected=f"room for {bytes_text(self._smallest())} of weights beside the context"
            + ("" if self._model.projector is None else " and the vision tower"),
            hint="Name another machine, more memory, or fewer tokens."
            + ("" if self._model.projector is None else " Without pictures: vision=False"),
        )

    def _check_budget(self, budget: int) -> None:
        smallest = self._smallest()
        if smallest > budget:
            setting = "target_size" if isinstance(self._target, SizeTarget) else "target_bpw"
            raise SettingError(
                f"{setting} is less than the fewest bits take",
                found=f"{self._target.text}, {bytes_text(max(budget, 0), digits=2)} of tensors",
                expected=f"at least {bytes_text(smallest, digits=2)} of them",
            )

    @contextmanager
    def _drawn(self, nbytes: int | None, on_gpus: bool) -> Iterator[Path]:
        """A file with the best types for so many bytes, as far as its header goes."""
        self._outside = self._unbudgeted(on_gpus=on_gpus)
        budget = self._smallest() if nbytes is None else max(nbytes, self._smallest())
        types, _ = self._solve(budget)
        (part,) = self._model.drawn(self._recipe(types, {})).text
        with header_file(part) as path:
            yield path

    def _unbudgeted(self, *, on_gpus: bool) -> frozenset[str]:
        return frozenset({_EMBEDDING} if on_gpus and not self._model.tied else ())

    def _smallest(self) -> int:
        """What all tensors of the budget take with the fewest bits."""
        return self._untyped + sum(
            min(_padded(one, self._model.shapes[name]) for one in self._types_for(name))
            for name in self._model.shapes
            if name not in self._outside
        )

    def _types_for(self, name: str) -> list[TensorType]:
        """The types that a tensor may have."""
        fixed = self._model.fixed.get(name)
        if fixed is not None:
            return [fixed]
        measured = self._measured.get(name)
        if measured is None:
            row = self._model.shapes[name][-1]
            found = [TYPES[it] for it in CANDIDATES if TYPES[it].fits(row)]
        else:
            found = [one for one in measured.errors if one.name in CANDIDATES]
        if name in self._outside:
            return [one for one in found if one.name == "Q8_0"] or found
        return found

    def _solve(self, budget: int) -> tuple[dict[str, TensorType], Solution]:
        """The types of least cost whose bytes, with those of all other tensors, are the budget's.

        Raises:
            ValueError: there are none.
        """
        names = list(self._model.shapes)
        allowed = [self._types_for(name) for name in names]
        options = [
            [
                Choice(
                    0 if name in self._outside else _padded(one, self._model.shapes[name]),
                    self._cost(name, one),
                )
                for one in types
            ]
            for name, types in zip(names, allowed, strict=True)
        ]
        solution = solve(options, budget - self._untyped)
        chosen = zip(names, allowed, solution.chosen, strict=True)
        return {name: types[number] for name, types, number in chosen}, solution

    def _cost(self, name: str, tensor_type: TensorType) -> float:
        """What a type costs; nothing before that is measured, so that the smallest is chosen."""
        measured = self._measured.get(name)
        return 0.0 if measured is None else measured.cost(tensor_type)

    def _fitted(self, budget: int) -> Fit:
        """The types for so many bytes of tensors."""
        self._check_budget(budget)
        types, solution = self._solve(budget)
        notes = self._notes(types, solution)
        record = {
            "made_by": f"llama4-edge {__version__}, fit",
            "asked": self._target.text,
            "budget_bytes": budget,
            "expected_kl": float(f"{solution.cost:.6g}"),
            "imatrix": None if self._matrix is None else self._matrix.path.name,
            "imatrix_sha256": None if self._matrix is None else self._matrix.digest,
        }
        recipe = self._recipe(types, record)
        job = self._model.planned(recipe)
        parameters = sum(prod(one.tensor.shape) for one in job.assignments)
        tensors = tuple(self._tensor(name, one) for name, one in types.items())
        return Fit(
            source=self._model.name,
            asked=self._target.text,
            recipe=recipe,
            budget=budget,
            bytes=sum(part.nbytes for part in job.text),
            bits_per_weight=8
            * sum(it.type.nbytes(it.tensor.shape) for it in job.assignments)
            / parameters,
            cost=solution.cost,
            price=solution.price,
            gap=solution.gap,
            tensors=tensors,
            reasons=reasons_for(tensors, self._measured, self._outside),
            plan=None,
            notes=notes,
        )

    def _tensor(self, name: str, chosen: TensorType) -> FittedTensor:
        measured = self._measured[name]
        return FittedTensor(
            name=name,
            role=role_of(name),
            shape=measured.shape,
            type=chosen.name,
            bytes=chosen.nbytes(measured.shape),
            error=measured.errors[chosen],
            share=measured.share,
            cost=measured.cost(chosen),
            fixed=name in self._model.fixed,
        )

    def _recipe(self, types: Mapping[str, TensorType], record: Mapping[str, Any]) -> Recipe:
        pairs = [(tensor, one.name.lower()) for tensor, one in types.items()]
        summary = f"chosen tensor by tensor for {self._target.text}"[:_LONGEST_SUMMARY]
        return make_recipe(_recipe_name(self._target), pairs, "q8_0", summary=summary, notes=record)

    def _notes(self, types: Mapping[str, TensorType], solution: Solution) -> tuple[str, ...]:
        notes = []
        rounded = [name for name, one in types.items() if self._cost(name, one)]
        if not set(rounded) - self._outside:
            notes.append("everything fits as it is: no tensor in the budget is rounded")
        if any(len(shape) == 3 for shape in self._model.shapes.values()):
            notes.append("the experts of a layer's matrix are one tensor, and so of one type")
        if self._matrix is None:
            notes.append(
                "without activation statistics (imatrix): inputs are estimated from norms and "
                "weights, and encoders weigh all columns alike"
            )
        if solution.gap:
            notes.append(f"another choice might cost {solution.gap:.2g} less: memory ran short")
        return tuple(notes)


def _padded(tensor_type: TensorType, shape: tuple[int, ...]) -> int:
    """What a tensor takes in a file."""
    return -(-tensor_type.nbytes(shape) // _ALIGNMENT) * _ALIGNMENT


def _where(room: Room) -> Iterator[str]:
    """Where the weights lie for which there is room, and what else there is room for."""
    if room.on_gpus:
        yield "all weights lie on the GPUs but the token embedding, which is outside the budget"
    elif room.plan.experts_on_cpu:
        on_cpu = bytes_text(room.plan.experts_on_cpu)
        yield (
            f"the fewest bits do not fit on the GPUs alone: {on_cpu} of experts are in main memory"
        )
    else:
        yield "the weights lie in main memory"
    images = room.plan.images
    if images is not None:
        yield (
            f"{bytes_text(images.weights_bytes + images.compute_bytes)} are kept for pictures: the "
            "vision tower, its projector and their buffers"
        )
