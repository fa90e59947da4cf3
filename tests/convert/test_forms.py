"""Forms in which people have the same checkpoint: each becomes the same file, or is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from demo.checkpoint import MAVERICK_LIKE, Geometry
from llama4_edge import convert
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.convert.checkpoint import INDEX_NAME
from llama4_edge.convert.converter import inspect_checkpoint
from llama4_edge.errors import CheckpointError, UnsupportedError
from tests.fixtures import MakeCheckpoint

from .conftest import SMALL_WITH_TOWER, edit_json, read_header, shards_of, write_shard

ONE_FILE = replace(SMALL_WITH_TOWER, shards=1)
TEXT = replace(ONE_FILE, vision=None, text_only=True, config_form="rope_parameters")
TIED = replace(ONE_FILE, tied=True)
DENSE_TOO = replace(
    MAVERICK_LIKE, hidden=64, heads=2, kv_heads=1, head_dim=32, expert_ffn=64, dense_ffn=64,
    shards=1,
)  # fmt: skip

HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"


@dataclass(frozen=True)
class Stored:
    """One tensor as a safetensors file has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def words(self) -> npt.NDArray[np.uint16]:
        """Its bf16 numbers as they are stored."""
        return np.frombuffer(self.data, "<u2").reshape(self.shape)


Tensors = dict[str, Stored]
Renaming = Callable[[str], str]


def bf16(words: npt.NDArray[np.uint16]) -> Stored:
    return Stored("BF16", words.shape, np.ascontiguousarray(words).tobytes())


def read_all(checkpoint: Path) -> Tensors:
    tensors = {}
    for shard in shards_of(checkpoint):
        header, data = read_header(shard)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            tensors[name] = Stored(entry["dtype"], tuple(entry["shape"]), data[begin:end])
    return tensors


def write_all(file: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, stored in tensors.items():
        offsets = [end, end + len(stored.data)]
        header[name] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": offsets}
        end = offsets[1]
    write_shard(file, header, b"".join(stored.data for stored in tensors.values()))


class Forms:
    """Makes other forms of a checkpoint, and compares what becomes of them."""

    def __init__(self, plain: Path, directory: Path) -> None:
        self.plain = plain
        # A GGUF is named after its source's directory.
        self.other = directory / "other" / plain.name
        shutil.copytree(plain, self.other)
        self.tensors = read_all(plain)
        self.directory = directory

    def write(self, tensors: Tensors, name: str = "model.safetensors") -> None:
        """Replace the other's weights."""
        for shard in shards_of(self.other):
            shard.unlink()
        (self.other / INDEX_NAME).unlink(missing_ok=True)
        write_all(self.other / name, tensors)

    def rename(self, renamed: Renaming) -> None:
        self.write({renamed(name): stored for name, stored in self.tensors.items()})

    def set_config(self, **changes: Any) -> None:
        edit_json(self.other / "config.json", lambda config: config.update(changes))

    def notes_of_the_same_file(self) -> tuple[str, ...]:
        """Convert both and return what is noted of the other; the files must be equal."""
        files = []
        for number, source in enumerate((self.plain, self.other)):
            file = self.directory / f"{number}.gguf"
            report = convert(source, file, recipe="int4")
            drawn = blueprint(source, recipe="int4")
            assert file.read_bytes()[: len(drawn.header)] == drawn.header
            made = [Path(output).read_bytes() for output in report.outputs]
            assert len(made[0]) == drawn.nbytes
            assert len(made) == 1 + (report.projector is not None)
            files.append(made)
        assert files[0] == files[1]
        assert {one.name for one in inspect_checkpoint(self.other).tensors}
        return report.notes


MakeForms = Callable[[Geometry], Forms]


@pytest.fixture
def forms(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> MakeForms:
    return lambda geometry: Forms(make_checkpoint(geometry), tmp_path)


def inserted(part: str, before: str) -> Renaming:
    return lambda name: name.replace(before, f"{part}.{before}", 1)


WRAPPED: dict[str, Renaming] = {
    "_orig_mod": lambda name: f"_orig_mod.{name}",
    "base_model": lambda name: f"base_model.model.{name}",
    "module": lambda name: f"module.{name}",
    "_fsdp_wrapped_module": inserted("_fsdp_wrapped_module", "self_attn."),
    "_checkpoint_wrapped_module": inserted("_checkpoint_wrapped_module", "feed_forward."),
    "base_layer": lambda name: name.replace("_proj.weight", "_proj.base_layer.weight"),
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


def experts_apart(
    tensors: Tensors, name_of: Callable[[int, str], str]
) -> Iterator[tuple[str, Stored]]:
    """Each expert's matrices [out, in] as tensors of their own; `name_of` names one."""
    for name, stored in tensors.items():
        before, found, kind = name.partition(".experts.")
        if not found:
            yield name, stored
            continue
        for expert, matrix in enumerate(stored.words):
            turned = matrix.T
            half = len(turned) // 2
            parts = (
                {"gate_proj": turned[:half], "up_proj": turned[half:]}
                if kind == "gate_up_proj"
                else {"down_proj": turned}
            )
            for part, words in parts.items():
                yield f"{before}.experts.{name_of(expert, part)}.weight", bf16(words)


LINEAR_EXPERTS: dict[str, Callable[[int, str], str]] = {
    "one by one": lambda expert, part: f"{expert}.{part}",
    "Axolotl": lambda expert, part: f"{part}s.{expert}",
}


@pytest.mark.parametrize("name_of", list(LINEAR_EXPERTS.values()), ids=list(LINEAR_EXPERTS))
@pytest.mark.parametrize("geometry", [ONE_FILE, DENSE_TOO], ids=["scout", "maverick"])
def test_experts_one_by_one_are_read_in_bf16(
    forms: MakeForms, geometry: Geometry, name_of: Callable[[int, str], str]
) -> None:
    made = forms(geometry)
    made.write(dict(experts_apart(made.tensors, name_of)))
    made.notes_of_the_same_file()


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


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "language_model.model.rotary_emb.original_inv_freq",
    ],
)
def test_rope_s_buffers_are_left_out_and_noted(forms: MakeForms, name: str) -> None:
    made = forms(ONE_FILE)
    made.write({**made.tensors, name: Stored("F32", (16,), bytes(64))})
    (note,) = made.notes_of_the_same_file()
    assert note == f"{name} was left out: it follows from config.json's RoPE settings"
    assert name in convert(made.other, dry_run=True).left_out


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
    made.set_config(quantization_config=LEFT_OVER[0])
    with pytest.raises(UnsupportedError, match="quant_method 'bitsandbytes'"):
        convert(made.other, dry_run=True)
    # Nobody has seen the weights of a configuration alone.
    with pytest.raises(UnsupportedError, match="quant_method 'bitsandbytes'"):
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


def test_meta_s_names_are_told(forms: MakeForms) -> None:
    names = {"model.embed_tokens.weight": "tok_embeddings.weight"}
    assert_refused(
        forms(TEXT),
        lambda name: names.get(name, f"blocks.{name}"),
        r"names of Meta's own layout, found tok_embeddings\.weight.*meta-llama/",
    )


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
