"""Numbers, counts and sizes beyond all that is real end in one error, before memory is taken."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llama4_edge import convert
from llama4_edge.convert.blueprint import blueprint
from llama4_edge.convert.checkpoint import INDEX_NAME, open_checkpoint
from llama4_edge.convert.config import parse_config
from llama4_edge.convert.text_model import read_text_model
from llama4_edge.convert.vision_config import parse_vision
from llama4_edge.errors import CheckpointError, UnsupportedError
from tests.hub_server import HubServer

from .conftest import (
    edit_header,
    edit_json,
    edit_text_config,
    read_header,
    shards_of,
    write_shard,
)
from .on_hub import NAME
from .test_config import SCOUT, changed

MIB = 1 << 20


@contextmanager
def memory(limit: int) -> Iterator[None]:
    """Python's objects must not take more than so many bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


SIZES = [
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "intermediate_size_mlp", "num_local_experts", "num_experts_per_tok",
    "interleave_moe_layer_step", "vocab_size", "max_position_embeddings",
]  # fmt: skip


@pytest.mark.parametrize("value", [2**32, 2**63, 2**64, 10**4000, -1, 0, 1.5, True, "8", []])
@pytest.mark.parametrize("name", SIZES)
def test_a_size_beyond_all_real_ones_is_refused_by_name(name: str, value: Any) -> None:
    with memory(MIB), pytest.raises(UnsupportedError, match=f"{name}: ") as refused:
        parse_config(changed(**{name: value}))
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize("name", SIZES[:-1])
def test_all_but_positions_end_below_two_to_the_31(name: str) -> None:
    with memory(MIB), pytest.raises(UnsupportedError, match=f"{name}: 2147483648 "):
        parse_config(changed(**{name: 2**31}))


@pytest.mark.parametrize("value", [1e39, 1e16, float("inf"), 10**400, 0, -1.0, 1e-300, True, "1"])
@pytest.mark.parametrize("name", ["rope_theta", "rms_norm_eps"])
def test_a_number_that_no_f32_holds_or_no_model_has_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"{name}: "):
        parse_config(changed(**{name: value}))


@pytest.mark.parametrize("value", [1e39, 0, -1, float("nan"), None, 10**400, "8"])
@pytest.mark.parametrize("name", ["factor", "low_freq_factor", "high_freq_factor"])
def test_a_scaling_beyond_all_real_ones_is_refused(name: str, value: Any) -> None:
    scaling = {**SCOUT["rope_scaling"], name: value}
    with pytest.raises(UnsupportedError, match=f"rope {name}: "):
        parse_config(changed(rope_scaling=scaling))


def test_sizes_that_are_possible_each_are_not_together() -> None:
    large = changed(hidden_size=1 << 21, intermediate_size=1 << 21, num_local_experts=16)
    with pytest.raises(UnsupportedError, match="sizes, multiplied: "):
        parse_config(large)


def test_behemoth_a_hundred_million_positions_and_a_million_tokens_are_possible() -> None:
    for changes in (
        {"hidden_size": 18_432, "intermediate_size": 28_672, "intermediate_size_mlp": 57_344},
        {"max_position_embeddings": 10**9},
        {"vocab_size": 1 << 20},
        {"rope_theta": 1e12},
    ):
        assert parse_config(changed(**changes)).notes == ()


WRONG_TYPES: list[tuple[str, Any]] = [
    ("rope_scaling", 5),
    ("rope_parameters", "llama3"),
    ("tie_word_embeddings", "false"),
    ("tie_word_embeddings", 1),
    ("use_qk_norm", "yes"),
    ("attn_temperature_tuning", "on"),
    ("attention_bias", 1.5),
    ("hidden_act", ["silu"]),
    ("no_rope_layers", {"0": 1}),
    ("no_rope_layers", [10**4000] * 48),
    ("layer_types", "full_attention"),
    ("moe_layers", 3),
    ("floor_scale", "8192"),
    ("attn_scale", None),
]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES[:-1])
def test_a_value_of_another_type_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"{name}: ") as refused:
        parse_config(changed(**{name: value}))
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("model_type", [5, [], {}, "x" * 10**6, None, True])
def test_a_model_type_that_is_none_is_refused(model_type: Any) -> None:
    with pytest.raises(UnsupportedError, match="not of a Llama 4 model") as refused:
        parse_config({**SCOUT, "model_type": model_type, "architectures": [model_type] * 1000})
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "name",
    [
        "num_hidden_layers", "hidden_size", "intermediate_size", "image_size", "patch_size",
        "num_channels", "projector_input_dim", "projector_output_dim", "vision_output_dim",
    ],
)  # fmt: skip
def test_a_vision_tower_beyond_all_real_ones_is_refused(name: str) -> None:
    for value in (2**31, 10**4000, 0, "1", True):
        with memory(MIB), pytest.raises(UnsupportedError, match=f"{name}: "):
            parse_vision({"vision_config": {name: value}})
    with pytest.raises(UnsupportedError, match=r"vision_config.* damaged"):
        parse_vision({"vision_config": [name]})


def test_unknown_fields_are_noted_up_to_ten() -> None:
    notes = parse_config(changed(**{f"x{n:05d}" + "y" * 1000: n for n in range(10_000)})).notes
    assert len(notes) == 11
    assert notes[-1] == "config.json: 9990 more fields were ignored"
    assert max(map(len, notes)) < 200


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 2**31}, {"head_dim": 2**31}])
def test_a_directory_and_a_config_alone_are_refused_alike(
    checkpoint: Path, changes: dict[str, Any]
) -> None:
    edit_text_config(checkpoint, **changes)
    for source in (checkpoint, checkpoint / "config.json"):
        with memory(8 * MIB), pytest.raises(UnsupportedError, match=f"{next(iter(changes))}: "):
            blueprint(source)


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
def test_a_file_with_a_hole_of_six_gigabytes_is_not_read(checkpoint: Path, name: str) -> None:
    with (checkpoint / name).open("r+b") as file:
        file.truncate(6_000_000_000)
    with memory(MIB), pytest.raises(CheckpointError, match=rf"{name} is too large, found 5\.6 GiB"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("length", [100_000_001, 70_000_000, 6_000_000_000, 2**64 - 1])
def test_a_header_of_any_length_is_not_read(checkpoint: Path, length: int) -> None:
    shard = shards_of(checkpoint)[0]
    with shard.open("r+b") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(6_500_000_000)
    with (
        memory(MIB),
        pytest.raises(CheckpointError, match=r"header that is too|is truncated"),
    ):
        open_checkpoint(checkpoint)


def test_a_header_of_zeros_is_refused(checkpoint: Path) -> None:
    shard = shards_of(checkpoint)[0]
    with shard.open("r+b") as file:
        file.write((32 << 20).to_bytes(8, "little") + bytes(64))
        file.truncate(1 << 30)
    with memory(80 * MIB), pytest.raises(CheckpointError, match="has a damaged header"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("text", ['{"a":[' + "[]," * 300_000 + "[]]}", '{"a":' + "{" * 900_000])
def test_a_header_of_brackets_is_not_parsed(checkpoint: Path, text: str) -> None:
    write_shard(shards_of(checkpoint)[0], text.encode(), b"")
    with memory(8 * MIB), pytest.raises(CheckpointError, match="has a damaged header"):
        open_checkpoint(checkpoint)


def test_two_hundred_thousand_names_with_one_twice_are_refused(checkpoint: Path) -> None:
    entry = '{"dtype":"I8","shape":[0],"data_offsets":[0,0]}'
    names = [f"t{number}" for number in range(200_000)]
    text = ",".join(f'"{name}":{entry}' for name in (*names, "t123456"))
    write_shard(shards_of(checkpoint)[0], f"{{{text}}}".encode(), b"")
    with pytest.raises(CheckpointError, match="lists t123456 twice"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [10**300] * 3000},
        {"shape": [1] * 9},
        {"shape": [2**63]},
        {"data_offsets": [0, 2**63]},
        {"data_offsets": [0] * 100_000},
        {"shape": [1.0]},
        {"shape": "1"},
        {"dtype": ["BF16"]},
    ],
)
def test_an_entry_beyond_all_real_ones_is_malformed(
    checkpoint: Path, changes: dict[str, Any]
) -> None:
    edit_header(
        shards_of(checkpoint)[0], lambda header: next(iter(header.values())).update(changes)
    )
    with pytest.raises(CheckpointError, match="has a malformed entry for ") as refused:
        open_checkpoint(checkpoint)
    assert len(str(refused.value)) < 1000


def test_a_shape_whose_product_is_beyond_all_files_has_a_wrong_extent(checkpoint: Path) -> None:
    edit_header(
        shards_of(checkpoint)[0],
        lambda header: next(iter(header.values())).update(shape=[2**63 - 1] * 8),
    )
    with pytest.raises(CheckpointError, match="gives a wrong extent"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["", "x" * 2000, "x" * 10**6])
def test_a_name_as_long_as_none_is_refused_and_not_shown(checkpoint: Path, name: str) -> None:
    edit_header(shards_of(checkpoint)[0], lambda header: header.update({name: header.popitem()[1]}))
    with pytest.raises(CheckpointError, match="invalid name") as refused:
        open_checkpoint(checkpoint)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("digits", ["9" * 5000, "-" + "9" * 4200, ",".join(["9" * 4200] * 3000)])
@pytest.mark.parametrize("where", ["config.json", INDEX_NAME, "shard"])
def test_integers_of_thousands_of_digits_are_one_error(
    checkpoint: Path, where: str, digits: str
) -> None:
    text = f'{{"shape": [{digits}]}}'
    if where == "shard":
        write_shard(shards_of(checkpoint)[0], text.encode(), b"")
    else:
        (checkpoint / where).write_text(text)
    with pytest.raises(CheckpointError, match="is not JSON"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "shard",
    ["a\0b", "x" * 300, "é" * 200, "../x", "a/b", "", ".", None, 5, ["x"], {}],
)
def test_an_index_names_files_of_its_directory_only(checkpoint: Path, shard: Any) -> None:
    edit_json(checkpoint / INDEX_NAME, lambda index: index["weight_map"].update(x=shard))
    with pytest.raises(CheckpointError, match="names an invalid file for x"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x", 5, [["a", "b"]]])
def test_an_index_whose_map_is_none_is_refused(checkpoint: Path, weight_map: Any) -> None:
    edit_json(checkpoint / INDEX_NAME, lambda index: index.update(weight_map=weight_map))
    with pytest.raises(CheckpointError, match="has no weight_map"):
        open_checkpoint(checkpoint)


def test_experts_one_by_one_of_the_largest_model_are_not_all_named(checkpoint: Path) -> None:
    """A million and a half tensors, of which one is there."""
    edit_text_config(
        checkpoint,
        num_hidden_layers=512,
        num_local_experts=1024,
        no_rope_layers=None,
        moe_layers=None,
    )
    shard = shards_of(checkpoint)[0]
    header, data = read_header(shard)
    name = next(name for name in header if ".experts." in name)
    stem = name.partition(".experts.")[0]
    renamed = f"{stem}.experts.0.gate_proj.weight"
    edit_header(shard, lambda header: header.update({renamed: header.pop(name)}))
    (checkpoint / INDEX_NAME).unlink()
    with memory(16 * MIB), pytest.raises(CheckpointError, match=r"is missing.*expected 1\d{6}"):
        read_text_model(open_checkpoint(checkpoint))
    assert len(data) > 0


def test_what_a_hub_s_config_says_is_bounded_alike(hub: HubServer, checkpoint: Path) -> None:
    edit_text_config(checkpoint, vocab_size=2**31)
    hub.add(NAME, checkpoint)
    for reads in (blueprint, convert):
        with pytest.raises(UnsupportedError, match="vocab_size: 2147483648"):
            reads(NAME)
    # Nothing but the configuration was fetched.
    assert hub.sent(r"\.safetensors|tokenizer") == 0
