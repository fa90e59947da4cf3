"""What a file is that is not a GGUF, and what to do about it.

Promises one sentence for each kind, told from the first bytes, the name and the directory alone.
"""

from __future__ import annotations

import os
import re
import shlex
from itertools import islice
from pathlib import Path

from ...errors import ModelFileError, did_you_mean
from ...gguf_header import AGAIN
from ...parts import part_named
from ...untrusted import LFS_POINTER, lfs_pointer

PREFIX_BYTES = 4096
"""How many bytes of a file are enough to tell what it is."""

_CONVERT = "Turn a checkpoint of safetensors into one with: llama4 convert"
_FETCH = "Fetch the file itself, with: llama4 pull ORG/NAME"
_PYTORCH = (
    "If it is a PyTorch checkpoint, save it as safetensors; then turn its directory into a GGUF "
    "with: llama4 convert"
)
_OLD = "Convert the original checkpoint, with: llama4 convert"

# The first bytes, what such a file is, and what to do.
SESSION_MAGIC = b"L4EDGES\n"
"""The first bytes of a session."""

_MAGICS: tuple[tuple[bytes, str, str], ...] = (
    (b"lmgg", "in the GGML format of before 2023, which llama.cpp no longer reads", _OLD),
    (b"fmgg", "in the GGMF format of before 2023, which llama.cpp no longer reads", _OLD),
    (b"tjgg", "in the GGJT format of before 2023, which llama.cpp no longer reads", _OLD),
    (b"algg", "a LoRA adapter in the GGLA format, which llama.cpp no longer reads", _OLD),
    (b"PK\x03\x04", "a zip archive, as torch.save writes", _PYTORCH),
    (b"\x80\x02", "a pickle, as torch.save writes", _PYTORCH),
    (b"\x80\x03", "a pickle", _PYTORCH),
    (b"\x80\x04", "a pickle", _PYTORCH),
    (b"\x80\x05", "a pickle", _PYTORCH),
    (b"\x1f\x8b", "compressed by gzip", "Unpack it first, with: gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "Unpack it first, with: zstd -d"),
    (b"\xfd7zXZ", "compressed by xz", "Unpack it first, with: xz -d"),
    (b"BZh", "compressed by bzip2", "Unpack it first, with: bunzip2"),
    (b"7z\xbc\xaf", "a 7z archive", "Unpack it first, with: 7z x"),
    (b"Rar!", "a rar archive", "Unpack it first."),
    (b"\x93NUMPY", "a NumPy array", _CONVERT),
    (b"\x89HDF", "an HDF5 file", _CONVERT),
    (b"\x7fELF", "a program", _FETCH),
    (SESSION_MAGIC, "a session", "Give it with --session, after the model that it was made with."),
    (b"MZ", "a program", "If it is a llamafile, take the GGUF out of it with: unzip"),
)
_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
_OLLAMA_MODEL = re.compile(
    rb'"application/vnd\.ollama\.image\.model"[^}]*?"digest"\s*:\s*"sha256:([0-9a-f]{64})"'
)
# Entries of directories that are looked at for a GGUF.
_MOST_ENTRIES = 2000


def foreign(path: Path, prefix: bytes) -> ModelFileError:
    """The error about a file that does not begin like a GGUF.

    Args:
        prefix: its first `PREFIX_BYTES`, or all of them.
    """
    if prefix.startswith(LFS_POINTER):
        pointer = lfs_pointer(str(path), ModelFileError)
        return ModelFileError(pointer.problem, hint=pointer.hint)
    for magic, what, hint in _MAGICS:
        if prefix.startswith(magic):
            return _not_gguf(path, f"a file that is {what}", hint)
    if prefix[257:262] == b"ustar":
        return _not_gguf(path, "a tar archive", "Unpack it first, with: tar -xf")
    if prefix[8:9] == b"{" and int.from_bytes(prefix[:8], "little") < 2**30:
        hint = f"Turn its directory into a GGUF with: llama4 convert {_quoted(path.parent)}"
        return _not_gguf(path, "a safetensors file", hint)
    if not prefix.strip(b"\0"):
        return _not_gguf(path, "zeros, as a download leaves that was broken off", AGAIN)
    return _text(path, prefix)


def _text(path: Path, prefix: bytes) -> ModelFileError:
    """The error about a file that is text, or else unknown."""
    start = prefix.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"<(!doctype|html|head|\?xml|!--)", start, re.IGNORECASE):
        return _not_gguf(path, "a web page, saved in place of the file", _FETCH)
    if start.startswith(b"{"):
        manifest = _OLLAMA_MODEL.search(prefix)
        if manifest:
            hint = f"Give the model itself, in Ollama's blobs: sha256-{manifest[1].decode()}"
            return _not_gguf(path, "a manifest of Ollama", hint)
        return _not_gguf(path, f"JSON: {_line(prefix)}", _FETCH)
    if start and all(byte >= 0x20 or byte in b"\t\r\n" for byte in prefix) and _is_utf8(prefix):
        return _not_gguf(path, f"the text {_line(prefix)!r}", _FETCH)
    found = f"the first bytes {prefix[:4]!r}"
    return ModelFileError(
        f"{path} is not a GGUF file", found=found, expected=repr(b"GGUF"), hint=_CONVERT
    )


def _not_gguf(path: Path, found: str, hint: str) -> ModelFileError:
    return ModelFileError(f"{path} is not a GGUF file", found=found, hint=hint)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end == len(data) and len(data) - error.start < 4  # cut in a character
    return True


def _line(prefix: bytes) -> str:
    line = " ".join(prefix.decode("utf-8", "replace").split())
    return line if len(line) <= 80 else f"{line[:80]}…"


def again(path: Path) -> str:
    """What to do about a file that is not whole."""
    if path.name.endswith(_UNFINISHED):
        return "It is a download that was not finished; go on with: llama4 pull ORG/NAME"
    return AGAIN


# --- directories, and names of nothing


def directory(path: Path) -> ModelFileError:
    """The error about a directory: it names the model in it, where there is one."""
    models = sorted(_models(path))
    if len(models) == 1:
        return ModelFileError(
            f"{path} is a directory, not a model file",
            found=f"one GGUF in it, {models[0].relative_to(path)}",
            hint=f"Give that file: {_quoted(models[0])}",
        )
    if models:
        return ModelFileError(
            f"{path} is a directory, not a model file",
            found=f"{len(models)} GGUFs in it, the first is {models[0].relative_to(path)}",
            hint="Give one of them.",
        )
    if (path / "config.json").is_file():
        return ModelFileError(
            f"{path} is a checkpoint directory, not a model file",
            hint=f"Turn it into a GGUF with: llama4 convert {_quoted(path)}",
        )
    return ModelFileError(
        f"{path} is not a model file",
        found="a directory",
        expected="a .gguf file",
        hint="Turn a checkpoint directory into one with: llama4 convert",
    )


def has_models(path: Path) -> bool:
    """Whether a directory has a GGUF in it, or in one of those below."""
    return bool(_models(path))


def _models(path: Path) -> list[Path]:
    """The GGUFs in a directory, or else in those below it; of split ones the first part."""
    depth = 4 if (path / "snapshots").is_dir() or path.name.startswith("models--") else 2
    most, level = _MOST_ENTRIES, [path]
    for _ in range(depth):
        models: list[Path] = []
        below: list[Path] = []
        for folder in level:
            entries = _entries(folder, most)
            most -= len(entries)
            models += [Path(entry.path) for entry in entries if _is_model(entry)]
            below += [Path(entry.path) for entry in entries if _is_folder(entry)]
        if models:
            return models
        level = below
    return []


def _is_model(entry: os.DirEntry[str]) -> bool:
    part = part_named(entry.name)
    named = entry.name.endswith(".gguf") and "mmproj" not in entry.name
    return named and (part is None or part.number == 1) and Path(entry.path).is_file()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and Path(entry.path).is_dir()


def _entries(folder: Path, most: int) -> list[os.DirEntry[str]]:
    """What is in a directory, `most` of it; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(islice(entries, max(most, 0)))
    except (OSError, ValueError):
        return []


def absent(path: Path) -> ModelFileError:
    """The error about a file that does not exist: what its name could mean instead."""
    if path.is_symlink():
        return ModelFileError(
            f"{path} is a symbolic link to a file that does not exist",
            found=str(path.readlink()),
            hint=_FETCH,
        )
    beside = path.with_name(path.name + ".gguf") if path.name else path
    if beside.is_file():
        return ModelFileError(f"{path} does not exist", hint=f"Did you mean {beside}?")
    return ModelFileError(f"{path} does not exist", hint=_similar(path))


def _similar(path: Path) -> str | None:
    """A hint at GGUFs beside the path that are called nearly like it."""
    names = [entry.name for entry in _entries(path.parent, _MOST_ENTRIES)]
    models = [name for name in names if name.endswith(".gguf")]
    return did_you_mean(path.name, models)


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
