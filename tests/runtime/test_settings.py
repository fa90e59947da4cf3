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
        ({"kv_type": "q5_0"}, "kv_type is unknown, found 'q5_0', expected f16, q8_0, q4_0"),
        ({"mmap": 1}, "mmap is outside its range, found 1, expected True or False"),
        ({"mmap": None}, "mmap is outside its range, found None, expected True or False"),
        ({"flash_attention": True}, "flash_attention is unknown, found True, expected auto, on"),
        ({"kv_type": "q8_0", "flash_attention": "off"}, "a KV cache of q8_0 needs flash attention"),
    ],
)
def test_what_does_not_exist_or_go_together_is_refused(
    given: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(SettingError, match=complaint):
        EngineSettings(**given)


def test_a_quantized_kv_cache_leaves_flash_attention_to_llama_cpp() -> None:
    assert EngineSettings(kv_type="q4_0").flash_attention == "auto"
