"""Whatever a GGUF says of its vocabulary: it is read, or refused with one error."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from hypothesis import settings

from llama4_edge.chat.vocabulary import Vocabulary
from llama4_edge.errors import ModelFileError, VocabularyError
from llama4_edge.runtime.files.gguf_file import GGUFFile
from llama4_edge.runtime.files.vocabulary_file import check_vocabulary
from tests.fuzzing import damaged_json, efforts, fuzz
from tests.gguf_maker import tiny_vocabulary

SOUND = {
    **{key: value.value for key, value in tiny_vocabulary().items()},
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.padding_token_id": 5,
    "tokenizer.ggml.fim_pad_token_id": 6,
    "llama4_edge.eog_token_ids": [260, 261],
    "llama4_edge.added_tokens.lstrip": [259],
    "llama4_edge.added_tokens.rstrip": [260],
    "llama4_edge.added_tokens.single_word": [261],
    "llama4_edge.added_tokens.normalized": [262],
}
TEXTS = ("the", "<|eot|>", "a <|begin_of_text|>\n", "", " ", "é\ud800", "<|eom|><|eot|>the")


def as_gguf(value: Any) -> Any:
    """A value as the reader of headers gives it: whole numbers of 64 bits, tuples of one type."""
    if isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else 7
    if isinstance(value, list):
        items = [as_gguf(item) for item in value]
        kinds = {type(item) for item in items}
        return tuple(items) if len(kinds) <= 1 and not kinds & {tuple, dict} else (1.5,)
    return 2**32


def kind_of(value: object, rng: random.Random) -> str:
    """A type that the header might have given it."""
    if isinstance(value, tuple):
        return f"[{kind_of(value[0], rng) if value else 'i32'}]"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        fits = [name for name, least, most in (("u32", 0, 2**32), ("i32", -(2**31), 2**31))
                if least <= value < most]  # fmt: skip
        return rng.choice([*fits, *fits, "i64"])
    return "f32" if isinstance(value, float) else "str"


@efforts
def test_no_vocabulary_of_a_file_is_a_traceback(effort: settings) -> None:
    rng = random.Random(0)
    accepted = 0

    def check(tree: object) -> None:
        nonlocal accepted
        entries = tree if isinstance(tree, dict) else {}
        metadata = {str(key): as_gguf(value) for key, value in entries.items()}
        types = {key: kind_of(value, rng) for key, value in metadata.items()}
        header = GGUFFile(Path("m.gguf"), 3, 32, 64, 64, metadata, types, ())
        try:
            size = check_vocabulary(header).size
        except ModelFileError as error:
            assert len(str(error)) < 2_000
            size = None
        try:
            vocabulary = Vocabulary(metadata)
        except VocabularyError as error:
            assert len(str(error)) < 2_000
            return
        assert size in (None, len(vocabulary))
        for text in TEXTS:
            for special in (False, True):
                ids = vocabulary.encode(text, special=special)
                assert vocabulary.least_tokens(len(text)) <= len(ids)
                vocabulary.check(ids)
                vocabulary.decode(ids, special=special)
        accepted += 1

    fuzz(check, damaged_json(SOUND), effort)
    assert accepted
