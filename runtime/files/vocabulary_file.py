"""Is the vocabulary of this GGUF whole? The part of ``model_file`` that concerns text.

The rules follow ``llama_vocab::impl::load`` in llama.cpp's src/llama-vocab.cpp, which aborts on two
equal tokens, and replaces special tokens that are missing or out of range by token 11 with no more
than a warning.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...architecture import END_TEXTS, PRE_TOKENIZER_NAMES, byte_alphabet
from ...errors import ModelFileError
from ...untrusted import brief
from .gguf_file import GGUFFile

RECONVERT = "Convert the checkpoint again, with: llama4 convert"

_TYPES: dict[str, tuple[str, ...]] = {
    "model": ("str",),
    "pre": ("str",),
    "tokens": ("[str]",),
    "token_type": ("[i32]",),
    "scores": ("[f32]", "[i32]"),
    "merges": ("[str]",),
    "token_type_count": ("u32",),
    "add_bos_token": ("bool",),
    "add_eos_token": ("bool",),
    "add_sep_token": ("bool",),
    "add_space_prefix": ("bool",),
    "remove_extra_whitespaces": ("bool",),
    "normalizer.lowercase": ("bool",),
    "normalizer.strip_accents": ("bool",),
    "suppress_tokens": ("[i32]",),
}
_REQUIRED = ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id")

# What llama.cpp has a key for that names a token by its id, in its spelling: <name>_token_id.
# fmt: off
_ID_NAMES = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask",
    "prefix", "suffix", "middle",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
)
# fmt: on
_ID_KEYS = tuple(f"{name}_token_id" for name in _ID_NAMES)
# Those of them that end a generation; and our own key, for what llama.cpp has none for.
_EOG_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
ENDS_KEY = "llama4_edge.eog_token_ids"

# enum llama_token_type: unknown, control, user-defined, unused; a byte (6) belongs to other kinds.
_NORMAL = 1
_TOKEN_TYPES = frozenset({1, 2, 3, 4, 5})


# llama.cpp's number for a token that there is not (LLAMA_TOKEN_NULL).
NO_TOKEN = -1


@dataclass(frozen=True)
class FileVocabulary:
    """What the rest of a model has to know of its vocabulary.

    A file without a tokenizer has `NO_TOKEN` for the ids.
    """

    size: int
    bos_id: int
    eos_id: int
    eog_ids: tuple[int, ...]


def has_no_tokenizer(gguf: GGUFFile) -> bool:
    """Whether the file says so itself; such a file can be measured and not talked to."""
    return gguf.metadata.get("tokenizer.ggml.model") == "none"


def bare_vocabulary(gguf: GGUFFile) -> FileVocabulary:
    """The number of tokens of a file without a tokenizer; ModelFileError where it is not said."""
    size = gguf.metadata.get("llama4.vocab_size")
    if gguf.types.get("llama4.vocab_size") != "u32" or not isinstance(size, int) or size < 1:
        raise _bad(gguf, "llama4.vocab_size", size, "how many tokens there are")
    return FileVocabulary(size, NO_TOKEN, NO_TOKEN, ())


def check_vocabulary(gguf: GGUFFile) -> FileVocabulary:
    """Check tokens, types, merges and special tokens; ModelFileError names the one at fault."""
    if has_no_tokenizer(gguf):
        raise ModelFileError(
            f"{gguf.path} has no tokenizer",
            hint="It can be measured, with: llama4 bench",
        )
    _check_keys(gguf)
    tokens = _strings(gguf, "tokens")
    _check_tokens(gguf, tokens)
    _check_merges(gguf, frozenset(tokens))
    ids = {key: _token_id(gguf, key, len(tokens)) for key in _ID_KEYS}
    ending = {ids[f"{name}_token_id"] for name in _EOG_KEYS}
    by_text = {text: number for number, text in enumerate(tokens) if text in END_TEXTS}
    ending |= set(by_text.values())
    ending -= {by_text[text] for text in _exceptions(frozenset(by_text))}
    ending |= set(_further_ends(gguf, len(tokens)))
    bos_id, eos_id = ids["bos_token_id"], ids["eos_token_id"]
    assert bos_id is not None and eos_id is not None
    return FileVocabulary(
        size=len(tokens),
        bos_id=bos_id,
        eos_id=eos_id,
        eog_ids=tuple(sorted(token for token in ending if token is not None)),
    )


def _exceptions(texts: frozenset[str]) -> frozenset[str]:
    """Texts that end nothing in the vocabularies of gpt-oss, Solar and Gemma 4."""
    calls = not texts.isdisjoint({"<|call|>", "<|calls|>"})
    exceptions = set()
    if calls and not texts.isdisjoint({"<|return|>", "<|flush|>"}):
        exceptions.add("<|end|>")
    if "<|tool_response>" in texts:
        exceptions.add("</s>")
    return texts & exceptions


def _further_ends(gguf: GGUFFile, n_tokens: int) -> tuple[int, ...]:
    ends = gguf.metadata.get(ENDS_KEY, ())
    if gguf.types.get(ENDS_KEY, "[i32]") != "[i32]":
        raise _bad(gguf, ENDS_KEY, f"type {gguf.types[ENDS_KEY]}", "type [i32]")
    assert isinstance(ends, tuple)
    if not all(0 <= end < n_tokens for end in ends):
        raise _bad(gguf, ENDS_KEY, ends[:8], f"0 to {n_tokens - 1}")
    return ends


def _bad(gguf: GGUFFile, problem: str, found: object, expected: object) -> ModelFileError:
    return ModelFileError(
        f"{gguf.path} has a damaged vocabulary: {problem}",
        found=None if found is None else brief(found),
        expected=expected,
        hint=RECONVERT,
    )


def _check_keys(gguf: GGUFFile) -> None:
    """Keys are there, of the types that llama.cpp takes, and name the tokenizer of Llama 4."""
    for name in _REQUIRED:
        key = f"tokenizer.ggml.{name}"
        if key not in gguf.metadata:
            raise _bad(gguf, f"no {key}", None, None)
    for name, expected in (_TYPES | dict.fromkeys(_ID_KEYS, ("u32",))).items():
        key = f"tokenizer.ggml.{name}"
        kind = gguf.types.get(key, expected[0])
        if kind not in expected:
            raise _bad(gguf, key, f"type {kind}", f"type {' or '.join(expected)}")
    model, pre = gguf.metadata["tokenizer.ggml.model"], gguf.metadata["tokenizer.ggml.pre"]
    if model != "gpt2":
        raise _bad(gguf, "tokenizer.ggml.model", model, "gpt2, which means byte-level BPE")
    if pre not in PRE_TOKENIZER_NAMES:
        raise _bad(gguf, "tokenizer.ggml.pre", pre, " or ".join(PRE_TOKENIZER_NAMES))


def _strings(gguf: GGUFFile, name: str) -> tuple[str, ...]:
    value = gguf.metadata[f"tokenizer.ggml.{name}"]
    assert isinstance(value, tuple)
    return value


def _check_tokens(gguf: GGUFFile, tokens: tuple[str, ...]) -> None:
    """Tokens differ, have a type each, and spell every byte."""
    types = gguf.metadata["tokenizer.ggml.token_type"]
    assert isinstance(types, tuple)
    if len(types) != len(tokens):
        raise _bad(gguf, "tokenizer.ggml.token_type", f"{len(types)} types", f"{len(tokens)}")
    scores = gguf.metadata.get("tokenizer.ggml.scores", tokens)
    assert isinstance(scores, tuple)
    if len(scores) != len(tokens):
        raise _bad(gguf, "tokenizer.ggml.scores", f"{len(scores)} scores", f"{len(tokens)}")
    unknown = set(types) - _TOKEN_TYPES
    if unknown:
        index = next(i for i, kind in enumerate(types) if kind in unknown)
        raise _bad(gguf, f"the type of token {index}", types[index], "a number from 1 to 5")
    first: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if first.setdefault(token, index) != index:
            # llama.cpp aborts on these
            raise _bad(gguf, "two equal tokens", f"{token!r} at {first[token]} and {index}", None)
    if "" in first:
        raise _bad(gguf, "an empty token", f"token {first['']}", "text")
    alphabet = frozenset(byte_alphabet().values())
    missing = sorted(letter for letter in alphabet if letter not in first)
    if missing:
        # llama.cpp would drop these bytes of a prompt without a word
        raise _bad(gguf, "bytes without a token", f"{len(missing)} of 256 missing", None)
    normal = [token for token, kind in zip(tokens, types, strict=True) if kind == _NORMAL]
    strange = set("".join(normal)) - alphabet
    if strange:
        token = next(token for token in normal if not strange.isdisjoint(token))
        raise _bad(gguf, "a token that spells no bytes", repr(token), "byte-level text")


def _check_merges(gguf: GGUFFile, tokens: frozenset[str]) -> None:
    """Each merge joins two texts, by one space, into a token."""
    merges = _strings(gguf, "merges")
    for index, merge in enumerate(merges):
        first, _, second = merge.partition(" ")
        if not first or not second or first + second not in tokens:
            raise _bad(gguf, f"merge {index}", repr(merge), "two texts that make a token")


def _token_id(gguf: GGUFFile, key: str, n_tokens: int) -> int | None:
    value = gguf.metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    assert isinstance(value, int)
    if value >= n_tokens:
        raise _bad(gguf, f"tokenizer.ggml.{key}", value, f"less than {n_tokens}")
    return value
