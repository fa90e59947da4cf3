"""Tensors that a checkpoint may hold beside its model's, and that a GGUF has no use for.

Promises that they are named with the reason, and that nothing else is left out.
"""

from __future__ import annotations

import re

from .shard_header import StoredTensor

# What a name is of, and why it is not needed. Names are those of `spelling`.
_REASONS = (
    (
        r"(.*\.)?rotary_emb\.(original_)?inv_freq",
        "follows from config.json's RoPE settings",
    ),
    (
        r".*\.([kv]|kv|[kv]_proj\.output)_(scale|zero_point)",
        "scales the keys or values of a KV cache of 8 bits",
    ),
    (
        r".*\.(q|prob|q_proj\.output)_scale",
        "scales the activations of attention in FP8",
    ),
    (
        r".*[._]((in|out)put_(scale|scale_ub|global_scale|zero_point)|activation_scale)",
        "scales the activations of an engine that computes in few bits",
    ),
    (
        r"v_head\.(.*\.)?(weight|bias)",
        "is the value head of reinforcement learning, which writes no text",
    ),
)
_PATTERNS = tuple((re.compile(pattern), reason) for pattern, reason in _REASONS)


def take_unused(stored: dict[str, StoredTensor]) -> tuple[list[str], list[str]]:
    """Take out of `stored` what is of no use.

    Returns:
        The names of these tensors as stored, and a note for each reason.
    """
    found: dict[str, list[str]] = {}
    for name in stored:
        for pattern, reason in _PATTERNS:
            if pattern.fullmatch(name):
                found.setdefault(reason, []).append(name)
                break
    left_out: list[str] = []
    notes = []
    for reason, names in found.items():
        taken = [stored.pop(name).name for name in names]
        left_out += taken
        if len(taken) == 1:
            notes.append(f"{taken[0]} was left out: it {reason}")
        else:
            more = len(taken) - 1
            notes.append(f"{taken[0]} and {more:,} more were left out: each {reason}")
    return left_out, notes
