"""Which tokens begin, end and fill: found wherever transformers finds them, refused if nowhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llama4_edge.convert.checkpoint import open_checkpoint
from llama4_edge.convert.config import parse_config
from llama4_edge.convert.tokenizer import Vocabulary, read_vocabulary
from llama4_edge.errors import VocabularyError

from .conftest import Edit, edit_json

TOKENIZER, SETTINGS, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION, CONFIG = "generation_config.json", "config.json"
BOS, EOT, EOM = "<|begin_of_text|>", "<|eot|>", "<|eom|>"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abcd\nsize 1\n"


def read(checkpoint: Path) -> Vocabulary:
    opened = open_checkpoint(checkpoint)
    return read_vocabulary(opened, parse_config(opened.config))


def edit(checkpoint: Path, edits: Mapping[str, Edit]) -> None:
    for name, change in edits.items():
        edit_json(checkpoint / name, change)


def without(*keys: str) -> Edit:
    def change(value: dict[str, Any]) -> None:
        for key in keys:
            value.pop(key, None)
            value.get("text_config", {}).pop(key, None)

    return change


def setting(**values: object) -> Edit:
    return lambda value: value.update(values)


def around(*steps: str) -> Edit:
    """A post-processor with these special tokens around the text, which is "A"."""
    single = [{"Sequence" if step == "A" else "SpecialToken": {"id": step}} for step in steps]

    def change(tokenizer: dict[str, Any]) -> None:
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        tokens = {step: {"id": step, "ids": [ids[step]]} for step in steps if step != "A"}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing", "single": single, "special_tokens": tokens,
        }  # fmt: skip

    return change


@pytest.mark.parametrize(
    ("edits", "removed"),
    [
        ({SETTINGS: without("bos_token")}, ()),
        ({SETTINGS: without("bos_token"), TOKENIZER: setting(post_processor=None)}, ()),
        ({SETTINGS: without("bos_token", "added_tokens_decoder")}, ()),
        ({SETTINGS: setting(bos_token={"content": BOS, "lstrip": False})}, ()),
        ({}, (SETTINGS,)),
        ({}, (SETTINGS, MAP, GENERATION)),
    ],
)
def test_the_token_that_begins_a_text_is_found_elsewhere(
    checkpoint: Path, edits: Mapping[str, Edit], removed: tuple[str, ...]
) -> None:
    edit(checkpoint, edits)
    for name in removed:
        (checkpoint / name).unlink()
    vocabulary = read(checkpoint)
    assert vocabulary.tokens[vocabulary.bos] == BOS
    assert vocabulary.add_bos == (TOKENIZER not in edits)


def test_an_older_checkpoint_says_in_another_file_what_is_special(checkpoint: Path) -> None:
    edit(checkpoint, {SETTINGS: without("added_tokens_decoder"), MAP: setting(eos_token=EOM)})
    vocabulary = read(checkpoint)
    assert vocabulary.tokens[vocabulary.eos] == EOM
    edit(checkpoint, {SETTINGS: setting(added_tokens_decoder={})})
    vocabulary = read(checkpoint)
    assert vocabulary.tokens[vocabulary.eos] == EOT


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        (
            {SETTINGS: without("bos_token"), TOKENIZER: setting(post_processor=None),
             GENERATION: without("bos_token_id"), CONFIG: without("bos_token_id")},
            r"tokenizer_config\.json has no bos_token, and no other file says",
        ),
        ({SETTINGS: setting(bos_token="<|nobody|>")}, "names a bos_token that tokenizer"),
        ({SETTINGS: setting(eos_token="<|nobody|>")}, "names a eos_token that tokenizer"),
        ({SETTINGS: setting(bos_token=5)}, "invalid bos_token, found 5"),
        ({SETTINGS: setting(bos_token={"content": None})}, "invalid bos_token"),
        ({SETTINGS: setting(additional_special_tokens=5)}, "invalid additional_special_tokens"),
        ({SETTINGS: setting(additional_special_tokens=[None])}, "invalid additional_special"),
        ({SETTINGS: setting(bos_token=EOM)}, "puts other tokens before a text"),
        ({TOKENIZER: around(BOS, BOS, "A")}, "puts other tokens before a text"),
        ({TOKENIZER: setting(post_processor={"type": "RobertaProcessing"})}, "'RobertaProcessing'"),
        ({TOKENIZER: setting(post_processor=[1])}, "invalid post_processor"),
        (
            {SETTINGS: without("eos_token"), GENERATION: without("eos_token_id"),
             CONFIG: without("eos_token_id"), MAP: without("eos_token")},
            "names no end-of-generation token",
        ),
        ({GENERATION: setting(eos_token_id=[3, 5.0])}, "invalid eos_token_id"),
        ({GENERATION: setting(eos_token_id=True)}, "invalid eos_token_id, found True"),
        ({GENERATION: setting(eos_token_id=-1)}, "invalid eos_token_id, found -1"),
        ({GENERATION: setting(eos_token_id=10**30)}, "invalid eos_token_id, found 10{30}"),
        (
            {SETTINGS: without("bos_token"), TOKENIZER: setting(post_processor=None),
             GENERATION: setting(bos_token_id=4096)},
            "invalid bos_token_id, found 4096, expected a whole number from 0 to 1023",
        ),
    ],
)  # fmt: skip
def test_roles_that_name_no_token_are_refused(
    checkpoint: Path, edits: Mapping[str, Edit], said: str
) -> None:
    edit(checkpoint, edits)
    with pytest.raises(VocabularyError, match=said):
        read(checkpoint)


def test_every_end_is_kept_and_those_of_meta_get_the_keys_of_llama_cpp(checkpoint: Path) -> None:
    tokens = read(checkpoint).tokens
    more = [tokens.index("<|image|>"), tokens.index("<|patch|>")]
    edit(checkpoint, {GENERATION: lambda it: it["eos_token_id"].extend(more)})
    vocabulary = read(checkpoint)
    named = (vocabulary.eos, vocabulary.eot, vocabulary.eom)
    assert [tokens[end] for end in named if end is not None] == [EOT, EOT, EOM]
    assert vocabulary.further_ends == more


def test_no_ends_in_one_file_leave_it_to_the_next(checkpoint: Path) -> None:
    before = read(checkpoint)
    edit(checkpoint, {GENERATION: setting(eos_token_id=[])})
    assert set(read(checkpoint).ends) <= {*before.ends}


def test_what_is_left_out_is_said(checkpoint: Path) -> None:
    assert read(checkpoint).notes == ()
    edit(
        checkpoint,
        {
            SETTINGS: setting(pad_token="[PAD]", additional_special_tokens=[EOM, "<zz>"]),
            TOKENIZER: around(BOS, "A", EOT),
        },
    )
    vocabulary = read(checkpoint)
    assert vocabulary.pad is None
    assert vocabulary.notes == (
        "special tokens that tokenizer.json lacks are left out: '<zz>', '[PAD]'",
        "<|eot|>, which tokenizer.json puts behind every text, is left out",
    )


def test_flags_that_llama_cpp_does_not_know_are_said(checkpoint: Path) -> None:
    edit(
        checkpoint, {TOKENIZER: last_added(lstrip=True), SETTINGS: without("added_tokens_decoder")}
    )
    vocabulary = read(checkpoint)
    assert vocabulary.flags["lstrip"] == [1023]
    assert vocabulary.notes == (
        f"lstrip, rstrip and single_word of {vocabulary.tokens[1023]!r} are honoured here, but not "
        "in llama.cpp's own tools",
    )


def test_padding_never_has_the_name_of_a_token(checkpoint: Path) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        last = tokenizer["added_tokens"].pop()
        tokenizer["added_tokens"][-1]["content"] = f"[PAD{last['id']}]"

    edit(checkpoint, {TOKENIZER: change, SETTINGS: without("added_tokens_decoder")})
    tokens = read(checkpoint).tokens
    assert tokens[-1] == f"[[PAD{len(tokens) - 1}]]"
    assert len(set(tokens)) == len(tokens)


def last_added(**values: object) -> Edit:
    return lambda tokenizer: tokenizer["added_tokens"][-1].update(values)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({TOKENIZER: setting(added_tokens=[None])}, "added_tokens.*expected a list of objects"),
        ({TOKENIZER: setting(added_tokens={})}, "added_tokens.*expected a list"),
        ({TOKENIZER: last_added(content="a\0b")}, "found a NUL character in its text"),
        ({TOKENIZER: last_added(content=None)}, "has no content, expected a string"),
        ({TOKENIZER: last_added(content="\ud800")}, "has text that is not Unicode"),
        ({TOKENIZER: last_added(id="5")}, "invalid id, found '5'"),
        ({TOKENIZER: last_added(id=True)}, "invalid id, found True"),
        ({TOKENIZER: last_added(content=EOT)}, "gives a token a second id"),
        (
            {TOKENIZER: last_added(content="a"), SETTINGS: without("added_tokens_decoder")},
            "gives one token two ids: 'a'",
        ),
        ({TOKENIZER: last_added(lstrip="yes")}, "invalid lstrip, found 'yes'"),
        ({TOKENIZER: last_added(special=1)}, "invalid special, found 1"),
        ({SETTINGS: setting(added_tokens_decoder={"x": {}})}, "a key that is not a token id"),
        ({SETTINGS: setting(added_tokens_decoder={"٣": {}})}, "a key that is not a token id"),
        ({SETTINGS: setting(added_tokens_decoder={"5": None})}, "has no 5, expected an object"),
        ({SETTINGS: setting(added_tokens_decoder=[1])}, "invalid added_tokens_decoder"),
        ({SETTINGS: setting(added_tokens_decoder={"99999": {"content": "<z>"}})}, "out of range"),
        ({TOKENIZER: lambda it: it["model"].update(merges=5)}, "invalid merges, found 5"),
        ({TOKENIZER: lambda it: it["model"].update(merges=[None])}, "merge of unknown"),
        ({TOKENIZER: lambda it: it["model"].update(merges=[[1, 2]])}, "merge of unknown"),
        ({TOKENIZER: lambda it: it["model"].update(vocab=[1])}, "invalid vocab"),
        ({TOKENIZER: lambda it: it["model"]["vocab"].update(x=1.5)}, "out of range: 'x'"),
        ({TOKENIZER: lambda it: it["model"]["vocab"].update({"": 1023})}, "gives id 1023 to two"),
        ({TOKENIZER: setting(pre_tokenizer={"pretokenizers": [1, 2]})}, "another pre-tokenizer"),
        ({TOKENIZER: setting(model=5)}, "is not a BPE model"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_one_error(
    checkpoint: Path, edits: Mapping[str, Edit], said: str
) -> None:
    edit(checkpoint, edits)
    with pytest.raises(VocabularyError, match=said):
        read(checkpoint)


@pytest.mark.parametrize("name", [TOKENIZER, SETTINGS, GENERATION])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (POINTER, "is a Git LFS pointer, not the file itself. Fetch the files: git lfs pull"),
        ("", "is not JSON"),
        ("[]", "is damaged, found a list of 0, expected a JSON object"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "is not JSON"),
        ("6 GB", r"is too large, found 5\.6 GiB"),
    ],
)
def test_a_file_that_is_none_is_one_error(
    checkpoint: Path, name: str, content: str, said: str
) -> None:
    (checkpoint / name).write_text(content, encoding="utf-8")
    if content == "6 GB":
        os.truncate(checkpoint / name, 6_000_000_000)
    with pytest.raises(VocabularyError, match=rf"{name} {said}"):
        read(checkpoint)


def test_a_byte_order_mark_is_skipped(checkpoint: Path) -> None:
    before = read(checkpoint)
    for name in (TOKENIZER, SETTINGS, GENERATION):
        path = checkpoint / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(checkpoint) == before
