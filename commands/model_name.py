"""What a person may name as a model: what a command does not take, and the next command instead.

Promises that a name of nothing that is here is one error, worded alike in all commands, with a
command that works. What a file or a directory is that is here, the library says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from shlex import quote

from ..convert.presets import PRESETS
from ..errors import CheckpointError, Llama4EdgeError, ModelFileError, did_you_mean
from ..hub.names import HubName, other_name, parse_hub_name
from .declare import usage_error

_UNFINISHED = (".partial", ".incomplete", ".part", ".crdownload", ".download", ".aria2")
_FILES = (".gguf", ".safetensors", ".json", ".bin", ".pth", ".pt", *_UNFINISHED)
_CONFIG = "config.json"
# Files of a directory that are compared with a name that is not there.
_MOST_FILES = 1000


@dataclass(frozen=True)
class _Taken:
    """What a command takes besides files: whether the names of repositories, and of presets."""

    error: type[Llama4EdgeError] = ModelFileError
    repositories: bool = False
    presets: bool = False
    directories: bool = False
    unfinished: bool = False


_TAKEN = {
    "run": _Taken(),
    "chat": _Taken(),
    "bench": _Taken(),
    "serve": _Taken(),
    "inspect": _Taken(directories=True, unfinished=True),
    "split": _Taken(),
    "merge": _Taken(),
    "plan": _Taken(repositories=True, presets=True, directories=True),
    "convert": _Taken(CheckpointError, repositories=True, directories=True),
}


def check_name(name: str, command: str) -> None:
    """Refuse a name with which `command` can do nothing.

    Raises:
        click.UsageError: it is empty.
        Llama4EdgeError: it names nothing that is here and that the command takes; says which
            command brings it here.
    """
    taken = _TAKEN[command]
    if not name:
        raise usage_error("the name of the model is empty")
    if taken.presets and name in PRESETS:
        return
    path = Path(name)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        if taken.repositories and _is_repository(name):
            return
        raise _absent(name, command, taken) from None
    except (OSError, ValueError):
        return  # what is wrong is said where it is read
    if path.is_symlink() and not path.exists():
        raise taken.error(
            f"{name} is a symbolic link to a file that does not exist", found=path.readlink()
        )
    if name.endswith(_UNFINISHED) and path.is_file() and not taken.unfinished:
        raise taken.error(
            f"{name} is not finished",
            hint="Give the llama4 convert, or llama4 pull, that began it once more: it resumes.",
        )
    if path.is_dir():
        _check_directory(path, command, taken)
    elif (command == "plan" and path.suffix == ".safetensors") or (
        command not in ("plan", "convert") and path.name == _CONFIG
    ):
        next_command = command if taken.directories else "convert"
        raise CheckpointError(
            f"{name} is one file of a checkpoint",
            hint=f"Give its directory: llama4 {next_command} {quote(str(path.parent))}",
        )


def _check_directory(path: Path, command: str, taken: _Taken) -> None:
    """Refuse a directory that holds what another command, or name, is for."""
    entries = _entries(path)
    ggufs = sorted(entry.path for entry in entries if entry.name.endswith(".gguf"))
    if (path / _CONFIG).exists() or (ggufs and not taken.repositories):
        return
    if command == "plan" and ggufs:
        raise ModelFileError(
            f"{path} is a directory, not a model file",
            found=f"{ggufs[0]} in it",
            hint=f"Give the file: llama4 plan {quote(ggufs[0])}",
        )
    if taken.directories:
        return
    inside = sorted(entry.path for entry in entries if _is_checkpoint(Path(entry.path)))
    checkpoint = str(path) if _is_checkpoint(path) else inside[0] if inside else None
    if checkpoint is not None:
        raise ModelFileError(
            f"{path} is a directory, not a model file",
            found=f"the checkpoint {checkpoint}",
            hint=f"Turn it into a GGUF: llama4 convert {quote(checkpoint)}",
        )


def _is_checkpoint(path: Path) -> bool:
    """Whether it is a checkpoint's directory, or a repository in the hub's cache with one."""
    return any(True for _ in (*path.glob(_CONFIG), *path.glob(f"snapshots/*/{_CONFIG}")))


def _is_repository(name: str) -> bool:
    hub = parse_hub_name(name)
    return hub is not None and hub.is_repository and not name.lower().endswith(_FILES)


def _absent(name: str, command: str, taken: _Taken) -> Llama4EdgeError:
    """The error for a name of nothing that is here."""
    hub = None if name.lower().endswith(_FILES) and name.count("/") < 2 else parse_hub_name(name)
    if other := other_name(name):
        return taken.error(f"{name} is {other[0]}", hint=other[1])
    scheme, separator, rest = name.partition("://")
    if separator and hub is None:
        hint = "Download it, and give the file."
        if scheme == "file":
            hint = f"Give its path: llama4 {command} {quote('/' + rest.lstrip('/'))}"
        return taken.error(f"{name} is an address, not a file", hint=hint)
    problem = f"{name} is an address, not a file" if separator else f"{name} does not exist"
    beside = f"{name}.gguf"
    if command != "convert" and Path(beside).is_file():
        return taken.error(problem, hint=f"Did you mean {beside}?")
    hints = [*_of_preset(name, command), *(_of_hub(hub, command, taken) if hub else ())]
    return taken.error(problem, hint=" ".join(hints) or _similar(name, command, taken))


def _of_preset(name: str, command: str) -> Iterator[str]:
    """What to do with the name of a preset where none is taken."""
    preset = PRESETS.get(name)
    if preset is None:
        return
    yield f"llama4 plan {name} says what it needs."
    if command == "bench":
        yield f"llama4 bench --synthetic {name} measures random weights of its shape."
    if preset.repository is not None:
        begin = "" if command == "convert" else "To have it as a file: "
        yield f"{begin}llama4 convert {preset.repository}"


def _of_hub(hub: HubName, command: str, taken: _Taken) -> Iterator[str]:
    """What to do about something on the hub."""
    revision = f" --revision {quote(hub.revision)}" if hub.revision not in (None, "main") else ""
    one = hub.file if hub.file is not None and hub.file.endswith(".gguf") else hub.quantization
    if one is not None:
        yield f"If it is on the hub, fetch it: llama4 pull {hub.repository} {quote(one)}{revision}"
    elif taken.repositories:
        with_revision = revision if command == "convert" else ""
        yield f"Give its repository: llama4 {command} {hub.repository}{with_revision}"
    else:
        yield (
            f"If it is a repository: llama4 pull {hub.repository}{revision} fetches a GGUF, "
            f"llama4 convert {hub.repository}{revision} makes one of a checkpoint."
        )


def _similar(name: str, command: str, taken: _Taken) -> str | None:
    """A hint at what is here, or known, and is called nearly like it."""
    path = Path(name)
    # That both end in .gguf is no likeness.
    known = {preset: preset for preset in PRESETS if taken.presets}
    for entry in _entries(path.parent):
        is_model = command != "convert" and entry.name.endswith(".gguf") and entry.is_file()
        if is_model or (taken.directories and entry.is_dir()):
            known[str(path.with_name(entry.name))] = entry.name.removesuffix(".gguf")
    stem = path.name.removesuffix(".gguf")
    hint = did_you_mean(
        name, [full for full, short in known.items() if did_you_mean(stem, [short])]
    )
    if hint is not None:
        return hint
    if taken.repositories and (command == "convert" or path.suffix != ".gguf"):
        return "Give a checkpoint's directory, or org/name on the Hugging Face Hub."
    return "llama4 pull fetches a GGUF, llama4 convert makes one of a checkpoint."


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(islice(entries, _MOST_FILES))
    except OSError:
        return []
