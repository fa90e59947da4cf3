"""Whatever the files of a tokenizer hold: they are read, or refused with one error.

What is read becomes metadata that the runtime's own reader of vocabularies accepts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from llama4_edge.architecture import PRE_TOKENIZER_PATTERN, byte_alphabet
from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.convert.checkpoint import Checkpoint
from llama4_edge.convert.config import parse_config
from llama4_edge.convert.gguf_writer import GGUFWriter
from llama4_edge.convert.metadata import origin_of, write_metadata
from llama4_edge.convert.model_card import read_card
from llama4_edge.convert.shards import LocalShards
from llama4_edge.convert.tokenizer import read_vocabulary
from llama4_edge.errors import CheckpointError, VocabularyError
from llama4_edge.quant import recipe_named
from tests.fuzzing import damaged_json, efforts, fuzz

from .test_config import SCOUT

LETTERS = list(byte_alphabet().values())
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom|>", "<|eot|>", "<think>"]
FIRST = 259
SIZE = FIRST + len(SPECIAL) + 4


def token(number: int, text: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, "special": special, **flags}


ADDED = [token(FIRST + at, text, text != "<think>") for at, text in enumerate(SPECIAL)]
TOKENIZER = {
    "version": "1.0",
    "added_tokens": ADDED,
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PRE_TOKENIZER_PATTERN}, "behavior": "Isolated",
             "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ],
    },
    "post_processor": {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "trim_offsets": False},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": SPECIAL[0]}}, {"Sequence": {"id": "A"}}],
                "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [FIRST]}},
            },
        ],
    },
    "model": {
        "type": "BPE",
        "dropout": None,
        "vocab": {text: at for at, text in enumerate([*LETTERS, "th", "the", "Ġthe"])},
        "merges": ["t h", ["th", "e"], "Ġ the"],
    },
}  # fmt: skip
SOUND = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {
        "bos_token": SPECIAL[0],
        "eos_token": {"content": "<|eot|>"},
        "pad_token": "<|pad|>",
        "added_tokens_decoder": {str(FIRST + 4): token(FIRST + 4, "<think>", True)},
        "additional_special_tokens": ["<|eom|>"],
        "chat_template": [
            {"name": "default", "template": "{{ x }}"}, {"name": "tool_use", "template": "y"},
        ],
    },
    "special_tokens_map.json": {"bos_token": SPECIAL[0]},
    "generation_config.json": {
        "eos_token_id": [FIRST + 1, FIRST + 2, FIRST + 3, FIRST + 4], "bos_token_id": FIRST,
        "temperature": 0.6, "top_k": 40, "top_p": 0.9,
    },
    "chat_template.json": {"chat_template": "z"},
}  # fmt: skip


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def write(directory: Path, files: object) -> None:
    """Only the sound names are written: a damaged tree may have others."""
    for name in SOUND:
        path = directory / name
        path.unlink(missing_ok=True)
        if isinstance(files, dict) and name in files:
            path.write_text(_json(files[name]), encoding="utf-8")


def _json(value: object) -> str:
    """JSON with integers of any length."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value)
    finally:
        sys.set_int_max_str_digits(limit)


@efforts
def test_no_tokenizer_is_a_traceback(effort: settings, directory: Path) -> None:
    config = parse_config(SCOUT)
    config = replace(config, hparams=replace(config.hparams, n_vocab=SIZE))
    checkpoint = Checkpoint(directory, {}, {}, LocalShards())
    accepted = 0

    def check(files: object) -> None:
        nonlocal accepted
        write(directory, files)
        try:
            vocabulary = read_vocabulary(checkpoint, config)
            origin = origin_of(checkpoint, config, [])
        except (VocabularyError, CheckpointError) as error:
            assert len(str(error)) < 2_000
            return
        writer = GGUFWriter()
        write_metadata(writer, origin, config, vocabulary, recipe_named("bf16"), 32)
        opened = Vocabulary({key: value.value for key, value in writer.kv_data[0].items()})
        assert opened.decode(opened.encode("the <think>\n", special=True), special=True)
        accepted += 1

    fuzz(check, damaged_json(SOUND), effort)
    assert accepted


YAML = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="-: \n\t[]{}&*!|>'\"#%@`,?abc~\0\x85\ufeff", max_size=200),
    st.lists(
        st.tuples(
            st.sampled_from(["license", "tags", "base_model", "datasets", "name", "version", "x"]),
            st.one_of(
                st.text(max_size=30),
                st.sampled_from(["", "~", "5", "2020-01-01", "[a, 1]", "{name: x}", "- a", "*a"]),
                st.sampled_from(
                    ["&a x", "!!binary x", "[{name: [x]}]", "|\n  x", "'", "[[", "a/b"]
                ),
                st.sampled_from(
                    ["https://huggingface.co/a/b", "a/b", "v1-7B", "-", "--", "1" * 5000]
                ),
            ),
        ).map(": ".join),
        max_size=6,
    ).map("\n".join),
)


@efforts
def test_no_model_card_is_a_traceback(effort: settings, directory: Path) -> None:
    write(directory, {})
    checkpoint = Checkpoint(directory, {}, {}, LocalShards())
    config = parse_config(SCOUT)
    read = 0

    def check(yaml: str) -> None:
        nonlocal read
        card = directory / "README.md"
        card.write_bytes(f"---\n{yaml}\n---\n# Title\n".encode("utf-8", "surrogatepass"))
        try:
            read += bool(read_card(directory))
            origin = origin_of(checkpoint, config, [])
        except CheckpointError as error:
            assert len(str(error)) < 2_000
            return
        writer = GGUFWriter()
        write_metadata(writer, origin, config, None, recipe_named("bf16"), 32)
        for key, value in writer.kv_data[0].items():
            assert key.isascii() and writer._pack_val(value.value, value.type, add_vtype=True)

    try:
        fuzz(check, YAML, effort)
    finally:
        (directory / "README.md").unlink(missing_ok=True)
    assert read
