"""Forms in which people have the same checkpoint: each becomes the same file, or is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest

from demo.checkpoint import Geometry
from llama4_edge import convert
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.convert.checkpoint import INDEX_NAME
from llama4_edge.errors import CheckpointError, UnsupportedError
from tests.fixtures import MakeCheckpoint

from .conftest import SMALL_WITH_TOWER, shards_of
from .saved import (
    ONE_FILE,
    TEXT,
    TIED,
    Forms,
    MakeForms,
    Renaming,
    Stored,
    Tensors,
    read_all,
    write_all,
)

HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"


def inserted(part: str, before: str) -> Renaming:
    return lambda name: name.replace(before, f"{part}.{before}", 1)


WRAPPED: dict[str, Renaming] = {
    "_orig_mod": lambda name: f"_orig_mod.{name}",
    "base_model": lambda name: f"base_model.model.{name}",
    "module": lambda name: f"module.{name}",
    "_fsdp_wrapped_module": inserted("_fsdp_wrapped_module", "self_attn."),
    "_checkpoint_wrapped_module": inserted("_checkpoint_wrapped_module", "feed_forward."),
    "base_layer": lambda name: name.replace("_proj.weight", "_proj.base_layer.weight"),
    "_forward_module": lambda name: f"_forward_module.{name}",
    "pretrained_model": lambda name: f"pretrained_model.{name}",
}


@pytest.mark.parametrize("wrapper", list(WRAPPED))
@pytest.mark.parametrize("geometry", [ONE_FILE, TEXT], ids=["multimodal", "text"])
def test_names_with_a_wrapper_s_part_are_read_and_noted(
    forms: MakeForms, geometry: Geometry, wrapper: str
) -> None:
    made = forms(geometry)
    made.rename(WRAPPED[wrapper])
    assert any(note.startswith(f"{wrapper} in the") for note in made.notes_of_the_same_file())


def test_wrappers_around_wrappers_are_read(forms: MakeForms) -> None:
    made = forms(TEXT)
    made.rename(lambda name: f"module._orig_mod.base_model.model.{name}")
    assert len(made.notes_of_the_same_file()) == 3


SPELLINGS: dict[str, Renaming] = {
    "text names": lambda name: name.removeprefix("language_model."),
    "newer transformers": lambda name: name.replace(
        "language_model.model.", "model.language_model."
    ).removeprefix("language_model."),
    "inside model": lambda name: f"model.{name}",
}


@pytest.mark.parametrize("renamed", list(SPELLINGS.values()), ids=list(SPELLINGS))
def test_a_multimodal_config_goes_with_each_spelling(forms: MakeForms, renamed: Renaming) -> None:
    made = forms(ONE_FILE)
    made.rename(renamed)
    assert made.notes_of_the_same_file() == ()


def test_a_text_config_goes_with_multimodal_names(forms: MakeForms) -> None:
    made = forms(TEXT)
    made.rename(lambda name: f"language_model.{name}")
    assert made.notes_of_the_same_file() == ()


def test_a_base_model_s_names_are_read(forms: MakeForms) -> None:
    """As Llama4TextModel saves itself, without an output."""
    made = forms(replace(TEXT, tied=True))
    made.rename(lambda name: name.removeprefix("model."))
    assert made.notes_of_the_same_file() == ()


def test_pictures_weights_are_left_out_under_a_text_config(
    forms: MakeForms, make_checkpoint: MakeCheckpoint
) -> None:
    made = forms(TEXT)
    pictures = read_all(make_checkpoint(ONE_FILE))
    made.tensors |= {name: one for name, one in pictures.items() if "language" not in name}
    made.write(made.tensors)
    made.notes_of_the_same_file()
    left_out = convert(made.other, dry_run=True).left_out
    assert "multi_modal_projector.linear_1.weight" in left_out


# Tied embeddings --------------------------------------------------------------------------------


def test_a_tied_output_that_equals_the_embedding_is_left_out(forms: MakeForms) -> None:
    made = forms(TIED)
    made.write({**made.tensors, HEAD: made.tensors[EMBEDDING]})
    (note,) = made.notes_of_the_same_file()
    assert note.startswith(f"{HEAD} was left out: it equals {EMBEDDING}")
    assert HEAD in convert(made.other, dry_run=True).left_out


def test_a_tied_output_that_differs_is_kept_as_transformers_does(forms: MakeForms) -> None:
    made = forms(ONE_FILE)
    config = json.loads((made.other / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = True
    made.set_config(**config)
    (note,) = made.notes_of_the_same_file()
    assert HEAD in note
    assert "they differ: both are kept, as transformers does" in note


def test_a_tied_output_without_its_embedding_is_both(forms: MakeForms) -> None:
    made = forms(TIED)
    made.write({HEAD if name == EMBEDDING else name: one for name, one in made.tensors.items()})
    (note,) = made.notes_of_the_same_file()
    assert note == f"{HEAD} is the embedding too: config.json ties them"


def test_an_output_that_is_missing_is_not_taken_for_tied(forms: MakeForms) -> None:
    made = forms(ONE_FILE)
    made.write({name: one for name, one in made.tensors.items() if name != HEAD})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing.*tie_word_embeddings"):
        convert(made.other, dry_run=True)


# What is stored beside, or said beside ----------------------------------------------------------

LEFT_OVER: list[Any] = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    {"quant_method": "fbgemm_fp8"},
    {"bits": 4, "group_size": 64},
]


@pytest.mark.parametrize("settings", LEFT_OVER)
def test_a_left_over_quantization_config_is_noted(forms: MakeForms, settings: Any) -> None:
    made = forms(ONE_FILE)
    made.set_config(quantization_config=settings)
    (note,) = made.notes_of_the_same_file()
    assert "the weights are not quantized" in note


def test_weights_that_are_quantized_are_refused_with_their_settings(forms: MakeForms) -> None:
    made = forms(ONE_FILE)
    name = next(name for name in made.tensors if name.endswith("q_proj.weight"))
    made.tensors[name] = Stored("U8", (8, 1), bytes(8))
    made.write(made.tensors)
    made.set_config(quantization_config={"quant_method": "quark"})
    with pytest.raises(UnsupportedError, match="quant_method 'quark'"):
        convert(made.other, dry_run=True)
    # Nobody has seen the weights of a configuration alone.
    with pytest.raises(UnsupportedError, match="quant_method 'quark'"):
        blueprint(made.other / "config.json")


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00001.safetensors",
        "consolidated.safetensors",
        "pytorch_model-00001-of-00001.safetensors",
        "model.fp16.safetensors",
        "model_1_of_1.safetensors",
        "weights.safetensors",
    ],
)
def test_a_single_file_of_another_name_is_read(forms: MakeForms, name: str) -> None:
    made = forms(ONE_FILE)
    made.write(made.tensors, name)
    assert made.notes_of_the_same_file() == ()


def test_numbered_shards_need_no_index(forms: MakeForms) -> None:
    made = forms(SMALL_WITH_TOWER)
    (made.other / INDEX_NAME).unlink()
    # As Mistral's tools and adapters leave beside them.
    shutil.copy(shards_of(made.other)[0], made.other / "consolidated.safetensors")
    shutil.copy(shards_of(made.other)[0], made.other / "adapter_model.safetensors")
    assert made.notes_of_the_same_file() == ()


def dealt(tensors: Tensors, names: list[str]) -> dict[str, Tensors]:
    """The tensors in files of these names: in turn, and each file's in reverse."""
    items = list(tensors.items())
    return {name: dict(items[start :: len(names)][::-1]) for start, name in enumerate(names)}


@pytest.mark.parametrize(
    "names",
    [
        ["experts.safetensors", "attention.safetensors", "z.safetensors"],
        ["model-00003.safetensors", "model-00001.safetensors", "model-00002.safetensors"],
        ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"],
        ["ft-model-00001-of-00002.safetensors", "ft-model-00002-of-00002.safetensors"],
    ],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_tensors_may_lie_in_any_shard_in_any_order(
    forms: MakeForms, names: list[str], indexed: bool
) -> None:
    made = forms(ONE_FILE)
    shards_of(made.other)[0].unlink()
    parts = dealt(made.tensors, names)
    for name, tensors in parts.items():
        write_all(made.other / name, tensors)
    if indexed:
        weight_map = {tensor: name for name, tensors in parts.items() for tensor in tensors}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (made.other / INDEX_NAME).write_text(json.dumps(index))
    assert made.notes_of_the_same_file() == ()


def test_parts_of_meta_s_layout_are_told(forms: MakeForms) -> None:
    made = forms(ONE_FILE)
    shard = shards_of(made.other)[0]
    for number in range(2):
        shutil.copy(shard, made.other / f"consolidated.{number:02d}.safetensors")
    shard.unlink()
    said = r"is in Meta's own layout, found Meta's consolidated\.\*\.safetensors.*meta-llama/"
    with pytest.raises(CheckpointError, match=said):
        convert(made.other, dry_run=True)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"],
            r"lacks shards, found 1 of 3 missing, first model-00002-of-00003\.safetensors",
        ),
        (
            ["model-00001-of-99999.safetensors"],
            r"found 99998 of 99999 missing, first model-00002-of-99999\.safetensors",
        ),
        (
            ["model-00001-of-00001.safetensors", "model-00002-of-00001.safetensors"],
            r"shard that its own name excludes, found model-00002-of-00001\.safetensors",
        ),
        (
            ["model-00001-of-00002.safetensors", "model-00001-of-00003.safetensors"],
            r"several sets of weights and no index, found model-00001-of-00002\.safetensors, "
            r"model-00001-of-00003\.safetensors",
        ),
        (["model_1_of_2.safetensors"], r"found 1 of 2 missing, first model_2_of_2\.safetensors"),
        (["a.safetensors", "b.safetensors"], r"several sets.* a\.safetensors, b\.safetensors"),
    ],
)
def test_shards_without_an_index_must_be_whole(
    forms: MakeForms, names: list[str], said: str
) -> None:
    made = forms(ONE_FILE)
    source = shards_of(made.other)[0]
    for name in names:
        shutil.copy(source, made.other / name)
    source.unlink()
    with pytest.raises(CheckpointError, match=said):
        convert(made.other, dry_run=True)


# Names that are refused -------------------------------------------------------------------------


def assert_refused(made: Forms, renamed: Renaming, said: str) -> None:
    made.rename(renamed)
    with pytest.raises(CheckpointError, match=said):
        convert(made.other, dry_run=True)


def test_an_unknown_prefix_is_named(forms: MakeForms) -> None:
    assert_refused(
        forms(TEXT),
        lambda name: f"actor.{name}",
        r"no tensor has the name of one in a Llama 4 model, found actor\.model\.layers\.0\..*"
        r"expected model\.embed_tokens\.weight.*unknown prefix actor\.",
    )


META = {
    "model.embed_tokens.": "tok_embeddings.", "lm_head.": "output.", "model.": "",
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "experts.gate_up_proj": "experts.moe_w_in_eD_F", "experts.down_proj": "experts.moe_w_out_eF_D",
}  # fmt: skip
TORCHTUNE = {
    "model.embed_tokens.": "tok_embeddings.", "lm_head.": "output.", "model.": "",
    "self_attn.": "attn.", "o_proj": "output_proj", "input_layernorm.weight": "sa_norm.scale",
    "post_attention_layernorm.weight": "mlp_norm.scale", "norm.weight": "norm.scale",
}  # fmt: skip


def replaced(parts: dict[str, str], prefix: str = "") -> Renaming:
    def renamed(name: str) -> str:
        for old, new in parts.items():
            name = name.replace(old, new)
        return prefix + name

    return renamed


@pytest.mark.parametrize(
    ("renamed", "said"),
    [
        (replaced(META), r"Meta's own layout, found tok_embeddings\.weight.*meta-llama/"),
        (replaced(META, "model."), r"Meta's own layout, found model\.tok_embeddings"),
        (replaced(TORCHTUNE), r"torchtune's own layout.*FullModelHFCheckpointer"),
        (replaced(TORCHTUNE, "decoder."), r"torchtune's own layout.*FullModelHFCheckpointer"),
    ],
    ids=["Meta", "Meta in a model", "torchtune", "torchtune, multimodal"],
)
def test_the_names_of_other_layouts_are_told(
    forms: MakeForms, renamed: Renaming, said: str
) -> None:
    assert_refused(forms(TEXT), renamed, said)


def test_an_adapter_that_is_not_merged_is_told(forms: MakeForms) -> None:
    assert_refused(
        forms(TEXT),
        lambda name: name.replace("v_proj.weight", "v_proj.lora_A.default.weight"),
        r"adapter that is not merged.*v_proj\.lora_A\.default\.weight.*merge_and_unload",
    )


def test_one_tensor_under_two_names_is_refused(forms: MakeForms) -> None:
    made = forms(TEXT)
    name = "model.norm.weight"
    made.write({**made.tensors, f"_orig_mod.{name}": made.tensors[name]})
    with pytest.raises(CheckpointError, match=rf"_orig_mod\.{name} and {name} are the same tensor"):
        convert(made.other, dry_run=True)


def test_a_missing_tensor_s_error_has_the_checkpoint_s_spelling_and_a_name_that_is_there(
    forms: MakeForms,
) -> None:
    """MLX stacks each of the experts' matrices."""
    assert_refused(
        forms(ONE_FILE),
        lambda name: name.replace(".experts.gate_up_proj", ".experts.gate_proj.weight"),
        r"language_model\.model\.layers\.0\.feed_forward\.experts\.gate_up_proj is missing, "
        r"found \d+ tensors, such as language_model\.\S+\.experts\.gate_proj\.weight",
    )


@pytest.mark.parametrize("name", ["module", "_orig_mod.module", ".", "", "model", "lm_head"])
def test_a_name_of_nothing_but_wrappers_is_unexpected(forms: MakeForms, name: str) -> None:
    made = forms(TEXT)
    made.write({**made.tensors, name: made.tensors["model.norm.weight"]})
    with pytest.raises(CheckpointError, match=r"is not part of a Llama 4|invalid name"):
        convert(made.other, dry_run=True)


def test_an_adapter_beside_the_weights_is_noted(forms: MakeForms) -> None:
    made = forms(ONE_FILE)
    (made.other / "adapter_config.json").write_text("{}")
    (note,) = made.notes_of_the_same_file()
    assert "is not applied" in note
