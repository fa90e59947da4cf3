"""Text to token ids and back, from the tokenizer that a GGUF carries.

Promises the ids of Meta's own tokenizer, and that text from outside never becomes a control token
unless that is asked for. Knows nothing of models, templates or generation; which tokens end an
answer is llama.cpp's to say (``Engine.is_end``).

llama.cpp is not asked to tokenize: the regular expression it uses for Llama 4 approximates Meta's
without the class of combining marks (llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_GPT4O, with the original
beside it), so it cuts words of Hindi, Bengali, Burmese and others at their vowel signs: 18 tokens
where Meta's tokenizer has 11.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import SupportsIndex, TypeVar, cast

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from ..architecture import PRE_TOKENIZER_NAMES, PRE_TOKENIZER_PATTERN, byte_alphabet
from ..errors import SettingError, VocabularyError
from ..ranges import value_text
from ..untrusted import shown
from .matching import Matcher, is_alone, is_space

_T = TypeVar("_T")

# Values of tokenizer.ggml.token_type (gguf.TokenType).
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
"""How added tokens may be matched, as in tokenizers; `convert` says which ones are."""

_MOST_CHARACTERS = 400_000  # TIKTOKEN_MAX_ENCODE_CHARS
_SHORT = 8_000  # characters that are tokenized at once, and those up to the end of a word

# Before a space that begins a word, behind a letter or digit; and at the beginning of a line.
_BETWEEN_WORDS = re.compile(r"(?<=[A-Za-z0-9]) (?=[A-Za-z])|(?<=\n)(?=[A-Za-z])")
_LONGEST_RUN = 25_000  # MAX_NO_WHITESPACES_CHARS, of white space or of anything else
_RUN = re.compile(r"\s+|\S+")
_CHANGE = re.compile(r"\s\S|\S\s")

_CHARACTER_OF = byte_alphabet()
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}


class Vocabulary:
    """The tokens of one model.

    Args:
        metadata: the key-value pairs of a GGUF; the ``tokenizer.ggml.*`` ones are read.

    Raises:
        VocabularyError: the tokenizer is of another kind, or is not whole.
    """

    def __init__(self, metadata: Mapping[str, object]) -> None:
        _expect(metadata, "tokenizer.ggml.model", ("gpt2",))
        _expect(metadata, "tokenizer.ggml.pre", PRE_TOKENIZER_NAMES)
        self._tokens = _array(metadata, "tokenizer.ggml.tokens", str)
        self._types = _array(metadata, "tokenizer.ggml.token_type", int)
        merges = _array(metadata, "tokenizer.ggml.merges", str)
        if len(self._types) != len(self._tokens):
            raise VocabularyError(
                "tokenizer.ggml.token_type does not have one type for each token",
                found=f"{len(self._types)} types",
                expected=f"{len(self._tokens)}",
            )
        self._tokenizer = _build(self._tokens, self._types, merges)
        self._flags = {name: self._flagged(metadata, name) for name in FLAGS}
        self.bos_id = self._optional_id(metadata, "tokenizer.ggml.bos_token_id")
        self.eos_id = self._optional_id(metadata, "tokenizer.ggml.eos_token_id")
        # As llama.cpp reads it for this kind of tokenizer: absent means no.
        self.add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", False))
        if self.add_bos and self.bos_id is None:
            raise VocabularyError(
                "tokenizer.ggml.add_bos_token asks for a token that tokenizer.ggml.bos_token_id "
                "does not name"
            )

    def __len__(self) -> int:
        return len(self._tokens)

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """The tokens that steer the model and are no text: ``{"<|eot|>": 200008, ...}``."""
        return self._ids_of_types(_CONTROL, _UNKNOWN)

    def encode(
        self,
        text: str,
        *,
        special: bool = False,
        add_bos: bool = False,
        limit: int | None = None,
    ) -> list[int]:
        """The token ids of a text.

        Args:
            text: any string. A lone surrogate becomes U+FFFD, as in Meta's tokenizer.
            special: whether the text of a control token becomes that token. Leave it off for text
                that came from outside, or it can end its own turn and begin another.
            add_bos: whether the token that begins a text comes first.
            limit: a number of tokens after which the rest of the text is of no interest. More of
                them than that are the beginning of a longer list.

        Raises:
            VocabularyError: ``add_bos`` is asked of a tokenizer that has no such token.
            SettingError: the text is not a string.
        """
        ids: list[int] = []
        for part in self.encoded(text, special=special, add_bos=add_bos):
            ids += part
            if limit is not None and len(ids) > limit:
                break
        return ids

    def encoded(
        self, text: str, *, special: bool = False, add_bos: bool = False
    ) -> Iterator[list[int]]:
        """The same token ids, a few thousand at a time, which other threads can come between."""
        if not isinstance(text, str):
            raise SettingError("a text is not a string", found=value_text(text))
        if add_bos:
            yield [self._bos()]
        for piece in self._pieces(_valid(text), special):
            if isinstance(piece, int):
                yield [piece]
            else:
                for part in _parts(piece):
                    yield self._tokenizer.encode(part, add_special_tokens=False).ids

    def least_tokens(self, characters: int) -> int:
        """How many tokens a text of that length takes at least."""
        return -(-characters // self._longest) if self._longest else 0

    @cached_property
    def _longest(self) -> int:
        """The most characters that a token can stand for; 0 where some take any white space."""
        if self._flags["lstrip"] or self._flags["rstrip"]:
            return 0
        return max(map(len, self._tokens))  # a letter of a normal token is a byte

    def _pieces(self, text: str, special: bool) -> Iterator[str | int]:
        """The text, cut at the added tokens that it names; these as ids.

        As in tokenizers (added_vocabulary.rs): those that are normalized are looked for in what the
        others leave.
        """
        first, then = self._special_matchers if special else self._user_matchers
        for piece in self._split(text, first):
            if isinstance(piece, int):
                yield piece
            else:
                yield from self._split(piece, then)

    def _split(self, text: str, matcher: Matcher) -> Iterator[str | int]:
        begin = 0
        for start, end in matcher.find(text):
            token = self._matched_ids[text[start:end]]
            if token in self._flags["single_word"] and not is_alone(text, start, end):
                continue
            if token in self._flags["lstrip"]:
                while start > begin and is_space(text[start - 1]):
                    start -= 1
            if token in self._flags["rstrip"]:
                while end < len(text) and is_space(text[end]):
                    end += 1
            if begin < start:
                yield text[begin:start]
            yield token
            begin = end
        if begin < len(text):
            yield text[begin:]

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for; a control token has its name if ``special``, else none.

        Raises:
            VocabularyError: there is no such token.
            SettingError: it is not a whole number.
        """
        self.check([token])
        text, kind = self._tokens[token], self._types[token]
        if kind == _NORMAL:
            return bytes(_BYTE_OF[character] for character in text)
        if kind == _USER_DEFINED or (special and kind in (_CONTROL, _UNKNOWN)):
            return text.encode()
        return b""

    def text_bytes(self) -> list[bytes | None]:
        """The bytes that each token adds to a text; None of those that are no text."""
        latin = {ord(character): byte for character, byte in _BYTE_OF.items()}
        return [
            text.translate(latin).encode("latin-1")
            if kind == _NORMAL
            else text.encode()
            if kind == _USER_DEFINED
            else None
            for text, kind in zip(self._tokens, self._types, strict=True)
        ]

    def token_text(self, token: int) -> str:
        """The name of a control token, or the text of any other; "�" where it is not UTF-8."""
        return self.token_bytes(token, special=True).decode("utf-8", "replace")

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            VocabularyError: there is no such token.
        """
        data = b"".join(self.token_bytes(token, special=special) for token in whole_numbers(tokens))
        return data.decode("utf-8", "replace")

    def check(self, tokens: Iterable[int]) -> None:
        """Whether these are token ids of this vocabulary.

        Raises:
            VocabularyError: one is outside its range.
            SettingError: one is not a whole number.
        """
        for token in whole_numbers(tokens):
            if not 0 <= token < len(self._tokens):
                raise VocabularyError(
                    "a token id is not in the vocabulary",
                    found=str(token),
                    expected=f"0 to {len(self._tokens) - 1}",
                )

    @cached_property
    def _matched_ids(self) -> Mapping[str, int]:
        return {**self.control_tokens, **self._ids_of_types(_USER_DEFINED)}

    @cached_property
    def _special_matchers(self) -> tuple[Matcher, Matcher]:
        return self._matchers(self._matched_ids)

    @cached_property
    def _user_matchers(self) -> tuple[Matcher, Matcher]:
        # Tokens that somebody added as plain words are words in any text, as in llama.cpp.
        return self._matchers(self._ids_of_types(_USER_DEFINED))

    def _matchers(self, ids: Mapping[str, int]) -> tuple[Matcher, Matcher]:
        """Finders of the tokens that are sought in a text as it is, and in the normalized one."""
        normalized = {text for text, token in ids.items() if token in self._flags["normalized"]}
        return Matcher(ids.keys() - normalized), Matcher(normalized)

    def _ids_of_types(self, *types: int) -> dict[str, int]:
        pairs = zip(self._tokens, self._types, strict=True)
        return {text: token for token, (text, kind) in enumerate(pairs) if kind in types and text}

    def _flagged(self, metadata: Mapping[str, object], flag: str) -> frozenset[int]:
        key = f"llama4_edge.added_tokens.{flag}"
        ids = _array(metadata, key, int) if key in metadata else ()
        if not all(0 <= token < len(self._tokens) for token in ids):
            raise VocabularyError(
                f"{key} does not hold token ids", expected=f"below {len(self._tokens)}"
            )
        return frozenset(ids)

    def _bos(self) -> int:
        if self.bos_id is None:
            raise VocabularyError("the tokenizer has no token that begins a text (BOS)")
        return self.bos_id

    def _optional_id(self, metadata: Mapping[str, object], key: str) -> int | None:
        token = metadata.get(key)
        if token is None:
            return None
        if not isinstance(token, int) or not 0 <= token < len(self._tokens):
            raise VocabularyError(
                f"{key} is not a token id",
                found=shown(token),
                expected=f"below {len(self._tokens)}",
            )
        return token


def whole_numbers(tokens: Iterable[object]) -> list[int]:
    """Token ids as a list, whatever kind of sequence and of integer they came in.

    Raises:
        SettingError: they are not a sequence, or one of them is not a whole number.
    """
    if not isinstance(tokens, (str, bytes, Mapping)):
        with suppress(TypeError):  # an array without dimensions claims to be iterable
            tokens = list(tokens)
    if not isinstance(tokens, list):
        raise SettingError(
            "token ids are of the wrong type",
            found=type(tokens).__name__,
            expected="a sequence of whole numbers",
        )
    return [token if type(token) is int else _whole_number(token) for token in tokens]


def _whole_number(token: object) -> int:
    if not isinstance(token, bool):
        try:
            return operator.index(cast("SupportsIndex", token))  # NumPy's integers too
        except TypeError:
            pass
    raise SettingError("a token id is not a whole number", found=value_text(token))


def any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern with one group that finds the longest of some texts; None if there are none."""
    longest_first = sorted(texts, key=len, reverse=True)
    if not longest_first:
        return None
    return re.compile("(" + "|".join(re.escape(text) for text in longest_first) + ")")


def _build(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> Tokenizer:
    """The byte-level BPE of the normal tokens, and of added ones that merging makes too."""
    pairs = _merge_pairs(merges)
    made = {first + second for first, second in pairs}
    vocabulary = {
        text: token
        for token, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == _NORMAL or (kind == _USER_DEFINED and text in made)
    }
    _expect_bytes(vocabulary)
    # Said here, because tokenizers panics on some of these.
    unknown = made - vocabulary.keys()
    if unknown:
        raise VocabularyError(
            "tokenizer.ggml.merges makes a token that is not a normal one",
            found=shown(min(unknown)),
        )
    try:
        # tiktoken takes a whole word that is in the vocabulary as one token: ignore_merges.
        # (Constructing BPE takes 0.7 s for Llama 4's 439,802 merges, going through JSON 1.9 s.)
        model = BPE(vocabulary, pairs, ignore_merges=True)
    except Exception as error:  # tokenizers raises plain Exception for a merge of unknown tokens
        raise VocabularyError("tokenizer.ggml.merges cannot be used", found=str(error)) from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = PreTokenizers(
        [
            Split(Regex(PRE_TOKENIZER_PATTERN), behavior="isolated"),
            ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    return tokenizer


def _merge_pairs(merges: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for pair in pairs:
        if len(pair) != 2 or not all(pair):
            raise VocabularyError(
                "tokenizer.ggml.merges has an entry that is not two tokens",
                found=shown(" ".join(pair)),
                expected="two tokens and one space between them",
            )
    return cast("list[tuple[str, str]]", pairs)


def _expect_bytes(vocabulary: Mapping[str, int]) -> None:
    """Without a token for each byte, text would be dropped without a word."""
    missing = [byte for byte, character in _CHARACTER_OF.items() if character not in vocabulary]
    if missing:
        raise VocabularyError(
            "the vocabulary has no token for some bytes",
            found=f"{256 - len(missing)} of them, not 0x{missing[0]:02X}",
            expected="all 256",
        )
    # Said here so that taking a token apart into bytes cannot fail later.
    unknown = set().union(*vocabulary) - _BYTE_OF.keys()
    if unknown:
        text = next(text for text in vocabulary if not unknown.isdisjoint(text))
        raise VocabularyError(
            "a token is not written in the byte-level alphabet", found=shown(text)
        )


def _parts(text: str) -> Iterator[str]:
    """The text, cut where Meta's tokenizer cuts it, so that no regular expression and no merging
    sees a word without end (``encode`` in llama_models/llama4/tokenizer.py)."""
    for start in range(0, len(text), _MOST_CHARACTERS):
        part = text[start : start + _MOST_CHARACTERS]
        begin = 0
        for run in _RUN.finditer(part) if _has_long_run(part) else ():
            for cut in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
                yield from _short_parts(part[begin:cut])
                begin = cut
        yield from _short_parts(part[begin:])


def _short_parts(text: str) -> Iterator[str]:
    """The text, cut where its words are cut anyway: a tokenizer lets no other thread go on."""
    begin = 0
    while cut := _BETWEEN_WORDS.search(text, begin + _SHORT):
        yield text[begin : cut.start()]
        begin = cut.start()
    yield text[begin:]


def _has_long_run(text: str) -> bool:
    """Whether some stretch that any run beyond the limit would contain is all of one kind."""
    stretch = _LONGEST_RUN // 2
    return any(
        _CHANGE.search(text, at, at + stretch) is None
        for at in range(0, len(text) - stretch, stretch)
    )


def _valid(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # Joins surrogate pairs that somebody left apart, and replaces the rest, as tiktoken does.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _array(metadata: Mapping[str, object], key: str, kind: type[_T]) -> tuple[_T, ...]:
    values = metadata.get(key)
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise VocabularyError(f"the model has no list {key}", found=type(values).__name__)
    if not set(map(type, values)) <= {kind}:
        raise VocabularyError(f"{key} does not hold {kind.__name__} values only")
    return tuple(values)


def _expect(metadata: Mapping[str, object], key: str, expected: tuple[str, ...]) -> None:
    value = metadata.get(key)
    if value not in expected:
        raise VocabularyError(
            f"{key} names a tokenizer that is not Llama 4's",
            found=shown(value),
            expected=" or ".join(expected),
            hint="Convert the model again with `llama4 convert`.",
        )
