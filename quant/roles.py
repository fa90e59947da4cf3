"""What part of a Llama 4 model or its projector a tensor plays, told from its GGUF name.

What turns pictures into embeddings is told from its name in a checkpoint too.
"""

from __future__ import annotations

import re

# Literal patterns in the order they are tried; the first that matches names the role.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"^mm\.|vision_adapter\.|multi_modal_projector\.", "projector"),
    (r"^v\.|vision_model\.", "vision_tower"),
    (r"_norm\.weight$", "norm"),
    (r"^token_embd\.", "embedding"),
    (r"^output\.", "output"),
    (r"^rope_freqs\.", "rope"),
    (r"\.attn_(q|k|v|output)\.", "attention"),
    (r"\.ffn_gate_inp\.", "router"),
    (r"\.ffn_(gate|up|down)_exps\.", "expert"),
    (r"\.ffn_(gate|up|down)_shexp\.", "shared_expert"),
    (r"\.ffn_(gate|up|down)\.", "dense_ffn"),
)

# In the order a report lists them: what is read for every token last.
ROLES: tuple[str, ...] = (
    "expert",
    "shared_expert",
    "dense_ffn",
    "attention",
    "router",
    "embedding",
    "output",
    "norm",
    "rope",
    "vision_tower",
    "projector",
    "other",
)
VISION_ROLES = ("vision_tower", "projector")

_COMPILED = tuple((re.compile(pattern), role) for pattern, role in _PATTERNS)


def role_of(name: str) -> str:
    """The role of the tensor called `name` in a GGUF, one of `ROLES`."""
    for pattern, role in _COMPILED:
        if pattern.search(name):
            return role
    return "other"
