"""A Llama 4 configuration, typed, and refused where llama.cpp would compute something else.

Both of transformers' forms are read: ``rope_scaling`` with ``rope_theta`` (4.x) and
``rope_parameters`` (5.x), a text model alone or inside a multimodal one. Every fault is listed at
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..architecture import (
    ATTENTION_CHUNK,
    EXPERTS_WITH_QK_NORM,
    EXPERTS_WITHOUT_QK_NORM,
    FULL_ATTENTION_EVERY,
    MAX_EXPERTS,
    MAX_EXPERTS_USED,
    MAX_LAYERS,
    MIN_LAYERS,
    TEMPERATURE_FLOOR,
    TEMPERATURE_SCALE,
    Hyperparameters,
)
from ..errors import UnsupportedError
from ..untrusted import brief, shown
from .fields import MAX_WIDTH, Fields
from .forms import Form, forms_of, quantization_error


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling, which Llama 4 keeps."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class ModelConfig:
    """The text model's hyperparameters, and what config.json says of how it is stored.

    `quantization` is what config.json has as its ``quantization_config``, None where it has none;
    the weights may be plain nevertheless.
    """

    hparams: Hyperparameters
    rms_eps: float
    rope_scaling: RopeScaling | None
    tied: bool
    quantization: object = None
    notes: tuple[str, ...] = ()

    @property
    def forms(self) -> tuple[Form, ...]:
        """How weights may be stored, other than as their numbers; none where that is not known."""
        if self.quantization is None or quantization_error(self.quantization) is not None:
            return ()
        return forms_of(self.quantization)

    def check_quantization(self) -> None:
        """Refuse quantized weights that cannot be decoded.

        Raises:
            UnsupportedError: with every setting of config.json that differs.
        """
        error = quantization_error(self.quantization) if self.quantization is not None else None
        if error is not None:
            raise error


# Fields that say nothing about inference, or that are checked elsewhere under another name.
_IGNORED = frozenset({
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout",
    "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "for_llm_compressor", "id2label", "initializer_range", "is_encoder_decoder", "label2id",
    "model_type", "output_attentions", "output_hidden_states", "output_router_logits",
    "pad_token_id", "problem_type", "quantization_config", "return_dict", "router_aux_loss_coef",
    "router_jitter_noise",
    "torch_dtype", "transformers_version", "use_cache",
})  # fmt: skip


# The largest sizes that are read, about a hundred times those of the published models: what they
# describe is laid out before a weight is seen. GGUF has 32 bits for positions.
_MAX_HEADS = 1 << 14
_MAX_HEAD_DIM = 1 << 14
_MAX_VOCABULARY = 1 << 23
_MAX_PARAMETERS = 1 << 47
_MAX_POSITIONS = (1 << 32) - 1
_MAX_ROPE_BASE = 1e15
_MAX_ROPE_FACTOR = 1e6

# Fields that are not known here, of which a note says so; the others are counted.
_MAX_UNKNOWN = 10


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The text model that config.json describes.

    Raises:
        UnsupportedError: another architecture, or settings that llama.cpp's Llama 4 does not have;
            the message lists all of them.
    """
    text = _text_config(raw)
    fields = Fields(text)
    rope_theta, rope_scaling = _rope(fields)
    hparams = _hyperparameters(fields, rope_theta)
    if _is_dense(fields):
        hparams = _as_dense(hparams, fields.boolean("use_qk_norm", True))
    config = ModelConfig(
        hparams=hparams,
        rms_eps=fields.number("rms_norm_eps", 1e-5, low=1e-30, high=1.0),
        rope_scaling=rope_scaling,
        tied=fields.boolean("tie_word_embeddings", _outer_tie(raw)),
        quantization=_quantization(raw) or _quantization(text),
        notes=(*_notes(text, rope_scaling), *_dense_notes(fields, hparams)),
    )
    fields.must_be("hidden_act", "silu", "silu")
    _check_attention(hparams, fields)
    if not fields.faults:
        _check_layers(hparams, fields)
        _check_parameters(hparams, fields)
    if fields.faults:
        raise UnsupportedError(
            f"config.json has {len(fields.faults)} setting(s) that llama.cpp cannot represent",
            found="; ".join(fields.faults),
        )
    return replace(config, notes=(*config.notes, *_unknown_notes(fields.unknown(_IGNORED))))


def _hyperparameters(fields: Fields, rope_theta: float) -> Hyperparameters:
    n_layer = fields.integer("num_hidden_layers", 48, low=MIN_LAYERS, high=MAX_LAYERS)
    n_embd = fields.integer("hidden_size", 5120, high=MAX_WIDTH)
    n_head = fields.integer("num_attention_heads", 40, high=_MAX_HEADS)
    n_head_kv = fields.integer("num_key_value_heads", n_head, high=_MAX_HEADS)
    head_dim = fields.integer("head_dim", n_embd // n_head, low=2, high=_MAX_HEAD_DIM)
    dense = _is_dense(fields)
    n_expert = fields.integer("num_local_experts", 16, low=int(not dense), high=MAX_EXPERTS)
    if n_head % n_head_kv:
        fields.fault("num_key_value_heads", n_head_kv, f"a divisor of {n_head} heads")
    if head_dim % 2:
        fields.fault("head_dim", head_dim, "an even number, for RoPE")
    return Hyperparameters(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_ff=fields.integer("intermediate_size_mlp", 16384, high=MAX_WIDTH),
        n_ff_expert=fields.integer("intermediate_size", 8192, high=MAX_WIDTH),
        n_expert=n_expert,
        n_expert_used=fields.integer(
            "num_experts_per_tok", 1, low=int(not dense), high=min(n_expert, MAX_EXPERTS_USED)
        ),
        moe_step=fields.integer("interleave_moe_layer_step", 1, low=int(not dense), high=n_layer),
        n_vocab=fields.integer("vocab_size", 202048, high=_MAX_VOCABULARY),
        n_ctx_train=fields.integer("max_position_embeddings", 131072, high=_MAX_POSITIONS),
        rope_theta=rope_theta,
    )


def _is_dense(fields: Fields) -> bool:
    """Whether no layer has experts, as in Llama Guard 4."""
    return bool(fields.get("moe_layers") == [])


def _as_dense(hparams: Hyperparameters, qk_norm: bool) -> Hyperparameters:
    """A model whose layers are all dense, in the words that llama.cpp has for one.

    It refuses a file without experts, and reads from their number whether queries and keys are
    normalized; a step past the last layer gives none to any.
    """
    experts = EXPERTS_WITH_QK_NORM if qk_norm else EXPERTS_WITHOUT_QK_NORM
    return replace(hparams, n_expert=experts, n_expert_used=1, moe_step=hparams.n_layer + 1)


def _dense_notes(fields: Fields, hparams: Hyperparameters) -> list[str]:
    if not _is_dense(fields):
        return []
    return [
        "no layer has experts, which llama.cpp takes from no file that says so: the file says "
        f"{hparams.n_expert}, in every {hparams.moe_step}th of {hparams.n_layer} layers"
    ]


def _quantization(settings: Mapping[str, Any]) -> Any:
    """Under either name: MLX has one of its own. An empty one is none."""
    return settings.get("quantization_config") or settings.get("quantization") or None


def _outer_tie(raw: Mapping[str, Any]) -> bool:
    """What a multimodal config says of tied embeddings where its text model's says nothing."""
    return raw.get("tie_word_embeddings") is True


def _unknown_notes(names: list[str]) -> list[str]:
    notes = [
        f"config.json: {brief(name)} is not known here and was ignored"
        for name in names[:_MAX_UNKNOWN]
    ]
    if len(names) > _MAX_UNKNOWN:
        notes.append(f"config.json: {len(names) - _MAX_UNKNOWN} more fields were ignored")
    return notes


def _text_config(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's settings, which a multimodal model has inside of its own."""
    model_type = raw.get("model_type")
    text = raw.get("text_config")
    if model_type == "llama4" and isinstance(text, Mapping):
        return text
    if model_type == "llama4_text":
        return raw
    names = raw.get("architectures")
    first = names[0] if isinstance(names, list) and names else names
    raise UnsupportedError(
        "config.json is not of a Llama 4 model",
        found=f"model_type {shown(model_type)}, architectures {shown(first)}",
        expected="llama4 with a text_config, or llama4_text",
    )


def _rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling, from either of transformers' forms."""
    theta = fields.get("rope_theta")
    old, new = fields.get("rope_scaling"), fields.get("rope_parameters")
    for name, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is not None and not isinstance(value, Mapping):
            fields.fault(name, value, "an object")
    settings = new if isinstance(new, Mapping) else old if isinstance(old, Mapping) else {}
    inner = Fields({"rope_theta": theta, **settings})
    base = inner.number("rope_theta", 500000.0, low=1.0, high=_MAX_ROPE_BASE)
    kind = inner.get("rope_type", inner.get("type", "default"))
    rope: RopeScaling | None = None
    if kind == "llama3":
        least, most = 1 / _MAX_ROPE_FACTOR, _MAX_ROPE_FACTOR
        rope = RopeScaling(
            factor=inner.number("factor", low=least, high=most),
            low_freq_factor=inner.number("low_freq_factor", low=least, high=most),
            high_freq_factor=inner.number("high_freq_factor", low=least, high=most),
            original_context=inner.integer("original_max_position_embeddings", high=_MAX_POSITIONS),
        )
    elif kind != "default":
        inner.fault("rope_type", kind, "'llama3' or 'default'")
    for given in (inner, fields):
        part = given.get("partial_rotary_factor", 1)
        if type(part) not in (int, float) or part != 1:
            given.fault("partial_rotary_factor", part, "1: heads are rotated whole")
    fields.faults.extend(f"rope {fault}" for fault in inner.faults)
    return base, rope


def _check_attention(hparams: Hyperparameters, fields: Fields) -> None:
    fields.must_be("attention_chunk_size", ATTENTION_CHUNK, ATTENTION_CHUNK)
    tuning = fields.get("attn_temperature_tuning", True)
    # The oldest configs have 4, which means the same as true.
    if not isinstance(tuning, int) or not tuning:
        fields.fault("attn_temperature_tuning", tuning, "always on")
    fields.must_be("floor_scale", TEMPERATURE_FLOOR, TEMPERATURE_FLOOR)
    fields.must_be("attn_scale", TEMPERATURE_SCALE, TEMPERATURE_SCALE)
    fields.must_be("attention_bias", False, False)
    normalized = hparams.n_expert != EXPERTS_WITHOUT_QK_NORM
    if fields.boolean("use_qk_norm", True) != normalized:
        fields.fault(
            "use_qk_norm",
            not normalized,
            f"{normalized} with {hparams.n_expert} experts: off for {EXPERTS_WITHOUT_QK_NORM} only",
        )


def _check_layers(hparams: Hyperparameters, fields: Fields) -> None:
    """Which layers attend to what, and which have experts."""
    every = FULL_ATTENTION_EVERY
    uses_rope = [int(not hparams.is_full(layer)) for layer in range(hparams.n_layer)]
    # transformers fills an absent or empty list from the interval, and reads a longer one in part.
    listed = fields.get("no_rope_layers") or None
    interval = fields.get("no_rope_layer_interval", every)
    if listed is None and interval != every:
        fields.fault("no_rope_layer_interval", interval, str(every))
    if listed is not None and (
        not isinstance(listed, list) or listed[: hparams.n_layer] != uses_rope
    ):
        fields.fault("no_rope_layers", listed, f"0 at every {every}th layer, 1 elsewhere")
    kinds = ["chunked_attention" if rope else "full_attention" for rope in uses_rope]
    if fields.get("layer_types", kinds) != kinds:
        fields.fault("layer_types", fields.get("layer_types"), f"full at every {every}th layer")
    with_experts = [layer for layer in range(hparams.n_layer) if hparams.has_experts(layer)]
    if fields.get("moe_layers", with_experts) != with_experts:
        fields.fault(
            "moe_layers",
            fields.get("moe_layers"),
            f"every {hparams.moe_step}th layer, from the step",
        )


def _check_parameters(hparams: Hyperparameters, fields: Fields) -> None:
    """Sizes that are possible each, and not together; norms do not count."""
    attention = 2 * hparams.head_dim * (hparams.n_head + hparams.n_head_kv)
    feed_forward = 3 * max(hparams.n_ff, hparams.n_ff_expert * (hparams.n_expert + 1))
    total = hparams.n_embd * (2 * hparams.n_vocab + hparams.n_layer * (attention + feed_forward))
    if total > _MAX_PARAMETERS:
        fields.fault("sizes, multiplied", total, f"at most {_MAX_PARAMETERS} parameters")


def _notes(text: Mapping[str, Any], rope: RopeScaling | None) -> tuple[str, ...]:
    """What is no fault, but worth a line in the report."""
    if text.get("max_position_embeddings") == 10485760 and rope is not None and rope.factor == 8:
        return (
            "config.json has RoPE factor 8: Scout Instruct's was corrected to 16 in April 2025; "
            "download the current config.json",
        )
    return ()
