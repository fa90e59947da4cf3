"""Is this GGUF a whole Llama 4 text model? Answered before llama.cpp sees the file.

llama.cpp aborts the process on some files and quietly assumes a default on others: everything that
can make it do either is refused here, with one clear error. Knows nothing of devices or memory. The
rules follow ``load_hparams`` in llama.cpp's src/llama-model.cpp and src/models/llama4.cpp; those of
the vocabulary are in ``vocabulary_file``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...architecture import (
    ATTENTION_CHUNK,
    MAX_EXPERTS,
    MAX_EXPERTS_USED,
    MAX_LAYERS,
    MIN_LAYERS,
    Hyperparameters,
)
from ...errors import ModelFileError
from ...gguf_header import LongArray
from ...untrusted import brief
from .gguf_file import GGUFFile, TensorInfo, read_gguf
from .split import is_split, not_first, read_parts
from .vocabulary_file import (
    RECONVERT,
    FileVocabulary,
    bare_vocabulary,
    check_vocabulary,
    has_no_tokenizer,
)


@dataclass(frozen=True)
class ModelInfo:
    """A Llama 4 text model, as its GGUF describes it.

    ``eog_ids`` are the tokens that end a generation. ``parts`` holds the header of each file of a
    split model, in order; ``gguf`` is the first, which has the metadata. ``bytes`` is the length of
    all parts.
    """

    path: Path
    name: str
    hparams: Hyperparameters
    chat_template: str | None
    bos_id: int
    eos_id: int
    eog_ids: tuple[int, ...]
    bytes: int
    parts: tuple[GGUFFile, ...]

    @property
    def gguf(self) -> GGUFFile:
        """The header of the file that was named."""
        return self.parts[0]

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors of all parts."""
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    @property
    def file_type(self) -> str:
        """llama.cpp's name for the recipe, such as ``MOSTLY_Q4_0``."""
        from gguf.constants import LlamaFileType  # which takes longer to import than a small model

        value = self.gguf.metadata.get("general.file_type")
        try:
            return str(LlamaFileType(value).name)
        except ValueError:
            return "unknown" if value is None else f"unknown ({value})"


def check_model_file(
    path: str | os.PathLike[str], *, needs_tokenizer: bool = True, whole: bool = True
) -> ModelInfo:
    """Read the header of a Llama 4 GGUF and check all that llama.cpp relies on.

    Of a split model, `path` names the first part; the others must lie beside it. Whoever only
    measures a model can do without a tokenizer; a file may have none, if it says so. A file that is
    not `whole` may end before its last tensor does, as one that is only planned.

    Raises:
        ModelFileError: a file cannot be read or is damaged, or is not a Llama 4 text model.
        EngineError: llama.cpp's library does not load.
    """
    gguf = read_gguf(path, whole=whole)
    check_architecture(gguf)
    parts, faults = read_parts(gguf, whole=whole) if is_split(gguf) else ((gguf,), ())
    if faults:
        raise faults[0]
    return check_parts(parts, needs_tokenizer=needs_tokenizer)


def check_parts(parts: Sequence[GGUFFile], *, needs_tokenizer: bool = True) -> ModelInfo:
    """The same for headers that were read: of all parts of a model, in order.

    Raises:
        ModelFileError: as `check_model_file`.
    """
    gguf = parts[0]
    _check_text_alone(parts)
    _check_key_types(gguf)
    _check_alignment(parts)
    bare = has_no_tokenizer(gguf) and not needs_tokenizer
    vocabulary = bare_vocabulary(gguf) if bare else check_vocabulary(gguf)
    info = _model_info(gguf, tuple(parts), vocabulary)
    _check_fixed_settings(gguf, info)
    _check_tensors(info)
    return info


# --- architecture and the types of keys


def check_architecture(gguf: GGUFFile) -> None:
    """Whether the file says that it holds a Llama 4, or its first part.

    Raises:
        ModelFileError: it says otherwise, or nothing.
    """
    architecture = gguf.metadata.get("general.architecture")
    if gguf.metadata.get("general.type") == "adapter":
        raise ModelFileError(
            f"{gguf.path} is an adapter, not a model",
            hint=f"Give the GGUF of the model, and this one with it: --lora {gguf.path}",
        )
    if gguf.metadata.get("split.no") and is_split(gguf):
        # llama.cpp's gguf-split names the architecture in the first only.
        if architecture in (None, "llama4"):
            raise not_first(gguf)
    elif architecture == "llama4":
        return
    if architecture == "clip":
        raise ModelFileError(
            f"{gguf.path} is a projector, the part of a model that pictures go through",
            found="architecture clip",
            expected="llama4",
            hint=f"Give the GGUF of the text model, and this one with it: --mmproj {gguf.path}",
        )
    if gguf.metadata.get("general.type") == "imatrix":
        raise ModelFileError(
            f"{gguf.path} has activation statistics of a model, not a model",
            hint=f"Give them with it: llama4 convert MODEL --imatrix {gguf.path}",
        )
    said = f"architecture {brief(architecture)}"
    raise ModelFileError(
        f"{gguf.path} is not a Llama 4 model",
        found="no general.architecture" if architecture is None else said,
        expected="llama4",
    )


def _check_text_alone(parts: Sequence[GGUFFile]) -> None:
    """Whether the tensors of a vision tower lie elsewhere, as llama.cpp wants them."""
    names = [tensor.name for part in parts for tensor in part.tensors]
    vision = [name for name in names if name.startswith(("v.", "mm."))]
    if vision:
        raise ModelFileError(
            f"{parts[0].path} holds a text model and its vision tower in one file, as Ollama keeps "
            "them: llama.cpp reads these from two",
            found=f"{len(vision)} further tensors, such as {brief(vision[0])}",
            hint="Take files that llama.cpp's tools made, or convert the checkpoint: llama4 "
            "convert ORG/NAME",
        )


# ggml aborts on a mapped tensor that begins elsewhere (TENSOR_ALIGNMENT in ggml-impl.h).
_LEAST_ALIGNMENT = 32

_LONGEST_NAME = 120  # characters of a model's name, which is shown as a title

_NUMBER_OR_LIST = ("u32", "[u32]", "[i32]")

# What llama.cpp reads, with the types it takes: any other type makes it give up, or abort.
_KEY_TYPES: Mapping[str, tuple[str, ...]] = {
    "general.name": ("str",),
    "general.file_type": ("u32",),
    "split.no": ("u16",),
    "split.count": ("u16",),
    "split.tensors.count": ("i32",),
    "llama4.attention.causal": ("bool",),
    "llama4.attention.head_count": _NUMBER_OR_LIST,
    "llama4.attention.head_count_kv": _NUMBER_OR_LIST,
    "llama4.attention.key_length": ("u32",),
    "llama4.attention.key_length_swa": ("u32",),
    "llama4.attention.layer_norm_rms_epsilon": ("f32",),
    "llama4.attention.sliding_window": ("u32",),
    "llama4.attention.sliding_window_pattern": ("u32", "[bool]", "[u32]", "[i32]"),
    "llama4.attention.value_length": ("u32",),
    "llama4.attention.value_length_swa": ("u32",),
    "llama4.block_count": ("u32",),
    "llama4.classifier.output_labels": ("[str]",),
    "llama4.classifier.pooling_type": ("u32",),
    "llama4.context_length": ("u32",),
    "llama4.embedding_length": ("u32",),
    "llama4.embedding_length_out": ("u32",),
    "llama4.expert_count": ("u32",),
    "llama4.expert_feed_forward_length": _NUMBER_OR_LIST,
    "llama4.expert_group_count": ("u32",),
    "llama4.expert_group_used_count": ("u32",),
    "llama4.expert_used_count": _NUMBER_OR_LIST,
    "llama4.feed_forward_length": _NUMBER_OR_LIST,
    "llama4.interleave_moe_layer_step": ("u32",),
    "llama4.nextn_predict_layers": ("u32",),
    "llama4.pooling_type": ("u32",),
    "llama4.rope.dimension_count": ("u32",),
    "llama4.rope.dimension_count_swa": ("u32",),
    "llama4.rope.freq_base": ("f32",),
    "llama4.rope.freq_base_swa": ("f32",),
    "llama4.rope.scale_linear": ("f32",),
    "llama4.rope.scaling.alpha": ("f32",),
    "llama4.rope.scaling.attn_factor": ("f32",),
    "llama4.rope.scaling.factor": ("f32",),
    "llama4.rope.scaling.finetuned": ("bool",),
    "llama4.rope.scaling.original_context_length": ("u32",),
    "llama4.rope.scaling.type": ("str",),
    "tokenizer.chat_template": ("str",),
}


def _check_key_types(gguf: GGUFFile) -> None:
    for key, expected in _KEY_TYPES.items():
        kind = gguf.types.get(key)
        if kind is not None and kind not in expected:
            raise _bad_key(gguf, key, f"type {kind}", "type " + " or ".join(expected))
    for key, value in gguf.metadata.items():
        if isinstance(value, LongArray) and key.startswith(("llama4.", "tokenizer.")):
            raise _bad_key(gguf, key, f"{value.count:,} numbers", "a few for each token")


def _check_alignment(parts: Sequence[GGUFFile]) -> None:
    for part in parts:
        if part.alignment < _LEAST_ALIGNMENT:
            found, expected = part.alignment, f"at least {_LEAST_ALIGNMENT}"
            raise _bad_key(part, "general.alignment", found, expected)


def _bad_key(gguf: GGUFFile, key: str, found: object, expected: object) -> ModelFileError:
    return ModelFileError(
        f"{gguf.path} has an invalid value of {brief(key)}",
        found=brief(found),
        expected=expected,
        hint=RECONVERT,
    )


# --- hyperparameters


def _model_info(
    gguf: GGUFFile, parts: tuple[GGUFFile, ...], vocabulary: FileVocabulary
) -> ModelInfo:
    n_layer = _number(gguf, "llama4.block_count", MIN_LAYERS, MAX_LAYERS)
    n_embd = _number(gguf, "llama4.embedding_length")
    n_head = _number(gguf, "llama4.attention.head_count", layers=n_layer)
    n_expert = _number(gguf, "llama4.expert_count", 1, MAX_EXPERTS)
    template = gguf.metadata.get("tokenizer.chat_template")
    hparams = Hyperparameters(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=_number(
            gguf, "llama4.attention.head_count_kv", 1, n_head, layers=n_layer, default=n_head
        ),
        head_dim=_number(gguf, "llama4.attention.key_length", default=n_embd // n_head),
        n_ff=_number(gguf, "llama4.feed_forward_length", layers=n_layer),
        n_ff_expert=_number(gguf, "llama4.expert_feed_forward_length", layers=n_layer),
        n_expert=n_expert,
        n_expert_used=_number(
            gguf,
            "llama4.expert_used_count",
            1,
            min(n_expert, MAX_EXPERTS_USED),
            layers=n_layer,
        ),
        # One past the last layer: none has experts.
        moe_step=_number(gguf, "llama4.interleave_moe_layer_step", 1, n_layer + 1),
        n_vocab=vocabulary.size,
        n_ctx_train=_number(gguf, "llama4.context_length"),
        rope_theta=_positive(gguf, "llama4.rope.freq_base", default=10000.0),
    )
    return ModelInfo(
        path=gguf.path,
        name=brief(gguf.metadata.get("general.name", gguf.path.stem), _LONGEST_NAME),
        hparams=hparams,
        chat_template=None if template is None else str(template),
        bos_id=vocabulary.bos_id,
        eos_id=vocabulary.eos_id,
        eog_ids=vocabulary.eog_ids,
        bytes=sum(part.size for part in parts),
        parts=parts,
    )


def _number(
    gguf: GGUFFile,
    key: str,
    least: int = 1,
    most: int = 2**31 - 1,
    *,
    layers: int | None = None,
    default: int | None = None,
) -> int:
    """A whole number between `least` and `most`; with `layers`, perhaps a list that repeats it."""
    value = gguf.metadata.get(key, default)
    if isinstance(value, tuple):
        # llama.cpp's llama4 takes the first layer's number for every layer
        if len(value) != layers or len(set(value)) != 1:
            raise _bad_key(gguf, key, f"a list of {len(value)}", f"one number for {layers} layers")
        value = value[0]
    if not isinstance(value, int) or not least <= value <= most:
        shown = "no such key" if value is None else value
        raise _bad_key(gguf, key, shown, f"a number between {least} and {most}")
    return value


def _positive(gguf: GGUFFile, key: str, *, default: float | None = None) -> float:
    value = gguf.metadata.get(key, default)
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        shown = "no such key" if value is None else value
        raise _bad_key(gguf, key, shown, "a positive number")
    return value


def _check_fixed_settings(gguf: GGUFFile, info: ModelInfo) -> None:
    """Settings that llama.cpp asserts, ignores, or takes for another kind of model."""
    hparams = info.hparams
    if hparams.n_head % hparams.n_head_kv:
        raise _bad_key(
            gguf,
            "llama4.attention.head_count_kv",
            hparams.n_head_kv,
            f"a divisor of {hparams.n_head}",
        )
    if hparams.head_dim % 2:
        raise _bad_key(gguf, "llama4.attention.key_length", hparams.head_dim, "an even number")
    _positive(gguf, "llama4.attention.layer_norm_rms_epsilon")
    for key in ("freq_base_swa", "scale_linear", "scaling.factor", "scaling.attn_factor"):
        _positive(gguf, f"llama4.rope.{key}", default=1.0)
    values_default = hparams.n_embd // hparams.n_head
    value_length = _number(gguf, "llama4.attention.value_length", default=values_default)
    if value_length != hparams.head_dim:
        raise _bad_key(gguf, "llama4.attention.value_length", value_length, hparams.head_dim)
    for key, expected in _computable(info).items():
        value = gguf.metadata.get(f"llama4.{key}", expected[0])
        if value not in expected:
            words = " or ".join(str(value) for value in expected)
            raise _bad_key(gguf, f"llama4.{key}", value, brief(words))


def _computable(info: ModelInfo) -> dict[str, tuple[object, ...]]:
    """The values that llama.cpp's llama4 computes with; a key may also be absent."""
    hparams = info.hparams
    pattern = tuple(not Hyperparameters.is_full(layer) for layer in range(hparams.n_layer))
    return {
        "attention.key_length_swa": (hparams.head_dim,),
        "attention.value_length_swa": (hparams.head_dim,),
        "rope.dimension_count": (hparams.head_dim,),
        "rope.dimension_count_swa": (hparams.head_dim,),
        "attention.sliding_window": (ATTENTION_CHUNK,),  # with 0, it aborts at the first decode
        "attention.sliding_window_pattern": (4, pattern),
        "attention.causal": (True,),
        "embedding_length_out": (0, hparams.n_embd),
        "expert_group_count": (0,),
        "nextn_predict_layers": (0,),
        "pooling_type": (0,),
        "rope.scaling.type": ("none", "linear", "yarn", "longrope"),
    }


# --- tensors

# ggml cannot multiply by a matrix of any other type: it has no dot product for them.
# fmt: off
MATRIX_TYPES = frozenset((
    "F32", "F16", "BF16",
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0",
))
# fmt: on
_VECTOR_TYPES = frozenset({"F32"})


def _expected_tensors(info: ModelInfo) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape, in ggml's order, of every tensor that has to be there."""
    hparams = info.hparams
    embd, kv = hparams.n_embd, hparams.n_head_kv * hparams.head_dim
    heads, ff = hparams.n_head * hparams.head_dim, hparams.n_ff
    expert_ff, experts = hparams.n_ff_expert, hparams.n_expert
    attention = {
        "attn_norm": (embd,),
        "attn_q": (embd, heads),
        "attn_k": (embd, kv),
        "attn_v": (embd, kv),
        "attn_output": (heads, embd),
        "ffn_norm": (embd,),
    }
    dense = {"ffn_gate": (embd, ff), "ffn_up": (embd, ff), "ffn_down": (ff, embd)}
    routed = {
        "ffn_gate_inp": (embd, experts),
        "ffn_gate_exps": (embd, expert_ff, experts),
        "ffn_up_exps": (embd, expert_ff, experts),
        "ffn_down_exps": (expert_ff, embd, experts),
        "ffn_gate_shexp": (embd, expert_ff),
        "ffn_up_shexp": (embd, expert_ff),
        "ffn_down_shexp": (expert_ff, embd),
    }
    yield "token_embd.weight", (embd, hparams.n_vocab)
    yield "output_norm.weight", (embd,)
    for layer in range(hparams.n_layer):
        for name, shape in (attention | (routed if hparams.has_experts(layer) else dense)).items():
            yield f"blk.{layer}.{name}.weight", shape


def _optional_tensors(info: ModelInfo) -> dict[str, tuple[int, ...]]:
    """Tied embeddings leave out ``output``; plain RoPE leaves out ``rope_freqs``."""
    hparams = info.hparams
    return {
        "output.weight": (hparams.n_embd, hparams.n_vocab),
        "rope_freqs.weight": (hparams.head_dim // 2,),
    }


def _check_tensors(info: ModelInfo) -> None:
    """Every tensor of the layout once, in its shape, of a type ggml computes with; no other."""
    tensors: dict[str, TensorInfo] = {}
    for tensor in info.tensors:
        if tensor.name in tensors:
            raise _bad_tensor(info, f"has the tensor {tensor.name} twice")
        tensors[tensor.name] = tensor
    required = dict(_expected_tensors(info))
    missing = [name for name in required if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _bad_tensor(info, f"has no tensor {missing[0]}{more}")
    layout = required | _optional_tensors(info)
    unknown = [name for name in tensors if name not in layout]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise _bad_tensor(info, f"has a tensor that Llama 4 does not: {unknown[0]}{more}")
    for tensor in tensors.values():
        shape = layout[tensor.name]
        if tensor.shape != _without_trailing_ones(shape):
            raise _bad_tensor(
                info, f"has a misshapen tensor: {tensor.name}", found=tensor.shape, expected=shape
            )
        types = _VECTOR_TYPES if len(shape) == 1 else MATRIX_TYPES
        if tensor.type not in types:
            raise _bad_tensor(
                info,
                f"has a tensor of a type that ggml does not compute with: {tensor.name}",
                found=tensor.type,
                expected=" or ".join(sorted(types)),
            )


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _bad_tensor(
    info: ModelInfo, problem: str, found: object = None, expected: object = None
) -> ModelFileError:
    return ModelFileError(f"{info.path} {problem}", found=found, expected=expected, hint=RECONVERT)
