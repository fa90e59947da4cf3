"""Turns Meta's own tokenizer file into the files a published Llama 4 repository holds.

Promises: ``tokenizer.json`` and its settings for the full vocabulary of 202048 tokens, converted
by transformers from the ``tokenizer.model`` that llama-models carries. The result is Meta's and is
made anew in a temporary directory by whoever needs it; it is never committed.
"""

from __future__ import annotations

import json
from pathlib import Path

import llama_models.llama4.tokenizer as meta
from tokenizers import processors
from transformers.convert_slow_tokenizer import TikTokenConverter

VOCABULARY = 202_048
BOS = "<|begin_of_text|>"


def write_real_tokenizer(directory: Path) -> Path:
    """Write Llama 4's tokenizer into ``directory`` (made if absent) and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    source = Path(meta.__file__).with_name("tokenizer.model")
    reference = meta.Tokenizer(source)
    converter = TikTokenConverter(
        vocab_file=str(source),
        pattern=meta.Tokenizer.O200K_PATTERN,
        extra_special_tokens=list(reference.special_tokens),
    )
    tokenizer = converter.converted()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A",
                pair=f"{BOS} $A {BOS}:1 $B:1",
                special_tokens=[(BOS, reference.bos_id)],
            ),
        ]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": BOS, "eos_token": "<|eot|>", "pad_token": "<|finetune_right_pad|>"}
    settings = named | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (directory / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    return directory
