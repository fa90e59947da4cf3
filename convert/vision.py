"""The vision tower and its projector in a checkpoint: which tensor is which, and what each becomes.

llama.cpp keeps them in a file of their own, which its tools call mmproj. Promises the names that
its loader reads (tools/mtmd/clip.cpp), the types that convert_hf_to_gguf.py gives them, and that an
unknown, missing or misshapen tensor is an error before a byte is written. No weight is reordered:
llama.cpp takes the patches' weights as transformers' unfolding has them, and rotates pairs as
transformers does. Knows shapes and types; writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..architecture import VisionShape
from ..errors import CheckpointError, RecipeError
from ..quant import Assignment, TensorSpec, TensorType
from ..quant.types import F16, F32, TYPES
from ..ranges import value_text
from .forms import Form, find_in_any
from .names import Rule, Sizes, Target, rule_targets
from .shard_header import StoredTensor
from .spelling import VISION_PREFIXES
from .text_model import MappedTensor, map_tensor, shape_of
from .vision_config import VisionConfig

Shape = tuple[int, ...]

VISION_TYPES = {name: TYPES[name.upper()] for name in ("f16", "bf16", "q8_0", "q4_0", "f32")}
"""What the matrices of a projector file may be stored as."""
DEFAULT_VISION_TYPE = "f16"
"""bf16 would round what is multiplied too: ggml multiplies two tensors of one type."""

_TOWER, _PROJECTOR = VISION_PREFIXES
# A part of the tower by its name in a checkpoint, which llama.cpp counts to the projector.
_ADAPTER = "vision_model.vision_adapter."

_HINT = "The shards and config.json must be of the same model. Or convert the text: vision=False"
_PATCHES = "v.patch_embd.weight"
_POSITIONS = "v.position_embd.weight"


def _biased(name: str, target: str, outputs: str, *inputs: str) -> tuple[Rule, Rule]:
    """A linear layer or a norm: its weight, and a bias as long as the weight's first axis."""
    return (
        Rule(f"{name}.weight", (outputs, *inputs), (f"{target}.weight",)),
        Rule(f"{name}.bias", (outputs,), (f"{target}.bias",)),
    )


_BEFORE = (
    Rule("vision_model.class_embedding", ("width",), ("v.class_embd",)),
    Rule("vision_model.patch_embedding.linear.weight", ("width", "pixels"), (_PATCHES,)),
    Rule("vision_model.positional_embedding_vlm", ("patches", "width"), (_POSITIONS,)),
    *_biased("vision_model.layernorm_pre", "v.pre_ln", "width"),
)
_LAYER = "vision_model.model.layers.{layer}"
_BLOCK = "v.blk.{layer}"
_LAYERS = (
    *_biased(f"{_LAYER}.input_layernorm", f"{_BLOCK}.ln1", "width"),
    *_biased(f"{_LAYER}.self_attn.q_proj", f"{_BLOCK}.attn_q", "width", "width"),
    *_biased(f"{_LAYER}.self_attn.k_proj", f"{_BLOCK}.attn_k", "width", "width"),
    *_biased(f"{_LAYER}.self_attn.v_proj", f"{_BLOCK}.attn_v", "width", "width"),
    *_biased(f"{_LAYER}.self_attn.o_proj", f"{_BLOCK}.attn_out", "width", "width"),
    *_biased(f"{_LAYER}.post_attention_layernorm", f"{_BLOCK}.ln2", "width"),
    *_biased(f"{_LAYER}.mlp.fc1", f"{_BLOCK}.ffn_up", "ffn", "width"),
    *_biased(f"{_LAYER}.mlp.fc2", f"{_BLOCK}.ffn_down", "width", "ffn"),
)
_AFTER = (
    *_biased("vision_model.layernorm_post", "v.post_ln", "width"),
    Rule(f"{_ADAPTER}mlp.fc1.weight", ("projector_in", "ffn"), ("mm.model.mlp.1.weight",)),
    Rule(
        f"{_ADAPTER}mlp.fc2.weight", ("projector_out", "projector_out"), ("mm.model.mlp.2.weight",)
    ),
    Rule("multi_modal_projector.linear_1.weight", ("embd", "vision_out"), ("mm.model.fc.weight",)),
)
_RULES = {rule.name: rule for rule in (*_BEFORE, *_LAYERS, *_AFTER)}
_LAYER_NUMBER = re.compile(r"vision_model\.model\.layers\.(\d{1,4})(?=\.)", re.ASCII)


@dataclass(frozen=True)
class VisionWeights:
    """Bytes of the tensors that turn pictures into embeddings of the text model.

    ``tower`` is the encoder, ``projector`` what maps its patches to the text model's width.
    """

    tower: int
    projector: int
    shape: VisionShape


def _rules(config: VisionConfig) -> Iterator[tuple[Rule, int]]:
    """Every rule of a tower, with its layer, in the order in which llama.cpp computes."""
    yield from ((rule, 0) for rule in _BEFORE)
    for layer in range(config.n_layer):
        yield from ((rule, layer) for rule in _LAYERS)
    yield from ((rule, 0) for rule in _AFTER)


def _axes(config: VisionConfig, n_embd: int) -> Sizes:
    return {
        "width": config.width,
        "ffn": config.n_ff,
        "patches": (config.image_size // config.patch_size) ** 2 + 1,  # and one for the whole
        "pixels": config.n_channel * config.patch_size**2,
        "projector_in": config.projector_in,
        "projector_out": config.projector_out,
        "vision_out": config.vision_out,
        "embd": n_embd,
    }


def vision_target(name: str) -> str | None:
    """What a projector file calls a tensor of a checkpoint's tower; None where there is no such."""
    layer = _LAYER_NUMBER.match(name)
    rule = _RULES.get(name if layer is None else f"{_LAYER}{name[layer.end() :]}")
    return None if rule is None else rule.targets[0].format(layer=layer and int(layer[1]))


def vision_shapes(config: VisionConfig, n_embd: int) -> dict[str, Shape]:
    """Every tensor of the vision tower and the projector, by its name in a checkpoint.

    Args:
        config: the tower's.
        n_embd: the text model's width.
    """
    sizes = _axes(config, n_embd)
    return {
        rule.name.format(layer=layer): tuple(sizes[axis] for axis in rule.shape)
        for rule, layer in _rules(config)
    }


def map_vision(
    stored: Mapping[str, StoredTensor],
    config: VisionConfig,
    n_embd: int,
    forms: Sequence[Form] = (),
) -> list[MappedTensor]:
    """What each stored tensor of the tower and the projector becomes, in file order.

    Args:
        stored: by their names in a checkpoint.
        config: the tower's.
        n_embd: the text model's width.
        forms: in which matrices may be stored, other than as their numbers.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, or not of floats.
    """
    sizes = _axes(config, n_embd)
    mapped: list[MappedTensor] = []
    known: set[str] = set()
    for rule, layer in _rules(config):
        name = rule.name.format(layer=layer)
        weight = find_in_any(forms, name, shape_of(rule, sizes), stored)
        if name not in stored and weight is None:
            raise CheckpointError(
                f"tensor {name} is missing",
                found=f"{len(stored)} tensors of a vision tower",
                hint=_HINT,
            )
        mapped.append(map_tensor(stored.get(name), rule, layer, sizes, weight))
        known.update(part.name for part in mapped[-1].parts)
    extra = sorted(tensor.name for tensor in stored.values() if tensor.name not in known)
    if extra:
        raise CheckpointError(
            f"tensor {extra[0]} is not part of a vision tower with this config.json",
            found=f"{len(extra)} unexpected tensors",
            hint=_HINT,
        )
    return mapped


def described_vision(
    stored: Mapping[str, StoredTensor],
    config: VisionConfig | None,
    n_embd: int,
    forms: Sequence[Form] = (),
) -> list[tuple[str, Shape, str, int]]:
    """Name, shape, type and bytes of each tensor of a tower, whether or not it is a whole one.

    Matrices in a form count as their numbers, with all their parts. See `map_vision`.
    """
    shapes = {} if config is None else vision_shapes(config, n_embd)
    found = (find_in_any(forms, name, shape, stored) for name, shape in shapes.items())
    weights = [weight for weight in found if weight is not None]
    parts = {part.name for weight in weights for part in weight.parts.values()}
    plain = [tensor for tensor in stored.values() if tensor.name not in parts]
    return [(one.name, one.shape, one.dtype, one.nbytes) for one in plain] + [
        (one.name, one.shape, one.form.label, one.nbytes) for one in weights
    ]


def vision_targets(config: VisionConfig, n_embd: int) -> list[Target]:
    """The tensors of the projector file, in order."""
    sizes = _axes(config, n_embd)
    return [target for rule, layer in _rules(config) for target in rule_targets(rule, layer, sizes)]


def assign_vision_types(targets: list[Target], matrices: TensorType) -> list[Assignment]:
    """Each tensor with its type, where matrices are to be of type `matrices`."""
    return [
        Assignment(
            TensorSpec(target.name, target.shape),
            given := vision_type(target.name, target.shape, matrices),
            matrices if given is F16 and matrices.quantized else None,
        )
        for target in targets
    ]


def vision_type_named(name: str) -> TensorType:
    """One of `VISION_TYPES` by its name.

    Raises:
        RecipeError: there is none of that name.
    """
    known = VISION_TYPES.get(name.lower()) if isinstance(name, str) else None
    if known is None:
        raise RecipeError(
            "unknown vision_type",
            found=value_text(name),
            expected=f"one of {', '.join(VISION_TYPES)}",
        )
    return known


def vision_type(name: str, shape: Shape, matrices: TensorType) -> TensorType:
    """The type of a tensor of the projector file, as convert_hf_to_gguf.py has it.

    Vectors and positions stay in F32, patches too unless all is F16; a matrix whose rows the type
    does not fit is F16.
    """
    if len(shape) < 2 or name == _POSITIONS:
        return F32
    if name == _PATCHES:
        return F16 if matrices is F16 else F32
    return matrices if matrices.fits(shape[-1]) else F16


def vision_weights(
    shapes: Mapping[str, Shape], config: VisionConfig | None, n_embd: int
) -> VisionWeights | None:
    """What these weigh in a projector file of the default type, None where none would be written.

    Args:
        shapes: of tensors by their names in a checkpoint; those of the text model do not count.
        config: the tower's, None where config.json has none.
        n_embd: the text model's width.
    """
    matrices = VISION_TYPES[DEFAULT_VISION_TYPE]
    kept_apart = {rule.name: rule.targets[0] for rule in _BEFORE}
    tower = projector = 0
    for name, shape in shapes.items():
        nbytes = vision_type(kept_apart.get(name, name), shape, matrices).nbytes(shape)
        if name.startswith((_ADAPTER, _PROJECTOR)):
            projector += nbytes
        elif name.startswith(_TOWER):
            tower += nbytes
    if config is None or not tower + projector:
        return None
    return VisionWeights(tower, projector, config.shape(n_embd))
