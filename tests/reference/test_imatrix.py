"""Activation statistics are those of transformers, and, file for file, llama-imatrix's.

llama.cpp rounds what it multiplies to bf16, transformers runs in float32: a column's sum over 256
tokens differs by a few parts in a thousand for it, one over the 20 tokens of an expert by two in a
hundred. A router's weight that is left out, or an expert in another's place, changes it by tens.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Llama4ForConditionalGeneration

from benchmarks.peer import peer_environment, peer_tool
from demo.training import MODEL
from llama4_edge import Model, calibrate, convert, inspect
from llama4_edge.quant.importance import Importance, merged
from llama4_edge.quant.importance_file import importance_bytes, read_importance

# One whose router's choices are clear: where two experts tie, rounding chooses.
SEED = 3
N_CTX = 64

# Of a layer of transformers: what the inputs of its linear modules go by in a GGUF.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
    "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
    "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
}


class Sums:
    """Sums of squares, and how many rows were summed, by the names of a GGUF."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = defaultdict(float)
        self.counts: dict[str, Any] = defaultdict(int)

    def add(self, name: str, rows: torch.Tensor) -> None:
        """Rows of [n_matrices, n_rows, row_length]; those of zeros are not rows of that matrix."""
        self.sums[name] = self.sums[name] + rows.double().square().sum(1).numpy()
        self.counts[name] = self.counts[name] + (rows != 0).any(-1).sum(1).numpy()

    def of_linear(self, name: str, _module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        self.add(name, inputs[0].reshape(1, -1, inputs[0].shape[-1]))

    def of_experts(self, layer: int, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        # [n_experts * n_tokens, hidden], with the router's weight, which is 0 where not chosen.
        rows = inputs[0].reshape(module.num_experts, -1, inputs[0].shape[-1])
        self.add(f"blk.{layer}.ffn_gate_exps.weight", rows)
        self.add(f"blk.{layer}.ffn_up_exps.weight", rows)
        gate, up = torch.bmm(rows, module.gate_up_proj).chunk(2, dim=-1)
        self.add(f"blk.{layer}.ffn_down_exps.weight", up * torch.nn.functional.silu(gate))


def words(seed: int) -> str:
    every = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps")
    return " ".join(np.random.default_rng(seed).choice(every, 80).tolist())


def transformers_sums(checkpoint: Path, chunks: list[list[int]]) -> Sums:
    model = Llama4ForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    sums = Sums()
    layers = model.language_model.model.layers
    for number, layer in enumerate(layers):
        for path, name in NAMES.items():
            hook = partial(sums.of_linear, f"blk.{number}.{name}.weight")
            layer.get_submodule(path).register_forward_pre_hook(hook)
        hook = partial(sums.of_experts, number)
        layer.feed_forward.experts.register_forward_pre_hook(hook)
    with torch.inference_mode():
        for tokens in chunks:
            model.eval()(input_ids=torch.tensor([tokens]), use_cache=False)
    return sums


def test_sums_are_those_of_transformers(
    scout_checkpoint: Path, scout_bf16: Path, tmp_path: Path
) -> None:
    text = words(SEED)
    calibrate(scout_bf16, tmp_path / "i.gguf", text=text, n_ctx=N_CTX, n_threads=1)
    found = read_importance(tmp_path / "i.gguf")
    with Model(scout_bf16, n_ctx=N_CTX, n_threads=1) as model:
        tokens = model.tokenize(text, add_bos=True)
    chunks = [
        [tokens[0], *tokens[at + 1 : at + N_CTX]] for at in range(0, len(tokens) - N_CTX + 1, N_CTX)
    ]
    reference = transformers_sums(scout_checkpoint, chunks)
    assert found.tensors.keys() == reference.sums.keys()
    for name, one in found.tensors.items():
        measured = one.measured()
        assert measured.counts.tolist() == reference.counts[name].tolist(), name
        expected = reference.sums[name]
        assert measured.sums == pytest.approx(expected, rel=0.05, abs=1e-3 * expected.max()), name
        # All columns of a matrix together, where the roundings cancel.
        assert measured.sums.sum(1) == pytest.approx(expected.sum(1), rel=5e-3), name


# --- llama.cpp's own tools


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("imatrix")
    convert(MODEL, directory / "demo.gguf", recipe="bf16", vision=False)
    documents = sorted((MODEL.parents[1] / "docs").rglob("*.md"))
    text = directory / "text.txt"
    text.write_text("".join(path.read_text() for path in documents))
    return {"model": directory / "demo.gguf", "text": text, "directory": directory}


def run(tool: str, *arguments: object) -> str:
    command = [str(peer_tool(tool)), *map(str, arguments)]
    done = subprocess.run(command, env=peer_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"n_chunks": 8}, ("--chunks", 8)),
        (
            {"n_ctx": 128, "n_chunks": 20, "perplexity": False},
            ("-c", 128, "--chunks", 20, "--no-ppl"),
        ),
        ({"n_ctx": 520, "n_chunks": 3}, ("-c", 520, "--chunks", 3)),
        ({"n_ctx": 2048, "n_chunks": 2}, ("-c", 2048, "--chunks", 2)),
        ({"n_ctx": 1000, "n_chunks": 2}, ("-c", 1000, "--chunks", 2)),
        (
            {"n_chunks": 4, "first_chunk": 3, "process_output": True},
            ("--chunks", 4, "--chunk", 3, "--process-output"),
        ),
    ],
)
def test_the_file_is_that_of_llama_imatrix(
    demo: dict[str, Path], tmp_path: Path, ours: dict[str, Any], theirs: tuple[object, ...]
) -> None:
    model, text = demo["model"], demo["text"]
    peer = tmp_path / "theirs.gguf"
    arguments = ("-m", model, "-f", text, "-o", peer, "-t", 1, *theirs)
    printed = run("llama-imatrix", *arguments)
    # It may end before its log's thread has written all.
    while "--no-ppl" not in theirs and "Final estimate" not in printed:
        printed = run("llama-imatrix", *arguments)
    found = calibrate(
        model, tmp_path / "ours.gguf", text=text.read_text(), datasets=[str(text)], n_threads=1,
        **ours,
    )  # fmt: skip
    one, other = read_importance(tmp_path / "ours.gguf"), read_importance(peer)
    assert found.coverage == 1
    assert one.tensors.keys() == other.tensors.keys()
    for name, expected in other.tensors.items():
        assert one.tensors[name].counts.tolist() == expected.counts.tolist(), name
        # llama-imatrix sums in single precision.
        assert one.tensors[name].sums == pytest.approx(expected.sums, rel=1e-3, abs=1e-12), name
    assert (one.datasets, one.n_chunks, one.chunk_size) == (
        other.datasets, other.n_chunks, other.chunk_size,
    )  # fmt: skip
    assert (tmp_path / "ours.gguf").stat().st_size == peer.stat().st_size
    if found.perplexity is not None:
        number = re.search(r"PPL = ([\d.]+)", printed)
        assert number is not None
        assert found.perplexity[0] == pytest.approx(float(number[1]), rel=1e-6)


@pytest.mark.heavy
def test_files_are_written_and_merged_as_llama_imatrix_does(
    demo: dict[str, Path], tmp_path: Path
) -> None:
    model = demo["model"]
    parts = [tmp_path / "one.gguf", tmp_path / "two.gguf"]
    for number, path in enumerate(parts):
        run(
            "llama-imatrix", "-m", model, "-f", demo["text"], "-o", path, "-t", 1,
            "--chunks", 2, "--chunk", 2 * number, "--no-ppl",
        )  # fmt: skip
    both = [read_importance(path) for path in parts]
    assert importance_bytes(both[0]) == parts[0].read_bytes()
    inputs = [word for path in parts for word in ("--in-file", path)]
    peer = tmp_path / "both.gguf"
    run("llama-imatrix", "-m", model, *inputs, "-o", peer)
    assert importance_bytes(merged(both, 512)) == peer.read_bytes()
    calibrate(model, tmp_path / "ours.gguf", merge=parts)
    assert (tmp_path / "ours.gguf").read_bytes() == peer.read_bytes()
    old = tmp_path / "old.dat"
    run("llama-imatrix", "-m", model, "--in-file", parts[0], "-o", old, "--output-format", "dat")
    legacy = read_importance(old)
    for name, one in both[0].tensors.items():
        weights = legacy.weights(name, (len(one.sums), one.sums.shape[1]))
        assert weights == pytest.approx(one.weights(), rel=1e-6)


FIGURES = (
    "sum", "minimum", "maximum", "mean", "deviation", "active", "n_columns", "entropy", "evenness",
    "outliers", "similarity",
)  # fmt: skip


@pytest.mark.heavy
def test_figures_are_those_of_show_statistics(demo: dict[str, Path], tmp_path: Path) -> None:
    model, path = demo["model"], tmp_path / "i.gguf"
    calibrate(model, path, text=demo["text"].read_text(), n_chunks=2)
    summary = inspect(path).importance
    assert summary is not None
    printed = ""
    while "per layer" not in printed:  # as above
        printed = run("llama-imatrix", "-m", model, "--in-file", path, "--show-statistics")
    lines = re.findall(r"(\d+)\t(\S+) *\t(.*)", printed.partition("per layer")[0])
    every = {one.name: one for one in summary.tensors}
    assert len(lines) == len(every) == 36
    for layer, name, rest in lines:
        one = every[f"blk.{layer}.{name}.weight"]
        for figure, text in zip(FIGURES, rest.split("\t"), strict=True):
            percent = 100 if text.endswith("%") else 1
            digits = text.rstrip("%").partition(".")[2]
            found = percent * (getattr(one, figure) or 0)
            # To its last digit; llama-imatrix computes in single precision.
            assert found == pytest.approx(
                float(text.rstrip("%")), rel=1e-5, abs=0.6 * 10 ** -len(digits)
            ), (one.name, figure)


@pytest.mark.heavy
def test_llama_quantize_takes_substitutes_and_ignores_what_was_measured(
    demo: dict[str, Path], tmp_path: Path
) -> None:
    calibrate(demo["model"], tmp_path / "ours.gguf", text=demo["text"].read_text(), n_chunks=2)
    found = read_importance(tmp_path / "ours.gguf")
    name = next(name for name in found.tensors if "ffn_up_exps" in name)
    plain, starved = tmp_path / "plain.gguf", tmp_path / "starved.gguf"
    for path, change in ((plain, lambda one: one), (starved, partial(without_expert, name))):
        path.write_bytes(importance_bytes(change(found)))
    files = {}
    for path in (plain, starved):
        files[path] = tmp_path / f"{path.stem}-q4.gguf"
        printed = run("llama-quantize", "--imatrix", path, demo["model"], files[path], "q4_k_m", 1)
        assert f"loaded {len(found.tensors)} importance matrix entries" in printed
    assert files[plain].read_bytes() != files[starved].read_bytes()


def without_expert(name: str, importance: Importance) -> Importance:
    """As if the last expert had seen nothing."""
    from dataclasses import replace

    from llama4_edge.quant.starved import with_substitutes

    one = importance.tensors[name].measured()
    sums, counts = one.sums.copy(), one.counts.copy()
    sums[-1], counts[-1] = 0, 0
    changed = {**importance.tensors, name: replace(one, sums=sums, counts=counts)}
    return with_substitutes(replace(importance, tensors=changed))
