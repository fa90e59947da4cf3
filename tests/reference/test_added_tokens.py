"""Tokens that a fine-tune added become the ids that transformers makes of the same files."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from demo.checkpoint import SCOUT_LIKE
from llama4_edge import convert
from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.fixtures import MakeCheckpoint

SMALL = replace(
    SCOUT_LIKE, hidden=64, heads=2, kv_heads=1, head_dim=32, expert_ffn=64, dense_ffn=64, experts=4,
    vision=None,
)  # fmt: skip
PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
TEXTS = ("<L>", "<R>", "<B>", "cat", "catalog", "<think>", "</think>", "éa", " x", "na ̈", "[a]")
FRAGMENTS = (
    *TEXTS, " ", "  ", "\n", "\t", "\x1c", "\x85", "\u00a0", "\u2028", "\u3000", "\u200b", "\u200d",
    "a", "Z", "_", "-", "1", "²", "٣", "Ⅷ", "ⓐ", "\U0001f130", "̈", "\u0903", "‿", "😀", "<|eot|>",
    "日", "é", "<", "|>", "cats", "the cat sat", "<|begin_of_text|>",
)  # fmt: skip


def freed(directory: Path, count: int) -> list[int]:
    """Take the last merged tokens out of tokenizer.json, and return their ids."""
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    last = [
        "".join(merge if isinstance(merge, list) else merge.split(" "))
        for merge in tokenizer["model"]["merges"][-count:]
    ]
    ids = [vocab.pop(text) for text in last]
    del tokenizer["model"]["merges"][-count:]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return ids


def save(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(value | changes), encoding="utf-8")


def vocabulary_of(checkpoint: Path, target: Path) -> Vocabulary:
    convert(checkpoint, target, recipe="bf16", force=True)
    return Vocabulary(read_gguf(target).metadata)


@pytest.fixture
def checkpoint(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_checkpoint(SMALL), tmp_path / "small"))


def assert_same(checkpoint: Path, target: Path, seed: int, count: int = 400) -> None:
    reference = AutoTokenizer.from_pretrained(checkpoint)
    ours = vocabulary_of(checkpoint, target)
    rng = random.Random(seed)
    for _ in range(count):
        text = "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 12)))
        expected = reference(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, special=True) == expected, repr(text)


@pytest.mark.parametrize("seed", range(6))
def test_flags_of_added_tokens_are_honoured(checkpoint: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = checkpoint / "tokenizer.json"
    numbers = freed(checkpoint, len(TEXTS))
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    added, vocab = tokenizer["added_tokens"], tokenizer["model"]["vocab"]
    for number, text in zip(numbers, TEXTS, strict=True):
        flags = {name: rng.random() < 0.4 for name in PLAIN}
        number = vocab.get(text, number)
        added.append({"id": number, "content": text, **flags, "special": rng.random() < 0.3})
    save(path, added_tokens=sorted(added, key=lambda token: token["id"]))
    settings = checkpoint / "tokenizer_config.json"
    if seed % 2:  # what tokenizer_config.json says of some of them wins
        decoder = {
            str(token["id"]): {key: token[key] for key in (*PLAIN, "content", "special")}
            | {name: rng.random() < 0.4 for name in PLAIN}
            for token in added
            if token["id"] in numbers[:6]
        }
        save(settings, added_tokens_decoder=decoder)
    else:
        values = json.loads(settings.read_text(encoding="utf-8"))
        values.pop("added_tokens_decoder", None)
        settings.write_text(json.dumps(values), encoding="utf-8")
    assert_same(checkpoint, tmp_path / "o.gguf", seed)
