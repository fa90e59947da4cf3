from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from llama4_edge.architecture import byte_alphabet
from llama4_edge.convert.checkpoint import open_checkpoint
from llama4_edge.convert.config import parse_config
from llama4_edge.convert.tokenizer import Vocabulary, read_vocabulary
from llama4_edge.errors import VocabularyError

from .conftest import Edit, edit_json


def read(checkpoint: Path) -> Vocabulary:
    opened = open_checkpoint(checkpoint)
    return read_vocabulary(opened, parse_config(opened.config))


def assert_refused(checkpoint: Path, file: str, edit: Edit, *, match: str) -> None:
    edit_json(checkpoint / file, edit)
    with pytest.raises(VocabularyError, match=match):
        read(checkpoint)


def test_the_byte_letters_are_those_of_tokenizers() -> None:
    from tokenizers import pre_tokenizers

    assert set(byte_alphabet().values()) == set(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, range(1, 0x250)))
    ((letters, _),) = level.pre_tokenize_str(text)
    assert letters == "".join(byte_alphabet()[byte] for byte in text.encode())


def test_every_row_of_the_embedding_has_a_token(checkpoint: Path) -> None:
    vocabulary = read(checkpoint)
    assert len(vocabulary.tokens) == len(vocabulary.types) == 1024
    assert len(set(vocabulary.tokens)) == 1024


def test_roles_of_special_tokens(checkpoint: Path) -> None:
    vocabulary = read(checkpoint)
    text = vocabulary.tokens.__getitem__
    assert vocabulary.bos is not None
    assert text(vocabulary.bos) == "<|begin_of_text|>"
    assert vocabulary.add_bos
    assert {text(end) for end in (vocabulary.eos, vocabulary.eot, vocabulary.eom) if end} == {
        "<|eot|>",
        "<|eom|>",
    }
    assert vocabulary.types[vocabulary.bos] == TokenType.CONTROL
    assert vocabulary.types[vocabulary.tokens.index("a")] == TokenType.NORMAL


def test_rows_without_a_token_become_unused_padding(checkpoint: Path) -> None:
    def drop_last(tokenizer: dict[str, Any]) -> None:
        vocab = tokenizer["model"]["vocab"]
        last = max(vocab, key=vocab.get)
        tokenizer["model"]["merges"].pop()
        dropped.append(vocab.pop(last))

    dropped: list[int] = []
    edit_json(checkpoint / "tokenizer.json", drop_last)
    vocabulary = read(checkpoint)
    assert vocabulary.tokens[dropped[0]] == f"[PAD{dropped[0]}]"
    assert vocabulary.types[dropped[0]] == TokenType.UNUSED


@pytest.mark.parametrize(
    "place", ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"]
)
def test_the_chat_template_is_found_wherever_transformers_keeps_it(
    checkpoint: Path, place: str
) -> None:
    template = (checkpoint / "chat_template.jinja").read_text()
    (checkpoint / "chat_template.jinja").unlink()
    if place == "chat_template.jinja":
        (checkpoint / place).write_text(template)
    else:
        (checkpoint / place).touch()
        if not (checkpoint / place).read_text():
            (checkpoint / place).write_text("{}")
        edit_json(checkpoint / place, lambda settings: settings.update(chat_template=template))
    assert read(checkpoint).chat_template == template


def test_named_chat_templates_are_kept_by_name(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    edit_json(checkpoint / "tokenizer_config.json", lambda it: it.update(chat_template=named))
    assert read(checkpoint).chat_templates == {"default": "d", "tool_use": "t"}


def test_a_base_model_has_no_chat_template(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    assert read(checkpoint).chat_template is None


def test_a_missing_tokenizer_is_refused(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(VocabularyError, match=r"has no tokenizer\.json"):
        read(checkpoint)


def set_pre(field: str, value: object) -> Edit:
    return lambda tokenizer: tokenizer["pre_tokenizer"]["pretokenizers"][0].update({field: value})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_pre("pattern", {"Regex": r"\p{N}{1,3}"}), "another pre-tokenizer than Llama 4's"),
        (set_pre("behavior", "Removed"), "another pre-tokenizer"),
        (set_pre("invert", True), "another pre-tokenizer"),
        (lambda it: it.update(pre_tokenizer=None), "another pre-tokenizer"),
        (
            lambda it: it["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
            "another pre-tokenizer",
        ),
        (lambda it: it.update(normalizer={"type": "NFC"}), "has a normalizer"),
        (lambda it: it["model"].update(type="Unigram"), "is not a BPE"),
        (lambda it: it["model"].update(byte_fallback=True), "sets byte_fallback"),
        (lambda it: it["model"].update(merges=[]), "has no merges"),
        (lambda it: it["model"]["merges"].append(["a", "nope"]), "merge of unknown"),
        (lambda it: it["model"]["vocab"].update(new=5000), "out of range.* 'new'|'new'.*id 5000"),
        (lambda it: it["model"]["vocab"].update(new=3), "gives id 3 to two tokens"),
        (lambda it: it["model"]["vocab"].update({"é ": 900}), "gives id|not byte-level"),
        (lambda it: it["model"]["vocab"].pop("a"), "lacks byte tokens|unknown"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(
    checkpoint: Path, edit: Edit, said: str
) -> None:
    assert_refused(checkpoint, "tokenizer.json", edit, match=said)


def test_ends_out_of_range_are_refused(checkpoint: Path) -> None:
    assert_refused(
        checkpoint,
        "generation_config.json",
        lambda it: it.update(eos_token_id=[1, 4096]),
        match="invalid eos_token_id.*token ids from 0 to 1023",
    )


def test_a_special_token_that_is_none_is_refused(checkpoint: Path) -> None:
    assert_refused(
        checkpoint,
        "tokenizer_config.json",
        lambda it: it.update(bos_token="<|nobody|>"),
        match="names a bos_token that tokenizer.json lacks",
    )
