"""Which states can stand for each other: the same weights, wherever they lie."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama4_edge import convert
from llama4_edge.architecture import Hyperparameters
from llama4_edge.errors import SessionError
from llama4_edge.runtime.files.model_file import check_model_file
from llama4_edge.runtime.fingerprint import Fingerprint, _rotation
from llama4_edge.runtime.settings import EngineSettings
from tests.tiny_model import with_chat_tokens


def fingerprint(path: Path, **settings: object) -> Fingerprint:
    return Fingerprint.of(check_model_file(path), EngineSettings(**settings))  # type: ignore[arg-type]


def test_a_model_that_is_moved_or_renamed_keeps_it(tiny_path: Path, tmp_path: Path) -> None:
    moved = tmp_path / "other.gguf"
    shutil.copy(tiny_path, moved)
    assert fingerprint(moved) == fingerprint(tiny_path)


def test_a_model_in_parts_has_that_of_the_whole(
    scout_checkpoint: Path, scout_bf16: Path, tmp_path: Path
) -> None:
    report = convert(scout_checkpoint, tmp_path / "p.gguf", recipe="bf16", split_size=4_000_000)
    assert len(report.outputs) > 1
    parts = fingerprint(Path(report.outputs[0]))
    assert parts == fingerprint(scout_bf16)


def test_another_quantization_has_another(scout_bf16: Path, scout_int4: Path) -> None:
    one, other = fingerprint(scout_bf16), fingerprint(scout_int4)
    assert one.weights != other.weights
    assert (one.recipe, other.recipe) == ("MOSTLY_BF16", "MOSTLY_Q4_K_S")


@pytest.mark.parametrize("tensor", ["blk.0.attn_q.weight", "output_norm.weight"])
def test_a_finetune_of_one_tensor_has_another(tiny_path: Path, tmp_path: Path, tensor: str) -> None:
    model = with_chat_tokens()
    model.tensors[tensor] = np.asarray(model.tensors[tensor] * np.float32(1.001))
    assert (
        fingerprint(model.write(tmp_path / "tuned.gguf")).weights != fingerprint(tiny_path).weights
    )


def test_a_name_and_a_template_are_no_weights(tiny_path: Path, tmp_path: Path) -> None:
    model = with_chat_tokens()
    del model.keys["tokenizer.chat_template"]
    assert fingerprint(model.write(tmp_path / "a.gguf")).weights == fingerprint(tiny_path).weights


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"kv_type": ("q8_0", "q4_0")}, {"type_k": "q8_0", "type_v": "q4_0"}),
        ({"flash_attention": "off"}, {"flash_attention": "off"}),
        ({"flash_attention": "on"}, {}),  # as "auto" is
        ({"n_ctx": 64, "n_parallel": 3, "n_threads": 1}, {}),
    ],
)
def test_settings_count_that_a_state_depends_on(
    tiny_path: Path, settings: dict[str, object], changed: dict[str, str]
) -> None:
    # The tiny model's heads have 32 numbers, which llama.cpp does not rotate.
    assert fingerprint(tiny_path, **settings) == replace(
        fingerprint(tiny_path),
        **changed,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("type_k", "type_v", "head_dim", "disabled", "rotated"),
    [
        ("f16", "bf16", 128, None, "none"),
        ("q8_0", "f16", 128, None, "k"),
        ("f16", "q4_0", 128, None, "v"),
        ("iq4_nl", "q5_1", 64, None, "kv"),
        ("q8_0", "q8_0", 96, None, "none"),
        ("q8_0", "q8_0", 128, "1", "none"),
        ("q8_0", "q8_0", 128, "0", "kv"),
        ("q8_0", "q8_0", 128, " 02x", "none"),
        ("q8_0", "q8_0", 128, "yes", "kv"),  # atoi makes 0 of it
    ],
)
def test_rotation_is_as_llama_cpp_decides(
    tiny_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    type_k: str,
    type_v: str,
    head_dim: int,
    disabled: str | None,
    rotated: str,
) -> None:
    monkeypatch.delenv("LLAMA_ATTN_ROT_DISABLE", raising=False)
    if disabled is not None:
        monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", disabled)
    hparams: Hyperparameters = replace(check_model_file(tiny_path).hparams, head_dim=head_dim)
    assert _rotation(type_k, type_v, hparams) == rotated  # type: ignore[arg-type]


def test_a_file_that_is_gone_is_one_error(tiny_path: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.gguf"
    shutil.copy(tiny_path, gone)
    info = check_model_file(gone)
    gone.unlink()
    with pytest.raises(SessionError, match=r"gone\.gguf cannot be read any more, found No such"):
        Fingerprint.of(info, EngineSettings())
