from __future__ import annotations

from typing import Any

import pytest

from llama4_edge.errors import SettingError
from llama4_edge.runtime.settings import EngineSettings


@pytest.mark.parametrize(
    ("name", "value", "least", "most"),
    [
        ("n_ctx", 0, 1, 2**31 - 1),
        ("n_batch", 0, 1, 2**31 - 1),
        ("n_ubatch", -1, 1, 2**31 - 1),
        ("n_outputs", 0, 1, 2**31 - 1),
        ("n_threads", 0, 1, 512),
        ("n_threads", 513, 1, 512),  # ggml aborts the process on very many
        ("n_threads_batch", 1.5, 1, 512),
        ("n_parallel", 257, 1, 256),
        ("n_ctx", True, 1, 2**31 - 1),
        ("n_ctx", 2**31, 1, 2**31 - 1),
        ("n_ctx", None, 1, 2**31 - 1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(
    name: str, value: Any, least: int, most: int
) -> None:
    with pytest.raises(SettingError) as caught:
        EngineSettings(**{name: value})
    assert str(caught.value) == (
        f"{name} is outside its range, found {value!r}, "
        f"expected a whole number from {least} to {most}"
    )


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"kv_type": "q5_2"}, "kv_type is unknown, found 'q5_2', expected f16, bf16, q8_0, q5_1"),
        ({"kv_type": None}, "kv_type is unknown, found None"),
        ({"kv_type": ("q8_0", 4)}, "kv_type is unknown, found 4"),
        ({"kv_type": ("q8_0",)}, "kv_type is of the wrong type, found .*a pair of types"),
        ({"kv_type": ("f16",) * 3}, "kv_type is of the wrong type"),
        ({"kv_type": ()}, "kv_type is of the wrong type"),
        ({"load_mode": True}, "load_mode is unknown, found True, expected auto, none, mmap, mlock"),
        ({"load_mode": "direct"}, "load_mode is unknown, found 'direct'"),
        ({"n_expert_used": 0}, "n_expert_used is outside its range, found 0"),
        ({"n_expert_used": 17}, "expected None or a whole number from 1 to 16"),
        ({"n_expert_used": True}, "n_expert_used is outside its range, found True"),
        ({"flash_attention": True}, "flash_attention is unknown, found True, expected auto, on"),
        (
            {"kv_type": "q8_0", "flash_attention": "off"},
            "values of the KV cache in q8_0 need flash attention, found flash_attention off. Turn",
        ),
        (
            {"kv_type": ("bf16", "iq4_nl"), "flash_attention": "off"},
            "values of the KV cache in iq4_nl need flash attention",
        ),
    ],
)
def test_what_does_not_exist_or_go_together_is_refused(
    given: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(SettingError, match=complaint):
        EngineSettings(**given)


def test_keys_and_values_are_kept_alike_or_apart() -> None:
    alike, apart = EngineSettings(kv_type="q8_0"), EngineSettings(kv_type=("q8_0", "q4_0"))
    assert (alike.type_k, alike.type_v, alike.kv_text) == ("q8_0", "q8_0", "q8_0")
    assert (apart.type_k, apart.type_v, apart.kv_text) == ("q8_0", "q4_0", "K q8_0 and V q4_0")
    assert EngineSettings(kv_type=("q8_0", "q8_0")) == alike
    listed: Any = ["q8_0", "q4_0"]  # as JSON has it
    assert EngineSettings(kv_type=listed) == apart
    # Only values are bound to flash attention.
    assert EngineSettings(kv_type=("q4_0", "bf16"), flash_attention="off").type_k == "q4_0"


def test_a_quantized_kv_cache_leaves_flash_attention_to_llama_cpp() -> None:
    assert EngineSettings(kv_type="q4_0").flash_attention == "auto"
