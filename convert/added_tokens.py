"""Tokens that are matched in a text before it is cut into words, and how they are matched.

Promises what transformers makes of tokenizer.json, tokenizer_config.json and, in older checkpoints,
special_tokens_map.json and added_tokens.json: which tokens there are, which of them are special,
and their flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import VocabularyError
from ..untrusted import Record, shown

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that tokenizer_config.json may name, one each."""

_MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class Flags:
    """How a token is matched: with the white space on either side, only as a whole word, and after
    those that are not normalized."""

    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def unusual(self) -> bool:
        """Whether the token is not matched wherever its text stands, and that alone."""
        return self.lstrip or self.rstrip or self.single_word


FLAGS = tuple(field.name for field in fields(Flags))


@dataclass(frozen=True)
class AddedToken:
    """A token by its text, with its id."""

    number: int
    text: str
    special: bool
    flags: Flags


def added_tokens(
    tokenizer: Record, settings: Record, older: Record, ids: Mapping[str, int]
) -> list[AddedToken]:
    """All tokens that are added to those of the BPE model.

    Args:
        tokenizer: tokenizer.json.
        settings: tokenizer_config.json; its ``added_tokens_decoder`` wins over tokenizer.json.
        older: added_tokens.json, which has ids by texts; it says what neither of the others does,
            and nothing where there is an ``added_tokens_decoder``.
        ids: the tokens of the BPE model.

    Raises:
        VocabularyError: an entry is malformed.
    """
    tokens: dict[str, AddedToken] = {}
    for entry in tokenizer.records("added_tokens", default=[]):
        _add(tokens, entry, entry.integer("id"))
    if settings.get("added_tokens_decoder") is not None:
        decoder = settings.record("added_tokens_decoder")
        for key in decoder:
            if not (key.isascii() and key.isdecimal() and len(key) < 10):
                raise VocabularyError(
                    f"{decoder.name} has a key that is not a token id", found=shown(key)
                )
            entry = decoder.record(key)
            text = entry.text("content")
            known = tokens[text].number if text in tokens else ids.get(text, int(key))
            _add(tokens, entry, known)
    else:
        special = set(named_tokens(settings))
        for text in older:
            if text and text not in tokens:
                number = ids.get(text, older.integer(text))
                is_special = text in special
                flags = Flags(normalized=not is_special)
                _check_text(older, text)
                tokens[text] = AddedToken(number, text, is_special, flags)
    for text in named_tokens(settings):
        if text in ids and text not in tokens:
            tokens[text] = AddedToken(ids[text], text, True, Flags())
    return list(tokens.values())


def _add(tokens: dict[str, AddedToken], entry: Record, number: int) -> None:
    text = entry.text("content")
    flags = Flags(**{name: entry.boolean(name, default=False) for name in FLAGS})
    special = entry.boolean("special", default=False)
    _check_text(entry, text)
    if text in tokens and tokens[text].number != number:
        raise VocabularyError(
            f"{entry.name} gives a token a second id",
            found=f"{shown(text)} as {tokens[text].number} and {number}",
        )
    if text:  # tokenizers ignores the others
        tokens[text] = AddedToken(number, text, special, flags)


def _check_text(place: Record, text: str) -> None:
    if "\0" in text:
        raise VocabularyError(
            f"{place.name} is a token that a GGUF cannot hold", found="a NUL character in its text"
        )


def named_tokens(settings: Record) -> Iterator[str]:
    """The texts of all tokens that the settings call special."""
    for role in ROLES:
        text = token_named(settings, role)
        if text is not None:
            yield text
    for name in _MORE_SPECIAL:
        value = settings.get(name)
        entries: list[Any] = [*value.values()] if isinstance(value, Mapping) else value or []
        if not isinstance(entries, list):
            raise settings.fault(name, "a list of tokens")
        for entry in entries:
            yield _text(settings, name, entry)


def token_named(settings: Record, role: str) -> str | None:
    """The text of the token in a role, which may stand there as text or as an object."""
    value = settings.get(role)
    return None if value is None else _text(settings, role, value)


def _text(settings: Record, name: str, value: object) -> str:
    content = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(content, str):
        raise settings.fault(name, "a token, as text or as an object with content")
    return content
