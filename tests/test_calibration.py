"""`llama4_edge.calibrate`: what is summed, kept, merged and refused."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from PIL import Image

from demo.training import MODEL
from llama4_edge import (
    CalibrationProgress,
    Model,
    calibrate,
    read_conversations,
)
from llama4_edge.errors import (
    DamagedTensorError,
    EngineError,
    ModelFileError,
    OutputError,
    SettingError,
)
from llama4_edge.measure import interrupted
from llama4_edge.quant.encode import decode_blocks, encode_rows
from llama4_edge.quant.importance import Importance
from llama4_edge.quant.importance_file import importance_bytes, read_importance
from llama4_edge.quant.types import TYPES
from llama4_edge.runtime.activations import ActivationSums
from llama4_edge.system.files import write_atomically
from tests.fixtures import MakeGGUF, MakeProjector
from tests.gguf_maker import EXPERTS, N_VOCAB
from tests.tiny_model import with_chat_tokens

BEGIN = N_VOCAB - 4
TEXT = "The quick brown fox jumps over the lazy dog, again and again. " * 64
CHUNK = 512
SHORT = 64  # of which 32 are read at a time


def calibrated(model: Path, output: Path, **settings: Any) -> Importance:
    settings = {"text": TEXT, "n_ctx": CHUNK, "n_threads": 1, **settings}
    calibrate(model, output, **settings)
    return read_importance(output)


def chunks_of(model: Model, n_ctx: int) -> list[list[int]]:
    """What is read of the text."""
    bos: list[int] = [BEGIN] if model.vocabulary.add_bos else []
    tokens = model.tokenize(TEXT, add_bos=bool(bos))
    starts = range(0, len(tokens) - n_ctx + 1, n_ctx)
    return [[*bos, *tokens[at + len(bos) : at + n_ctx]] for at in starts]


def normed(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What blk.0.attn_q is multiplied with, for rows of embeddings."""
    mean = np.square(rows.astype(np.float64)).mean(-1, keepdims=True)
    return np.asarray(rows / np.sqrt(mean + 1e-5) * weight)


@pytest.mark.parametrize("n_ctx", [SHORT, CHUNK])
def test_inputs_of_the_first_layer_are_those_of_numpy(tmp_path: Path, n_ctx: int) -> None:
    tiny = with_chat_tokens()
    tiny.tensors["blk.0.attn_norm.weight"] = np.linspace(0.1, 2, 64, dtype=np.float32)
    path = tiny.write(tmp_path / "tiny.gguf")
    found = calibrated(path, tmp_path / "i.gguf", n_ctx=n_ctx)
    with Model(path, n_ctx=n_ctx, n_threads=1) as model:
        tokens = np.array(chunks_of(model, n_ctx))
    embeddings = tiny.tensors["token_embd.weight"][tokens.ravel()]
    inputs = normed(embeddings, tiny.tensors["blk.0.attn_norm.weight"])
    for name in ("attn_q", "attn_k", "attn_v"):
        one = found.tensors[f"blk.0.{name}.weight"]
        assert one.counts.tolist() == [tokens.size]
        assert one.sums[0] == pytest.approx(np.square(inputs).sum(0), rel=1e-5)
    assert (found.n_chunks, found.chunk_size) == (len(tokens), n_ctx)


def test_every_matrix_but_the_outputs_is_there(tiny_path: Path, tmp_path: Path) -> None:
    matrices = {
        name
        for name, data in with_chat_tokens().tensors.items()
        if name.startswith("blk.") and data.ndim > 1
    }
    assert calibrated(tiny_path, tmp_path / "a.gguf").tensors.keys() == matrices
    more = calibrated(tiny_path, tmp_path / "b.gguf", process_output=True)
    assert more.tensors.keys() == {*matrices, "output.weight"}
    # Logits are not computed for it, which changes nothing.
    quick = calibrated(tiny_path, tmp_path / "c.gguf", perplexity=False)
    assert importance_bytes(quick) == (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize("n_ctx", [SHORT, CHUNK])
def test_perplexity_is_that_of_the_second_half_of_chunks(
    tiny_path: Path, tmp_path: Path, n_ctx: int
) -> None:
    found = calibrate(tiny_path, tmp_path / "i.gguf", text=TEXT, n_ctx=n_ctx, n_threads=1)
    nll = []
    with Model(tiny_path, n_ctx=n_ctx, n_threads=1) as model:
        assert len(chunks_of(model, n_ctx)) == found.n_chunks
        for chunk in chunks_of(model, n_ctx):
            logits = model.logits(chunk)[n_ctx // 2 : -1].astype(np.float64)
            logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
            nll += [-row[token] for row, token in zip(logprobs, chunk[n_ctx // 2 + 1 :])]  # noqa: B905
    assert found.perplexity is not None
    assert found.perplexity[0] == pytest.approx(np.exp(np.mean(nll)), rel=1e-4)
    error = np.exp(np.mean(nll)) * np.std(nll) / np.sqrt(len(nll) - 1)
    assert found.perplexity[1] == pytest.approx(error, rel=1e-3)


def test_the_report_has_what_each_expert_saw(tiny_path: Path, tmp_path: Path) -> None:
    steps: list[CalibrationProgress] = []
    found = calibrate(
        tiny_path, tmp_path / "i.gguf", text=TEXT, n_ctx=CHUNK, n_threads=1, n_chunks=2,
        first_chunk=1, progress=steps.append,
    )  # fmt: skip
    assert [(one.done, one.total, one.before, one.n_tokens) for one in steps] == [
        (1, 2, 0, CHUNK), (2, 2, 0, 2 * CHUNK),
    ]  # fmt: skip
    assert found.perplexity is not None and steps[-1].perplexity == found.perplexity[0]
    assert [one.layer for one in found.layers] == [0, 1, 2, 3]
    for one in found.layers:
        assert len(one.counts) == EXPERTS and sum(one.counts) == 2 * CHUNK == found.n_tokens
        assert one.starved == tuple(n for n, count in enumerate(one.counts) if count < 32)
    n_starved = sum(len(one.starved) for one in found.layers)
    assert found.coverage == 1 - n_starved / (4 * EXPERTS)
    record = json.loads(json.dumps(found.as_dict()))
    assert record["coverage"] == found.coverage
    assert record["layers"][1]["experts"] == list(found.layers[1].counts)


# --- interrupted


class StopError(Exception):
    """Raised by a caller in the middle."""


def stop_after(count: int) -> Any:
    def progress(at: CalibrationProgress) -> None:
        if at.done == count:
            raise StopError

    return progress


def test_what_was_interrupted_goes_on_to_the_same_bytes(tiny_path: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    first = calibrate(tiny_path, whole, text=TEXT, n_ctx=CHUNK, n_threads=1)
    assert first.n_chunks > 3
    for count in (1, 3):
        with pytest.raises(StopError):
            calibrated(tiny_path, parts, progress=stop_after(count))
        assert not parts.exists() and (tmp_path / "parts.gguf.partial").exists()
    steps: list[CalibrationProgress] = []
    again = calibrate(tiny_path, parts, text=TEXT, n_ctx=CHUNK, n_threads=1, progress=steps.append)
    assert (steps[0].done, steps[0].before) == (4, 3)
    assert parts.read_bytes() == whole.read_bytes()
    assert again.perplexity == first.perplexity
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.gguf", "whole.gguf"]


def test_a_killed_process_loses_what_was_not_saved_yet(tiny_path: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal
from llama4_edge import calibrate
from llama4_edge.measure import interrupted
interrupted._SAVE_EVERY = interrupted._SAVE_COST = -1
def kill(at):
    if at.done == 3: os.kill(os.getpid(), signal.SIGKILL)
calibrate({str(tiny_path)!r}, {str(tmp_path / "i.gguf")!r}, text={TEXT!r}, n_ctx={CHUNK},
          n_threads=1, progress=kill)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    steps: list[CalibrationProgress] = []
    calibrated(tiny_path, tmp_path / "i.gguf", progress=steps.append)
    assert steps[0].before in (1, 2)
    calibrated(tiny_path, tmp_path / "whole.gguf")
    assert (tmp_path / "i.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_calibration_of_something_else_is_not_gone_on_with(
    tiny_path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "i.gguf"
    with pytest.raises(StopError):
        calibrated(tiny_path, output, progress=stop_after(1))
    changed = with_chat_tokens()
    changed.tensors["blk.0.attn_q.weight"] += 0.5
    other = changed.write(tmp_path / "other.gguf")
    for model, settings, reason in (
        (other, {}, "of another model"),
        (tiny_path, {"text": f"{TEXT}!" * 2}, "of another text"),
        (tiny_path, {"n_chunks": 2}, "of another text"),
        (tiny_path, {"conversations": ["Hello"]}, "of another conversations"),
        (tiny_path, {"process_output": True}, "other settings, found n_ctx=512, process_output=F"),
    ):
        with pytest.raises(OutputError, match=f"i.gguf.partial is of .*{reason}"):
            calibrated(model, output, **settings)
    (tmp_path / "i.gguf.partial").write_bytes(b"something")
    with pytest.raises(OutputError, match="is not the state of a calibration"):
        calibrated(tiny_path, output)
    assert not output.exists()


def test_a_full_disk_loses_nothing_that_was_saved(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "i.gguf"
    write, left = write_atomically, [3]

    def full(*arguments: Any, **settings: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*arguments, **settings)

    monkeypatch.setattr(interrupted, "_SAVE_EVERY", -1)
    monkeypatch.setattr(interrupted, "_SAVE_COST", -1)
    monkeypatch.setattr(interrupted, "write_atomically", full)
    with pytest.raises(OutputError, match=r"cannot be written, found No space left.*Free some"):
        calibrated(tiny_path, output)
    monkeypatch.undo()
    steps: list[CalibrationProgress] = []
    calibrated(tiny_path, output, progress=steps.append)
    assert steps[0].before > 0


def test_two_calibrations_do_not_write_one_file(tiny_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "i.gguf"

    def begin_another(at: CalibrationProgress) -> None:
        with pytest.raises(OutputError, match=r"another calibration is writing .*i\.gguf\.partial"):
            calibrated(tiny_path, output, progress=stop_after(1))
        if at.done == 2:
            raise StopError

    with pytest.raises(StopError):
        calibrated(tiny_path, output, progress=begin_another)
    # It is free again, and as far as the first one came.
    steps: list[CalibrationProgress] = []
    calibrated(tiny_path, output, progress=steps.append)
    assert steps[0].before == 2
    assert [path.name for path in tmp_path.iterdir()] == ["i.gguf"]


def test_what_was_written_meanwhile_is_not_replaced(tiny_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "i.gguf"
    with pytest.raises(OutputError, match=r"i\.gguf exists"):
        calibrated(tiny_path, output, progress=lambda _: output.write_bytes(b"x"))
    assert output.read_bytes() == b"x"
    output.unlink()
    steps: list[CalibrationProgress] = []
    calibrated(tiny_path, output, progress=steps.append)
    assert not steps  # all of it was there


def test_one_who_was_killed_before_anything_was_saved_begins_anew(
    tiny_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "i.gguf.partial").touch()
    calibrated(tiny_path, tmp_path / "i.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["i.gguf"]


def test_a_batch_that_is_given_up_counts_once(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated(tiny_path, tmp_path / "a.gguf")
    add, spoiled = ActivationSums.add, [False]

    def spoil(self: ActivationSums) -> bool:
        if not spoiled[0]:
            spoiled[0] = True
            self.spoil()
        return add(self)

    monkeypatch.setattr(ActivationSums, "add", spoil)
    calibrated(tiny_path, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


# --- merging


def test_files_of_parts_are_that_of_the_whole(tiny_path: Path, tmp_path: Path) -> None:
    n_ctx = 256
    chunks = {"n_ctx": n_ctx}
    whole = calibrated(tiny_path, tmp_path / "whole.gguf", n_chunks=4, **chunks)
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    calibrated(tiny_path, one, n_chunks=2, datasets=["x"], **chunks)
    more = {"first_chunk": 2, "merge": [one], "datasets": ["y"], **chunks}
    calibrated(tiny_path, two, n_chunks=2, **more)
    both = read_importance(two)
    assert both.datasets == ("x", "y") and both.n_chunks == 4
    for name, expected in whole.tensors.items():
        found = both.tensors[name].measured()
        assert found.counts.tolist() == expected.measured().counts.tolist()
        assert found.sums == pytest.approx(expected.measured().sums, rel=1e-5)
    alone = calibrate(tiny_path, tmp_path / "alone.gguf", merge=[two])
    assert (tmp_path / "alone.gguf").read_bytes() == two.read_bytes()
    assert (alone.n_chunks, alone.n_tokens) == (0, 4 * n_ctx)


def test_files_of_another_model_are_not_merged(
    tiny_path: Path, scout_bf16: Path, tmp_path: Path
) -> None:
    calibrated(tiny_path, tmp_path / "one.gguf")
    with pytest.raises(ModelFileError, match=r"one.gguf is of another model than .*bf16.gguf"):
        calibrate(scout_bf16, tmp_path / "two.gguf", merge=[tmp_path / "one.gguf"])
    with pytest.raises(ModelFileError, match="no activation statistics"):
        calibrate(tiny_path, tmp_path / "two.gguf", merge=[tiny_path])


# --- starved experts

STARVED = EXPERTS - 1


def models_with_a_starved_expert(tmp_path: Path) -> tuple[Path, Path]:
    """A model in which some channels matter more, and the same with an expert nobody is sent to."""
    tiny = with_chat_tokens()
    for name in tiny.tensors:
        if name.endswith("ffn_norm.weight"):
            tiny.tensors[name] = np.geomspace(0.05, 4, 64, dtype=np.float32)
    fed = tiny.write(tmp_path / "fed.gguf")
    for name, data in tiny.tensors.items():
        if "ffn_gate_inp" in name:
            # One of the others is never below their mean.
            data[STARVED] = data[:STARVED].mean(0)
    return fed, tiny.write(tmp_path / "starving.gguf")


def error_of(matrix: np.ndarray, importance: np.ndarray, truth: np.ndarray) -> float:
    """Of the products with what the expert really sees, where Q4_0 has an importance."""
    encoding = TYPES["Q4_0"]
    rows = np.ascontiguousarray(matrix, np.float32)
    data = np.empty(encoding.nbytes(rows.shape), np.uint8)
    encode_rows(rows, encoding, data, np.ascontiguousarray(importance))
    decoded = np.empty_like(rows)
    decode_blocks(data, encoding, decoded)
    return float((np.square(decoded - rows) * truth).sum())


def test_a_starved_expert_is_named_and_encoded_better_than_without_a_substitute(
    tmp_path: Path,
) -> None:
    fed, starving = models_with_a_starved_expert(tmp_path)
    found = calibrate(starving, tmp_path / "i.gguf", text=TEXT, n_ctx=CHUNK, n_threads=1)
    assert [one.starved for one in found.layers] == [(STARVED,)] * 4
    assert [one.counts[STARVED] for one in found.layers] == [0] * 4
    assert found.coverage == 1 - 1 / EXPERTS
    record = found.as_dict()
    assert record["layers"][2]["starved"] == [{"expert": STARVED, "tokens": 0}]
    importance = read_importance(tmp_path / "i.gguf")
    truths = calibrated(fed, tmp_path / "truth.gguf", text=TEXT)
    tiny = with_chat_tokens()
    for name in ("blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"):
        one, weights = importance.tensors[name], importance.weights(name)
        assert weights is not None
        others = one.sums[:STARVED].sum(0) / one.counts[:STARVED].sum()
        assert weights[STARVED] == pytest.approx(others, rel=1e-5)
        assert not one.measured().sums[STARVED].any() and not one.measured().counts[STARVED]
        truth = truths.tensors[name]
        assert truth.counts[STARVED] >= 32 and truth.starved is None
        really = truth.weights()[STARVED]
        matrix = tiny.tensors[name][STARVED]
        # llama.cpp takes 1 for all columns of an expert that saw nothing.
        without = error_of(matrix, np.ones_like(really), really)
        best = error_of(matrix, really, really)
        assert error_of(matrix, weights[STARVED], really) < best + 0.5 * (without - best)
    down = importance.weights("blk.0.ffn_down_exps.weight")
    # The columns of its down matrix are its own neurons: nothing is known of them.
    assert down is not None and np.ptp(down[STARVED]) == 0 < np.ptp(down[0])


def test_merging_adds_no_substitutes(tmp_path: Path) -> None:
    fed, starving = models_with_a_starved_expert(tmp_path)
    calibrated(starving, tmp_path / "starved.gguf")
    alone = calibrated(fed, tmp_path / "alone.gguf").tensors
    both = calibrated(fed, tmp_path / "both.gguf", merge=[tmp_path / "starved.gguf"]).tensors
    name = "blk.0.ffn_up_exps.weight"
    expected = alone[name].measured()
    assert both[name].measured().counts[STARVED] == expected.counts[STARVED]
    assert both[name].measured().sums[STARVED] == pytest.approx(expected.sums[STARVED])


# --- pictures


def numbers_of(path: Path, *names: str) -> list[np.ndarray]:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    every = [
        gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type) for name in names
    ]
    return [np.array(one) for one in every]


def test_what_the_model_sees_of_a_picture_counts(
    make_gguf: MakeGGUF, make_projector: MakeProjector, tmp_path: Path
) -> None:
    demo, projector = make_gguf(MODEL), make_projector(MODEL)
    noise = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    picture = Image.fromarray(noise)
    picture.save(tmp_path / "picture.png")
    parts = [{"type": "image", "image": "picture.png"}, {"type": "text", "text": "What is it?"}]
    talks = [
        [{"role": "user", "content": parts}, {"role": "assistant", "content": "Noise."}],
        [{"role": "user", "content": "Hello!"}],
    ]
    file = tmp_path / "talks.jsonl"
    file.write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    found = calibrate(
        demo, tmp_path / "i.gguf", conversations=read_conversations(file), n_threads=1,
        projector=projector,
    )  # fmt: skip
    embeddings, norm = numbers_of(demo, "token_embd.weight", "blk.0.attn_norm.weight")
    rows = []
    with Model(demo, n_ctx=512, n_threads=1, projector=projector) as model:
        features = model.image_features(tmp_path / "picture.png")
        left = iter(features.reshape(-1, features.shape[-1]))
        for messages in read_conversations(file):
            positions = model.chat_prompt(messages).positions
            rows += [next(left) if one < 0 else embeddings[one] for one in positions]
    assert next(left, None) is None
    assert (found.n_conversations, found.n_tokens, found.perplexity) == (2, len(rows), None)
    sums = read_importance(tmp_path / "i.gguf").tensors["blk.0.attn_q.weight"].sums[0]
    expected = np.square(normed(np.array(rows), norm)).sum(0)
    assert sums == pytest.approx(expected, rel=1e-3)


def test_a_projector_that_is_missing_is_missed_before_anything_is_read(
    make_gguf: MakeGGUF, tmp_path: Path
) -> None:
    picture = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    talk = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    steps: list[CalibrationProgress] = []
    with pytest.raises(EngineError, match="without a projector"):
        calibrated(
            make_gguf(MODEL), tmp_path / "i.gguf", conversations=[talk], progress=steps.append
        )
    assert not steps and not list(tmp_path.iterdir())


# --- refused


def test_what_cannot_be_calibrated_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "i.gguf"
    for settings, reason in (
        ({"text": None}, "nothing to calibrate with"),
        ({"text": "short"}, r"too short, found \d+ tokens, expected at least 1024"),
        (
            {"first_chunk": 100},
            r"too short, found 0 tokens after 100 chunks of 512, .* Leave fewer chunks out",
        ),
        ({"n_ctx": 7}, "n_ctx.*from 8 up"),
        ({"conversations": ["x" * 20_000]}, "conversation 1 is too long"),
        ({"conversations": ["x", []]}, "conversation 2: there are no messages"),
    ):
        with pytest.raises(SettingError, match=reason):
            calibrated(tiny_path, output, **settings)
    with pytest.raises(OutputError, match="no directory"):
        calibrated(tiny_path, tmp_path / "none" / "i.gguf")
    assert not list(tmp_path.iterdir())
    output.write_bytes(b"x")
    with pytest.raises(OutputError, match=r"i.gguf exists"):
        calibrated(tiny_path, output)
    assert output.read_bytes() == b"x"


@pytest.mark.parametrize("perplexity", [False, True])
@pytest.mark.parametrize("n_ctx", [SHORT, CHUNK])
def test_a_model_that_computes_nan_is_refused(tmp_path: Path, perplexity: bool, n_ctx: int) -> None:
    broken = with_chat_tokens()
    broken.tensors["blk.1.attn_norm.weight"][:] = np.nan
    path = broken.write(tmp_path / "broken.gguf")
    reason = (
        r"broken\.gguf cannot be calibrated, found blk\.1\..* is multiplied with NaN .*chunk 1 "
    )
    with pytest.raises(DamagedTensorError, match=f"{reason}.*inspect --check"):
        calibrated(path, tmp_path / "i.gguf", perplexity=perplexity, n_ctx=n_ctx)
    assert [file.name for file in tmp_path.iterdir()] == ["broken.gguf"]


def test_logits_that_are_nan_are_refused(tmp_path: Path) -> None:
    broken = with_chat_tokens()
    broken.tensors["output_norm.weight"][:] = np.nan
    path = broken.write(tmp_path / "broken.gguf")
    with pytest.raises(
        DamagedTensorError, match=r"broken\.gguf .* NaN or infinite logits, in chunk"
    ):
        calibrated(path, tmp_path / "i.gguf")


def test_numbers_that_encoders_cannot_compute_with_are_refused(tmp_path: Path) -> None:
    broken = with_chat_tokens()
    broken.tensors["blk.3.ffn_norm.weight"][:] = 1e8
    path = broken.write(tmp_path / "broken.gguf")
    with pytest.raises(DamagedTensorError, match=r"mean square is .*, expected at most 1e\+15"):
        calibrated(path, tmp_path / "i.gguf", perplexity=False)
