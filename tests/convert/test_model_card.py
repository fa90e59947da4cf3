"""The model card and the sampling defaults: as llama.cpp's converter reads sound ones."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest

from llama4_edge.convert.checkpoint import open_checkpoint
from llama4_edge.convert.config import parse_config
from llama4_edge.convert.gguf_writer import GGUFWriter
from llama4_edge.convert.metadata import origin_of
from llama4_edge.convert.model_card import read_card, read_sampling
from llama4_edge.errors import CheckpointError

from .conftest import edit_json

SOUND = [
    "license: other\nlicense_name: llama4\nlicense_link: https://x.y/LICENSE\n",
    "license: [mit, apache-2.0]\ntags: [a, b]\npipeline_tag: text-generation\n",
    "language:\n- en\n- no\n- de\nlibrary_name: transformers\n",
    "languages: en\ntags: facebook\n",
    "base_model: meta-llama/Llama-4-Scout-17B-16E-Instruct\n",
    "base_model:\n- meta-llama/Llama-4-Scout-17B-16E\n- https://huggingface.co/a/B-7B-v2\n",
    "base_models: https://example.com/x\n",
    "datasets:\n- HuggingFaceH4/ultrachat_200k\n- name: mine\n  url: https://x.y\n",
    "name: A Name\nmodel_author: Ann\nmodel_creator: Bob\nversion: v2\nmodel_type: llama4\n",
    "description: >-\n  Two lines\n  of text\nurl: https://x.y\ndoi: 10.1/2\nquantized_by: x\n",
    "model-index:\n- name: x\n  results:\n  - {task: {type: t}, metrics: [{value: 0.5}]}\n",
    "tags:\n\t- tabbed\nextra_gated_fields:\n  Date: date_picker\n  Yes: no\n",
    "",
    "just text\n",
]
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "do_sample": True, "eos_token_id": [5]},
    {"temperature": 1, "min_p": None, "penalty_repeat": 1.1, "mirostat": 2, "mirostat_tau": 5.0},
]


def written(origin: gguf.Metadata) -> dict[str, Any]:
    """What a GGUF would say of a model."""
    writer = GGUFWriter()
    origin.set_gguf_meta_model(writer)
    return {key: value.value for key, value in writer.kv_data[0].items()}


def origin(checkpoint: Path) -> gguf.Metadata:
    opened = open_checkpoint(checkpoint)
    return origin_of(opened, parse_config(opened.config), [])


@pytest.mark.parametrize("named", [None, "meta-llama/Llama-4-Scout-17B-16E-Instruct", "/a/b/c"])
@pytest.mark.parametrize("card", SOUND)
@pytest.mark.parametrize("sampling", SAMPLING)
def test_a_sound_card_is_read_as_llama_cpps_converter_reads_it(
    checkpoint: Path, card: str, sampling: dict[str, Any], named: str | None
) -> None:
    checkpoint = checkpoint.rename(checkpoint.with_name("My-Model-8B-Instruct-v2"))
    (checkpoint / "README.md").write_text(f"---\n{card}---\n# Title\n", encoding="utf-8")
    edit_json(checkpoint / "generation_config.json", lambda it: it.update(sampling))
    edit_json(checkpoint / "config.json", lambda it: it.update(_name_or_path=named))
    expected = written(gguf.Metadata.load(model_path=checkpoint))
    found = written(origin(checkpoint))
    # Ours says more of the repository that a checkpoint is from, and counts its parameters.
    ours = {"general.name", "general.organization", "general.source.url", "general.size_label"}
    assert {key: value for key, value in found.items() if key not in ours} == {
        key: value for key, value in expected.items() if key not in ours
    }
    if named is None:
        assert found["general.name"] == expected["general.name"]


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("license: 5", {"license": ["5"]}),
        ("tags: [2020-01-01, 1.50, yes, null]", {"tags": ["2020-01-01", "1.50", "yes"]}),
        ("version: 1.0\nname: ~\nauthor:", {"version": "1.0"}),
        ("name: 'null'\nlanguage: no", {"name": "null", "language": ["no"]}),
        ("? [a, b]\n: c\nname: x", {"name": "x"}),
        ("- a\n- b", {}),
        ("5", {}),
        ("name: a\nname: b", {"name": "b"}),
        ("base_model: {name: x, license: y, url: 5}", {"base_model": [{"name": "x", "url": "5"}]}),
        ("library_name: {deep: [1, {2: 3}]}", {}),
    ],
)  # fmt: skip
def test_scalars_are_read_as_they_are_written(
    tmp_path: Path, yaml: str, expected: dict[str, Any]
) -> None:
    (tmp_path / "README.md").write_text(f"---\n{yaml}\n---\ntext", encoding="utf-8")
    assert read_card(tmp_path) == expected


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{after}: &{after} [*{before}, *{before}]\n" for before, after in pairwise("abcdefg")
)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("name: [a]", "found name of a list, expected name as one text"),
        ("license: {a: b}", "found license of several fields"),
        ("tags: [[a]]", "found tags of a list"),
        ("base_model: [[a]]", "found base_model of a list"),
        ("datasets: [{name: [x]}]", "found datasets: name of a list"),
        (LAUGHS, r"found the alias \*a, expected values written out"),
        ("x: &a [*a]", r"found the alias \*a"),
        ("[" * 200, "nested too deeply, expected at most 100 levels"),
        ("name: [", "found .*expected YAML"),
        ("name: 'a", "found .*expected YAML"),
        ("name: x\n--- \nname: y\n", "found 2 YAML documents, expected one"),
        ('name: "a\\0b"', "found name with a NUL character"),
        ('name: "\\ud800"', "found .*(surrogate|Unicode)"),
        ("name: \x07", "found .*expected YAML"),
        ("!!python/object/apply:os.system {: }: x: y", "found .*expected YAML"),
        (f"tags: [{'a, ' * 6000}]", "found 6000 of tags, expected at most 5000"),
        (f"base_model: [{'a/b, ' * 6000}]", "found 6000 of base_model, expected at most 5000"),
        ("x" * 2_000_000, "begins with too much YAML, found 2000001 characters"),
    ],
)
def test_a_card_that_cannot_be_read_is_one_error(tmp_path: Path, yaml: str, said: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{yaml}\n---\ntext", encoding="utf-8")
    with pytest.raises(CheckpointError, match=said) as refused:
        read_card(tmp_path)
    assert refused.value.problem.startswith(str(tmp_path / "README.md"))
    assert len(str(refused.value)) < 800


def test_a_card_that_is_no_text_is_one_error(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="is not UTF-8 text"):
        read_card(tmp_path)
    os.truncate(card, 6_000_000_000)
    with pytest.raises(CheckpointError, match=r"is too large, found 5\.6 GiB"):
        read_card(tmp_path)
    card.unlink()
    card.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read, found Is a directory"):
        read_card(tmp_path)
    card.rmdir()
    card.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is a symbolic link to a file that does not exist"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", '"x"'), ("temperature", "true"), ("temperature", "1e39"),
        ("temperature", "NaN"), ("top_k", "1.5"), ("top_k", "3000000000"), ("top_p", "[0.9]"),
        ("min_p", "{}"), ("sequence", "5"), ("mirostat", "true"), ("top_p", "1" + "0" * 90),
    ],
)  # fmt: skip
def test_sampling_defaults_of_another_type_are_refused(
    tmp_path: Path, key: str, value: str
) -> None:
    (tmp_path / "generation_config.json").write_text(f'{{"{key}": {value}}}')
    with pytest.raises(CheckpointError, match=rf"generation_config\.json has an invalid {key}"):
        read_sampling(tmp_path)


def test_a_name_that_is_not_unicode_is_written_as_far_as_it_is(checkpoint: Path) -> None:
    strange = Path(os.fsdecode(os.fsencode(checkpoint.parent) + b"/my\xffmodel"))
    checkpoint.rename(strange)
    assert written(origin(strange))["general.name"] == "My\ufffdModel"


@pytest.mark.parametrize("named", [5, ["a"], "a" * 300 + "/b", "a/" + "b" * 300, "a\0/b", "é/x"])
def test_a_name_of_another_kind_is_no_repository(checkpoint: Path, named: object) -> None:
    edit_json(checkpoint / "config.json", lambda it: it.update(_name_or_path=named))
    assert "general.source.url" not in written(origin(checkpoint))
