"""A model that somebody has converted already: choose it in a repository, and bring all its files.

Promises: every part of the model, and the projector for images where there is one; each file
compared with the hub's digest before it gets its name; what an interrupted pull brought is used by
the next. Nothing is guessed: where more than one model fits, they are listed.

Knows of the GGUF format only where it says the architecture.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import HubError, OutputError
from ..parts import part_named
from ..progress import Progress
from ..ranges import as_path, check_callback, check_flag, check_text
from ..system.files import disk_hint, is_directory
from ..units import bytes_text, told_apart
from .listing import RemoteFile, check_distinct
from .repository import Repository, find_repository, new_digest, partial_path

_PROJECTOR = re.compile(r"(?:^|[-_.])mmproj(?:[-_.]|$)", re.IGNORECASE)
# Of several projectors that differ in precision alone, the first of these.
_PROJECTOR_TYPES = ("f16", "bf16", "f32", "q8_0")
_ARCHITECTURE = b"general.architecture"
_HEAD_BYTES = 64 << 10
_CHUNK = 1 << 20
_MOST_LISTED = 40


@dataclass(frozen=True)
class Pulled:
    """What a pull brought: `model` is the file to load, the first of `parts`."""

    repository: str
    commit: str
    model: str
    parts: tuple[str, ...]
    projector: str | None
    bytes: int
    bytes_fetched: int

    def as_dict(self) -> dict[str, Any]:
        """The same fields for a program to read (``--json``)."""
        return asdict(self)


@dataclass(frozen=True)
class _Model:
    """A model of the repository: `label` is what tells it from the others."""

    label: str
    stem: str
    parts: tuple[RemoteFile, ...]

    @property
    def text(self) -> str:
        nbytes = sum(part.size for part in self.parts)
        return f"{self.label} ({bytes_text(nbytes)})"

    def is_called(self, choice: str) -> bool:
        """Whether the choice is the path or the name of one of its files."""
        return any(choice in (part.name, _base(part)) for part in self.parts)

    def is_of_type(self, choice: str) -> bool:
        """Whether the choice is a word of its name: Q4_K is none of Q4_K_M."""
        word = rf"(?<![A-Za-z0-9]){re.escape(choice)}(?![A-Za-z0-9_])"
        return re.search(word, self.stem, re.IGNORECASE) is not None


def pull(
    repository: str,
    choice: str | None = None,
    *,
    directory: str | os.PathLike[str] = ".",
    projector: bool = True,
    revision: str | None = None,
    token: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Pulled:
    """Bring a GGUF from the hub's repository `repository` into `directory`.

    Args:
        repository: ``org/name``.
        choice: a file of it, or a quantization such as ``Q4_K_M``; needed where there are several.
        directory: where the files go, under their own names.
        projector: bring the projector for pictures too, where the repository has one.
        revision: branch, tag or commit; by default the main branch.
        token: to use instead of the one that ``hf auth login`` or HF_TOKEN has set.
        progress: called as bytes arrive.

    Raises:
        HubError: the repository cannot be had, or not exactly one model in it fits the choice.
        OutputError: the directory is not there, too small, or holds other files of those names.
    """
    check_text("repository", repository)
    check_text("choice", choice, or_none=True)
    check_text("revision", revision, or_none=True)
    check_text("token", token, or_none=True)
    check_callback("progress", progress)
    check_flag("projector", projector)
    place = Path(as_path("directory", directory))
    if not is_directory(place):
        raise OutputError(f"{place} is not a directory", hint="Make it first.")
    remote = find_repository(repository, revision=revision, token=token)
    model = _choose(remote, choice)
    _check_architecture(remote, model.parts[0])
    beside = _projector(remote, model) if projector else None
    files = [*model.parts, *([beside] if beside else [])]
    check_distinct(remote.id, [_base(file) for file in files])
    try:
        before = _check_room(place, files)
        fetched = _bring(remote, files, place, before, progress)
    except OSError as error:
        raise OutputError(
            f"{place} cannot be read or written",
            found=f"{error.strerror}: {error.filename}" if error.filename else error.strerror,
            hint=disk_hint(error),
        ) from error
    return Pulled(
        repository=remote.id,
        commit=remote.commit,
        model=str(place / _base(model.parts[0])),
        parts=tuple(str(place / _base(part)) for part in model.parts),
        projector=str(place / _base(beside)) if beside else None,
        bytes=sum(file.size for file in files),
        bytes_fetched=fetched,
    )


# Choosing ----------------------------------------------------------------------------------------


def _choose(remote: Repository, choice: str | None) -> _Model:
    """The one model that fits the choice."""
    models = _models(remote)
    if not models:
        raise HubError(
            f"{remote.id} holds no GGUF",
            hint=f"Convert it: llama4 convert {remote.id}"
            if any(name.endswith(".safetensors") for name in remote.files)
            else "Give a repository that does.",
        )
    fitting = models if choice is None else _fitting(models, choice)
    if len(fitting) == 1:
        _check_parts(remote, fitting[0])
        return fitting[0]
    listed = ", ".join(model.text for model in (fitting or models)[:_MOST_LISTED])
    more = len(fitting or models) - _MOST_LISTED
    listed += f" and {more} more" if more > 0 else ""
    if not fitting:
        raise HubError(f"{remote.id} has no {choice}", found=listed, hint="Name one of these.")
    raise HubError(
        f"{remote.id} has more than one model" + (f" for {choice}" if choice else ""),
        found=listed,
        hint=f"Name one of these: llama4 pull {remote.id} {fitting[0].label}",
    )


def _fitting(models: list[_Model], choice: str) -> list[_Model]:
    """The models that are called so; or else those with that label; or that word in their name."""
    tests: tuple[Callable[[_Model], bool], ...] = (
        lambda model: model.is_called(choice),
        lambda model: model.label.lower() == choice.lower(),
        lambda model: model.is_of_type(choice),
    )
    for test in tests:
        matches = [model for model in models if test(model)]
        if matches:
            return matches
    return []


def _models(remote: Repository) -> list[_Model]:
    """Every GGUF of the repository, projectors apart, with the parts of each that are there."""
    groups: dict[str, list[RemoteFile]] = {}
    for file in sorted(remote.files.values(), key=lambda file: file.name):
        if file.name.endswith(".gguf") and not _is_projector(file):
            path = PurePosixPath(file.name)
            part = part_named(path.name)
            groups.setdefault(str(path.with_name(part.stem if part else path.stem)), []).append(
                file
            )
    labels = _labels(groups)
    return [_Model(labels[stem], stem, tuple(parts)) for stem, parts in groups.items()]


def _labels(stems: Iterable[str]) -> dict[str, str]:
    """The end of each name, from the first word on in which they differ."""
    names = {stem: PurePosixPath(stem).name for stem in stems}
    if len(set(names.values())) < len(names):
        return {stem: stem for stem in names}
    words = {stem: re.split(r"(?<=[-.])", name) for stem, name in names.items()}
    columns = enumerate(zip_longest(*words.values()))
    first = next((at for at, column in columns if len(set(column)) > 1), 0)
    return {stem: "".join(words[stem][first:]) or name for stem, name in names.items()}


def _check_parts(remote: Repository, model: _Model) -> None:
    names = [part_named(PurePosixPath(part.name).name) for part in model.parts]
    numbers = [(name.number, name.count) for name in names if name]
    expected = [(number + 1, len(model.parts)) for number in range(len(model.parts))]
    if numbers and numbers != expected:
        raise HubError(
            f"{remote.id} lacks parts of {model.stem}",
            found=", ".join(_base(part) for part in model.parts[:_MOST_LISTED]),
            hint="Choose another repository, or another --revision of this one.",
        )


def _projector(remote: Repository, model: _Model) -> RemoteFile | None:
    """The projector beside the model, or at the top of the repository."""
    for folder in (PurePosixPath(model.stem).parent, PurePosixPath()):
        projectors = sorted(
            (
                file
                for file in remote.files.values()
                if _is_projector(file) and PurePosixPath(file.name).parent == folder
            ),
            key=_preference,
        )
        if projectors:
            return projectors[0]
    return None


def _preference(file: RemoteFile) -> tuple[int, str]:
    words = re.split(r"[-.]", _stem(file).lower())
    ranks = [rank for rank, name in enumerate(_PROJECTOR_TYPES) if name in words]
    return (min(ranks, default=len(_PROJECTOR_TYPES)), file.name)


def _is_projector(file: RemoteFile) -> bool:
    return file.name.endswith(".gguf") and _PROJECTOR.search(_stem(file)) is not None


def _base(file: RemoteFile) -> str:
    return PurePosixPath(file.name).name


def _stem(file: RemoteFile) -> str:
    return PurePosixPath(file.name).stem


def _check_architecture(remote: Repository, file: RemoteFile) -> None:
    """Refuse another model before it travels; writers put the architecture first in the file."""
    head = remote.read(file.name, 0, _HEAD_BYTES)
    if head[:4] != b"GGUF":
        raise HubError(f"{file.name} of {remote.id} is not a GGUF file", found=repr(head[:4]))
    # A key is followed by the type of its value, 8 for a string, and a string by its length.
    _, key, value = head.partition(_ARCHITECTURE)
    length = int.from_bytes(value[4:12], "little")
    name = value[12 : 12 + min(length, 64)]
    architecture = name.decode("utf-8", "replace") if key else "none named"
    if architecture != "llama4":
        problem = f"{file.name} of {remote.id} is not Llama 4"
        raise HubError(problem, found=architecture, expected="llama4")


# Bringing ----------------------------------------------------------------------------------------


def _check_room(place: Path, files: Iterable[RemoteFile]) -> int:
    """Bytes that are there already, once it is sure that the rest can come.

    Raises:
        OutputError: it cannot.
    """
    there = missing = 0
    for file in files:
        target = place / _base(file)
        if target.exists() and (not target.is_file() or target.stat().st_size != file.size):
            raise _other_file(target)
        partial = partial_path(target, file)
        held = target if target.exists() else partial
        nbytes = min(held.stat().st_size, file.size) if held.exists() else 0
        there += nbytes
        missing += file.size - nbytes
    free = shutil.disk_usage(place).free
    if missing > free:
        found, expected = told_apart(free, missing)
        raise OutputError(
            f"{place} has too little free space",
            found=f"{found} free",
            expected=expected,
            hint="Free some space, or choose another disk.",
        )
    return there


def _bring(
    remote: Repository,
    files: Iterable[RemoteFile],
    place: Path,
    before: int,
    progress: Callable[[Progress], None] | None,
) -> int:
    """Fetch each file, or check the one that is there; the bytes that were fetched."""
    files = list(files)
    total = sum(file.size for file in files)
    done = 0
    for file in files:
        target = place / _base(file)

        def on_bytes(count: int, name: str = target.name) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(Progress(done, total, name, before))

        if target.exists():
            _check_digest(target, file, on_bytes)
        else:
            remote.download(file.name, target, on_bytes=on_bytes)
    return total - before


def _check_digest(target: Path, file: RemoteFile, on_bytes: Callable[[int], None]) -> None:
    digest = new_digest(file)
    with target.open("rb") as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            on_bytes(len(chunk))
    if digest.hexdigest() != file.etag:
        raise _other_file(target)


def _other_file(target: Path) -> OutputError:
    return OutputError(
        f"{target} exists and is another file than the hub's",
        hint="Move it away, or give another directory.",
    )
