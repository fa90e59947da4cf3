"""The tokenizer of a checkpoint as a GGUF stores it, refused where llama.cpp would read another.

Comes from ``tokenizer.json`` (a byte-level BPE), ``tokenizer_config.json`` and
``generation_config.json``. Nothing is assumed: the pre-tokenizer's pattern is compared with
Llama 4's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gguf.constants import TokenType

from ..architecture import PRE_TOKENIZER_PATTERN, byte_alphabet
from ..errors import VocabularyError
from .checkpoint import Checkpoint
from .config import ModelConfig

# A chat template, or several with names, as tokenizer_config.json may hold them.
ChatTemplate = str | list[dict[str, str]]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in order of their ids, with ggml's token types, merges in order of rank, and roles.

    `eot` and `eom` are further tokens that end a generation: llama.cpp knows them by these two keys
    only, beside `eos`.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int | None
    eos: int
    eot: int | None
    eom: int | None
    pad: int | None
    add_bos: bool
    chat_template: ChatTemplate | None


def read_vocabulary(checkpoint: Checkpoint, config: ModelConfig) -> Vocabulary:
    """The vocabulary of `checkpoint`, one token for each row of the embedding.

    Raises:
        VocabularyError: a file is missing, the tokenizer is no byte-level BPE with Llama 4's
            pre-tokenizer, or ids clash.
    """
    tokenizer = checkpoint.json("tokenizer.json")
    if tokenizer is None:
        raise VocabularyError(
            f"{checkpoint.path} has no tokenizer.json",
            hint="Download it from the same repository.",
        )
    settings = checkpoint.json("tokenizer_config.json") or {}
    model = _byte_level_bpe(tokenizer)
    _check_pre_tokenizer(tokenizer)
    tokens, types = _tokens(tokenizer, model["vocab"], config.hparams.n_vocab)
    ids = {token: number for number, token in enumerate(tokens)}
    bos = _special_id(settings, "bos_token", ids)
    eos, eot, eom = _end_tokens(checkpoint, settings, tokens, ids)
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=_merges(model, ids),
        bos=bos,
        eos=eos,
        eot=eot,
        eom=eom,
        pad=_special_id(settings, "pad_token", ids),
        add_bos=bos is not None and _adds(tokenizer, tokens[bos]),
        chat_template=read_chat_template(checkpoint),
    )


def read_chat_template(checkpoint: Checkpoint) -> ChatTemplate | None:
    """The chat template, looked for where transformers keeps it, in its order of precedence."""
    jinja = checkpoint.text("chat_template.jinja")
    if jinja is not None:
        return jinja
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = (checkpoint.json(name) or {}).get("chat_template")
        if isinstance(template, str):
            return template
        if isinstance(template, list) and all(_is_named(entry) for entry in template):
            return [{"name": entry["name"], "template": entry["template"]} for entry in template]
        if template is not None:
            raise VocabularyError(
                f"{checkpoint.path / name} has a chat_template that is not a template",
                found=type(template).__name__,
                expected="a string, or a list of objects with name and template",
            )
    return None


def _is_named(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), str) for key in ("name", "template")
    )


def _byte_level_bpe(tokenizer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The BPE model, whose settings must be those llama.cpp works by."""
    model = tokenizer.get("model")
    if (
        not isinstance(model, Mapping)
        or model.get("type", "BPE") != "BPE"
        or not isinstance(model.get("vocab"), Mapping)
    ):
        kind = model.get("type") if isinstance(model, Mapping) else None
        raise VocabularyError("tokenizer.json is not a BPE model", found=kind, expected="BPE")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(setting):
            raise VocabularyError(
                f"tokenizer.json sets {setting}, which llama.cpp does not know",
                found=repr(model[setting]),
            )
    if tokenizer.get("normalizer") is not None:
        raise VocabularyError(
            "tokenizer.json has a normalizer, which llama.cpp would ignore",
            found=repr(tokenizer["normalizer"])[:100],
        )
    return model


def _check_pre_tokenizer(tokenizer: Mapping[str, Any]) -> None:
    """llama.cpp's pre-tokenizer ``llama4``: split by the pattern, then map bytes to letters."""
    pre = tokenizer.get("pre_tokenizer")
    steps = pre.get("pretokenizers") if isinstance(pre, Mapping) else None
    if (
        isinstance(steps, list)
        and len(steps) == 2
        and steps[0].get("type") == "Split"
        and steps[0].get("pattern") == {"Regex": PRE_TOKENIZER_PATTERN}
        and steps[0].get("behavior") == "Isolated"
        and not steps[0].get("invert")
        and steps[1].get("type") == "ByteLevel"
        and not steps[1].get("add_prefix_space")
        and not steps[1].get("use_regex")
    ):
        return
    raise VocabularyError(
        "tokenizer.json has another pre-tokenizer than Llama 4's",
        found=repr(pre)[:160],
        expected="Split by Meta's O200K pattern, isolated, then ByteLevel without a prefix space",
    )


def _tokens(
    tokenizer: Mapping[str, Any], vocab: Mapping[str, Any], size: int
) -> tuple[list[str], list[int]]:
    """Tokens and types by id; rows of the embedding without a token become unused padding."""
    texts: dict[int, str] = {}
    types: dict[int, int] = {}
    for text, number in vocab.items():
        _claim(texts, number, text, size)
        types[number] = TokenType.NORMAL
    for added in tokenizer.get("added_tokens") or []:
        number, text = added.get("id"), added.get("content")
        if texts.get(number) != text:
            _claim(texts, number, text, size)
        special = added.get("special") or (text.startswith("<|") and text.endswith("|>"))
        types[number] = TokenType.CONTROL if special else TokenType.USER_DEFINED
    _check_alphabet(texts, types)
    if len(set(texts.values())) != len(texts):
        raise VocabularyError("tokenizer.json gives one token two ids")
    unused = TokenType.UNUSED
    return (
        [texts.get(number, f"[PAD{number}]") for number in range(size)],
        [int(types.get(number, unused)) for number in range(size)],
    )


def _claim(texts: dict[int, str], number: object, text: object, size: int) -> None:
    if type(number) is not int or not isinstance(text, str) or not 0 <= number < size:
        raise VocabularyError(
            f"tokenizer.json has a token out of range: {text!r}",
            found=f"id {number!r}",
            expected=f"0 to {size - 1}, the rows of the embedding",
            hint="tokenizer.json and config.json must be of the same model.",
        )
    if number in texts:
        raise VocabularyError(
            f"tokenizer.json gives id {number} to two tokens",
            found=f"{texts[number]!r} and {text!r}",
        )
    texts[number] = text


def _check_alphabet(texts: Mapping[int, str], types: Mapping[int, int]) -> None:
    alphabet = set(byte_alphabet().values())
    lost = alphabet.difference(texts.values())
    if lost:
        raise VocabularyError(
            "tokenizer.json lacks byte tokens, so some text could not be encoded",
            found=f"{len(lost)} of 256 missing",
        )
    for number, text in texts.items():
        if types[number] == TokenType.NORMAL and not alphabet.issuperset(text):
            raise VocabularyError(
                f"tokenizer.json has a token that is not byte-level: {text!r}", found=f"id {number}"
            )


def _merges(model: Mapping[str, Any], ids: Mapping[str, int]) -> list[str]:
    """Merges as GGUF has them: both halves with a space between, which no half can hold."""
    merges = []
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        joined = "".join(pair)
        if len(pair) != 2 or joined not in ids or pair[0] not in ids or pair[1] not in ids:
            raise VocabularyError("tokenizer.json has a merge of unknown tokens", found=repr(merge))
        merges.append(" ".join(pair))
    if not merges:
        raise VocabularyError("tokenizer.json has no merges", expected="a list of token pairs")
    return merges


def _special_id(settings: Mapping[str, Any], name: str, ids: Mapping[str, int]) -> int | None:
    """The id of a token that tokenizer_config.json names, as text or as an object with content."""
    token = settings.get(name)
    if isinstance(token, Mapping):
        token = token.get("content")
    if token is None:
        return None
    if token not in ids:
        raise VocabularyError(
            f"tokenizer_config.json names a {name} that tokenizer.json lacks", found=repr(token)
        )
    return ids[token]


def _end_tokens(
    checkpoint: Checkpoint,
    settings: Mapping[str, Any],
    tokens: list[str],
    ids: Mapping[str, int],
) -> tuple[int, int | None, int | None]:
    """Every id that ends a generation, spread over the keys llama.cpp reads: eos, eot, eom.

    It also ends at ``<|end_of_text|>`` by its name, so that this one needs no key of its own.
    """
    ends = _declared_ends(checkpoint, len(tokens))
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
    rest = [end for end in ends if end not in (eos, eot, eom) and tokens[end] != "<|end_of_text|>"]
    if eot is None and rest:
        eot = rest.pop(0)
    if eom is None and rest:
        eom = rest.pop(0)
    if rest:
        raise VocabularyError(
            "there are more end-of-generation tokens than a GGUF can name",
            found=", ".join(f"{end} ({tokens[end]})" for end in ends),
            expected="at most three beside <|end_of_text|>",
        )
    return eos, eot, eom


def _declared_ends(checkpoint: Checkpoint, size: int) -> list[int]:
    """The eos ids of generation_config.json, or else of config.json, in the order given."""
    generation = checkpoint.json("generation_config.json") or {}
    text = checkpoint.config.get("text_config")
    for place in (generation, checkpoint.config, text if isinstance(text, Mapping) else {}):
        declared = place.get("eos_token_id")
        if declared is None:
            continue
        listed = declared if isinstance(declared, list) else [declared]
        if not all(type(end) is int and 0 <= end < size for end in listed):
            raise VocabularyError(
                "eos_token_id is out of range", found=repr(declared), expected=f"0 to {size - 1}"
            )
        return list(dict.fromkeys(listed))
    return []


def _adds(tokenizer: Mapping[str, Any], token: str) -> bool:
    """Whether the post-processor puts `token` before every text."""
    return any(
        template[0].get("SpecialToken", {}).get("id") == token
        for template in _templates(tokenizer.get("post_processor"))
        if template
    )


def _templates(processor: object) -> Iterator[list[dict[str, Any]]]:
    if not isinstance(processor, Mapping):
        return
    if processor.get("type") == "TemplateProcessing":
        yield processor.get("single") or []
    for inner in processor.get("processors") or []:
        yield from _templates(inner)
