"""What types are estimated to cost: errors by hand, experts by use, shares of the stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demo.checkpoint import ODD
from llama4_edge.convert.converter import open_source
from llama4_edge.convert.job import prepare
from llama4_edge.measure.choice import request_for
from llama4_edge.measure.sensitivity import FACTORS, Measurement, kind_of, measure_tensors
from llama4_edge.quant import recipe_named
from llama4_edge.quant.encode import Floats, decode_blocks, encode_rows
from llama4_edge.quant.importance import Activations, Importance
from llama4_edge.quant.recipes import is_typed
from llama4_edge.quant.types import BF16, Q4_0, Q4_K, Q8_0, TensorType
from llama4_edge.runtime.files.gguf_file import read_gguf
from tests.fixtures import MakeCheckpoint

EXPERTS = "blk.1.ffn_gate_exps.weight"


def weights_of(path: Path, name: str) -> Floats:
    """A tensor of a bf16 GGUF, [n_matrices, rows, row_length]."""
    one = next(tensor for tensor in read_gguf(path).tensors if tensor.name == name)
    halves = np.frombuffer(path.read_bytes(), np.uint16, one.nbytes // 2, one.offset)
    floats: Floats = (halves.astype(np.uint32) << 16).view(np.float32)
    return floats.reshape(-1, one.shape[1], one.shape[0])


def error_of(rows: Floats, tensor_type: TensorType, weights: Floats) -> float:
    """The weighted square error of a matrix, as the definition says."""
    data = np.empty(tensor_type.nbytes(rows.shape), np.uint8)
    encode_rows(np.ascontiguousarray(rows), tensor_type, data, weights)
    decoded = np.empty_like(rows)
    decode_blocks(data, tensor_type, decoded)
    return float((np.square(decoded.astype(np.float64) - rows) * weights).sum())


def measured(
    checkpoint: Path, importance: Importance | None, *types: TensorType
) -> dict[str, Measurement]:
    job = prepare(
        open_source(checkpoint, revision=None, keep_source=True),
        request_for(recipe_named("bf16")),
        None,
    )
    shapes = {it.tensor.name: it.tensor.shape for it in job.assignments if is_typed(it.tensor)}
    return measure_tensors(job, shapes, types, importance, n_expert_used=1, n_layer=4, threads=1)


def statistics(path: Path, counts: dict[str, list[int]]) -> Importance:
    """Random mean squares for every matrix, of experts by how often each was chosen."""
    random = np.random.default_rng(0)
    tensors = {}
    for one in read_gguf(path).tensors:
        if len(one.shape) < 2 or one.name == "token_embd.weight":
            continue
        n_matrices = one.shape[2] if len(one.shape) > 2 else 1
        used = np.array(counts.get(one.name, [100] * n_matrices))
        means = random.random((n_matrices, one.shape[0]), np.float32) + np.float32(0.1)
        sums = (means * used[:, None]).astype(np.float32)
        tensors[one.name] = Activations(sums, used.astype(np.int64))
    return Importance(tensors)


def test_the_error_is_the_activation_weighted_one_relative_to_the_output(
    scout_checkpoint: Path, scout_bf16: Path
) -> None:
    importance = statistics(scout_bf16, {})
    found = measured(scout_checkpoint, importance, BF16, Q8_0, Q4_0)
    name = "blk.0.attn_q.weight"
    rows, weights = weights_of(scout_bf16, name)[0], importance.weights(name)
    assert weights is not None
    power = float((np.square(rows.astype(np.float64)) * weights[0]).sum())
    assert found[name].errors[BF16] == 0
    for one in (Q8_0, Q4_0):
        expected = error_of(rows, one, weights[0]) / power
        assert found[name].errors[one] == pytest.approx(expected, rel=1e-4)
    assert found[name].power == pytest.approx(power, rel=1e-4)


def test_experts_count_by_how_often_they_are_chosen(
    scout_checkpoint: Path, scout_bf16: Path
) -> None:
    experts = weights_of(scout_bf16, EXPERTS)
    uses = [300, *[0] * (len(experts) - 2), 100]
    importance = statistics(scout_bf16, {EXPERTS: uses})
    found = measured(scout_checkpoint, importance, Q4_0)[EXPERTS]
    weights = importance.weights(EXPERTS)
    assert weights is not None
    errors = [error_of(experts[it], Q4_0, weights[it]) for it in (0, -1)]
    powers = [float((np.square(experts[it]) * weights[it]).sum()) for it in (0, -1)]
    expected = (3 * errors[0] + errors[1]) / (3 * powers[0] + powers[1])
    assert found.errors[Q4_0] == pytest.approx(expected, rel=1e-4)


def test_a_share_is_the_part_of_the_stream_that_a_block_adds(
    scout_checkpoint: Path, scout_bf16: Path
) -> None:
    found = measured(scout_checkpoint, statistics(scout_bf16, {}), Q8_0)
    stream = found["token_embd.weight"].power
    for layer in range(4):
        before = f"blk.{layer}"
        stream += found[f"{before}.attn_output.weight"].power
        share = found[f"{before}.attn_output.weight"].power / stream
        for kind in ("attn_q", "attn_k", "attn_v", "attn_output"):
            assert found[f"{before}.{kind}.weight"].share == pytest.approx(share)
        downs = [name for name in found if name.startswith(f"{before}.ffn_down")]
        stream += sum(found[name].power for name in downs)
        for name in downs:
            assert found[name].share == pytest.approx(found[name].power / stream)
            assert found[name.replace("down", "up")].share == found[name].share
    for one in found.values():
        kind = kind_of(one.name)[1]
        assert one.cost(Q8_0) == pytest.approx(FACTORS[kind] * one.share * one.errors[Q8_0])


def test_without_statistics_norms_say_what_goes_in(
    scout_checkpoint: Path, scout_bf16: Path
) -> None:
    found = measured(scout_checkpoint, None, Q4_0)
    name = "blk.2.attn_k.weight"
    norm = next(it for it in read_gguf(scout_bf16).tensors if it.name == "blk.2.attn_norm.weight")
    squares = np.square(
        np.frombuffer(scout_bf16.read_bytes(), np.float32, norm.nbytes // 4, norm.offset)
    )
    rows = weights_of(scout_bf16, name)[0]
    assert found[name].power == pytest.approx(float((np.square(rows) @ squares).sum()), rel=1e-4)
    assert all(one.power > 0 and 0 < one.share <= 1 for one in found.values())


def test_only_types_whose_blocks_fill_rows_are_tried(make_checkpoint: MakeCheckpoint) -> None:
    found = measured(make_checkpoint(ODD), None, Q4_0, Q4_K)
    for one in found.values():
        assert (Q4_K in one.errors) == (one.shape[-1] % 256 == 0)
        assert Q4_0 in one.errors
    assert any(Q4_K not in one.errors for one in found.values())


def test_the_same_file_gives_the_same_figures(scout_checkpoint: Path) -> None:
    assert measured(scout_checkpoint, None, Q4_0) == measured(scout_checkpoint, None, Q4_0)
