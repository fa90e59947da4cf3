"""A converted checkpoint predicts what transformers predicts from the very same files.

transformers runs in float32; llama.cpp multiplies bf16 weights with activations that it rounds to
bf16, which costs a KL divergence of 2e-6 to 6e-6 here. A missing QK norm costs 7e-4, a chunk that
is off by one 2e-1, missing temperature tuning 1e-4. The factor of rope scaling moves a small model
by 1e-5 at most; test_bytes.py compares what it makes, `rope_freqs`, exactly.

Where two experts tie, rounding chooses between them and the outputs differ for good reason. The
seeds are ones whose router is clear at every checked position, and the tests assert that it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration

from demo.checkpoint import (
    MAVERICK_LIKE,
    SCOUT_BASE_LIKE,
    SCOUT_LIKE,
    TEXT_ONLY,
    TIED,
    Geometry,
)
from llama4_edge import Model
from tests.fixtures import MakeCheckpoint, MakeGGUF

MAX_KL = 1e-5
# Ten times the difference between the two sides' router logits.
MIN_MARGIN = 0.02

SHORT = (0, 1, 2, 3, 7, 15, 31, 63, 127, 255, 383, 511)
# Around the end of the first chunk of attention, where temperature tuning begins as well.
LONG = (0, 1, 2, 8189, 8190, 8191, 8192, 8193, 8194, 8200, 8500, 8999)

NARROW = replace(
    TEXT_ONLY,
    hidden=64,
    heads=2,
    kv_heads=1,
    head_dim=32,
    expert_ffn=64,
    experts=4,
    vocabulary=512,
)


@dataclass(frozen=True)
class Reference:
    """What transformers says: logits [positions, vocabulary] and the router's least margin."""

    logits: npt.NDArray[np.float32]
    margins: npt.NDArray[np.float32]


@pytest.mark.parametrize(
    ("geometry", "token_seed"),
    [
        pytest.param(SCOUT_LIKE, 3, id="scout"),
        pytest.param(SCOUT_BASE_LIKE, 3, id="scout-base"),
        pytest.param(MAVERICK_LIKE, 0, id="maverick"),
        pytest.param(TEXT_ONLY, 0, id="text-only"),
        pytest.param(TIED, 0, id="tied"),
    ],
)
def test_logits_are_those_of_transformers(
    geometry: Geometry, token_seed: int, make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF
) -> None:
    checkpoint = make_checkpoint(geometry)
    tokens = random_tokens(geometry, SHORT[-1] + 1, token_seed)
    assert_same_predictions(checkpoint, make_gguf(checkpoint), tokens, SHORT)


def test_scores_are_log_probabilities_of_transformers(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF
) -> None:
    checkpoint = make_checkpoint(SCOUT_LIKE)
    tokens = random_tokens(SCOUT_LIKE, SHORT[-1] + 2, 3)
    logits = torch.from_numpy(transformers_logits(checkpoint, tokens[:-1], SHORT).logits)
    expected = torch.log_softmax(logits.double(), dim=-1).numpy()
    with Model(make_gguf(checkpoint), n_ctx=len(tokens)) as model:
        scores = [model.score(tokens, top=5)[position] for position in SHORT]
    for score, position, row in zip(scores, SHORT, expected, strict=True):
        assert score.token == tokens[position + 1]
        assert score.logprob == pytest.approx(row[score.token], abs=0.02)
        assert [token for token, _ in score.top] == np.argsort(-row)[:5].tolist()


def test_log_probabilities_of_an_answer_are_those_of_transformers(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF
) -> None:
    checkpoint = make_checkpoint(SCOUT_LIKE)
    prompt = random_tokens(SCOUT_LIKE, 8, 3)
    with Model(make_gguf(checkpoint), n_ctx=64) as model:
        answer = model.generate(
            prompt, max_tokens=10, temperature=2.0, top_k=0, top_p=1.0, seed=4,
            logit_bias={7: 3.0}, logprobs=True, top_logprobs=5,
        )  # fmt: skip
    positions = tuple(range(len(prompt) - 1, len(prompt) + len(answer.tokens) - 1))
    reference = transformers_logits(checkpoint, [*prompt, *answer.tokens], positions)
    expected = torch.log_softmax(torch.from_numpy(reference.logits).double(), dim=-1).numpy()
    assert answer.logprobs is not None and len(answer.tokens) == 10
    for entry, token, row in zip(answer.logprobs, answer.tokens, expected, strict=True):
        assert entry.token == token
        assert entry.logprob == pytest.approx(row[token], abs=0.02)
        assert [value for _, value in entry.top] == pytest.approx(
            np.sort(row)[:-6:-1].tolist(), abs=0.02
        )


def test_logits_agree_across_the_end_of_a_chunk(
    make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF
) -> None:
    checkpoint = make_checkpoint(NARROW)
    # Few distinct ones, so that attention finds the same token everywhere in its reach.
    tokens = random_tokens(NARROW, LONG[-1] + 1, 1, distinct=64)
    assert_same_predictions(checkpoint, make_gguf(checkpoint), tokens, LONG)


def assert_same_predictions(
    checkpoint: Path, gguf: Path, tokens: list[int], positions: tuple[int, ...]
) -> None:
    reference = transformers_logits(checkpoint, tokens, positions)
    assert reference.margins.min() > MIN_MARGIN
    with Model(gguf, n_ctx=len(tokens)) as model:
        ours = model.logits(tokens)[list(positions)]
    divergence = kl_divergence(reference.logits, ours)
    assert divergence.max() <= MAX_KL, dict(zip(positions, divergence, strict=True))
    assert ours.argmax(-1).tolist() == reference.logits.argmax(-1).tolist()


def transformers_logits(
    checkpoint: Path, tokens: list[int], positions: tuple[int, ...]
) -> Reference:
    """Run the checkpoint through transformers; it must find every key and no other."""
    text_only = not (checkpoint / "config.json").read_text().count("ForConditionalGeneration")
    model_class = Llama4ForCausalLM if text_only else Llama4ForConditionalGeneration
    model, loading = model_class.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    margins: list[torch.Tensor] = []

    def note_margin(
        _router: object, _inputs: object, outputs: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        first, second = outputs[1].topk(2, dim=-1).values.unbind(-1)
        margins.append((first - second)[list(positions)])

    routers = [part for part in model.modules() if type(part).__name__ == "Llama4Router"]
    for router in routers:
        router.register_forward_hook(note_margin)
    with torch.inference_mode():
        output = model.eval()(
            input_ids=torch.tensor([tokens]),
            use_cache=False,
            logits_to_keep=torch.tensor(positions),
        )
    assert len(margins) == len(routers) > 0
    return Reference(output.logits[0].numpy(), torch.stack(margins).numpy())


def random_tokens(
    geometry: Geometry, count: int, seed: int, distinct: int | None = None
) -> list[int]:
    """Any tokens (or only the first few) but the special ones, at the vocabulary's end."""
    end = distinct or geometry.vocabulary - 64
    tokens: list[int] = np.random.default_rng(seed).integers(0, end, count).tolist()
    return tokens


def kl_divergence(reference: npt.NDArray[Any], ours: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """KL(reference ‖ ours) in nats for each row of logits, in float64."""
    p, q = log_softmax(reference), log_softmax(ours)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1))


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
