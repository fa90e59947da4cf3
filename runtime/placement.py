"""Where a model goes: which layers and tensors on which device, as a value.

Promises that a placement which exists is one llama.cpp takes, as far as that can be known without a
machine and a model: numbers in their ranges, and patterns that mean the same to llama.cpp as here.
Knows nothing of what devices there are, or of what fits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import SettingError
from ..ranges import MAX_INT32, as_tuple, check_whole, is_number, outside, value_text

CPU = "CPU"
"""The name of main memory, pinned or not, repacked or not: in overrides, reports and plans."""

MAX_DEVICES = 15
"""How many devices a model can have: ggml's scheduler has 16 places (GGML_SCHED_MAX_BACKENDS), of
which the CPU takes one, and aborts on more."""

# llama.cpp hands patterns to std::regex (ECMAScript), Python's `re` reads another language. What
# both read alike: plain characters, dots, groups, alternatives, sets, anchors and quantifiers.
_SET = r"\[\^?(?:[A-Za-z0-9_.](?:-[A-Za-z0-9])?|\\[dws])+\]"
_ATOM = rf"(?:{_SET}|\\[dws.\\\[\](){{}}|*+?^$]|[^\\\[\](){{}}*+?^$|]|\))"
_QUANTIFIER = r"(?:[*+?]|\{\d{1,3}(?:,\d{0,3})?\})\??"
_COMMON_SYNTAX = re.compile(rf"(?:\((?:\?:)?|[|^$]|{_ATOM}(?:{_QUANTIFIER})?)+")

_SYNTAX_HINT = (
    r"Use plain characters, . * + ? {n,m} [a-z] (a|b) (?:a) ^ $ \. \d \w \s, and nothing more: "
    "llama.cpp reads patterns as std::regex does, and only these mean the same everywhere."
)


@dataclass(frozen=True)
class Placement:
    """Where the weights and the KV cache of a model go.

    Args:
        n_gpu_layers: how many layers go to devices, counted from the last one on, the output
            layer being one of them; -1 is all, where there is a device.
        devices: the devices that layers are shared among, in this order; None is all GPUs that
            llama.cpp finds, after the workers; none at all is the CPU alone.
        tensor_split: for each of these devices its share of the layers, in any unit; () shares
            them in proportion to free memory.
        overrides: pairs of a pattern, searched for in the names of tensors, and the device that
            holds those it finds, ``"CPU"`` being main memory. The first pattern that is found
            decides.
        offload_kqv: whether the KV cache lies with its layer; False keeps all of it, and the
            attention, on the CPU.

    Raises:
        SettingError: a number outside its range, or a pattern outside the supported syntax.
    """

    n_gpu_layers: int = -1
    devices: tuple[str, ...] | None = None
    tensor_split: tuple[float, ...] = ()
    overrides: tuple[tuple[str, str], ...] = ()
    offload_kqv: bool = True

    def __post_init__(self) -> None:
        check_whole("n_gpu_layers", self.n_gpu_layers, -1, MAX_INT32)
        # Lists are taken too; a frozen value should not hold them.
        if self.devices is not None:
            names = as_tuple("devices", self.devices, "names")
            object.__setattr__(self, "devices", _names(names))
        shares = as_tuple("tensor_split", self.tensor_split, "numbers")
        object.__setattr__(self, "tensor_split", _shares(shares))
        pairs = as_tuple("overrides", self.overrides, "(pattern, device) pairs")
        object.__setattr__(self, "overrides", tuple(map(_override, pairs)))
        if self.devices is not None and self.tensor_split:
            check_split(self.tensor_split, self.devices)


def check_count(devices: Sequence[str]) -> None:
    """Whether llama.cpp takes so many devices.

    Raises:
        SettingError: there are more than ``MAX_DEVICES``.
    """
    if len(devices) > MAX_DEVICES:
        raise SettingError(
            "a model cannot have so many devices",
            found=f"{len(devices)}: {', '.join(devices)}",
            expected=f"at most {MAX_DEVICES}",
            hint="Name those to use, as in devices=CUDA0,CUDA1.",
        )


def check_split(tensor_split: Sequence[float], devices: Sequence[str]) -> None:
    """Whether there is a share for each device.

    Raises:
        SettingError: there are more, or fewer. (llama.cpp would read past their end.)
    """
    if len(tensor_split) != len(devices):
        raise SettingError(
            "tensor_split needs one share for each device",
            found=f"{len(tensor_split)} for {', '.join(devices) or 'no device at all'}",
            expected=str(len(devices)),
        )


def check_overrides(overrides: Iterable[tuple[str, str]], tensors: Iterable[str]) -> None:
    """Whether each pattern finds a tensor, and none takes the token embedding from the CPU.

    Args:
        tensors: the names of the model's tensors.

    Raises:
        SettingError: a pattern finds nothing, or would move what llama.cpp reads on the CPU.
    """
    names = list(tensors)
    remaining = list(names)
    for pattern, target in overrides:
        if not any(re.search(pattern, name) for name in names):
            raise SettingError(
                f"the override {pattern}={target} matches no tensor of the model",
                expected="a pattern such as ffn_down_exps",
                hint="`llama4 inspect MODEL --tensors` lists their names.",
            )
        matches = [name for name in remaining if re.search(pattern, name)]
        remaining = [name for name in remaining if name not in matches]
        # Its rows are looked up on the CPU, where llama.cpp itself always keeps it: not every
        # backend can do that for every type, and llama.cpp aborts on one that cannot.
        if target != CPU and "token_embd.weight" in matches:
            raise SettingError(
                f"the override {pattern}={target} takes the token embedding from the CPU",
                expected="a pattern that does not match token_embd.weight",
                hint=f"Put token_embd={CPU} before it.",
            )


def cpu_moe_overrides(n_layers: int | None = None) -> tuple[tuple[str, str], ...]:
    """What keeps experts in main memory: those of the first ``n_layers`` layers, None being all.

    The same as llama.cpp's ``--n-cpu-moe N`` and ``--cpu-moe``.

    Raises:
        SettingError: a negative number, or one of thousands.
    """
    if n_layers is None:
        return ((r"\.ffn_(up|down|gate|gate_up)_exps", CPU),)
    check_whole("the number of layers whose experts stay on the CPU", n_layers, 0, 1024)
    if n_layers == 0:
        return ()
    layers = "|".join(str(layer) for layer in range(n_layers))
    return ((rf"blk\.({layers})\.ffn_(up|down|gate|gate_up)_exps", CPU),)


def _names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str) or not name:
            raise SettingError("a device has no name", found=value_text(name))
        if names.count(name) > 1:
            raise SettingError("a device is named twice", found=name)
    if CPU in names:
        raise SettingError(
            "layers cannot be shared with the CPU as a device",
            found=CPU,
            hint="It takes the layers that n_gpu_layers leaves.",
        )
    check_count(names)
    return names


def _shares(shares: tuple[float, ...]) -> tuple[float, ...]:
    for share in shares:
        if not (is_number(share) and 0 <= share < math.inf):
            raise outside("a share of tensor_split", share, "a number from 0 up")
    if shares and not any(shares):
        raise SettingError(
            "tensor_split leaves every device without layers",
            found=",".join(str(share) for share in shares),
            expected="a share above 0",
            hint="n_gpu_layers=0 leaves all layers on the CPU.",
        )
    return shares


def _override(override: object) -> tuple[str, str]:
    pair = as_tuple("an override", override, "a pattern and a device")
    if len(pair) != 2 or not isinstance(pair[0], str):
        raise outside("an override", override, "a pattern and a device")
    pattern, target = pair
    if not isinstance(target, str) or not target:
        raise SettingError(f"the override {pattern} has no device", found=value_text(target))
    _check_pattern(pattern)
    return pattern, target


def _check_pattern(pattern: str) -> None:
    problem = (
        f"the override pattern {pattern!r} is not in the syntax that llama.cpp and Python share"
    )
    if not (pattern.isascii() and pattern.isprintable() and _COMMON_SYNTAX.fullmatch(pattern)):
        raise SettingError(problem, hint=_SYNTAX_HINT)
    try:
        re.compile(pattern)
    except re.error as error:
        raise SettingError(problem, found=str(error), hint=_SYNTAX_HINT) from error
