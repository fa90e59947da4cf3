"""Which directory of those that people name is the checkpoint, and what the others are.

A directory without config.json or without weights is mostly something known: a LoRA adapter, a
download in another format, a folder above or below the checkpoint. Promises an error for each that
says what it is and what to do next. Knows nothing of what config.json says.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError
from ..untrusted import Reader
from .shards import file_names

CONFIG_NAME = "config.json"
_ADAPTER_CONFIG = "adapter_config.json"

_ADAPTERS = Reader(CheckpointError, limit=16 << 20)

# Children of a directory that are looked into for a checkpoint.
_MAX_CHILDREN = 1000


def find_checkpoint(source: Path) -> Path:
    """The directory with config.json that `source` is, or has as its snapshot.

    Args:
        source: a checkpoint's directory, or the root of a repository in huggingface_hub's cache.

    Raises:
        CheckpointError: it is neither, and says what it is instead.
    """
    try:
        is_directory = stat.S_ISDIR(source.stat().st_mode)
    except (OSError, ValueError) as error:
        raise _absent(source, error) from None
    if not is_directory:
        raise _is_file(source)
    if _is_cached_repository(source):
        return _snapshot(source)
    if not is_listed(source / CONFIG_NAME):
        raise _no_config(source)
    return source


def is_listed(path: Path) -> bool:
    """Whether there is something of this name, be it no file, gone, or not to be looked at."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def cached_repository(path: Path) -> str | None:
    """The repository whose snapshot in huggingface_hub's cache `path` is, if it is one."""
    cached = re.search(r"models--([^/]+?)--([^/]+)/snapshots/", path.absolute().as_posix())
    return f"{cached.group(1)}/{cached.group(2)}" if cached else None


def published_name(text: str) -> str:
    """The repository in Hugging Face's layout of the model that a path or a name speaks of.

    Scout Instruct's where it speaks of none.
    """
    names = re.findall(r"Llama-4-[A-Z][a-z]+-17B-\d+E(?:-Instruct(?:-FP8)?)?", text)
    return f"meta-llama/{names[-1] if names else 'Llama-4-Scout-17B-16E-Instruct'}"


def no_weights(path: Path) -> CheckpointError:
    """The error that a directory with config.json has no safetensors that are the model's."""
    return _known_form(path, file_names(path)) or CheckpointError(
        f"{path} holds no weights",
        expected="model.safetensors, or model.safetensors.index.json and its shards",
        hint="Download the .safetensors files of the same repository.",
    )


def is_of_meta(name: str) -> bool:
    """Whether a file of this name is a part of weights in Meta's own layout."""
    return re.fullmatch(r"consolidated\.\d+\.(pth|safetensors)", name) is not None


def of_meta(path: Path, name: str) -> CheckpointError:
    """The error that a directory holds weights in Meta's own layout, one in the file `name`."""
    return CheckpointError(
        f"{path} is in Meta's own layout",
        found=f"Meta's consolidated.*{Path(name).suffix}",
        expected="safetensors with config.json",
        hint=f"Use the same model in Hugging Face's layout: {published_name(str(path.resolve()))}",
    )


def _absent(path: Path, error: OSError | ValueError) -> CheckpointError:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return CheckpointError(
            f"{path} is a symbolic link to a directory that does not exist",
            found=path.readlink(),
        )
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} does not exist", expected="a checkpoint directory")
    # A ValueError is a NUL in the name.
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return CheckpointError(f"{path} cannot be read", found=reason)


def _is_file(path: Path) -> CheckpointError:
    """The error that `path` is a file; one of a checkpoint's lies in the right directory."""
    if path.suffix == ".gguf":
        return CheckpointError(
            f"{path} is a GGUF, which needs no conversion", hint=f"Run it: llama4 run {path}"
        )
    beside = is_listed(path.parent / CONFIG_NAME) or path.suffix == ".safetensors"
    return CheckpointError(
        f"{path} is a file",
        expected="the directory that holds config.json and the safetensors",
        hint=f"Give {path.parent} instead." if beside else None,
    )


# huggingface_hub's cache ------------------------------------------------------------------------


def _is_cached_repository(path: Path) -> bool:
    return path.resolve().name.startswith("models--") and (path / "snapshots").is_dir()


def _snapshot(root: Path) -> Path:
    """The snapshot of a cached repository that its main branch stands at, or the only one."""
    snapshots = root / "snapshots"
    names = [name for name in file_names(snapshots) if is_listed(snapshots / name / CONFIG_NAME)]
    main = root / "refs" / "main"
    if is_listed(main):
        commit = Reader(CheckpointError, limit=4096).text(main).strip()
        if commit in names:
            return snapshots / commit
    if len(names) == 1:
        return snapshots / names[0]
    repository = root.resolve().name.removeprefix("models--").replace("--", "/", 1)
    if names:
        raise CheckpointError(
            f"{root} has several snapshots, and none is that of its main branch",
            found=", ".join(names[:3]),
            hint=f"Give one of them: {snapshots / names[0]}",
        )
    raise CheckpointError(
        f"{root} has no snapshot with a config.json",
        hint=f"Download the repository: hf download {repository}",
    )


# What directories are that are no checkpoint ----------------------------------------------------


def _no_config(path: Path) -> CheckpointError:
    """The error that a directory has no config.json, which says what it is as far as is known."""
    names = file_names(path)
    parent = path.resolve().parent
    known = _known_form(path, names)
    if is_listed(parent / CONFIG_NAME) and _ADAPTER_CONFIG not in names:
        return CheckpointError(
            f"{path} has no config.json, and the directory above it has one",
            expected="the directory that holds config.json and the safetensors",
            hint=f"Give {parent} instead.",
        )
    return (
        known
        or _level_too_high(path, names)
        or CheckpointError(
            f"{path} has no config.json",
            found="safetensors" if _ending(names, ".safetensors") else "no Hugging Face checkpoint",
            expected="config.json beside the safetensors",
            hint="Download config.json and the tokenizer's files of the same repository, or "
            f"convert the published model: llama4 convert {published_name(str(path.resolve()))}",
        )
    )


def _level_too_high(path: Path, names: Sequence[str]) -> CheckpointError | None:
    """The error that checkpoints are among the children of a directory."""
    children = [
        name
        for name in names[:_MAX_CHILDREN]
        if is_listed(path / name / CONFIG_NAME) or _is_cached_repository(path / name)
    ]
    if not children:
        return None
    if len(children) == 1:
        return CheckpointError(
            f"{path} has no config.json, and {children[0]} in it has one",
            hint=f"Give {path / children[0]} instead.",
        )
    return CheckpointError(
        f"{path} has no config.json, and {len(children)} directories in it have one",
        found=", ".join(children[:5]) + (", …" if len(children) > 5 else ""),
        hint=f"Give one of them, for example {path / children[-1]}",
    )


def _known_form(path: Path, names: Sequence[str]) -> CheckpointError | None:
    """The error for a directory that holds weights in another form than a checkpoint's."""
    if _ADAPTER_CONFIG in names:
        return _adapter(path)
    meta = next(filter(is_of_meta, names), None)
    if meta is not None:
        return of_meta(path, meta)
    if _ending(names, ".gguf"):
        first = path / _ending(names, ".gguf")[0]
        return CheckpointError(
            f"{path} holds a GGUF, which needs no conversion",
            found=first.name,
            hint=f"Run it: llama4 run {first}",
        )
    pickles = _ending(names, ".bin", ".pth", ".pt", ".ckpt")
    weights = [
        name
        for name in pickles
        if not re.match(r"training_args|optimizer|scheduler|scaler|rng_state", name)
    ]
    if weights:
        return CheckpointError(
            f"{path} holds weights in PyTorch's own format, which can run any program when read",
            found=weights[0],
            expected="safetensors",
            hint='If you trust them, save them as safetensors: python -c "from transformers import '
            f"AutoModelForCausalLM as M; M.from_pretrained({str(path)!r}, dtype='auto')"
            ".save_pretrained('safetensors')\"",
        )
    distributed = _ending(names, ".distcp") or [
        name for name in names if re.fullmatch(r"global_step\d+|pytorch_model_fsdp_\d+", name)
    ]
    if distributed:
        return CheckpointError(
            f"{path} holds the state of a training run over several processes",
            found=distributed[0],
            expected="safetensors",
            hint="Merge it: zero_to_fp32.py in the same directory (DeepSpeed), or "
            "`accelerate merge-weights` (FSDP).",
        )
    return None


def _ending(names: Sequence[str], *endings: str) -> list[str]:
    return [name for name in names if name.endswith(endings)]


def _adapter(path: Path) -> CheckpointError:
    """The error that a directory holds a LoRA adapter, and what to merge it into."""
    settings = _ADAPTERS.record(path / _ADAPTER_CONFIG)
    base = settings.text("base_model_name_or_path", default="its base model")
    return CheckpointError(
        f"{path} holds an adapter, not a model",
        found=f"{_ADAPTER_CONFIG}, of {base[:200]}",
        expected="a model",
        hint=f"Merge it while its base is converted: llama4 convert BASE --merge-lora {path}, or "
        f"make a file of it alone: llama4 convert-lora {path}",
    )
