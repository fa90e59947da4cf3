"""Everything a GGUF says before its tensors: hyperparameters, vocabulary, where it comes from.

Keys and their spelling are the ``gguf`` package's. Two runs over one checkpoint write the same
bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from ..architecture import PRE_TOKENIZER
from ..quant import Recipe, TensorSpec, role_of
from .chat_templates import DEFAULT
from .checkpoint import Checkpoint
from .config import ModelConfig, RopeScaling
from .directories import cached_repository
from .model_card import read_card, read_sampling
from .tokenizer import Vocabulary

ROPE_FREQS = "rope_freqs.weight"
RECIPE_KEY = "llama4_edge.recipe"
# The recipe file, where there was one, as `write_recipe` writes it.
RECIPE_FILE_KEY = "llama4_edge.recipe_file"
# What llama.cpp has no keys for: all tokens that end a generation, and the flags of added tokens.
ENDS_KEY = "llama4_edge.eog_token_ids"
FLAG_KEY = "llama4_edge.added_tokens.{name}"
# llama.cpp's name for a file without a tokenizer.
NO_TOKENIZER = "none"


def rope_factors(config: ModelConfig) -> npt.NDArray[np.float32] | None:
    """What llama.cpp divides each RoPE frequency by: [head_dim / 2], or None without scaling.

    Llama 3's rule: short wavelengths stay, long ones are slowed by the factor, those between are
    interpolated. Where both bounds meet, as in Scout Instruct, nothing lies between. Source:
    ``_compute_llama3_parameters`` in transformers' modeling_rope_utils.py.
    """
    scaling = config.rope_scaling
    if scaling is None:
        return None
    # Step by step in float32, in the order in which llama.cpp's converter computes with PyTorch
    # (which divides a number by a tensor as "reciprocal, times"), so that the bytes are the same.
    head_dim = config.hparams.head_dim
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (config.hparams.rope_theta ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers
    return np.array([_rope_factor(frequency, scaling) for frequency in frequencies], np.float32)


def _rope_factor(frequency: np.float32, scaling: RopeScaling) -> float:
    one, factor = np.float32(1), np.float32(scaling.factor)
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    original = np.float32(scaling.original_context)
    wavelength = one / frequency * np.float32(2 * math.pi)
    if wavelength < scaling.original_context / scaling.high_freq_factor:
        return 1.0
    if wavelength > scaling.original_context / scaling.low_freq_factor or low == high:
        return scaling.factor
    smooth = (one / wavelength * original - low) / (high - low)
    return float(one / ((one - smooth) / factor + smooth))


def write_metadata(
    writer: gguf.GGUFWriter,
    origin: gguf.Metadata,
    config: ModelConfig,
    vocabulary: Vocabulary | None,
    recipe: Recipe,
    file_type: int,
) -> None:
    """Give `writer` every key-value pair of the file, in a fixed order.

    Without a `vocabulary` the file says so, and llama.cpp knows its tokens by number alone. The
    `file_type` is llama.cpp's number for what most of it is stored as.
    """
    writer.add_type(gguf.GGUFType.MODEL)
    origin.set_gguf_meta_model(writer)
    _add_hyperparameters(writer, config)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(RECIPE_KEY, recipe.name)
    if vocabulary is None:
        writer.add_tokenizer_model(NO_TOKENIZER)
    else:
        _add_vocabulary(writer, vocabulary)
    if recipe.text is not None:
        writer.add_string(RECIPE_FILE_KEY, recipe.text)


def _size_label(config: ModelConfig, tensors: Sequence[TensorSpec]) -> str:
    total = sum(math.prod(spec.shape) for spec in tensors)
    experts = sum(math.prod(spec.shape) for spec in tensors if role_of(spec.name) == "expert")
    count = config.hparams.n_expert if experts else 0
    return str(gguf.size_label(total, total - experts, experts // max(count, 1), count))


def origin_named(name: str, config: ModelConfig, tensors: Sequence[TensorSpec]) -> gguf.Metadata:
    """``general.*`` of a model of which nothing but its name and its size is known."""
    return gguf.Metadata(name=name, size_label=_size_label(config, tensors))


def origin_of(
    checkpoint: Checkpoint, config: ModelConfig, tensors: Sequence[TensorSpec]
) -> gguf.Metadata:
    """``general.*``: name, licence, source and defaults, from the model card and the directory.

    As ``gguf.Metadata.load`` has it, from what was read within bounds.

    Raises:
        CheckpointError: the card, or generation_config.json, cannot be read.
    """
    origin = _origin(checkpoint, sum(math.prod(spec.shape) for spec in tensors))
    for name, value in read_sampling(checkpoint.path).items():
        setattr(origin, name, value)
    origin.size_label = _size_label(config, tensors)
    return origin


def projector_origin(checkpoint: Checkpoint, tensors: Sequence[TensorSpec]) -> gguf.Metadata:
    """The same for the tower and its projector, which nothing is sampled from.

    Raises:
        CheckpointError: the card cannot be read.
    """
    total = sum(math.prod(spec.shape) for spec in tensors)
    origin = _origin(checkpoint, total)
    origin.size_label = str(gguf.size_label(total, total, 0, 0))
    return origin


def _origin(checkpoint: Checkpoint, total: int) -> gguf.Metadata:
    """Where a checkpoint comes from, of which `total` numbers go into the file."""
    named = checkpoint.config.get("_name_or_path")
    origin = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(),
        model_card=read_card(checkpoint.path),
        hf_params={"_name_or_path": named} if isinstance(named, str) and _is_text(named) else {},
        model_path=Path(_as_text(checkpoint.path.name)),
        total_params=total,
    )
    repository = _hub_repository(checkpoint)
    if repository is not None:
        origin.name = repository.split("/")[1].replace("-", " ")
        origin.organization = repository.split("/")[0]
        origin.source_url = origin.source_url or f"https://huggingface.co/{repository}"
    origin.name = origin.name or _as_text(checkpoint.path.resolve().name)
    return origin


def _is_text(text: str) -> bool:
    """Whether a GGUF can hold a string: in Unicode, and without NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _as_text(name: str) -> str:
    """The name of a file in Unicode, whatever its bytes are."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _hub_repository(checkpoint: Checkpoint) -> str | None:
    """The hub repository the checkpoint came from, where its path or its config says so."""
    named = checkpoint.config.get("_name_or_path")
    if (
        isinstance(named, str)
        and re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", named, re.ASCII)
        and not Path(named).exists()
    ):
        return cached_repository(checkpoint.path) or named
    return cached_repository(checkpoint.path)


def _add_hyperparameters(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    hparams = config.hparams
    writer.add_vocab_size(hparams.n_vocab)
    writer.add_block_count(hparams.n_layer)
    writer.add_context_length(hparams.n_ctx_train)
    writer.add_embedding_length(hparams.n_embd)
    writer.add_feed_forward_length(hparams.n_ff)
    writer.add_expert_feed_forward_length(hparams.n_ff_expert)
    writer.add_interleave_moe_layer_step(hparams.moe_step)
    writer.add_expert_count(hparams.n_expert)
    writer.add_expert_used_count(hparams.n_expert_used)
    writer.add_head_count(hparams.n_head)
    writer.add_head_count_kv(hparams.n_head_kv)
    writer.add_key_length(hparams.head_dim)
    writer.add_value_length(hparams.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_rope_dimension_count(hparams.head_dim)
    writer.add_rope_freq_base(hparams.rope_theta)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_bos_token_id(vocabulary.bos)
    for add, token in (
        (writer.add_eot_token_id, vocabulary.eot),
        (writer.add_eom_token_id, vocabulary.eom),
        (writer.add_pad_token_id, vocabulary.pad),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(vocabulary.add_bos)
    if vocabulary.further_ends:
        writer.add_array(ENDS_KEY, list(vocabulary.ends))
    for name, ids in vocabulary.flags.items():
        if ids:
            writer.add_array(FLAG_KEY.format(name=name), ids)
    _add_chat_templates(writer, vocabulary.chat_templates)


def _add_chat_templates(writer: gguf.GGUFWriter, templates: Mapping[str, str]) -> None:
    """The default, and others by name; the package would list the names in a random order."""
    keys = gguf.Keys.Tokenizer
    others = sorted(templates.keys() - {DEFAULT})
    for name in others:
        writer.add_string(keys.CHAT_TEMPLATE_N.format(name=name), templates[name])
    if others:
        writer.add_array(keys.CHAT_TEMPLATES, others)
    if DEFAULT in templates:
        writer.add_string(keys.CHAT_TEMPLATE, templates[DEFAULT])
