"""The parts of a split model: are they all there, and parts of one model?

llama.cpp finds the others by the name of the first, and compares the number of each. What it does
not compare is compared here: counts, architectures, and that no tensor is there twice. Promises one
fault for each kind, however many parts have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import ModelFileError
from ...parts import PartName, part_named
from ...untrusted import brief
from .gguf_file import GGUFFile, bytes_after_tensors, read_gguf

_KEYS = {"split.no": "u16", "split.count": "u16", "split.tensors.count": "i32"}


def is_split(gguf: GGUFFile) -> bool:
    """Whether the file says that it is one of several parts."""
    count = gguf.metadata.get("split.count", 0)
    return not isinstance(count, int) or count > 1


def read_parts(
    gguf: GGUFFile, *, whole: bool = True
) -> tuple[tuple[GGUFFile, ...], tuple[ModelFileError, ...]]:
    """The headers of all parts that can be read, in order, and what is wrong with them.

    Args:
        gguf: the header of any part, or of a model in one file.
        whole: whether a part that ends before its last tensor cannot be read.
    """
    name = part_named(gguf.path.name)
    if name is None:
        if not is_split(gguf):
            return (gguf,), ()
        return (gguf,), (_check_types(gguf, 1, PartName("", 1, 1)) or _not_named(gguf),)
    paths = [gguf.path.with_name(str(part)) for part in name.siblings()]
    faults = _Faults()
    parts: dict[int, GGUFFile] = {}
    for number, path in enumerate(paths, start=1):
        if number == name.number:
            parts[number] = gguf
        elif not path.exists():
            faults.add("missing", path)
        else:
            try:
                parts[number] = read_gguf(path, whole=whole)
            except ModelFileError as error:
                faults.add("unreadable", path, error)
    _compare(parts, name, faults)
    return tuple(parts.values()), faults.errors()


class _Faults:
    """What is wrong with parts, by kind: the first of each kind, and how many there are."""

    def __init__(self) -> None:
        self._first: dict[str, ModelFileError] = {}
        self._numbers: dict[str, int] = {}

    def add(self, kind: str, path: Path, error: ModelFileError | None = None) -> None:
        self._numbers[kind] = self._numbers.get(kind, 0) + 1
        self._first.setdefault(kind, error or ModelFileError(str(path)))

    def errors(self) -> tuple[ModelFileError, ...]:
        return tuple(self._error(kind, first) for kind, first in self._first.items())

    def _error(self, kind: str, first: ModelFileError) -> ModelFileError:
        number = self._numbers[kind]
        if kind == "missing":
            parts = "part is missing: " if number == 1 else "parts are missing, the first is "
            return ModelFileError(
                f"{number:,} {parts}{first.problem}",
                hint="Download all parts into one directory.",
            )
        more = f" (and so with {number - 1:,} more)" if number > 1 else ""
        return ModelFileError(
            first.problem + more, found=first.found, expected=first.expected, hint=first.hint
        )


def _compare(parts: dict[int, GGUFFile], name: PartName, faults: _Faults) -> None:
    """Each part with its name, and with the others."""
    checks: tuple[Callable[[GGUFFile, int, PartName], ModelFileError | None], ...] = (
        _check_types,
        _check_place,
        _check_architecture,
    )
    for number, part in parts.items():
        for check in checks:
            error = check(part, number, name)
            if error is not None:
                faults.add(check.__name__, part.path, error)
                break
    if len(parts) == name.count and name.count > 1:
        _check_tensors(list(parts.values()), faults)


def _check_types(part: GGUFFile, number: int, name: PartName) -> ModelFileError | None:
    for key, kind in _KEYS.items():
        if key not in part.types and name.count > 1:
            return _bad(part, f"has no {key}", None, f"part {number} of {name.count}")
        if part.types.get(key, kind) != kind:
            return _bad(
                part, f"has an invalid value of {key}", f"type {part.types[key]}", f"type {kind}"
            )
    return None


def _check_place(part: GGUFFile, number: int, name: PartName) -> ModelFileError | None:
    said = (_number(part, "split.no") + 1, _number(part, "split.count"))
    if said == (number, name.count) or (name.count == 1 and not is_split(part)):
        return None
    found = f"part {said[0]:,} of {said[1]:,}" if is_split(part) else "a model in one file"
    named = f"part {number:,} of {name.count:,}"
    return _bad(part, "is not the part that its name says", found, named)


def _check_architecture(part: GGUFFile, number: int, name: PartName) -> ModelFileError | None:
    architecture = part.metadata.get("general.architecture", "llama4")
    if number == 1 or architecture == "llama4":
        return None
    return _bad(part, "is a part of another model", f"architecture {brief(architecture)}", "llama4")


def _check_tensors(parts: Sequence[GGUFFile], faults: _Faults) -> None:
    """Each tensor is in one part, and they are as many as every part says."""
    holder: dict[str, GGUFFile] = {}
    for part in parts:
        for tensor in part.tensors:
            other = holder.setdefault(tensor.name, part)
            if other is not part:
                problem = f"has a tensor that {other.path.name} has too: {tensor.name}"
                faults.add("twice", part.path, _bad(part, problem, None, None))
    count = sum(len(part.tensors) for part in parts)
    for part in parts:
        stated = _number(part, "split.tensors.count")
        if stated != count:
            problem = "has an invalid value of split.tensors.count"
            expected = f"{count}, as the parts hold"
            faults.add("count", part.path, _bad(part, problem, stated, expected))


def _number(part: GGUFFile, key: str) -> int:
    value = part.metadata.get(key, 0)
    return value if isinstance(value, int) else -1


def _bad(part: GGUFFile, problem: str, found: object, expected: object) -> ModelFileError:
    return ModelFileError(
        f"{part.path} {problem}",
        found=found,
        expected=expected,
        hint="Download all parts of one model into one directory, under their published names.",
    )


def not_first(gguf: GGUFFile) -> ModelFileError:
    """The error that a later part was given for the model."""
    name = part_named(gguf.path.name)
    misnamed = name and name.number == 1 and _check_place(gguf, 1, name)
    if misnamed:
        return misnamed
    first = name and gguf.path.with_name(str(name.siblings()[0]))
    number, count = _number(gguf, "split.no"), _number(gguf, "split.count")
    return ModelFileError(
        f"{gguf.path} is not the first part of its model",
        found=f"part {number + 1} of {count}" if "split.no" in gguf.metadata else "no split.no",
        hint=f"Give the first part: {first}"
        if first and first.exists() and first != gguf.path
        else "Give the file whose name ends in -00001-of-…; the others are found beside it.",
    )


def _not_named(gguf: GGUFFile) -> ModelFileError:
    """The error that a part does not have the name by which the others are found."""
    number, count = _number(gguf, "split.no") + 1, _number(gguf, "split.count")
    hint = "Give the parts the names they were published under."
    if bytes_after_tensors(gguf):
        hint = (
            "If the parts were put together with cat: keep them apart under those names, or let "
            "llama-gguf-split --merge join them."
        )
    return ModelFileError(
        f"{gguf.path} is part {number:,} of {count:,} and is not named like one",
        expected=_right_name(gguf, number, count),
        hint=hint,
    )


def _right_name(gguf: GGUFFile, number: int, count: int) -> str:
    """What a part should be called: like the others beside it, where there are some."""
    try:
        names = [part_named(path.name) for path in gguf.path.parent.glob(f"*-of-{count:05d}.gguf")]
    except OSError:
        names = []
    stems = {name.stem for name in names if name}
    stem = stems.pop() if len(stems) == 1 else gguf.path.name.removesuffix(".gguf")
    return str(PartName(stem, number, count))
