"""A Llama 4 vision tower's configuration, typed, and whether llama.cpp computes what it says.

`parse_vision` reads sizes, which is enough to weigh a tower; `check_vision` holds them together,
and against what llama.cpp fixes in code, which a tower must pass that is converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..architecture import (
    MAX_IMAGE_SIZE,
    MAX_VISION_LAYERS,
    VISION_ROPE_THETA,
    VisionShape,
)
from ..errors import UnsupportedError
from ..untrusted import shown
from .fields import MAX_WIDTH, Fields

LAYER_NORM_EPS = 1e-5
"""What transformers' and Meta's layer norms have, whatever a config's ``norm_eps`` says."""

_N_CHANNEL = 3  # llama.cpp's patches are of colours

_MAX_LAYERS = 1 << 12
_MAX_HEADS = 1 << 12
_MAX_PIXELS = 1 << 16


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower's shape: `width` of its stream, sides of pictures and patches in pixels.

    Squares of `merge` by `merge` patches become one, whose width is `n_ff` in a consistent tower.
    The adapter behind it goes from there to `projector_in`, and from `projector_out` to itself;
    `vision_out` is what the projector to the text model takes.
    """

    n_layer: int
    width: int
    n_head: int
    n_ff: int
    image_size: int
    patch_size: int
    n_channel: int
    merge: int
    projector_in: int
    projector_out: int
    vision_out: int

    def shape(self, n_embd: int) -> VisionShape:
        """The same with the projector to a text model of a width."""
        return VisionShape(
            n_layer=self.n_layer,
            width=self.width,
            n_head=self.n_head,
            n_ff=self.n_ff,
            image_size=self.image_size,
            patch_size=self.patch_size,
            merge=self.merge,
            adapter=(self.projector_in, self.projector_out),
            n_embd=n_embd,
        )


def parse_vision(raw: Mapping[str, Any]) -> VisionConfig | None:
    """The vision tower that config.json describes, None where it describes none.

    Raises:
        UnsupportedError: sizes that no vision tower has; the message lists all of them.
    """
    settings = _settings(raw)
    if settings is None:
        return None
    fields = Fields(settings)
    config = _sizes(fields)
    if fields.faults:
        raise UnsupportedError(
            f"vision_config in config.json has {len(fields.faults)} setting(s) that no vision "
            "tower has",
            found="; ".join(fields.faults),
        )
    return config


def check_vision(raw: Mapping[str, Any]) -> VisionConfig:
    """The same where there is one, held against itself and against llama.cpp.

    Args:
        raw: the whole config.json, which describes a vision tower.

    Raises:
        UnsupportedError: llama.cpp would abort on it, or compute something else; the message lists
            every setting that is why.
    """
    settings = _settings(raw)
    config = parse_vision(raw)
    assert settings is not None
    assert config is not None
    fields = Fields(settings)
    _check_sizes(config, fields)
    _check_fixed(fields)
    if fields.faults:
        raise UnsupportedError(
            f"vision_config in config.json has {len(fields.faults)} setting(s) that llama.cpp "
            "cannot compute",
            found="; ".join(fields.faults),
            hint="Correct them if they are wrong, or convert the text model alone: vision=False",
        )
    return config


def _settings(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    settings = raw.get("vision_config")
    if settings is None or isinstance(settings, Mapping):
        return settings
    raise UnsupportedError(
        "vision_config in config.json is damaged", found=shown(settings), expected="an object"
    )


def _sizes(fields: Fields) -> VisionConfig:
    ratio = fields.number("pixel_shuffle_ratio", 0.5, low=1e-3, high=1.0)
    return VisionConfig(
        n_layer=fields.integer("num_hidden_layers", 34, high=_MAX_LAYERS),
        width=fields.integer("hidden_size", 768, high=MAX_WIDTH),
        n_head=fields.integer("num_attention_heads", 16, high=_MAX_HEADS),
        n_ff=fields.integer("intermediate_size", 5632, high=MAX_WIDTH),
        image_size=fields.integer("image_size", 448, high=_MAX_PIXELS),
        patch_size=fields.integer("patch_size", 14, high=_MAX_PIXELS),
        n_channel=fields.integer("num_channels", 3, high=_MAX_PIXELS),
        merge=round(1 / ratio),
        projector_in=fields.integer("projector_input_dim", 4096, high=MAX_WIDTH),
        projector_out=fields.integer("projector_output_dim", 4096, high=MAX_WIDTH),
        vision_out=fields.integer("vision_output_dim", 7680, high=MAX_WIDTH),
    )


def _check_sizes(config: VisionConfig, fields: Fields) -> None:
    """Sizes that are possible each, and not together."""

    def check(holds: bool, name: str, found: int, expected: str) -> None:
        if not holds:
            fields.fault(name, found, expected)

    layers, heads, width = config.n_layer, config.n_head, config.width
    check(
        layers <= MAX_VISION_LAYERS,
        "num_hidden_layers",
        layers,
        f"at most {MAX_VISION_LAYERS}",
    )
    check(
        width % heads == 0 and width // heads % 4 == 0,
        "num_attention_heads",
        heads,
        f"heads whose width, of {width} together, is a multiple of 4: RoPE has two axes",
    )
    ratio = fields.get("pixel_shuffle_ratio", 0.5)
    if ratio * config.merge != 1:
        fields.fault("pixel_shuffle_ratio", ratio, "1 divided by a whole number")
    side = config.image_size // config.patch_size
    check(
        config.image_size <= MAX_IMAGE_SIZE
        and side * config.patch_size == config.image_size
        and side % config.merge == 0,
        "image_size",
        config.image_size,
        f"a multiple of {config.merge} patches of {config.patch_size}, up to {MAX_IMAGE_SIZE}",
    )
    merged = width * config.merge**2
    check(
        config.n_ff == merged,
        "intermediate_size",
        config.n_ff,
        f"hidden_size / pixel_shuffle_ratio², here {merged}",
    )
    out = config.projector_out
    check(config.projector_in == out, "projector_input_dim", config.projector_in, f"{out}")
    check(config.vision_out == out, "vision_output_dim", config.vision_out, f"{out}")
    check(config.n_channel == _N_CHANNEL, "num_channels", config.n_channel, f"{_N_CHANNEL}")


def _check_fixed(fields: Fields) -> None:
    """Settings that llama.cpp's code has one value of."""
    fields.must_be("hidden_act", "gelu", "gelu")
    fields.must_be("norm_eps", LAYER_NORM_EPS, LAYER_NORM_EPS)
    fields.must_be("multi_modal_projector_bias", False, False)
    fields.must_be("rope_theta", VISION_ROPE_THETA, VISION_ROPE_THETA)
    rope = fields.get("rope_parameters")
    if rope is None:
        return
    if not isinstance(rope, Mapping):
        fields.fault("rope_parameters", rope, "an object")
        return
    inner = Fields(rope)
    inner.must_be("rope_theta", VISION_ROPE_THETA, VISION_ROPE_THETA)
    inner.must_be("rope_type", "default", "default")
    fields.faults += [f"rope_parameters.{fault}" for fault in inner.faults]
