"""Is this GGUF a whole projector of a Llama 4? Answered before llama.cpp's mtmd sees the file.

mtmd aborts the process on some files, and computes something else where tensors have other names:
everything that can make it do either is refused here, with one clear error. The rules follow
``clip_model_loader`` in llama.cpp's tools/mtmd/clip.cpp and tools/mtmd/models/llama4.cpp. Knows
nothing of pictures.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...architecture import MAX_IMAGE_SIZE, MAX_VISION_LAYERS, VisionShape
from ...errors import ModelFileError
from ...untrusted import brief
from .gguf_file import GGUFFile, TensorInfo, read_gguf
from .model_file import MATRIX_TYPES

ARCHITECTURE = "clip"
"""What a projector file says that it is."""
PROJECTOR_TYPE = "llama4"

_TYPE_KEYS = ("clip.projector_type", "clip.vision.projector_type")
_RECONVERT = (
    "Fetch it again, or make it from the checkpoint: llama4 convert CHECKPOINT --vision-only"
)

# What llama.cpp's converter of 2026 calls the second norm of a layer, and what its loader reads.
_MISNAMED = re.compile(r"(v\.blk\.\d{1,4}\.)attn_post_norm(\.(?:weight|bias))")
_NAMED = r"\1ln2\2"


@dataclass(frozen=True)
class ProjectorInfo:
    """A vision tower and its projector, as their GGUF describes them.

    Pixels from 0 to 1 are scaled by subtracting `image_mean` and dividing by `image_std`.
    ``bytes`` is the length of the file, ``weight_bytes`` what mtmd allocates for its tensors.
    """

    path: Path
    shape: VisionShape
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    bytes: int
    gguf: GGUFFile

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.gguf.tensors)


def is_projector(gguf: GGUFFile) -> bool:
    """Whether a file says that it is a projector, of whatever model."""
    return gguf.metadata.get("general.architecture") == ARCHITECTURE


def projector_type(gguf: GGUFFile) -> object:
    """What kind of projector a file says that it is; None where it says nothing."""
    return next((gguf.metadata[key] for key in _TYPE_KEYS if key in gguf.metadata), None)


def mended_name(name: str) -> str:
    """The name that llama.cpp's loader reads a tensor by, where its converter wrote another."""
    return _MISNAMED.sub(_NAMED, name)


def misnamed_tensors(gguf: GGUFFile) -> list[str]:
    """Tensors of a Llama 4's projector that llama.cpp's converter has given a wrong name.

    Its release of 2026 writes ``attn_post_norm`` for ``ln2``. The loader takes that for a norm of
    another place, and the features are wrong without a word.
    """
    if projector_type(gguf) != PROJECTOR_TYPE:
        return []
    names = {tensor.name for tensor in gguf.tensors}
    return [name for name in sorted(names) if mended_name(name) not in names | {name}]


def misnamed_problem(gguf: GGUFFile) -> str | None:
    """What is wrong with a file whose tensors are misnamed, None where none is."""
    misnamed = misnamed_tensors(gguf)
    if not misnamed:
        return None
    return (
        f"{len(misnamed)} tensors have names that llama.cpp's converter got wrong, and features "
        f"would be wrong: {misnamed[0]} is {mended_name(misnamed[0])}"
    )


def check_projector_file(
    path: str | os.PathLike[str], *, n_embd: int | None = None, whole: bool = True
) -> ProjectorInfo:
    """Read the header of a Llama 4's projector, and check all that llama.cpp relies on.

    Args:
        path: the file.
        n_embd: the width of the text model that it is to be used with, None where none is at hand.
        whole: refuse a file that ends before its last tensor does.

    Raises:
        ModelFileError: it cannot be read or is damaged, is not a Llama 4's projector, or is one for
            a text model of another width.
        EngineError: llama.cpp's library does not load.
    """
    info = check_projector(read_gguf(path, whole=whole))
    if n_embd is not None and info.shape.n_embd != n_embd:
        raise ModelFileError(
            f"{info.path} is the projector of another model",
            found=f"embeddings of {info.shape.n_embd} numbers",
            expected=f"{n_embd}, as the text model has",
            hint="Take the projector that was published or converted with the text model.",
        )
    return info


def check_projector(gguf: GGUFFile) -> ProjectorInfo:
    """The same for a header that was read.

    Raises:
        ModelFileError: as `check_projector_file`.
    """
    _check_kind(gguf)
    _check_keys(gguf)
    info = _info(gguf)
    _check_tensors(info)
    return info


def _check_kind(gguf: GGUFFile) -> None:
    """Whether it is a projector, and a Llama 4's."""
    if not is_projector(gguf):
        said = gguf.metadata.get("general.architecture")
        raise ModelFileError(
            f"{gguf.path} is not a projector",
            found="no general.architecture" if said is None else f"architecture {brief(said)}",
            expected=f"{ARCHITECTURE}, as in files called mmproj",
            hint="Make one from the checkpoint: llama4 convert CHECKPOINT --vision-only",
        )
    kind = projector_type(gguf)
    if kind != PROJECTOR_TYPE:
        raise ModelFileError(
            f"{gguf.path} is the projector of another kind of model",
            found="no clip.projector_type" if kind is None else f"type {brief(kind)}",
            expected=PROJECTOR_TYPE,
        )
    problem = misnamed_problem(gguf)
    if problem is not None:
        raise ModelFileError(
            f"{gguf.path} cannot be used as it is",
            found=problem,
            hint=f"Write it again with the right names: llama4 convert {gguf.path}",
        )


# --- keys

# What mtmd reads of any file, with the types it takes: it aborts on any other type.
_KEY_TYPES: Mapping[str, str] = {
    "general.name": "str",
    "general.description": "str",
    "clip.has_vision_encoder": "bool",
    "clip.has_audio_encoder": "bool",
    "clip.has_gen_audio_encoder": "bool",
    "clip.projector_type": "str",
    "clip.vision.projector_type": "str",
    "clip.use_gelu": "bool",
    "clip.use_silu": "bool",
    "clip.minicpmv_version": "i32",
    "clip.minicpmv_query_num": "u32",
    "clip.vision.embedding_length": "u32",
    "clip.vision.attention.head_count": "u32",
    "clip.vision.attention.head_count_kv": "u32",
    "clip.vision.attention.head_dim": "u32",
    "clip.vision.attention.layer_norm_epsilon": "f32",
    "clip.vision.feed_forward_length": "u32",
    "clip.vision.block_count": "u32",
    "clip.vision.projection_dim": "u32",
    "clip.vision.image_size": "u32",
    "clip.vision.patch_size": "u32",
    "clip.vision.image_mean": "[f32]",
    "clip.vision.image_std": "[f32]",
    "clip.vision.mm_patch_merge_type": "str",
    "clip.vision.projector.scale_factor": "u32",
}
# What would make mtmd load, or compute, something else than a Llama 4's tower.
_ONE_VALUE: Mapping[str, object] = {
    "clip.has_vision_encoder": True,
    "clip.use_gelu": True,
}
_ABSENT_OR: Mapping[str, object] = {
    "clip.has_audio_encoder": False,
    "clip.has_gen_audio_encoder": False,
    "clip.use_silu": False,
}
_UNWANTED = ("clip.vision.image_grid_pinpoints", "clip.vision.feature_layer", "split.count")


def _check_keys(gguf: GGUFFile) -> None:
    for key, expected in _KEY_TYPES.items():
        kind = gguf.types.get(key)
        if kind is not None and kind != expected:
            raise _bad_key(gguf, key, f"type {kind}", f"type {expected}")
    for key, value in {**_ONE_VALUE, **_ABSENT_OR}.items():
        found = gguf.metadata.get(key)
        if found != value and (found is not None or key in _ONE_VALUE):
            raise _bad_key(gguf, key, "no such key" if found is None else found, value)
    for key in _UNWANTED:
        if key in gguf.metadata:
            raise _bad_key(gguf, key, gguf.metadata[key], "no such key")


def _bad_key(gguf: GGUFFile, key: str, found: object, expected: object) -> ModelFileError:
    return ModelFileError(
        f"{gguf.path} has an invalid value of {key}",
        found=brief(found),
        expected=expected,
        hint=_RECONVERT,
    )


def _info(gguf: GGUFFile) -> ProjectorInfo:
    width = _number(gguf, "embedding_length")
    n_head = _number(gguf, "attention.head_count")
    if width % n_head or width // n_head % 4:
        expected = f"heads whose width, of {width} together, is a multiple of 4"
        raise _bad_key(gguf, "clip.vision.attention.head_count", n_head, expected)
    for key, value in {"head_count_kv": n_head, "head_dim": width // n_head}.items():
        if _number(gguf, f"attention.{key}", default=value) != value:
            name = f"clip.vision.attention.{key}"
            raise _bad_key(gguf, name, gguf.metadata[name], value)
    image_size = _number(gguf, "image_size", most=MAX_IMAGE_SIZE)
    patch_size = _number(gguf, "patch_size", most=image_size)
    merge = _number(gguf, "projector.scale_factor", most=image_size)
    if image_size % patch_size or image_size // patch_size % merge:
        expected = f"a multiple of {merge} patches of {patch_size}"
        raise _bad_key(gguf, "clip.vision.image_size", image_size, expected)
    n_ff = _number(gguf, "feed_forward_length")
    if n_ff != width * merge**2:
        raise _bad_key(gguf, "clip.vision.feed_forward_length", n_ff, width * merge**2)
    epsilon = gguf.metadata.get("clip.vision.attention.layer_norm_epsilon")
    if not isinstance(epsilon, float) or not math.isfinite(epsilon) or epsilon <= 0:
        name = "clip.vision.attention.layer_norm_epsilon"
        raise _bad_key(gguf, name, "no such key" if epsilon is None else epsilon, "above 0")
    widths = {tensor.name: tensor.shape[-1] for tensor in gguf.tensors if tensor.shape}
    return ProjectorInfo(
        path=gguf.path,
        shape=VisionShape(
            n_layer=_number(gguf, "block_count", most=MAX_VISION_LAYERS),
            width=width,
            n_head=n_head,
            n_ff=n_ff,
            image_size=image_size,
            patch_size=patch_size,
            merge=merge,
            adapter=(widths.get(_ADAPTER[0], 0), widths.get(_ADAPTER[1], 0)),
            n_embd=_number(gguf, "projection_dim"),
        ),
        image_mean=_channels(gguf, "image_mean", positive=False),
        image_std=_channels(gguf, "image_std", positive=True),
        bytes=gguf.size,
        gguf=gguf,
    )


def _number(
    gguf: GGUFFile,
    key: str,
    least: int = 1,
    most: int = 2**31 - 1,
    *,
    default: int | None = None,
) -> int:
    name = f"clip.vision.{key}"
    value = gguf.metadata.get(name, default)
    if not isinstance(value, int) or not least <= value <= most:
        shown = "no such key" if value is None else value
        raise _bad_key(gguf, name, shown, f"a number between {least} and {most}")
    return value


def _channels(gguf: GGUFFile, key: str, *, positive: bool) -> tuple[float, float, float]:
    name = f"clip.vision.{key}"
    value = gguf.metadata.get(name)
    if isinstance(value, tuple) and len(value) == 3:
        red, green, blue = map(float, value)
        if all(math.isfinite(it) and (it > 0 or not positive) for it in (red, green, blue)):
            return red, green, blue
    shown = "no such key" if value is None else value
    raise _bad_key(gguf, name, shown, "three numbers" + (" above 0" if positive else ""))


# --- tensors

_VECTOR_TYPES = frozenset({"F32"})
_ADAPTER = ("mm.model.mlp.1.weight", "mm.model.mlp.2.weight")
_PATCH_TYPES = frozenset({"F32", "F16", "BF16"})  # its rows are cut, as blocks cannot be


def _layout(info: ProjectorInfo) -> Iterator[tuple[str, tuple[int | None, ...], frozenset[str]]]:
    """Name, shape in ggml's order and types of every tensor; an axis that nothing says is None."""
    shape = info.shape
    width, n_ff = shape.width, shape.n_ff
    yield "v.class_embd", (width,), _VECTOR_TYPES
    yield "v.patch_embd.weight", (3 * shape.patch_size**2, width), _PATCH_TYPES
    yield "v.position_embd.weight", (width, shape.rows), _VECTOR_TYPES
    for name in ("v.pre_ln", "v.post_ln"):
        yield f"{name}.weight", (width,), _VECTOR_TYPES
        yield f"{name}.bias", (width,), _VECTOR_TYPES
    matrices = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (width, width)),
        "ffn_up": (width, n_ff),
        "ffn_down": (n_ff, width),
    }
    for block in (f"v.blk.{layer}" for layer in range(shape.n_layer)):
        for name in ("ln1", "ln2"):
            yield f"{block}.{name}.weight", (width,), _VECTOR_TYPES
            yield f"{block}.{name}.bias", (width,), _VECTOR_TYPES
        for name, sizes in matrices.items():
            yield f"{block}.{name}.weight", sizes, MATRIX_TYPES
            yield f"{block}.{name}.bias", sizes[1:], _VECTOR_TYPES
    yield _ADAPTER[0], (n_ff, None), MATRIX_TYPES
    yield _ADAPTER[1], (None, None), MATRIX_TYPES
    yield "mm.model.fc.weight", (None, shape.n_embd), MATRIX_TYPES


def _check_tensors(info: ProjectorInfo) -> None:
    """Every tensor of the layout once, in its shape, of a type ggml computes with; no other."""
    tensors: dict[str, TensorInfo] = {}
    for tensor in info.gguf.tensors:
        if tensor.name in tensors:
            raise _bad_tensor(info, f"has the tensor {tensor.name} twice")
        tensors[tensor.name] = tensor
    layout = {name: (shape, types) for name, shape, types in _layout(info)}
    for problem, names in (
        ("has no tensor", [name for name in layout if name not in tensors]),
        ("has a tensor that Llama 4's do not", [name for name in tensors if name not in layout]),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise _bad_tensor(info, f"{problem}: {brief(names[0])}{more}")
    for name, (shape, types) in layout.items():
        tensor = tensors[name]
        if len(tensor.shape) != len(shape) or any(
            size not in (None, found) for size, found in zip(shape, tensor.shape, strict=True)
        ):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise _bad_tensor(info, f"has a misshapen tensor: {name}", tensor.shape, expected)
        if tensor.type not in types:
            raise _bad_tensor(
                info,
                f"has a tensor of a type that ggml does not compute with here: {name}",
                tensor.type,
                " or ".join(sorted(types)),
            )
    first, second, last = (
        tensors[f"mm.model.{name}.weight"].shape for name in ("mlp.1", "mlp.2", "fc")
    )
    if not first[1] == second[0] or not second[1] == last[0]:
        raise _bad_tensor(
            info,
            "has matrices that do not follow each other: mm.model.*",
            f"{first[1]} to {second[0]}, and {second[1]} to {last[0]}",
            "equal widths",
        )


def _bad_tensor(
    info: ProjectorInfo, problem: str, found: object = None, expected: object = None
) -> ModelFileError:
    return ModelFileError(f"{info.path} {problem}", found=found, expected=expected, hint=_RECONVERT)
