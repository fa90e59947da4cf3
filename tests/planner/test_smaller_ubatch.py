"""A long context makes the mask large: the plan says what a smaller ubatch would bring."""

from __future__ import annotations

import pytest

from llama4_edge.planner import Plan, plan
from llama4_edge.units import bytes_text

GIB = 2**30


def suggested(result: Plan) -> list[str]:
    return [other.what for other in result.alternatives if "ubatch" in other.what]


@pytest.mark.parametrize(
    ("n_ctx", "n_ubatch"), [(1_048_576, None), (2_097_152, 256), (10_485_760, 32)]
)
def test_the_ubatch_is_the_largest_whose_mask_is_small(n_ctx: int, n_ubatch: int | None) -> None:
    result = plan("scout", vram=[1024 * GIB], ram=64 * GIB, n_ctx=n_ctx)
    assert suggested(result) == ([f"a ubatch of {n_ubatch}"] if n_ubatch else [])
    if n_ubatch is None:
        return
    other = plan("scout", vram=[1024 * GIB], ram=64 * GIB, n_ctx=n_ctx, n_ubatch=n_ubatch)
    assert suggested(other) == []
    saved = sum(device.used_bytes for device in result.devices)
    saved -= sum(device.used_bytes for device in other.devices)
    (effect,) = (one.effect for one in result.alternatives if "ubatch" in one.what)
    assert effect.startswith(f"-{bytes_text(saved, digits=2)}, all on the GPU")
    # Rows of two bytes a token, and the same on the CPU.
    assert saved == pytest.approx(2 * 2 * n_ctx * (512 - n_ubatch), rel=0.06)


def test_the_longest_context_grows_with_a_smaller_ubatch() -> None:
    longest = plan("scout", vram=[200 * GIB], ram=64 * GIB, n_ctx="max")
    assert suggested(longest) == ["a ubatch of 128"]
    other = plan("scout", vram=[200 * GIB], ram=64 * GIB, n_ctx="max", n_ubatch=128)
    assert other.settings.n_ctx > longest.settings.n_ctx > 2_000_000
    (effect,) = (one.effect for one in longest.alternatives if "ubatch" in one.what)
    assert effect.startswith(f"{other.settings.n_ctx:,} tokens, all on the GPU")


def test_a_smaller_ubatch_brings_layers_back_to_the_gpus() -> None:
    # With 512, an operation on each of eight GPUs has a mask of 10 GiB, four times over.
    result = plan("scout", gpus=["h100 x8"], ram=2048 * GIB, n_ctx=10_485_760)
    (effect,) = (one.effect for one in result.alternatives if "ubatch" in one.what)
    other = plan("scout", gpus=["h100 x8"], ram=2048 * GIB, n_ctx=10_485_760, n_ubatch=32)
    slow = result.estimated_decode_tokens_per_second_full
    fast = other.estimated_decode_tokens_per_second_full
    assert slow is not None and fast is not None and fast > 10 * slow
    assert f"up to {fast:.1f} tokens/s" in effect
