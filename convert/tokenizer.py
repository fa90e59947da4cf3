"""The tokenizer of a checkpoint as a GGUF stores it, refused where llama.cpp would read another.

Comes from ``tokenizer.json`` (a byte-level BPE), ``tokenizer_config.json`` and
``generation_config.json``. Nothing is assumed: the pre-tokenizer's pattern is compared with
Llama 4's own. Where transformers finds a token elsewhere, it is found there.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import TokenType

from ..architecture import END_TEXTS, PRE_TOKENIZER_PATTERN, byte_alphabet
from ..errors import VocabularyError
from ..untrusted import Reader, Record, shown
from .added_tokens import FLAGS, AddedToken, added_tokens, named_tokens, token_named
from .chat_templates import DEFAULT, read_chat_templates
from .checkpoint import Checkpoint
from .config import ModelConfig

# Llama 4's takes 27 MiB, and reading it several times that.
_TOKENIZER_READER = Reader(VocabularyError, limit=128 << 20, hint="Download it again.")
_SETTINGS_READER = Reader(VocabularyError, limit=16 << 20)

_MOST_PROCESSORS = 100  # real ones have two


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in order of their ids, with ggml's token types, merges in order of rank, and roles.

    `ends` are all tokens that end a generation. llama.cpp knows `eos`, `eot` and `eom` of them by
    keys; the others are for this project's own runtime. `flags` holds, for each name in `FLAGS`,
    the ids of the added tokens that have it. `notes` says what was decided without being asked for.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int
    eos: int
    eot: int | None
    eom: int | None
    ends: tuple[int, ...]
    pad: int | None
    add_bos: bool
    flags: Mapping[str, list[int]]
    chat_templates: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def chat_template(self) -> str | None:
        """The template that a conversation is written with."""
        return self.chat_templates.get(DEFAULT)

    @property
    def further_ends(self) -> list[int]:
        """The ends that llama.cpp has no key for, and does not know by their texts."""
        known = (self.eos, self.eot, self.eom)
        return [end for end in self.ends if end not in known and self.tokens[end] not in END_TEXTS]


def read_vocabulary(checkpoint: Checkpoint, config: ModelConfig) -> Vocabulary:
    """The vocabulary of `checkpoint`, one token for each row of the embedding.

    Raises:
        VocabularyError: a file is missing or damaged, the tokenizer is no byte-level BPE with Llama
            4's pre-tokenizer, ids clash, or no token begins or ends a text.
    """
    directory = checkpoint.path
    if not os.path.lexists(directory / "tokenizer.json"):
        raise VocabularyError(
            f"{directory} has no tokenizer.json", hint="Download it from the same repository."
        )
    tokenizer = _TOKENIZER_READER.record(directory / "tokenizer.json")
    settings = _settings(directory)
    generation = _read_settings(directory / "generation_config.json")
    defaults = [generation, *_configs(checkpoint)]
    model = _byte_level_bpe(tokenizer)
    _check_pre_tokenizer(tokenizer)
    vocab = _checked_vocab(model, config.hparams.n_vocab)
    older = _read_settings(directory / "added_tokens.json")
    added = added_tokens(tokenizer, settings, older, vocab)
    tokens, types = _tokens(vocab, added, config.hparams.n_vocab)
    ids = {token: number for number, token in enumerate(tokens)}
    before, after = _around_text(tokenizer, len(tokens))
    bos = _bos(settings, defaults, before, ids)
    if before not in ([], [bos]):
        raise VocabularyError(
            f"{tokenizer.name} puts other tokens before a text than one that begins it",
            found=", ".join(tokens[number] for number in before[:8]),
            expected=tokens[bos],
        )
    eos, eot, eom, ends = _end_tokens(checkpoint, settings, defaults, ids, tokens)
    templates, template_note = read_chat_templates(directory)
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=_merges(
            model,
            {token for token, kind in zip(tokens, types, strict=True) if kind != TokenType.CONTROL},
        ),
        bos=bos,
        eos=eos,
        eot=eot,
        eom=eom,
        ends=ends,
        pad=ids.get(token_named(settings, "pad_token") or ""),
        add_bos=bool(before),
        flags=_flags(added),
        chat_templates=templates,
        notes=_notes(settings, ids, added, [tokens[number] for number in after], template_note),
    )


# --- files


def _read_settings(path: Path) -> Record:
    """The object in a JSON file; an empty one where there is no such file."""
    if os.path.lexists(path):
        return _SETTINGS_READER.record(path)
    return _SETTINGS_READER.as_record({}, str(path))


def _settings(directory: Path) -> Record:
    """tokenizer_config.json; in checkpoints of transformers before 4.34 with what
    special_tokens_map.json says instead."""
    settings = _read_settings(directory / "tokenizer_config.json")
    if settings.get("added_tokens_decoder") is not None:
        return settings
    older = _read_settings(directory / "special_tokens_map.json")
    return _SETTINGS_READER.as_record({**settings, **older}, settings.name)


def _configs(checkpoint: Checkpoint) -> list[Record]:
    """config.json, and the text model's part of it."""
    name = str(checkpoint.path / "config.json")
    text = checkpoint.config.get("text_config")
    found = [checkpoint.config, text if isinstance(text, Mapping) else {}]
    return [_SETTINGS_READER.as_record(value, name) for value in found]


# --- what tokenizer.json must be


def _byte_level_bpe(tokenizer: Record) -> Record:
    """The BPE model, whose settings must be those llama.cpp works by."""
    model = tokenizer.get("model")
    kind = model.get("type", "BPE") if isinstance(model, Mapping) else None
    if kind != "BPE" or not isinstance(model, Mapping) or model.get("vocab") is None:
        raise VocabularyError(
            f"{tokenizer.name} is not a BPE model", found=shown(kind), expected="BPE"
        )
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(setting):
            raise VocabularyError(
                f"{tokenizer.name} sets {setting}, which llama.cpp does not know",
                found=shown(model[setting]),
            )
    if tokenizer.get("normalizer") is not None:
        raise VocabularyError(
            f"{tokenizer.name} has a normalizer, which llama.cpp would ignore",
            found=reprlib.repr(tokenizer["normalizer"]),
        )
    return tokenizer.record("model")


def _check_pre_tokenizer(tokenizer: Record) -> None:
    """llama.cpp's pre-tokenizer ``llama4``: split by the pattern, then map bytes to letters."""
    pre = tokenizer.get("pre_tokenizer")
    steps = pre.get("pretokenizers") if isinstance(pre, Mapping) else None
    if isinstance(steps, list) and len(steps) == 2 and all(isinstance(it, Mapping) for it in steps):
        split, level = steps
        if (
            split.get("type") == "Split"
            and split.get("pattern") == {"Regex": PRE_TOKENIZER_PATTERN}
            and split.get("behavior") == "Isolated"
            and not split.get("invert")
            and level.get("type") == "ByteLevel"
            and not level.get("add_prefix_space")
            and not level.get("use_regex")
        ):
            return
    raise VocabularyError(
        f"{tokenizer.name} has another pre-tokenizer than Llama 4's",
        found=reprlib.repr(pre),
        expected="Split by Meta's O200K pattern, isolated, then ByteLevel without a prefix space",
    )


# --- tokens


def _checked_vocab(model: Record, size: int) -> dict[str, int]:
    vocab = model.record("vocab")
    texts: dict[int, str] = {}
    for text, number in vocab.items():
        _claim(texts, number, text, size)
    return dict(vocab)


def _tokens(
    vocab: Mapping[str, int], added: list[AddedToken], size: int
) -> tuple[list[str], list[int]]:
    """Tokens and types by id; rows of the embedding without a token become unused padding."""
    texts = {number: text for text, number in vocab.items()}
    types = dict.fromkeys(texts, TokenType.NORMAL)
    for token in added:
        if texts.get(token.number) != token.text:
            _claim(texts, token.number, token.text, size)
        special = token.special or (token.text.startswith("<|") and token.text.endswith("|>"))
        types[token.number] = TokenType.CONTROL if special else TokenType.USER_DEFINED
    _check_alphabet(texts, types)
    taken: dict[str, int] = {}
    for number, text in texts.items():
        if taken.setdefault(text, number) != number:
            raise VocabularyError(
                f"tokenizer.json gives one token two ids: {shown(text)}",
                found=f"{taken[text]} and {number}",
            )
    for number in range(size):
        if number not in texts:
            texts[number] = _padding(number, taken)
            taken[texts[number]] = number
            types[number] = TokenType.UNUSED
    return [texts[number] for number in range(size)], [int(types[it]) for it in range(size)]


def _padding(number: int, taken: Container[str]) -> str:
    """The text of a row without a token, as llama.cpp's converter writes it, if that is free."""
    text = f"[PAD{number}]"
    while text in taken:
        text = f"[{text}]"
    return text


def _claim(texts: dict[int, str], number: object, text: str, size: int) -> None:
    if type(number) is not int or not 0 <= number < size:
        raise VocabularyError(
            f"tokenizer.json has a token out of range: {shown(text)}",
            found=f"id {shown(number)}",
            expected=f"0 to {size - 1}, the rows of the embedding",
            hint="tokenizer.json and config.json must be of the same model. Where tokens were "
            "added, the embedding must be resized before it is saved: "
            "model.resize_token_embeddings(len(tokenizer)).",
        )
    if number in texts:
        raise VocabularyError(
            f"tokenizer.json gives id {number} to two tokens",
            found=f"{shown(texts[number])} and {shown(text)}",
        )
    texts[number] = text


def _check_alphabet(texts: Mapping[int, str], types: Mapping[int, int]) -> None:
    alphabet = set(byte_alphabet().values())
    normal = {text: number for number, text in texts.items() if types[number] == TokenType.NORMAL}
    lost = alphabet.difference(normal)
    if lost:
        raise VocabularyError(
            "tokenizer.json lacks byte tokens, so some text could not be encoded",
            found=f"{len(lost)} of 256 missing",
        )
    for text, number in normal.items():
        if not alphabet.issuperset(text) or not text:
            raise VocabularyError(
                f"tokenizer.json has a token that is not byte-level: {shown(text)}",
                found=f"id {number}",
            )


def _flags(added: list[AddedToken]) -> dict[str, list[int]]:
    """The ids of added tokens by flag; ``normalized`` only where it makes a difference."""
    ids = {
        name: sorted(token.number for token in added if getattr(token.flags, name))
        for name in FLAGS
    }
    if len(ids["normalized"]) == len(added):
        ids["normalized"] = []
    return ids


def _merges(model: Record, tokens: Container[str]) -> list[str]:
    """Merges as GGUF has them: both halves with a space between, which no half can hold."""
    merges = []
    for merge in model.elements("merges", default=[]):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(half, str) and half in tokens for half in pair)
            or "".join(pair) not in tokens
        ):
            raise VocabularyError(
                "tokenizer.json has a merge of unknown or special tokens",
                found=reprlib.repr(merge),
            )
        merges.append(" ".join(pair))
    if not merges:
        raise VocabularyError("tokenizer.json has no merges", expected="a list of token pairs")
    return merges


# --- roles


def _special_id(settings: Record, role: str, ids: Mapping[str, int]) -> int | None:
    """The id of a token that tokenizer_config.json names, as text or as an object with content."""
    token = token_named(settings, role)
    if token is None:
        return None
    if token not in ids:
        raise VocabularyError(
            f"{settings.name} names a {role} that tokenizer.json lacks",
            found=shown(token),
            hint="Take both files from the same model.",
        )
    return ids[token]


def _bos(
    settings: Record, defaults: list[Record], before: list[int], ids: Mapping[str, int]
) -> int:
    """The token that begins a text: the one that is named, or else put there, or else numbered."""
    named = _special_id(settings, "bos_token", ids)
    if named is not None:
        return named
    if len(before) == 1:
        return before[0]
    for place in defaults:
        if place.get("bos_token_id") is not None:
            return place.integer("bos_token_id", most=len(ids) - 1)
    raise VocabularyError(
        f"{settings.name} has no bos_token, and no other file says which token begins a text",
        expected="bos_token, or bos_token_id in generation_config.json or config.json",
        hint="Take tokenizer_config.json from the model that this one was trained from.",
    )


def _notes(
    settings: Record,
    ids: Mapping[str, int],
    added: list[AddedToken],
    after: list[str],
    template: str | None,
) -> tuple[str, ...]:
    """What was decided without being asked for."""
    notes = [] if template is None else [template]
    flagged = [token.text for token in added if token.flags.unusual]
    if flagged:
        names = ", ".join(shown(text) for text in flagged[:8])
        notes.append(
            f"lstrip, rstrip and single_word of {names} are honoured here, but not in llama.cpp's "
            "own tools"
        )
    # Those that begin and end a text are there; what fills batches, nothing here needs.
    absent = sorted(set(named_tokens(settings)).difference(ids))
    if absent:
        names = ", ".join(shown(text) for text in absent[:8])
        notes.append(f"special tokens that tokenizer.json lacks are left out: {names}")
    if after:
        text = " and ".join(after[:8])
        notes.append(f"{text}, which tokenizer.json puts behind every text, is left out")
    return tuple(notes)


def _end_tokens(
    checkpoint: Checkpoint,
    settings: Record,
    defaults: list[Record],
    ids: Mapping[str, int],
    tokens: list[str],
) -> tuple[int, int | None, int | None, tuple[int, ...]]:
    """Every id that ends a generation, first spread over the keys llama.cpp reads: eos, eot, eom.

    It also ends at some tokens by their texts, so that those need no key.
    """
    ends = _declared_ends(defaults, len(tokens))
    named = _special_id(settings, "eos_token", ids)
    if named is not None and named not in ends:
        ends.insert(0, named)
    if not ends:
        raise VocabularyError(
            f"{checkpoint.path} names no end-of-generation token",
            expected="eos_token_id in generation_config.json or config.json",
        )
    eos = ends[0] if named is None else named
    by_text = {tokens[end]: end for end in ends}
    eot, eom = by_text.get("<|eot|>"), by_text.get("<|eom|>")
    rest = [end for end in ends if end not in (eos, eot, eom) and tokens[end] not in END_TEXTS]
    if eot is None and rest:
        eot = rest.pop(0)
    if eom is None and rest:
        eom = rest.pop(0)
    return eos, eot, eom, tuple(ends)


def _declared_ends(defaults: list[Record], size: int) -> list[int]:
    """The eos ids of generation_config.json, or else of config.json, in the order given."""
    for place in defaults:
        declared = place.get("eos_token_id")
        listed = declared if isinstance(declared, list) else [declared]
        if declared is None or not listed:
            continue
        if not all(type(end) is int and 0 <= end < size for end in listed):
            raise place.fault("eos_token_id", f"token ids from 0 to {size - 1}")
        return list(dict.fromkeys(listed))
    return []


def _around_text(tokenizer: Record, size: int) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before every text, and behind it."""
    before: list[int] = []
    after: list[int] = []
    for processor in _processors(tokenizer):
        if processor.get("type") == "ByteLevel":
            continue
        if processor.get("type") != "TemplateProcessing":
            raise processor.fault("type", "TemplateProcessing, ByteLevel or Sequence")
        first: list[int] = []
        last: list[int] = []
        outside = first
        for step in processor.records("single"):
            if step.get("Sequence") is not None:
                outside = last
                continue
            name = step.record("SpecialToken").text("id")
            numbers = processor.record("special_tokens").record(name).elements("ids")
            if not all(type(number) is int and 0 <= number < size for number in numbers):
                raise processor.fault("special_tokens", f"token ids from 0 to {size - 1}")
            outside += numbers
        before, after = first + before, after + last
    return before, after


def _processors(tokenizer: Record) -> list[Record]:
    """The post-processors, those inside of sequences one by one."""
    found: list[Record] = []
    pending = [tokenizer.record("post_processor")] if tokenizer.get("post_processor") else []
    while pending:
        processor = pending.pop()
        if processor.get("type") == "Sequence":
            pending += reversed(processor.records("processors"))
        else:
            found.append(processor)
        if len(found) + len(pending) > _MOST_PROCESSORS:
            raise tokenizer.fault("post_processor", f"at most {_MOST_PROCESSORS} steps")
    return found
