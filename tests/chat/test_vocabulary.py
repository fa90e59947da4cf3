from __future__ import annotations

import random
from unittest.mock import patch

import pytest

from llama4_edge.chat import vocabulary as vocabulary_module
from llama4_edge.chat.vocabulary import Vocabulary, any_of
from llama4_edge.errors import SettingError, VocabularyError
from tests.gguf_maker import byte_letters

LETTERS = byte_letters()
# Ids 0 to 255 are the bytes; then words, a word somebody added, an unused one and control tokens.
WORDS = ["th", "the", "Ġthe", "ÐĴ", "xyz"]
TOKENS = [*LETTERS, *WORDS, "[word]", "[unused]", "<|begin|>", "<|eot|>", "<|eot|>2", "<unk>"]
TYPES = [1] * (256 + len(WORDS)) + [4, 5, 3, 3, 3, 2]
FIRST = 256 + len(WORDS)
ADDED, UNUSED, BEGIN, EOT, EOT_2, UNKNOWN = range(FIRST, FIRST + 6)


def metadata(**changes: object) -> dict[str, object]:
    values = {
        "model": "gpt2",
        "pre": "llama4",
        "tokens": tuple(TOKENS),
        "token_type": tuple(TYPES),
        "merges": ("t h", "th e", "Ġ the", "Ð Ĵ"),
        "bos_token_id": BEGIN,
        "eos_token_id": EOT,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(metadata())


def ids(text: str) -> list[int]:
    return list(text.encode())


def test_merges_are_applied_within_words(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("the bath the") == [257, *ids(" ba"), 256, 258]


def test_a_whole_word_of_the_vocabulary_needs_no_merges(vocabulary: Vocabulary) -> None:
    # No merge makes "xyz": tiktoken looks a word up before it merges.
    assert vocabulary.encode("xyz") == [260]
    assert vocabulary.encode("axyz") == ids("axyz")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # a word goes on from a capital into small letters, and ends before the next capital
        ("theThe", [257, *b"The"]),
        ("Athe", [*b"A", 257]),
        # digits end a word, and go by three
        ("the1234the", [257, *b"1234", 257]),
        # a combining mark belongs to its word, and keeps the letters after it there
        ("e\u0301the", [*"e\u0301".encode(), 257]),
        # a contraction ('t) belongs to the word before it, and ends it
        ("a'the", [*b"a'the"]),
    ],
)
def test_text_is_cut_as_llama_4_cuts_it(
    vocabulary: Vocabulary, text: str, expected: list[int]
) -> None:
    assert vocabulary.encode(text) == expected


def test_every_text_comes_back(vocabulary: Vocabulary) -> None:
    draw = random.Random(0)
    texts = ["", "\0", " ", "\r\n\n", "Ünïcödé 日本語 नमस्ते 👩‍👩‍👧", "<|eot|>", "[word] [unused]"]
    texts += ["".join(chr(draw.randrange(0xD800)) for _ in range(20)) for _ in range(200)]
    for text in texts:
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_a_word_of_ten_megabytes_is_text_as_any_other(vocabulary: Vocabulary) -> None:
    # tokenizers panics on it where it is not cut.
    assert vocabulary.encode("A" * 10_000_000) == [0x41] * 10_000_000


def test_the_empty_text_has_no_tokens(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("") == []
    assert vocabulary.encode("", special=True) == []


def test_a_lone_surrogate_becomes_a_replacement_character(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("a\ud800b") == vocabulary.encode("a\ufffdb")
    assert vocabulary.encode("\ud83d\ude00") == vocabulary.encode("😀")


def test_control_tokens_in_a_text_are_text_unless_asked_for(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("a<|eot|>b") == ids("a<|eot|>b")
    assert vocabulary.encode("a<|eot|>b", special=True) == [*ids("a"), EOT, *ids("b")]
    assert vocabulary.encode("<unk>") == ids("<unk>")
    assert vocabulary.encode("<unk>", special=True) == [UNKNOWN]


def test_the_longest_control_token_is_taken(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("<|eot|>2", special=True) == [EOT_2]
    assert vocabulary.encode("<|eot|>3", special=True) == [EOT, *ids("3")]


def test_an_added_word_is_a_token_in_any_text(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("a[word]b") == [*ids("a"), ADDED, *ids("b")]
    assert vocabulary.token_bytes(ADDED) == b"[word]"


def test_an_unused_token_is_never_made_and_stands_for_nothing(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("[unused]", special=True) == ids("[unused]")
    assert vocabulary.token_bytes(UNUSED, special=True) == b""


def test_a_text_begins_with_bos_only_when_asked(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("a", add_bos=True) == [BEGIN, *ids("a")]
    assert vocabulary.encode("", add_bos=True) == [BEGIN]
    assert vocabulary.encode("<|begin|>", add_bos=True) == [BEGIN, *ids("<|begin|>")]


def test_whether_texts_begin_with_bos_is_the_files_to_say() -> None:
    assert Vocabulary(metadata()).add_bos is False
    assert Vocabulary(metadata(add_bos_token=True)).add_bos is True


def test_bytes_of_every_byte_token_are_that_byte(vocabulary: Vocabulary) -> None:
    assert b"".join(vocabulary.token_bytes(token) for token in range(256)) == bytes(range(256))
    assert vocabulary.token_bytes(258) == b" the"
    assert vocabulary.token_bytes(259) == b"\xd0\x92"


def test_control_tokens_show_their_names_only_if_asked(vocabulary: Vocabulary) -> None:
    assert vocabulary.decode([*ids("a"), EOT, *ids("b")]) == "ab"
    assert vocabulary.decode([*ids("a"), EOT, *ids("b")], special=True) == "a<|eot|>b"
    assert vocabulary.token_text(BEGIN) == "<|begin|>"


def test_bytes_that_are_no_text_become_replacement_characters(vocabulary: Vocabulary) -> None:
    assert vocabulary.decode([0x61, 0xFF, 0xE6, 0x97]) == "a��"


@pytest.mark.parametrize("token", [-1, len(TOKENS)])
def test_an_id_out_of_range_is_refused(vocabulary: Vocabulary, token: int) -> None:
    for use in (vocabulary.token_bytes, lambda token: vocabulary.decode([1, token])):
        with pytest.raises(
            VocabularyError, match=f"found {token}, expected 0 to {len(TOKENS) - 1}$"
        ):
            use(token)


@pytest.mark.parametrize("token", [1.5, True, "1", None])
def test_an_id_that_is_no_whole_number_is_refused(vocabulary: Vocabulary, token: object) -> None:
    with pytest.raises(SettingError, match=f"a token id is not a whole number, found {token!r}"):
        vocabulary.decode([token])  # type: ignore[list-item]


def test_control_tokens_are_found_by_name(vocabulary: Vocabulary) -> None:
    assert vocabulary.control_tokens == {
        "<|begin|>": BEGIN,
        "<|eot|>": EOT,
        "<|eot|>2": EOT_2,
        "<unk>": UNKNOWN,
    }
    assert len(vocabulary) == len(TOKENS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "tokenizer.ggml.model names a tokenizer that is not Llama 4's"),
        ({"pre": "llama-bpe"}, "found 'llama-bpe', expected llama4 or gpt-4o"),
        ({"pre": None}, "found None, expected llama4 or gpt-4o"),
        ({"tokens": None}, "the model has no list tokenizer.ggml.tokens"),
        ({"merges": None}, "the model has no list tokenizer.ggml.merges"),
        ({"merges": (1,)}, "tokenizer.ggml.merges does not hold str values only"),
        ({"token_type": tuple(TYPES[1:])}, f"found {len(TOKENS) - 1} types"),
        ({"merges": ("th",)}, "found 'th', expected two tokens and one space"),
        ({"merges": ("t h e",)}, "found 't h e', expected two tokens and one space"),
        ({"merges": ("t absent",)}, "a token that is not a normal one, found 'tabsent'"),
        ({"merges": ("xy z",)}, "tokenizer.ggml.merges cannot be used"),
        ({"tokens": ("absent", *TOKENS[1:])}, "found 255 of them, not 0x00, expected all 256"),
        ({"tokens": (*TOKENS[:257], "a b", *TOKENS[258:])}, "byte-level alphabet, found 'a b'"),
        ({"eos_token_id": len(TOKENS)}, "tokenizer.ggml.eos_token_id is not a token id"),
        ({"bos_token_id": None, "add_bos_token": True}, "asks for a token that"),
    ],
)
def test_a_damaged_tokenizer_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(VocabularyError) as caught:
        Vocabulary(metadata(**changes))
    assert message in str(caught.value)


def test_a_tokenizer_without_bos_cannot_begin_with_it() -> None:
    with pytest.raises(VocabularyError, match="has no token that begins a text"):
        Vocabulary(metadata(bos_token_id=None)).encode("a", add_bos=True)


def test_any_of_nothing_is_no_pattern() -> None:
    assert any_of([]) is None


def test_a_word_that_somebody_added_is_still_made_by_merging() -> None:
    added = TOKENS.index("the")
    types = tuple(4 if at == added else kind for at, kind in enumerate(TYPES))
    flags = {"llama4_edge.added_tokens.single_word": (added,)}
    vocabulary = Vocabulary({**metadata(token_type=types), **flags})
    assert vocabulary.encode("bathe") == [*ids("ba"), added]
    assert vocabulary.encode("the") == [added]


def test_merging_never_makes_a_control_token() -> None:
    types = tuple(3 if at == TOKENS.index("the") else kind for at, kind in enumerate(TYPES))
    with pytest.raises(
        VocabularyError, match="makes a token that is not a normal one, found 'the'"
    ):
        Vocabulary(metadata(token_type=types))


@pytest.mark.parametrize("merge", ["the the", "th th", "t ÿÿÿÿ"])
def test_a_merge_into_nothing_is_refused(merge: str) -> None:
    # tokenizers panics where the merged token would be longer than all others.
    with pytest.raises(VocabularyError, match="makes a token that is not a normal one"):
        Vocabulary(metadata(merges=("t h", "th e", merge)))


def test_a_long_text_is_cut_where_its_words_are_cut_anyway(vocabulary: Vocabulary) -> None:
    """So that a tokenizer, which lets no other thread go on, has little to do at a time."""

    def words(text: str) -> list[str]:
        pre_tokenizer = vocabulary._tokenizer.pre_tokenizer
        assert pre_tokenizer is not None
        return [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]

    rng = random.Random(5)
    letters = ["a", "Z", "7", " ", "  ", "\n", "\r\n", ".", "/", "'s", "\u00e9", "\u4e2d", "\u0301"]
    for _ in range(200):
        text = "".join(rng.choices(letters, k=300))
        with patch.object(vocabulary_module, "_SHORT", 5):
            parts = list(vocabulary_module._short_parts(text))
        assert "".join(parts) == text
        assert [word for part in parts for word in words(part)] == words(text)
    prose = "These are words of a text.\n" * 4000
    assert max(map(len, vocabulary_module._short_parts(prose))) < 8100
