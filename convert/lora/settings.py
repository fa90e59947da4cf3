"""PEFT's adapter_config.json, typed, and refused where it asks for more than a plain LoRA.

Promises the scale of each matrix as PEFT computes it, and one error that names every setting which
cannot be had. Patterns are a stranger's regular expressions: one that could take long is refused.
Knows no tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ...errors import CheckpointError, UnsupportedError
from ...untrusted import Reader, Record, brief, shown

CONFIG_NAME = "adapter_config.json"

T = TypeVar("T", int, float)

_READER = Reader(CheckpointError, limit=16 << 20, hint="Download it again.")

# What a plain LoRA does not have, and why it cannot be had.
_REFUSED = {
    "use_dora": "DoRA, which scales each row of the sum",
    "use_qalora": "QALoRA, which pools its inputs",
    "use_bdlora": "BD-LoRA, whose matrices are in blocks",
    "lora_bias": "a bias behind lora_B",
    "alora_invocation_tokens": "an activated LoRA, which works behind these tokens only",
    "layer_replication": "layers of the model that are repeated",
    "trainable_token_indices": "rows of the embedding that were trained",
    "arrow_config": "Arrow, which routes between adapters",
    "kasa_config": "KaSA, which has singular values beside the matrices",
    "monteclora_config": "MonteCLoRA, which samples its matrices",
}
# Ways to begin that take what the adapter begins with off the model's own weights.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# From here on a fused parameter's axes are taken for [expert, out, in], which Llama 4's are not.
_SWAPPED_SINCE = (0, 19, 1)

_MAX_RANK = 1 << 16
_MAX_PATTERNS = 1 << 16
_PLAIN = re.compile(r"[\w.\-]+", re.ASCII)
_LONGEST_PATTERN = 1000
_MOST_REPEATS = 3  # so that a pattern takes the cube of a name's length at most


@dataclass(frozen=True)
class AdapterSettings:
    """A plain LoRA's settings.

    `base` is the model that it was trained on, a path or a repository, None where nothing says.
    `swapped` is whether a fused parameter [expert, in, out] has ``out`` on lora_A's side.
    """

    base: str | None
    rank: int
    alpha: float
    rslora: bool
    swapped: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    parameters: tuple[str, ...]

    def rank_of(self, key: str) -> int:
        """The rank of the module or parameter that PEFT knows by `key`."""
        return _matching(self.ranks, key, self.rank)

    def scale_of(self, key: str) -> float:
        """What the product of lora_B and lora_A is multiplied by."""
        rank = self.rank_of(key)
        return _matching(self.alphas, key, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def targets(self, parameter: str) -> bool:
        """Whether `parameter` was adapted by name, instead of the module that it is in."""
        return any(parameter == name or parameter.endswith(f".{name}") for name in self.parameters)


def _matching(patterns: Mapping[str, T], key: str, default: T) -> T:
    """The value of the first pattern that fits the end of a key, as PEFT's `get_pattern_key`."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", key):
            return value
    return default


def read_settings(directory: Path) -> AdapterSettings:
    """Read the adapter_config.json of an adapter's directory.

    Raises:
        CheckpointError: it cannot be read, or has a value that none can be.
        UnsupportedError: it is of another kind than a plain LoRA; all that says so is named.
    """
    record = _READER.record(directory / CONFIG_NAME)
    kind = record.text("peft_type")
    if kind.upper() != "LORA":
        raise UnsupportedError(
            f"{directory} is an adapter of another kind",
            found=f"peft_type {brief(kind)}",
            expected="LORA",
            hint="Merge it into its base with PEFT (merge_and_unload), and convert that.",
        )
    _check_plain(record, directory)
    base = record.get("base_model_name_or_path")
    return AdapterSettings(
        base=base.strip() or None if isinstance(base, str) else None,
        rank=record.integer("r", 1, _MAX_RANK),
        alpha=_alpha(record, "lora_alpha"),
        rslora=record.boolean("use_rslora", default=False),
        swapped=_version(record.get("peft_version")) >= _SWAPPED_SINCE,
        ranks={
            pattern: record.record("rank_pattern").integer(pattern, 1, _MAX_RANK)
            for pattern in _patterns(record, "rank_pattern")
        },
        alphas={
            pattern: _alpha(record.record("alpha_pattern"), pattern)
            for pattern in _patterns(record, "alpha_pattern")
        },
        parameters=record.texts("target_parameters") if record.get("target_parameters") else (),
    )


def _check_plain(record: Record, directory: Path) -> None:
    faults = [f"{name} ({why})" for name, why in _REFUSED.items() if record.get(name)]
    begun = record.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_BASE):
        faults.append(f"init_lora_weights {shown(begun)} (the base was changed to begin with)")
    if faults:
        raise UnsupportedError(
            f"{directory} is more than a plain LoRA, and llama.cpp cannot apply it",
            found="; ".join(faults),
            expected="lora_A and lora_B alone",
            hint="Merge it into its base with PEFT (merge_and_unload), and convert that.",
        )


def _alpha(record: Record, key: str) -> float:
    """A scale's numerator; with 0 the adapter would do nothing, and llama.cpp would take 1."""
    value = record.number(key)
    if not 1e-9 <= abs(value) <= 1e9:
        raise record.fault(key, "a number other than 0, in reason")
    return value


def _patterns(record: Record, key: str) -> list[str]:
    """The patterns of a mapping, each of which is a regular expression that takes no time."""
    if not record.get(key):
        return []
    patterns = list(record.record(key))
    if len(patterns) > _MAX_PATTERNS:
        raise record.fault(key, f"at most {_MAX_PATTERNS} patterns")
    for pattern in patterns:
        if _PLAIN.fullmatch(pattern):
            continue
        repeats = len(re.findall(r"[*+{]", pattern))
        nested = re.search(r"\)\s*[*+?{]|\(\?", pattern)
        if len(pattern) > _LONGEST_PATTERN or repeats > _MOST_REPEATS or nested:
            raise record.fault(key, f"simpler patterns than {brief(pattern)!r}")
        try:
            re.compile(pattern)
        except (re.error, OverflowError):
            raise record.fault(key, f"regular expressions, unlike {brief(pattern)!r}") from None
    return patterns


def _version(value: object) -> tuple[int, ...]:
    """The numbers of a release; (0,) of PEFT before 0.18, which wrote none."""
    text = value if isinstance(value, str) else ""
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", text)
    return tuple(int(number or 0) for number in match.groups()) if match else (0,)
