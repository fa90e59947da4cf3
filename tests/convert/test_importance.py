"""`imatrix` of a conversion: what it takes, what it refuses, and what is said of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from demo.checkpoint import SCOUT_LIKE
from llama4_edge import convert, diff
from llama4_edge.convert import output, slabs
from llama4_edge.convert.importance import takes_weights
from llama4_edge.errors import ModelFileError, OutputError, RecipeError, SettingError
from llama4_edge.quant.encode import encode_rows
from llama4_edge.quant.importance import Activations, Importance, Starved
from llama4_edge.quant.importance_file import importance_bytes
from llama4_edge.quant.types import TYPES, TensorType
from llama4_edge.runtime.files.gguf_file import read_gguf
from llama4_edge.terminal.tables import report_view
from tests.adapters import halves, write_peft
from tests.fixtures import MakeCheckpoint
from tests.hub_server import HubServer

from .conftest import SMALL, SMALL_WITH_TOWER
from .on_hub import NAME, SHARDS
from .test_resume import stop_at

Shapes = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(SMALL)


@pytest.fixture(scope="module")
def shapes(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    """Matrices and columns of every tensor of the layers that has a matrix."""
    path = tmp_path_factory.mktemp("bf16") / "bf16.gguf"
    convert(checkpoint, path, recipe="bf16", vision=False)
    return {
        tensor.name: (1 if len(tensor.shape) == 2 else tensor.shape[2], tensor.shape[0])
        for tensor in read_gguf(path).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1
    }


def random_importance_of(shapes: Shapes, seed: int = 1) -> Importance:
    rng = np.random.default_rng(seed)
    return Importance(
        {
            name: Activations(
                rng.lognormal(0, 2, shape).astype(np.float32), np.full(shape[0], 16, np.int64)
            )
            for name, shape in shapes.items()
        }
    )


def write(path: Path, shapes: Shapes, seed: int = 1, **about: Any) -> Path:
    path.write_bytes(importance_bytes(replace(random_importance_of(shapes, seed), **about)))
    return path


@pytest.mark.parametrize(
    "tensor_type",
    [one for one in TYPES.values() if not one.needs_importance],
    ids=lambda it: it.name,
)
def test_the_types_that_take_weights_are_those_whose_bytes_change(tensor_type: TensorType) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((8, 256)).astype(np.float32)
    weights = rng.lognormal(0, 2, 256).astype(np.float32)
    plain, weighed = (np.empty(8 * tensor_type.row_bytes(256), np.uint8) for _ in range(2))
    encode_rows(rows, tensor_type, plain)
    encode_rows(rows, tensor_type, weighed, weights)
    assert (plain.tobytes() != weighed.tobytes()) == takes_weights(tensor_type)


def test_the_report_says_what_was_weighed_and_what_had_no_weights(
    make_checkpoint: MakeCheckpoint, shapes: Shapes, tmp_path: Path
) -> None:
    tower = make_checkpoint(SMALL_WITH_TOWER)
    some = {name: shape for name, shape in shapes.items() if name != "blk.1.attn_k.weight"}
    matrix = write(tmp_path / "imatrix.gguf", some, datasets=("a.txt", "b.txt"), n_chunks=3)
    report = convert(tower, tmp_path / "out.gguf", recipe="q4_0", imatrix=matrix)
    assert report.importance is not None
    assert report.as_dict()["importance"] == {
        "file": str(matrix),
        "entries": len(some),
        "weighed": sum("gate_inp" not in name for name in some),
        "without": ["token_embd.weight", "blk.1.attn_k.weight"],
        "unseen": {},
        "substituted": {},
    }
    metadata = read_gguf(report.output).metadata
    assert {key: value for key, value in metadata.items() if "imatrix" in key} == {
        "quantize.imatrix.file": str(matrix)[:127],
        "quantize.imatrix.dataset": "a.txt",
        "quantize.imatrix.entries_count": len(some),
        "quantize.imatrix.chunks_count": 3,
    }
    assert report.projector is not None
    plain = convert(tower, tmp_path / "plain.gguf", text=False)
    assert Path(report.projector).read_bytes() == Path(plain.output).read_bytes()


def test_a_recipe_whose_types_take_no_weights_is_not_changed(
    checkpoint: Path, shapes: Shapes, tmp_path: Path
) -> None:
    matrix = write(tmp_path / "imatrix.gguf", shapes)
    report = convert(checkpoint, tmp_path / "out.gguf", recipe="int8", imatrix=matrix, vision=False)
    assert report.importance is not None
    assert (report.importance.weighed, report.importance.without) == (0, ())


def test_from_a_gguf_the_file_is_that_of_the_checkpoint(
    checkpoint: Path, shapes: Shapes, tmp_path: Path
) -> None:
    matrix = write(tmp_path / "imatrix.gguf", shapes)
    bf16 = convert(checkpoint, tmp_path / "bf16.gguf", recipe="bf16", vision=False).output
    ours = convert(bf16, tmp_path / "ours.gguf", recipe="q4_k_m", imatrix=matrix)
    theirs = convert(
        checkpoint, tmp_path / "theirs.gguf", recipe="q4_k_m", imatrix=matrix, vision=False
    )
    assert Path(ours.output).read_bytes() == Path(theirs.output).read_bytes()
    assert ours.importance == theirs.importance
    again = convert(ours.output, tmp_path / "again.gguf", recipe="q4_k_m", requantize=True)
    assert not any("imatrix" in key for key in read_gguf(again.output).metadata)
    kept = convert(ours.output, tmp_path / "kept.gguf", recipe="keep")
    assert "quantize.imatrix.file" in read_gguf(kept.output).metadata


def test_from_the_hub_every_tensor_is_that_of_the_directory(
    published: HubServer, make_checkpoint: MakeCheckpoint, shapes: Shapes, tmp_path: Path
) -> None:
    matrix = write(tmp_path / "imatrix.gguf", shapes)
    local = make_checkpoint(replace(SMALL, shards=SHARDS))
    ours = convert(NAME, tmp_path / "ours.gguf", recipe="q4_0", imatrix=matrix)
    theirs = convert(local, tmp_path / "theirs.gguf", recipe="q4_0", imatrix=matrix)
    assert diff(ours.output, theirs.output).tensors == ()
    assert ours.importance == theirs.importance


def test_slabs_of_any_size_have_the_weights_of_their_experts(
    checkpoint: Path, shapes: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = write(tmp_path / "imatrix.gguf", shapes)
    files = [tmp_path / f"{number}.gguf" for number in range(4)]
    bf16 = convert(checkpoint, tmp_path / "bf16.gguf", recipe="bf16", vision=False).output
    settings = {"recipe": "q4_0", "imatrix": matrix, "vision": False}
    convert(checkpoint, files[0], **settings)  # type: ignore[arg-type]
    convert(bf16, files[1], **settings)  # type: ignore[arg-type]
    monkeypatch.setattr(slabs, "SLAB_BYTES", 5_000)
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", 5_000)
    convert(checkpoint, files[2], **settings)  # type: ignore[arg-type]
    convert(bf16, files[3], **settings)  # type: ignore[arg-type]
    assert len({file.read_bytes() for file in files}) == 1


def test_merged_weights_are_weighed_with_the_same_matrix(
    checkpoint: Path, shapes: Shapes, tmp_path: Path
) -> None:
    matrix = write(tmp_path / "imatrix.gguf", shapes)
    length = shapes["blk.0.attn_q.weight"][1]
    adapter = write_peft(
        tmp_path / "adapter", halves("model.layers.0.self_attn.q_proj", length, length)
    )
    merged = convert(
        checkpoint, tmp_path / "f32.gguf", recipe="f16", types=[("attn_q", "f32")],
        merge_lora=[adapter], vision=False,
    )  # fmt: skip
    expected = convert(merged.output, tmp_path / "expected.gguf", recipe="q4_0", imatrix=matrix)
    report = convert(
        checkpoint, tmp_path / "out.gguf", recipe="q4_0", imatrix=matrix, merge_lora=[adapter],
        vision=False,
    )  # fmt: skip
    ours, theirs = (
        {tensor.name: tensor for tensor in read_gguf(path).tensors}
        for path in (report.output, expected.output)
    )
    name = "blk.0.attn_q.weight"

    def data(path: str, offset: int, nbytes: int) -> bytes:
        return Path(path).read_bytes()[offset : offset + nbytes]

    one, other = ours[name], theirs[name]
    assert data(report.output, one.offset, one.nbytes) == data(
        expected.output, other.offset, other.nbytes
    )
    assert report.importance == expected.importance


def test_merging_into_a_type_that_needs_a_matrix_needs_it_again(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(replace(SMALL, hidden=256, heads=4, head_dim=64))
    name = "blk.0.attn_q.weight"
    every = {f"blk.{layer}.attn_q.weight": (1, 256) for layer in range(SMALL.layers)}
    matrix = write(tmp_path / "imatrix.gguf", every)
    few, target = tmp_path / "few.gguf", tmp_path / "out.gguf"
    convert(checkpoint, few, recipe="bf16", types=[(name, "iq2_xxs")], imatrix=matrix, vision=False)
    adapter = write_peft(tmp_path / "a", halves("model.layers.0.self_attn.q_proj", 256, 256))
    settings: dict[str, Any] = {"recipe": "keep", "requantize": True, "merge_lora": [adapter]}
    with pytest.raises(RecipeError, match="iq2_xxs needs an importance matrix"):
        convert(few, target, **settings)
    assert not target.exists()
    convert(few, target, **settings, imatrix=matrix)
    changed = [tensor.name for tensor in diff(few, target).tensors]
    assert changed == [name]


def test_another_matrix_is_noticed_by_a_conversion_that_goes_on(
    checkpoint: Path, shapes: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs, "SLAB_BYTES", 40_000)
    monkeypatch.setattr(slabs, "ROW_SLAB_BYTES", 40_000)
    monkeypatch.setattr(output, "COMMIT_SECONDS", 0.0)
    matrix, target = write(tmp_path / "imatrix.gguf", shapes), tmp_path / "out.gguf"
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, target, imatrix=matrix, progress=stop_at(0.5))
    write(matrix, shapes, seed=2)
    with pytest.raises(OutputError, match="changed since: importance matrix"):
        convert(checkpoint, target, imatrix=matrix)
    write(matrix, shapes)
    report = convert(checkpoint, target, imatrix=matrix)
    assert 0 < report.resumed_at < 1
    whole = convert(checkpoint, tmp_path / "whole.gguf", imatrix=matrix, vision=False)
    assert target.read_bytes() == Path(whole.output).read_bytes()


@pytest.mark.parametrize("recipe", ["iq3_xxs", "q2_k_s"])
def test_a_recipe_that_needs_a_matrix_is_refused_without_one(
    recipe: str, checkpoint: Path, shapes: Shapes, tmp_path: Path
) -> None:
    bf16 = convert(checkpoint, tmp_path / "bf16.gguf", recipe="bf16", vision=False).output
    for source in (checkpoint, bf16):
        with pytest.raises(RecipeError, match=f"recipe {recipe} needs an importance matrix"):
            convert(source, tmp_path / "out.gguf", recipe=recipe)
        matrix = write(tmp_path / "imatrix.gguf", shapes)
        report = convert(source, tmp_path / "o.gguf", recipe=recipe, imatrix=matrix, force=True)
        assert report.importance is not None


def deeper(shapes: Shapes) -> Shapes:
    return {**shapes, "blk.9.attn_q.weight": shapes["blk.0.attn_q.weight"]}


def shallower(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith("blk.1.")}


def wider(shapes: Shapes) -> Shapes:
    return {name: (count, 2 * length) for name, (count, length) in shapes.items()}


def with_more_experts(shapes: Shapes) -> Shapes:
    return {
        name: (2 * count if "exps" in name else count, length)
        for name, (count, length) in shapes.items()
    }


def of_another_kind(shapes: Shapes) -> Shapes:
    return {**shapes, "blk.0.ssm_in.weight": (1, 64)}


def of_no_layers(shapes: Shapes) -> Shapes:
    return {"enc.weight": (1, 64)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (deeper, "is of another model, found 5 layers, expected 4"),
        (shallower, "is of another model, found 3 layers, expected 4"),
        (wider, r"is of another model, found 1 matrices of 128 columns of .* expected 1 matrices"),
        (with_more_experts, "is of another model, found .* matrices of 64 columns of blk.0.ffn_"),
        (of_another_kind, "is of another model, found blk.0.ssm_in.weight, expected"),
        (of_no_layers, "is of another model, found enc.weight, expected the names of"),
    ],
)
def test_a_matrix_of_another_model_is_refused_by_what_differs(
    changed: Callable[[Shapes], Shapes],
    message: str,
    checkpoint: Path,
    shapes: Shapes,
    tmp_path: Path,
) -> None:
    matrix = write(tmp_path / "imatrix.gguf", changed(shapes))
    with pytest.raises(ModelFileError, match=message):
        convert(checkpoint, tmp_path / "out.gguf", imatrix=matrix)
    assert [path.name for path in tmp_path.iterdir()] == ["imatrix.gguf"]


def test_an_embedding_of_another_size_has_no_weights(
    checkpoint: Path, shapes: Shapes, tmp_path: Path
) -> None:
    matrix = write(tmp_path / "imatrix.gguf", {**shapes, "token_embd.weight": (1, 32)})
    report = convert(checkpoint, tmp_path / "out.gguf", recipe="q4_0", imatrix=matrix, vision=False)
    assert report.importance is not None
    assert report.importance.without == ("token_embd.weight",)


def test_it_is_of_the_text_model_alone_and_is_not_overwritten(
    checkpoint: Path, shapes: Shapes, tmp_path: Path
) -> None:
    matrix = write(tmp_path / "imatrix.gguf", shapes)
    with pytest.raises(SettingError, match="imatrix is of no effect, found text=False"):
        convert(checkpoint, tmp_path / "out.gguf", imatrix=matrix, text=False)
    before = matrix.read_bytes()
    with pytest.raises(OutputError, match=r"imatrix\.gguf is a file that is read"):
        convert(checkpoint, matrix, imatrix=matrix, force=True, vision=False)
    assert matrix.read_bytes() == before


def test_experts_that_saw_no_tokens_or_few_are_named(
    checkpoint: Path, shapes: Shapes, tmp_path: Path
) -> None:
    tensors = dict(random_importance_of(shapes).tensors)
    few, none = "blk.0.ffn_up_exps.weight", "blk.2.ffn_down_exps.weight"
    counts = tensors[none].counts.copy()
    counts[[0, 3]] = 0
    tensors[none] = replace(tensors[none], counts=counts)
    measured = Starved((1,), tensors[few].sums[1:2], np.array([2], np.int64))
    tensors[few] = replace(tensors[few], starved=measured)
    matrix = tmp_path / "imatrix.gguf"
    matrix.write_bytes(importance_bytes(Importance(tensors)))
    report = convert(checkpoint, tmp_path / "out.gguf", recipe="q4_0", imatrix=matrix)
    assert report.importance is not None
    assert report.importance.unseen == {none: (0, 3)}
    assert report.importance.substituted == {few: (1,)}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report_view(report))
    text = " ".join(console.export_text().split())
    assert f"no tokens 2 experts, weighed with all columns alike: {none} 0 3 " in text
    assert f"few tokens 1 experts, weighed with the file's substitutes: {few} 1 " in text


def test_a_tied_model_may_have_a_matrix_with_an_output(
    make_checkpoint: MakeCheckpoint, shapes: Shapes, tmp_path: Path
) -> None:
    tied = make_checkpoint(replace(SMALL, tied=True))
    matrix = write(tmp_path / "imatrix.gguf", {**shapes, "output.weight": (1, 64)})
    report = convert(
        tied, tmp_path / "out.gguf", recipe="q4_0", types=[("token_embd", "q4_0")], imatrix=matrix
    )
    assert report.importance is not None
    assert report.importance.without == ("token_embd.weight",)


def test_types_that_need_weights_are_refused_without_them_before_anything_is_written(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    wide = make_checkpoint(replace(SCOUT_LIKE, experts=2, shards=1, vision=None))
    out = tmp_path / "out.gguf"
    bf16 = convert(wide, tmp_path / "bf16.gguf", recipe="bf16", vision=False).output
    shapes = {f"blk.{layer}.ffn_down_exps.weight": (2, 256) for layer in range(SCOUT_LIKE.layers)}
    matrix = write(tmp_path / "imatrix.gguf", shapes)
    first = r"iq2_xxs needs an importance matrix, found none for blk\.0\.ffn_(\w+)_exps\.weight"
    for source in (wide, bf16):
        for types, given, more in (
            ([("down_exps", "iq2_xxs")], None, SCOUT_LIKE.layers - 1),
            ([("exps", "iq2_xxs")], matrix, 2 * SCOUT_LIKE.layers - 1),
        ):
            with pytest.raises(RecipeError, match=rf"{first} and {more} more, expected"):
                convert(source, out, types=types, imatrix=given, vision=False)
            assert not out.exists() and not list(tmp_path.glob("out*"))
    report = convert(wide, out, types=[("down_exps", "iq3_xxs")], imatrix=matrix, vision=False)
    chosen = {tensor.name: tensor.type for tensor in read_gguf(report.output).tensors}
    assert chosen["blk.0.ffn_down_exps.weight"] == "IQ3_XXS"
    # What is in the file already needs no matrix to stay.
    kept = convert(out, tmp_path / "kept.gguf", types=[("down_exps", "iq3_xxs")])
    assert {tensor.name: tensor.type for tensor in read_gguf(kept.output).tensors} == chosen
