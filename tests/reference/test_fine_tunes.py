"""What transformers writes of a fine-tune, resized and with tokens added, is what it reads again.

Logits as in test_logits.py; ids of added tokens as transformers' tokenizer gives them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Llama4ForCausalLM, Llama4ForConditionalGeneration

import llama4_edge
from demo.checkpoint import SCOUT_LIKE, TEXT_ONLY, Geometry
from llama4_edge import Model, convert
from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.errors import CheckpointError, VocabularyError
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.fixtures import MakeCheckpoint

from .test_logits import MAX_KL, assert_same_predictions, kl_divergence, random_tokens

NEW = ("<think>", "</think>", "<|tool_call|>", "user name")
SPECIAL = ("<|tool_call|>",)
ROWS = 1088  # 1024 and the new ones, filled to a multiple of 64
POSITIONS = (0, 1, 2, 3, 7, 31, 127, 258)
TEXT = "A <think>user names</think> <|tool_call|>x user name<|eot|>user  name <think >"


def fine_tuned(plain: Path, directory: Path, geometry: Geometry, *, resized: bool = True) -> Path:
    """The checkpoint as transformers saves it with tokens added."""
    kind = Llama4ForCausalLM if geometry.text_only else Llama4ForConditionalGeneration
    model = kind.from_pretrained(plain, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.add_tokens([token for token in NEW if token not in SPECIAL])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    if resized:
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    directory.mkdir()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for name in ("generation_config.json", "preprocessor_config.json", "processor_config.json"):
        if (plain / name).exists() and not (directory / name).exists():
            shutil.copy(plain / name, directory)
    return directory


def written(checkpoint: Path, directory: Path) -> Path:
    target = directory / "model.gguf"
    convert(checkpoint, target, recipe="bf16", vision=False, force=True)
    return target


def assert_same_ids(checkpoint: Path, gguf: Path) -> list[int]:
    expected: list[int] = AutoTokenizer.from_pretrained(checkpoint)(TEXT, add_special_tokens=False)[
        "input_ids"
    ]
    assert Vocabulary(read_gguf(gguf).metadata).encode(TEXT, special=True) == expected
    return expected


@pytest.mark.parametrize(
    ("geometry", "seed"),
    [
        pytest.param(SCOUT_LIKE, 3, id="multimodal"),
        pytest.param(TEXT_ONLY, 0, id="text"),
        pytest.param(replace(TEXT_ONLY, tied=True), 1, id="tied"),
    ],
)
def test_a_resized_model_predicts_and_reads_as_transformers_does(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, geometry: Geometry, seed: int
) -> None:
    directory = fine_tuned(make_checkpoint(geometry), tmp_path / "tuned", geometry)
    gguf = written(directory, tmp_path)
    metadata: Any = read_gguf(gguf).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == metadata["llama4.vocab_size"] == ROWS
    assert list(tokens[1028:]) == [f"[PAD{number}]" for number in range(1028, ROWS)]
    ids = assert_same_ids(directory, gguf)
    assert {1024, 1025, 1026, 1027} <= set(ids)
    # New rows are read, too.
    prompt = random_tokens(geometry, POSITIONS[-1] + 1 - len(ids), seed) + ids
    assert_same_predictions(directory, gguf, prompt, POSITIONS)


def older_files(directory: Path) -> None:
    """As transformers before 4.34 wrote them: what was added in a file of its own."""
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    added = {one["content"]: one["id"] for one in tokenizer["added_tokens"] if one["id"] >= 1024}
    assert set(added) == set(NEW)
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["id"] < 1024]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    (directory / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
    path = directory / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    special: dict[str, Any] = {
        name: settings.pop(name) for name in ("bos_token", "eos_token") if name in settings
    }
    for name in ("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"):
        settings.pop(name, None)
    path.write_text(json.dumps(settings), encoding="utf-8")
    special["extra_special_tokens"] = list(SPECIAL)
    (directory / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")


def test_tokens_of_added_tokens_json_are_those_of_transformers(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    directory = fine_tuned(make_checkpoint(TEXT_ONLY), tmp_path / "tuned", TEXT_ONLY)
    expected = assert_same_ids(directory, written(directory, tmp_path))
    older_files(directory)
    gguf = written(directory, tmp_path)
    assert assert_same_ids(directory, gguf) == expected
    metadata: Any = read_gguf(gguf).metadata
    assert list(metadata["tokenizer.ggml.token_type"][1024:1028]) == [
        4,
        4,
        4,
        3,
    ]  # user defined, and control


def test_a_tokenizer_larger_than_the_embedding_is_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    plain = make_checkpoint(TEXT_ONLY)
    directory = fine_tuned(plain, tmp_path / "tuned", TEXT_ONLY, resized=False)
    with pytest.raises(
        VocabularyError,
        match=r"token out of range: '<think>', found id 1024, expected 0 to 1023, the rows of the "
        r"embedding.*resize_token_embeddings",
    ):
        convert(directory, dry_run=True)


def test_an_embedding_of_another_size_than_config_json_says_is_refused(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    plain = make_checkpoint(TEXT_ONLY)
    directory = fine_tuned(plain, tmp_path / "tuned", TEXT_ONLY)
    shutil.copy(plain / "config.json", directory)
    with pytest.raises(
        CheckpointError,
        match=r"embed_tokens.*found \[1088, 256\], expected \[1024, 256\] \(vocab, embd\).*"
        r"vocab_size in config\.json must be 1088",
    ):
        convert(directory, dry_run=True)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_a_model_without_experts_predicts_as_transformers_does(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, qk_norm: bool
) -> None:
    """Llama Guard 4: Scout pruned to dense layers."""
    geometry = replace(TEXT_ONLY, moe_step=5, qk_norm=qk_norm)
    directory = tmp_path / "guard"
    shutil.copytree(make_checkpoint(geometry), directory)
    path = directory / "config.json"
    without: dict[str, Any] = {
        "moe_layers": [], "num_local_experts": 0, "num_experts_per_tok": 0,
        "interleave_moe_layer_step": 0,
    }  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | without))
    report = convert(directory, tmp_path / "guard.gguf", recipe="bf16")
    assert [note[:24] for note in report.notes] == ["no layer has experts, wh"]
    reference = Llama4ForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = random_tokens(geometry, 128, 0)
    with torch.inference_mode():
        expected = reference.eval()(input_ids=torch.tensor([tokens])).logits[0].numpy()
    with Model(tmp_path / "guard.gguf", n_ctx=128) as model:
        ours = model.logits(tokens)
    assert kl_divergence(expected, ours).max() <= MAX_KL
    plan = llama4_edge.plan(tmp_path / "guard.gguf", n_ctx=4096, vram=[(1 << 30) + (17 << 20)])
    assert plan.experts_on_cpu == 0
    assert not any("expert" in line for line in plan.why)
