from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from llama4_edge import gguf_header
from llama4_edge.architecture import END_TEXTS
from llama4_edge.errors import ModelFileError
from llama4_edge.runtime.bindings.library import llama
from llama4_edge.runtime.files.model_file import check_model_file
from tests.fixtures import MakeGGUF
from tests.gguf_maker import (
    BOOL,
    EXPERT_FF,
    EXPERTS,
    F32,
    HEAD_DIM,
    I32,
    LAYERS,
    N_VOCAB,
    STR,
    U16,
    U32,
    TinyModel,
    Value,
    tiny_model,
    tiny_projector,
)

Damage = Callable[[TinyModel], object]


def _set(
    key: str, value: object, kind: GGUFValueType, element: GGUFValueType | None = None
) -> Damage:
    return lambda model: model.keys.__setitem__(key, Value(value, kind, element))


def _drop(key: str) -> Damage:
    return lambda model: model.keys.pop(key)


def _drop_tensor(name: str) -> Damage:
    return lambda model: model.tensors.pop(name)


def _shape(name: str, *shape: int) -> Damage:
    return lambda model: model.tensors.__setitem__(name, np.zeros(shape, np.float32))


def _retype(name: str, dtype: npt.DTypeLike) -> Damage:
    return lambda model: model.tensors.__setitem__(name, model.tensors[name].astype(dtype))


def _tokens(change: Callable[[list[Any]], object], name: str = "tokens") -> Damage:
    def damage(model: TinyModel) -> None:
        value = model.keys[f"tokenizer.ggml.{name}"].value
        assert isinstance(value, list)
        change(value)

    return damage


_L, _T = "llama4.", "tokenizer.ggml."

# What is damaged, and the words with which it is refused.
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no architecture": (_drop("general.architecture"), "found no general.architecture"),
    "another architecture": (
        _set("general.architecture", "qwen3", STR),
        "is not a Llama 4 model, found architecture qwen3, expected llama4",
    ),
    "a vision part": (
        _set("general.architecture", "clip", STR),
        "is a projector, the part of a model that pictures go through, found architecture clip",
    ),
    "no layers key": (
        _drop(f"{_L}block_count"),
        "an invalid value of llama4.block_count, found no such key, expected a number",
    ),
    "three layers": (_set(f"{_L}block_count", 3, U32), "found 3, expected a number between 4"),
    "too many layers": (_set(f"{_L}block_count", 513, U32), "found 513"),
    "a key of another width": (
        _set(f"{_L}embedding_length", 64, GGUFValueType.UINT64),
        "llama4.embedding_length, found type u64, expected type u32",
    ),
    "a signed number": (_set(f"{_L}expert_count", 4, I32), "found type i32, expected type u32"),
    "an alignment at which llama.cpp aborts": (
        _set("general.alignment", 8, U32),
        "an invalid value of general.alignment, found 8, expected at least 32",
    ),
    "a normalizer of another type": (
        _set("tokenizer.ggml.normalizer.lowercase", 1, U32),
        "tokenizer.ggml.normalizer.lowercase, found type u32, expected type bool",
    ),
    "an architecture of a thousand letters": (
        _set("general.architecture", "x" * 1000, STR),
        f"found architecture {'x' * 80}… (1,000 characters), expected llama4",
    ),
    "a text for a number": (_set(f"{_L}rope.freq_base", "5e5", STR), "found type str"),
    "no width": (_set(f"{_L}embedding_length", 0, U32), "llama4.embedding_length, found 0"),
    "another width": (_set(f"{_L}embedding_length", 128, U32), "a misshapen tensor: "),
    "no heads": (_set(f"{_L}attention.head_count", 0, U32), "attention.head_count, found 0"),
    "more KV heads than heads": (_set(f"{_L}attention.head_count_kv", 8, U32), "found 8"),
    "KV heads that do not divide": (
        _set(f"{_L}attention.head_count_kv", 3, U32),
        "head_count_kv, found 3, expected a divisor of 4",
    ),
    "heads that differ by layer": (
        _set(f"{_L}attention.head_count", [4, 4, 4, 2], U32, U32),
        "found a list of 4, expected one number for 4 layers",
    ),
    "a list of another length": (
        _set(f"{_L}feed_forward_length", [96] * 3, U32, U32),
        "found a list of 3, expected one number for 4 layers",
    ),
    "an odd head": (_set(f"{_L}attention.key_length", 15, U32), "expected an even number"),
    "another value length": (
        _set(f"{_L}attention.value_length", 32, U32),
        "attention.value_length, found 32, expected 16",
    ),
    "a partial rotation": (
        _set(f"{_L}rope.dimension_count", 8, U32),
        "rope.dimension_count, found 8, expected 16",
    ),
    "no experts": (_set(f"{_L}expert_count", 0, U32), "expert_count, found 0"),
    "too many experts": (_set(f"{_L}expert_count", 1025, U32), "expert_count, found 1025"),
    "no experts used": (_set(f"{_L}expert_used_count", 0, U32), "expert_used_count, found 0"),
    "more experts used than there are": (
        _set(f"{_L}expert_used_count", 5, U32),
        "expert_used_count, found 5, expected a number between 1 and 4",
    ),
    "more experts used than llama.cpp's graph has room for": (
        lambda model: (
            _set(f"{_L}expert_count", 64, U32)(model),
            _set(f"{_L}expert_used_count", 17, U32)(model),
        ),
        "expert_used_count, found 17, expected a number between 1 and 16",
    ),
    "no expert width": (
        _drop(f"{_L}expert_feed_forward_length"),
        "expert_feed_forward_length, found no such key",
    ),
    "no interleaving": (_drop(f"{_L}interleave_moe_layer_step"), "found no such key"),
    "an interleaving of none": (
        _set(f"{_L}interleave_moe_layer_step", 0, U32),
        "interleave_moe_layer_step, found 0",
    ),
    "groups of experts": (_set(f"{_L}expert_group_count", 4, U32), "found 4, expected 0"),
    "another chunk": (
        _set(f"{_L}attention.sliding_window", 4096, U32),
        "attention.sliding_window, found 4096, expected 8192",
    ),
    "no chunks": (_set(f"{_L}attention.sliding_window", 0, U32), "found 0, expected 8192"),
    "another pattern of chunks": (
        _set(f"{_L}attention.sliding_window_pattern", [True] * LAYERS, BOOL, BOOL),
        "attention.sliding_window_pattern",
    ),
    "a negative epsilon": (
        _set(f"{_L}attention.layer_norm_rms_epsilon", -1e-5, F32),
        "expected a positive number",
    ),
    "an epsilon of no number": (
        _set(f"{_L}attention.layer_norm_rms_epsilon", float("nan"), F32),
        "found nan, expected a positive number",
    ),
    "a rope factor of no number": (
        _set(f"{_L}rope.scale_linear", float("nan"), F32),
        "rope.scale_linear, found nan, expected a positive number",
    ),
    "no epsilon": (_drop(f"{_L}attention.layer_norm_rms_epsilon"), "found no such key"),
    "an unknown rope scaling": (
        _set(f"{_L}rope.scaling.type", "llama3", STR),
        "found llama3, expected none or linear or yarn or longrope",
    ),
    "prediction layers": (_set(f"{_L}nextn_predict_layers", 1, U32), "found 1, expected 0"),
    "no such pooling": (_set(f"{_L}pooling_type", 99, U32), "found 99, expected 0"),
    "a missing tensor": (
        _drop_tensor("blk.2.ffn_down_exps.weight"),
        "has no tensor blk.2.ffn_down_exps.weight. Convert",
    ),
    "a missing layer": (_set(f"{_L}block_count", 5, U32), "blk.4.attn_norm.weight and 12 more"),
    "a layer too many": (
        lambda model: model.tensors.update(tiny_model(layers=5).tensors),
        "has a tensor that Llama 4 does not: blk.4.attn_norm.weight and 12 more",
    ),
    "an unknown tensor": (
        _shape("blk.0.attn_q.bias", 64),
        "has a tensor that Llama 4 does not: blk.0.attn_q.bias. Convert",
    ),
    "a misshapen tensor": (
        _shape("blk.1.ffn_up_exps.weight", EXPERTS, EXPERT_FF, 32),
        "a misshapen tensor: blk.1.ffn_up_exps.weight, found (32, 32, 4), expected (64, 32, 4)",
    ),
    "a transposed tensor": (
        _shape("blk.1.ffn_down_exps.weight", EXPERTS, EXPERT_FF, 64),
        "found (64, 32, 4), expected (32, 64, 4)",
    ),
    "an empty tensor": (_shape("output.weight", 0, 64), "output.weight, found (64, 0)"),
    "too few tokens": (_shape("token_embd.weight", N_VOCAB - 1, 64), "found (64, 262)"),
    "rope factors of another size": (
        _shape("rope_freqs.weight", HEAD_DIM),
        "rope_freqs.weight, found (16,), expected (8,)",
    ),
    "a norm in half precision": (
        _retype("blk.0.attn_norm.weight", np.float16),
        "does not compute with: blk.0.attn_norm.weight, found F16, expected F32",
    ),
    "a matrix of integers": (_retype("blk.0.attn_q.weight", np.int32), "found I32, expected BF16"),
    "another tokenizer": (_set(f"{_T}model", "llama", STR), "model, found llama, expected gpt2"),
    "another pre-tokenizer": (
        _set(f"{_T}pre", "default", STR),
        "tokenizer.ggml.pre, found default, expected llama4 or gpt-4o",
    ),
    "no tokens": (_drop(f"{_T}tokens"), "damaged vocabulary: no tokenizer.ggml.tokens"),
    "no merges": (_drop(f"{_T}merges"), "damaged vocabulary: no tokenizer.ggml.merges"),
    "merges of numbers": (_set(f"{_T}merges", [1], U32, U32), "found type [u32]"),
    "no types": (_drop(f"{_T}token_type"), "no tokenizer.ggml.token_type"),
    "too few types": (_tokens(lambda t: t.pop(), "token_type"), "found 262 types, expected 263"),
    "a type that is none": (
        _tokens(lambda t: t.__setitem__(7, 6), "token_type"),
        "the type of token 7, found 6, expected a number from 1 to 5",
    ),
    "too few scores": (_set(f"{_T}scores", [0.0], F32, F32), "found 1 scores, expected 263"),
    "two equal tokens": (
        _tokens(lambda t: t.__setitem__(257, "th")),
        "two equal tokens, found 'th' at 256 and 257",
    ),
    "an empty token": (
        _tokens(lambda t: t.__setitem__(258, "")),
        "an empty token, found token 258",
    ),
    "a byte without a token": (
        _tokens(lambda t: t.__setitem__(65, "AA")),
        "bytes without a token, found 1 of 256 missing",
    ),
    "a token that is no bytes": (
        _tokens(lambda t: t.__setitem__(258, "the cat")),
        "a token that spells no bytes, found 'the cat'",
    ),
    "a merge of one": (_tokens(lambda t: t.append("th"), "merges"), "merge 3, found 'th'"),
    "a merge to no token": (_tokens(lambda t: t.append("q q"), "merges"), "merge 3, found 'q q'"),
    "no beginning": (_drop(f"{_T}bos_token_id"), "no tokenizer.ggml.bos_token_id"),
    "a beginning out of range": (
        _set(f"{_T}bos_token_id", N_VOCAB, U32),
        "bos_token_id, found 263, expected less than 263",
    ),
    "an end of another type": (_set(f"{_T}eos_token_id", 260, I32), "found type i32"),
    "an end of turn out of range": (
        _set(f"{_T}eot_token_id", 2**32 - 1, U32),
        "eot_token_id, found 4294967295",
    ),
    "a template that is a list": (
        _set("tokenizer.chat_template", ["a"], STR, STR),
        "tokenizer.chat_template, found type [str], expected type str",
    ),
    "a part that is not the first": (
        lambda model: model.keys.update({"split.count": Value(2, U16), "split.no": Value(1, U16)}),
        "is not the first part of its model, found part 2 of 2",
    ),
    "a split model that is not named like one": (
        lambda model: model.keys.update({"split.count": Value(2, U16), "split.no": Value(0, U16)}),
        "part 1 of 2 and is not named like one, expected damaged-00001-of-00002.gguf",
    ),
}


def _refused(path: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        check_model_file(path)
    return caught.value


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_refused_and_named(name: str, tmp_path: Path) -> None:
    damage, said = DAMAGES[name]
    model = tiny_model()
    damage(model)
    path = model.write(tmp_path / "damaged.gguf")
    error = _refused(path)
    assert said in str(error)
    assert str(path) in error.problem


def test_an_array_that_is_longer_than_any_vocabulary_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_header, "_KEPT_NUMBERS", 100)
    error = _refused(tiny_model().write(tmp_path / "long.gguf"))
    assert "tokenizer.ggml.token_type, found 263 numbers" in str(error)


def test_a_whole_model_says_what_it_is(tmp_path: Path) -> None:
    path = tiny_model(moe_step=2).write(tmp_path / "tiny.gguf")
    info = check_model_file(str(path))
    hparams = info.hparams
    first = 256 + 3
    assert (info.path, info.name, info.file_type) == (path, "Tiny", "ALL_F32")
    assert (
        hparams.n_layer,
        hparams.n_embd,
        hparams.n_vocab,
        hparams.n_ctx_train,
    ) == (4, 64, 263, 32768)
    assert (hparams.n_head, hparams.n_head_kv, hparams.head_dim) == (4, 2, 16)
    assert (
        hparams.n_ff,
        hparams.n_ff_expert,
        hparams.n_expert,
        hparams.n_expert_used,
    ) == (96, 32, 4, 1)
    assert [hparams.has_experts(layer) for layer in range(4)] == [False, True, False, True]
    assert hparams.rope_theta == 500000.0
    assert info.chat_template == "{{ messages[0].content }}"
    assert (info.bos_id, info.eos_id) == (first, first + 1)
    assert info.eog_ids == (first + 1, first + 2, first + 3)
    assert info.bytes == path.stat().st_size
    assert len(info.tensors) == len(info.gguf.tensors) == 3 + 1 + 2 * (6 + 3) + 2 * (6 + 7)


def test_what_may_be_absent_may_be_absent(tmp_path: Path) -> None:
    model = tiny_model()
    del model.tensors["output.weight"], model.tensors["rope_freqs.weight"]
    for key in (
        "general.name",
        "general.file_type",
        "llama4.attention.key_length",
        "llama4.attention.value_length",
        "llama4.rope.dimension_count",
        "llama4.rope.freq_base",
        "tokenizer.chat_template",
    ):
        del model.keys[key]
    info = check_model_file(model.write(tmp_path / "plain.gguf"))
    hparams = info.hparams
    assert (info.name, info.file_type, info.chat_template) == ("plain", "unknown", None)
    assert (hparams.head_dim, hparams.rope_theta) == (16, 10000.0)


def test_one_number_for_every_layer_may_be_written_as_a_list(tmp_path: Path) -> None:
    model = tiny_model()
    _set("llama4.attention.head_count", [4] * LAYERS, U32, U32)(model)
    _set("llama4.attention.sliding_window_pattern", [True, True, True, False], BOOL, BOOL)(model)
    assert check_model_file(model.write(tmp_path / "lists.gguf")).hparams.n_head == 4


# --- the judge is llama.cpp


def _decoded(path: Path, n_tokens: int = 8) -> tuple[np.ndarray, list[int]]:
    """The last logits of the first `n_tokens` tokens, and what llama.cpp ends a generation at."""
    bindings = llama()
    parameters = bindings.llama_model_default_params()
    model = bindings.llama_model_load_from_file(str(path).encode(), parameters)
    assert model
    settings = bindings.llama_context_default_params()
    settings.n_ctx = 64
    context = bindings.llama_init_from_model(model, settings)
    assert context
    try:
        tokens = (ctypes.c_int32 * n_tokens)(*range(n_tokens))
        assert bindings.llama_decode(context, bindings.llama_batch_get_one(tokens, n_tokens)) == 0
        logits = np.ctypeslib.as_array(bindings.llama_get_logits_ith(context, -1), (N_VOCAB,))
        vocabulary = bindings.llama_model_get_vocab(model)
        ends = [one for one in range(N_VOCAB) if bindings.llama_vocab_is_eog(vocabulary, one)]
        return logits.copy(), ends
    finally:
        bindings.llama_free(context)
        bindings.llama_model_free(model)


@pytest.mark.parametrize("moe_step", [1, 2])
def test_llama_cpp_loads_what_is_accepted_and_ends_where_it_says(
    moe_step: int, tmp_path: Path
) -> None:
    path = tiny_model(moe_step=moe_step).write(tmp_path / "tiny.gguf")
    info = check_model_file(path)
    logits, ends = _decoded(path)
    assert np.isfinite(logits).all() and np.ptp(logits) > 0.1
    assert list(info.eog_ids) == ends


@pytest.mark.parametrize(
    "texts",
    [[text] for text in sorted(END_TEXTS - {"<|end_of_text|>"})]
    + [["<|end|>", "<|return|>", "<|call|>"], ["<|end|>", "<|calls|>", "<|flush|>"]]
    + [["<|end|>", "<|return|>", "<|flush|>"], ["</s>", "<|tool_response>"], ["</s>", "<|call|>"]],
    ids=" ".join,
)
def test_what_llama_cpp_takes_for_an_end_by_its_text_is_known(
    texts: list[str], tmp_path: Path
) -> None:
    model = tiny_model()
    tokens = model.keys["tokenizer.ggml.tokens"].value
    merges = model.keys["tokenizer.ggml.merges"].value
    types = model.keys["tokenizer.ggml.token_type"].value
    assert isinstance(tokens, list) and isinstance(merges, list) and isinstance(types, list)
    first = tokens.index("the")
    tokens[first : first + len(texts)] = texts  # the third in place of BOS
    types[first : first + len(texts)] = [3] * len(texts)
    del merges[1:]
    info = check_model_file(model.write(tmp_path / "tiny.gguf"))
    assert list(info.eog_ids) == _decoded(info.path)[1]


def test_further_ends_are_those_of_our_own_key(tmp_path: Path) -> None:
    model = tiny_model()
    plain = check_model_file(model.write(tmp_path / "plain.gguf"))
    model.keys["llama4_edge.eog_token_ids"] = Value([5, 7], I32, I32)
    more = check_model_file(model.write(tmp_path / "more.gguf"))
    assert set(more.eog_ids) == {*plain.eog_ids, 5, 7}


def test_llama_cpp_itself_refuses_another_count_of_tensors(tmp_path: Path) -> None:
    model = tiny_model()
    model.tensors["blk.0.extra.weight"] = np.zeros(4, np.float32)
    path = model.write(tmp_path / "extra.gguf")
    bindings = llama()
    assert not bindings.llama_model_load_from_file(
        str(path).encode(), bindings.llama_model_default_params()
    )
    assert "blk.0.extra.weight" in _refused(path).problem


def test_an_error_is_ready_for_json(tmp_path: Path) -> None:
    model = tiny_model()
    model.tensors["blk.0.attn_q.weight"] = np.zeros((64, 8), np.int8)
    model.types["blk.0.attn_q.weight"] = GGMLQuantizationType.I8
    fields = _refused(model.write(tmp_path / "bad.gguf")).as_dict()
    assert json.loads(json.dumps(fields))["found"] == "(8, 64)"
    assert fields["error"] == "ModelFileError"


# --- what `llama4 convert` writes


def test_a_converted_model_is_whole(
    scout_int4: Path, maverick_checkpoint: Path, make_gguf: MakeGGUF
) -> None:
    scout = check_model_file(scout_int4).hparams
    assert (scout.n_expert, scout.moe_step, scout.rope_theta) == (16, 1, 500000.0)
    maverick = check_model_file(make_gguf(maverick_checkpoint)).hparams
    assert (maverick.n_expert, maverick.moe_step, maverick.n_expert_used) == (128, 2, 1)


def test_metas_vocabulary_is_whole_and_ends_at_its_three_tokens(full_vocabulary_bf16: Path) -> None:
    info = check_model_file(full_vocabulary_bf16)
    assert (info.hparams.n_vocab, info.bos_id) == (202048, 200000)
    assert info.eog_ids == (200001, 200007, 200008)


def test_a_file_without_a_tokenizer_is_for_those_who_need_none(tmp_path: Path) -> None:
    model = tiny_model()
    for key in [key for key in model.keys if key.startswith("tokenizer.")]:
        del model.keys[key]
    model.keys[_T + "model"] = Value("none", STR)
    model.keys[_L + "vocab_size"] = Value(N_VOCAB, U32)
    path = model.write(tmp_path / "bare.gguf")
    with pytest.raises(ModelFileError, match=r"has no tokenizer.*llama4 bench"):
        check_model_file(path)
    info = check_model_file(path, needs_tokenizer=False)
    assert (info.hparams.n_vocab, info.bos_id, info.eos_id, info.eog_ids) == (N_VOCAB, -1, -1, ())
    # What it says of its size must fit its tensors, and whoever has a tokenizer is held to it.
    model.keys[_L + "vocab_size"] = Value(0, U32)
    with pytest.raises(ModelFileError, match=r"llama4\.vocab_size"):
        check_model_file(model.write(tmp_path / "none.gguf"), needs_tokenizer=False)


def test_a_file_that_holds_the_vision_tower_too_is_refused_by_name(tmp_path: Path) -> None:
    """As Ollama keeps them."""
    model = tiny_model()
    model.tensors |= {
        name: data
        for name, data in tiny_projector().tensors.items()
        if name.startswith(("v.", "mm."))
    }
    error = _refused(model.write(tmp_path / "both.gguf"))
    assert "a text model and its vision tower in one file, as Ollama keeps" in str(error)
    assert "58 further tensors, such as v.class_embd" in str(error)
