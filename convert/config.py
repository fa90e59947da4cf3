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
    EXPERTS_WITHOUT_QK_NORM,
    FULL_ATTENTION_EVERY,
    MAX_EXPERTS,
    MAX_LAYERS,
    MIN_LAYERS,
    TEMPERATURE_FLOOR,
    TEMPERATURE_SCALE,
    Hyperparameters,
)
from ..errors import UnsupportedError
from .fp8 import check_quantization


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling, which Llama 4 keeps."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class ModelConfig:
    """The text model's hyperparameters, and how its checkpoint stores it.

    Where `fp8`, weights may be stored as ``fp8`` says, and each expert's are tensors of their own.
    """

    hparams: Hyperparameters
    multimodal: bool
    rms_eps: float
    rope_scaling: RopeScaling | None
    tied: bool
    fp8: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower's shape: `width` of its stream, sides of pictures and patches in pixels.

    The adapter behind it goes from `n_ff` (the shuffled patches) to `projector_in`, and from
    `projector_out` to itself; `vision_out` is what the projector to the text model takes.
    """

    n_layer: int
    width: int
    n_ff: int
    image_size: int
    patch_size: int
    n_channel: int
    projector_in: int
    projector_out: int
    vision_out: int


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


class _Fields:
    """Reads one config object field by field, and remembers the faults and what was read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._read: set[str] = set()
        self.faults: list[str] = []

    def get(self, name: str, default: object = None) -> Any:
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None, *, low: int = 1) -> int:
        value = self.get(name, default)
        if type(value) is not int or value < low:
            self.fault(name, value, f"a whole number from {low}")
            return low
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            self.fault(name, value, "a positive number")
            return 1.0
        return float(value)

    def must_be(self, name: str, expected: object, default: object) -> None:
        value = self.get(name, default)
        if value != expected:
            self.fault(name, value, repr(expected))

    def fault(self, name: str, value: object, expected: str) -> None:
        shown = "nothing" if value is None else repr(value)
        self.faults.append(f"{name}: {shown[:80]} (llama.cpp: {expected})")

    def unknown(self) -> list[str]:
        return sorted(self._values.keys() - self._read - _IGNORED)


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The text model that config.json describes.

    Raises:
        UnsupportedError: another architecture, or settings that llama.cpp's Llama 4 does not have;
            the message lists all of them.
    """
    multimodal, text = _text_config(raw)
    fields = _Fields(text)
    n_layer = fields.integer("num_hidden_layers", 48)
    n_embd = fields.integer("hidden_size", 5120)
    n_head = fields.integer("num_attention_heads", 40)
    n_expert = fields.integer("num_local_experts", 16, low=0)
    rope_theta, rope_scaling = _rope(fields)
    hparams = Hyperparameters(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=fields.integer("num_key_value_heads", n_head),
        head_dim=fields.integer("head_dim", n_embd // n_head),
        n_ff=fields.integer("intermediate_size_mlp", 16384),
        n_ff_expert=fields.integer("intermediate_size", 8192),
        n_expert=n_expert,
        n_expert_used=fields.integer("num_experts_per_tok", 1),
        moe_step=fields.integer("interleave_moe_layer_step", 1),
        n_vocab=fields.integer("vocab_size", 202048),
        n_ctx_train=fields.integer("max_position_embeddings", 131072),
        rope_theta=rope_theta,
    )
    config = ModelConfig(
        hparams=hparams,
        multimodal=multimodal,
        rms_eps=fields.number("rms_norm_eps", 1e-5),
        rope_scaling=rope_scaling,
        tied=bool(fields.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))),
        fp8=_is_quantized(raw, text),
        notes=_notes(raw, text, rope_scaling),
    )
    _check_size(hparams, fields)
    _check_attention(hparams, fields)
    _check_experts(hparams, fields)
    if fields.faults:
        raise UnsupportedError(
            f"config.json has {len(fields.faults)} setting(s) that llama.cpp cannot represent",
            found="; ".join(fields.faults),
        )
    unread = tuple(
        f"config.json: {name} is not known here and was ignored" for name in fields.unknown()
    )
    return replace(config, notes=config.notes + unread)


def parse_vision(raw: Mapping[str, Any]) -> VisionConfig | None:
    """The vision tower that config.json describes, None where it describes none.

    Raises:
        UnsupportedError: sizes that are not positive integers; the message lists all of them.
    """
    settings = raw.get("vision_config")
    if not isinstance(settings, Mapping):
        return None
    fields = _Fields(settings)
    config = VisionConfig(
        n_layer=fields.integer("num_hidden_layers", 34),
        width=fields.integer("hidden_size", 768),
        n_ff=fields.integer("intermediate_size", 5632),
        image_size=fields.integer("image_size", 448),
        patch_size=fields.integer("patch_size", 14),
        n_channel=fields.integer("num_channels", 3),
        projector_in=fields.integer("projector_input_dim", 4096),
        projector_out=fields.integer("projector_output_dim", 4096),
        vision_out=fields.integer("vision_output_dim", 7680),
    )
    if fields.faults:
        raise UnsupportedError(
            f"vision_config in config.json has {len(fields.faults)} setting(s) that no vision "
            "tower has",
            found="; ".join(fields.faults),
        )
    return config


def _text_config(raw: Mapping[str, Any]) -> tuple[bool, Mapping[str, Any]]:
    """Whether the model is multimodal, and its text model's settings."""
    model_type = raw.get("model_type")
    text = raw.get("text_config")
    if model_type == "llama4" and isinstance(text, Mapping):
        multimodal = True
    elif model_type == "llama4_text":
        multimodal, text = False, raw
    else:
        raise UnsupportedError(
            "config.json is not of a Llama 4 model",
            found=f"model_type {model_type!r}, architectures {raw.get('architectures')!r}",
            expected="llama4 with a text_config, or llama4_text",
        )
    return multimodal, text


def _is_quantized(raw: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Whether the checkpoint is quantized, in the one way that is known."""
    settings = raw.get("quantization_config") or text.get("quantization_config")
    if settings:
        check_quantization(settings)
    return bool(settings)


def _rope(fields: _Fields) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling, from either of transformers' forms."""
    theta = fields.get("rope_theta")
    old, new = fields.get("rope_scaling"), fields.get("rope_parameters")
    settings = new if isinstance(new, Mapping) else old if isinstance(old, Mapping) else {}
    inner = _Fields({"rope_theta": theta, **settings})
    base = inner.number("rope_theta", 500000.0)
    kind = inner.get("rope_type", inner.get("type", "default"))
    rope: RopeScaling | None = None
    if kind == "llama3":
        rope = RopeScaling(
            factor=inner.number("factor"),
            low_freq_factor=inner.number("low_freq_factor"),
            high_freq_factor=inner.number("high_freq_factor"),
            original_context=inner.integer("original_max_position_embeddings"),
        )
    elif kind != "default":
        inner.fault("rope_type", kind, "'llama3' or 'default'")
    fields.faults.extend(f"rope {fault}" for fault in inner.faults)
    return base, rope


def _check_size(hparams: Hyperparameters, fields: _Fields) -> None:
    if not MIN_LAYERS <= hparams.n_layer <= MAX_LAYERS:
        fields.fault("num_hidden_layers", hparams.n_layer, f"{MIN_LAYERS} to {MAX_LAYERS}")
    if hparams.n_head % hparams.n_head_kv:
        fields.fault(
            "num_key_value_heads", hparams.n_head_kv, f"a divisor of {hparams.n_head} heads"
        )
    if hparams.head_dim % 2:
        fields.fault("head_dim", hparams.head_dim, "an even number, for RoPE")
    fields.must_be("hidden_act", "silu", "silu")


def _check_attention(hparams: Hyperparameters, fields: _Fields) -> None:
    every = FULL_ATTENTION_EVERY
    uses_rope = [int(not hparams.is_full(layer)) for layer in range(hparams.n_layer)]
    fields.must_be("attention_chunk_size", ATTENTION_CHUNK, ATTENTION_CHUNK)
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
    if not fields.get("attn_temperature_tuning", True):
        fields.fault("attn_temperature_tuning", False, "always on")
    fields.must_be("floor_scale", TEMPERATURE_FLOOR, TEMPERATURE_FLOOR)
    fields.must_be("attn_scale", TEMPERATURE_SCALE, TEMPERATURE_SCALE)
    fields.must_be("attention_bias", False, False)
    normalized = hparams.n_expert != EXPERTS_WITHOUT_QK_NORM
    if bool(fields.get("use_qk_norm", True)) != normalized:
        fields.fault(
            "use_qk_norm",
            not normalized,
            f"{normalized} with {hparams.n_expert} experts: off for {EXPERTS_WITHOUT_QK_NORM} only",
        )


def _check_experts(hparams: Hyperparameters, fields: _Fields) -> None:
    if not 1 <= hparams.n_expert <= MAX_EXPERTS:
        fields.fault("num_local_experts", hparams.n_expert, f"1 to {MAX_EXPERTS}")
    if hparams.n_expert_used > hparams.n_expert:
        fields.fault("num_experts_per_tok", hparams.n_expert_used, f"1 to {hparams.n_expert}")
    if hparams.moe_step > hparams.n_layer:
        fields.fault(
            "interleave_moe_layer_step", hparams.moe_step, f"1 to {hparams.n_layer} layers"
        )
    with_experts = [layer for layer in range(hparams.n_layer) if hparams.has_experts(layer)]
    if fields.get("moe_layers", with_experts) != with_experts:
        fields.fault(
            "moe_layers",
            fields.get("moe_layers"),
            f"every {hparams.moe_step}th layer, from the step",
        )


def _notes(
    raw: Mapping[str, Any], text: Mapping[str, Any], rope: RopeScaling | None
) -> tuple[str, ...]:
    """What is no fault, but worth a line in the report."""
    if text.get("max_position_embeddings") == 10485760 and rope is not None and rope.factor == 8:
        return (
            "config.json has RoPE factor 8: Scout Instruct's was corrected to 16 in April 2025; "
            "download the current config.json",
        )
    return ()
