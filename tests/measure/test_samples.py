"""Rows that are read of a model before it is converted are those that the conversion encodes."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest

import llama4_edge
from llama4_edge.convert.converter import open_source
from llama4_edge.convert.job import Job, prepare
from llama4_edge.measure import samples
from llama4_edge.measure.choice import request_for
from llama4_edge.measure.samples import Rows, read_samples, wanted_rows
from llama4_edge.progress import Progress
from llama4_edge.quant import recipe_named
from llama4_edge.quant.encode import Floats
from llama4_edge.runtime.files.gguf_file import read_gguf


def planned(checkpoint: Path) -> Job:
    source = open_source(checkpoint, revision=None, keep_source=True)
    return prepare(source, request_for(recipe_named("bf16")), None)


def numbers(path: Path) -> dict[str, Floats]:
    """The tensors of a GGUF in F32, each [rows, row_length]."""
    data = path.read_bytes()
    return {
        one.name: np.frombuffer(data, np.float32, one.nbytes // 4, one.offset).reshape(
            -1, one.shape[0]
        )
        for one in read_gguf(path).tensors
    }


@pytest.fixture(scope="module", params=["scout_checkpoint", "maverick_checkpoint"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def matrices(job: Job) -> dict[str, tuple[int, ...]]:
    return {
        one.tensor.name: one.tensor.shape
        for one in job.assignments
        if len(one.tensor.shape) > 1 and "rope" not in one.tensor.name
    }


@pytest.mark.parametrize("few", [False, True])
def test_rows_are_those_of_the_converted_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: bool
) -> None:
    if few:
        monkeypatch.setattr(samples, "SAMPLE_NUMBERS", 64)
        monkeypatch.setattr(samples, "_ALIGNED", 2)
    llama4_edge.convert(checkpoint, tmp_path / "f32.gguf", types=[(".", "f32")], vision=False)
    expected = numbers(tmp_path / "f32.gguf")
    job = planned(checkpoint)
    shapes = matrices(job)
    taken = {name: [0, prod(shape[:-2]) - 1][: prod(shape[:-2])] for name, shape in shapes.items()}
    wanted_of = {name: wanted_rows(shape, taken[name]) for name, shape in shapes.items()}
    found: defaultdict[tuple[str, int], list[Floats]] = defaultdict(list)
    steps: list[Progress] = []

    def take(rows: Rows) -> None:
        found[rows.tensor, rows.matrix].append(rows.rows.copy())

    read_samples(job, shapes, take, matrices=taken, progress=steps.append)
    assert {name for name, _ in found} == set(shapes)
    for (name, matrix), pieces in found.items():
        rows = shapes[name][-2]
        wanted = [
            expected[name][begin:end]
            for begin, end in wanted_of[name]
            if begin // rows <= matrix < -(-end // rows)
        ]
        whole = wanted_of[name] == [(0, len(expected[name]))]
        if whole:
            wanted = [expected[name][matrix * rows : (matrix + 1) * rows]]
        np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(wanted))
    assert steps[-1].bytes_done == steps[-1].bytes_total
    read = sum(len(piece) for pieces in found.values() for piece in pieces)
    assert read == sum(end - begin for wanted in wanted_of.values() for begin, end in wanted)
    assert not few or read < sum(map(len, expected.values())) / 2


def test_rows_of_large_tensors_are_spread_over_them() -> None:
    experts = wanted_rows((16, 8192, 5120), [1, 2, 5, 15])
    assert [begin // 8192 for begin, _ in experts] == [1, 2, 5, 15]
    assert len({begin % 8192 for begin, _ in experts}) == 4
    assert sum(end - begin for begin, end in experts) * 5120 < 3 * samples.SAMPLE_NUMBERS
    matrix = wanted_rows((5120, 5120), [0])
    assert len(matrix) == 8
    assert all(end <= begin for (_, end), (begin, _) in pairwise(matrix))
    assert matrix[-1][1] <= 5120
