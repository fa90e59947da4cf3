"""llama.cpp's mixes: which type llama-quantize gives each tensor of a Llama 4 model.

The table has a line for each of its file types, which says what most tensors get, and which others
get another type, by what they are and where they lie. Source: ``llama_tensor_get_type_impl`` in
llama-quant.cpp, as far as Llama 4 meets it. Knows tensors by GGUF name and shape only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .types import (
    BF16,
    F16,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    TYPES,
    TensorType,
)

IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, IQ1_S = (
    TYPES[name] for name in ("IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be typed: its GGUF name and shape, rows along the last axis."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask of a model.

    `queries_per_key` is how many heads share a key and a value; `has_importance` says whether an
    importance matrix is given.
    """

    n_layer: int
    n_expert: int
    attention_values: int
    queries_per_key: int
    tied: bool
    has_importance: bool


@dataclass
class Counters:
    """Tensors met so far, of the kinds whose type depends on their position."""

    attention_values: int = 0
    ffn_down: int = 0
    others: Counter[str] = field(default_factory=Counter)


Mix = Callable[[TensorSpec, ModelFacts, Counters], TensorType]


def same(tensor_type: TensorType) -> Mix:
    """Every tensor in `tensor_type`, as for F16, BF16 and Q8_0 files."""
    return lambda spec, model, counters: tensor_type


def layer_of(name: str) -> int:
    """The layer of a tensor; -1 where it is of none."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match.group(1)) if match else -1


def trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without leading ones, which ggml does not count as dimensions."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


# --- where a tensor lies: its number among those of its kind, and how many there are


@dataclass(frozen=True)
class _Position:
    index: int
    count: int
    model: ModelFacts


_Where = Callable[[_Position], bool]
_Rules = tuple[tuple[_Where, TensorType], ...]


def _all(at: _Position) -> bool:
    return True


def _more_bits(at: _Position) -> bool:
    """The first and last eighth, and every third in between (``use_more_bits``)."""
    first = at.count // 8
    return at.index < first or at.index >= 7 * at.count // 8 or (at.index - first) % 3 == 2


def _first_eighth(at: _Position) -> bool:
    return at.index < at.count // 8


def _first_sixteenth(at: _Position) -> bool:
    return at.index < at.count // 16


def _first_eighth_with_importance(at: _Position) -> bool:
    return at.model.has_importance and _first_eighth(at)


def _first_eighth_without(at: _Position) -> bool:
    return not at.model.has_importance and _first_eighth(at)


def _first_eighth_or_mixtral(at: _Position) -> bool:
    return _first_eighth(at) or (at.model.n_expert == 8 and _more_bits(at))


def _middle(at: _Position) -> bool:
    """All but the first and the last eighth."""
    return at.count // 8 <= at.index < 7 * at.count // 8


def _shared_or_many_experts(at: _Position) -> bool:
    return _shared(at) or at.model.n_expert >= 4


def _shared(at: _Position) -> bool:
    """Four heads or more share a value, so that its matrix is small."""
    return at.model.queries_per_key >= 4


def _first(count: int) -> _Where:
    return lambda at: at.index < count


# --- the table


@dataclass(frozen=True)
class _Mixture:
    """A line of the table: the types of a file type, whose number in llama.cpp is `file_type`.

    `base` is what most tensors get. `values`, `downs` and `gates` are the rules for ``attn_v``,
    ``ffn_down``, and ``ffn_gate`` and ``ffn_up``, of which the first that holds decides. `output`
    and `embedding` are the types of the matrices at the ends; `projection`, `queries` and `keys`
    those of attention's. A model of eight experts was taken for Mixtral, whose values and keys have
    types of their own, and, if `mixtral`, Q5_K for the output of attention. If `counted`, it is not
    its layer that says where a ``ffn_down`` lies, but how many were before it.
    """

    file_type: int
    base: TensorType
    values: _Rules = ()
    downs: _Rules = ()
    projection: TensorType | None = None
    mixtral: bool = False
    gates: _Rules = ()
    output: TensorType = Q6_K
    embedding: TensorType | None = None
    queries: TensorType | None = None
    keys: TensorType | None = None
    eight_values: TensorType | None = Q8_0
    eight_keys: TensorType = Q8_0
    counted: bool = False

    def mix(self, spec: TensorSpec, model: ModelFacts, counters: Counters) -> TensorType:
        """The type of a tensor; see `Mix`."""
        name = spec.name
        if _is_output(spec, model):
            return self.output if self.base.fits(spec.shape[-1]) else Q8_0
        if name == "token_embd.weight":
            return self.embedding or self.base
        if ".attn_" in name:
            return self._attention(name, model, counters)
        if "ffn_down" in name:
            # A model of one expert is "not a mixture" there, and its tensors are counted instead.
            by_layer = model.n_expert > 1 and not self.counted
            index = layer_of(name) if by_layer else counters.ffn_down
            counters.ffn_down += 1
            return self._by(self.downs, _Position(index, model.n_layer, model))
        part = next((it for it in ("ffn_gate", "ffn_up") if it in name), None)
        if part is None:
            return self.base
        index = layer_of(name) if model.n_expert > 1 else counters.others[part]
        counters.others[part] += 1
        return self._by(self.gates, _Position(index, model.n_layer, model))

    def _attention(self, name: str, model: ModelFacts, counters: Counters) -> TensorType:
        if ".attn_v." in name:
            at = _Position(counters.attention_values, model.attention_values, model)
            counters.attention_values += 1
            if model.n_expert == 8 and self.eight_values:
                return self.eight_values
            return self._by(self.values, at)
        if ".attn_k." in name:
            return self.eight_keys if model.n_expert == 8 else self.keys or self.base
        if ".attn_q." in name:
            return self.queries or self.base
        if model.n_expert == 8:
            return Q5_K if self.mixtral else self.base
        return self.projection or self.base

    def _by(self, rules: _Rules, at: _Position) -> TensorType:
        return next((tensor_type for where, tensor_type in rules if where(at)), self.base)


def _very_low(
    file_type: int,
    base: TensorType,
    more: TensorType,
    *,
    embedding: TensorType,
    projection: TensorType | None = None,
) -> _Mixture:
    """A mixture around two bits, or one: `more` is what sensitive matrices get."""
    return _Mixture(
        file_type,
        base,
        values=((_shared_or_many_experts, Q4_K), (_all, more)),
        downs=((_first_eighth, more),),
        projection=projection,
        mixtral=True,
        output=Q5_K,
        embedding=embedding,
        eight_values=None,
        eight_keys=Q4_K,
        counted=True,
    )


def _is_output(spec: TensorSpec, model: ModelFacts) -> bool:
    """The output matrix, or the embedding that stands in for it."""
    return spec.name == "output.weight" or (model.tied and spec.name == "token_embd.weight")


def _experts_in_mxfp4(spec: TensorSpec, model: ModelFacts, counters: Counters) -> TensorType:
    """MXFP4_MOE: what has three dimensions is an expert's."""
    return MXFP4 if len(trimmed(spec.shape)) == 3 else Q8_0


# Of IQ4_NL and IQ4_XS alike.
_IQ4_VALUES, _IQ4_DOWNS = ((_shared, Q5_K),), ((_first_eighth_without, Q5_K),)

_MIXTURES: dict[str, _Mixture] = {
    "Q4_0": _Mixture(2, Q4_0, downs=((_first_eighth_with_importance, Q4_1),)),
    "Q4_1": _Mixture(3, Q4_1),
    "Q5_0": _Mixture(8, Q5_0, downs=((_first_eighth_with_importance, Q5_1),)),
    "Q5_1": _Mixture(9, Q5_1),
    "Q2_K": _Mixture(
        10, Q2_K, ((_shared, Q4_K), (_all, Q3_K)), ((_all, Q3_K),), Q3_K, mixtral=True
    ),
    "Q3_K_S": _Mixture(11, Q3_K, mixtral=True),
    "Q3_K_M": _Mixture(
        12,
        Q3_K,
        ((_first(2), Q5_K), (_all, Q4_K)),
        ((_first_sixteenth, Q5_K), (_all, Q4_K)),
        Q4_K,
        mixtral=True,
    ),
    "Q3_K_L": _Mixture(13, Q3_K, ((_all, Q5_K),), ((_all, Q5_K),), Q5_K),
    "Q4_K_S": _Mixture(14, Q4_K, ((_first(4), Q5_K),), ((_first_eighth, Q5_K),), mixtral=True),
    "Q4_K_M": _Mixture(15, Q4_K, ((_more_bits, Q6_K),), ((_more_bits, Q6_K),), mixtral=True),
    "Q5_K_S": _Mixture(16, Q5_K),
    "Q5_K_M": _Mixture(17, Q5_K, ((_more_bits, Q6_K),), ((_more_bits, Q6_K),)),
    "Q6_K": _Mixture(18, Q6_K),
    "IQ4_NL": _Mixture(25, IQ4_NL, _IQ4_VALUES, _IQ4_DOWNS, mixtral=True),
    "IQ3_S": _Mixture(26, IQ3_S, ((_shared, Q4_K),), mixtral=True),
    "IQ3_M": _Mixture(
        27, IQ3_S, ((_all, Q4_K),), ((_first_eighth_or_mixtral, Q4_K),), Q4_K, mixtral=True
    ),
    "Q2_K_S": _Mixture(21, Q2_K, ((_shared, Q4_K),), ((_first_eighth, Q4_K),)),
    "IQ3_XS": _Mixture(
        22,
        IQ3_S,
        ((_shared, Q4_K),),
        mixtral=True,
        gates=((_middle, IQ3_XXS),),
        queries=IQ3_XXS,
        keys=IQ3_XXS,
    ),
    "IQ3_XXS": _Mixture(
        23,
        IQ3_XXS,
        ((_shared, Q4_K),),
        (),
        IQ3_S,
        mixtral=True,
        output=Q5_K,
        embedding=IQ3_S,
        queries=IQ2_S,
        keys=IQ2_S,
    ),
    "IQ2_M": _very_low(29, IQ2_S, IQ3_S, embedding=IQ3_S, projection=IQ3_S),
    "IQ2_S": _very_low(28, IQ2_XS, IQ3_S, embedding=IQ3_S, projection=IQ3_S),
    "IQ2_XS": _very_low(20, IQ2_XS, Q2_K, embedding=Q2_K),
    "IQ2_XXS": _very_low(19, IQ2_XXS, Q2_K, embedding=Q2_K),
    "IQ1_M": _very_low(31, IQ1_M, Q2_K, embedding=Q2_K, projection=IQ2_XXS),
    "IQ1_S": _very_low(24, IQ1_S, Q2_K, embedding=Q2_K, projection=IQ2_XXS),
    "IQ4_XS": _Mixture(30, IQ4_XS, _IQ4_VALUES, _IQ4_DOWNS, mixtral=True),
}

_PLAIN = (("F16", 1, F16), ("BF16", 32, BF16), ("Q8_0", 7, Q8_0))

LLAMA_CPP: dict[str, tuple[int, TensorType, Mix]] = {
    **{name: (number, plain, same(plain)) for name, number, plain in _PLAIN},
    **{name: (it.file_type, it.base, it.mix) for name, it in _MIXTURES.items()},
    "MXFP4_MOE": (38, MXFP4, _experts_in_mxfp4),
}
"""File types by llama-quantize's names: llama.cpp's number, what most tensors get, and the mix."""

NEED_IMPORTANCE = frozenset(
    ("Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
)
"""Those that llama-quantize writes with an importance matrix alone."""
