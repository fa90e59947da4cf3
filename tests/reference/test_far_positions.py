"""At the end of a context of 10,485,760 tokens, logits are those of transformers.

An empty sequence may begin at any position, so that the last tokens are decoded without all those
before them. An angle of RoPE is a position times a frequency, in float32 on both sides: at ten
million it is rounded to half a radian for the fastest pairs of numbers. transformers rounds each
product once, ggml once more for each pair from the first on (``ggml_rope_cache_init``): both are
wrong by up to 0.6, and the predictions differ by a KL divergence of up to 5e-4. Up to a million
tokens nothing of that shows, and given ggml's angles transformers predicts the same at ten million
too. A chunk that is off by one costs 7e-2 there, missing temperature tuning 6e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import Llama4ForCausalLM
from transformers.masking_utils import causal_mask_function, chunked_causal_mask_function

from demo.checkpoint import TEXT_ONLY
from llama4_edge.architecture import ATTENTION_CHUNK
from llama4_edge.runtime import handles
from llama4_edge.runtime.bindings.parameters import context_params
from llama4_edge.runtime.files.gguf_file import read_gguf
from llama4_edge.runtime.handles import Handles
from llama4_edge.runtime.settings import EngineSettings
from tests.fixtures import MakeCheckpoint, MakeGGUF
from tests.reference.test_logits import MAX_KL, MIN_MARGIN, kl_divergence, random_tokens

# One layer with experts, of which a router's choice could differ.
FAR = replace(
    TEXT_ONLY,
    hidden=64,
    heads=2,
    kv_heads=1,
    head_dim=32,
    expert_ffn=64,
    dense_ffn=128,
    experts=4,
    moe_step=4,
    vocabulary=512,
)
END = FAR.max_positions
"""Positions of the longest context, a whole number of chunks."""

COUNT = 80
# Across the end of the last chunk but one, and of the last, where the context ends.
FIRST = (END - ATTENTION_CHUNK - COUNT // 2, END - COUNT // 2)

Angles = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]]


class Reference:
    """transformers' model, told at which positions its tokens are."""

    def __init__(self, checkpoint: Path, gguf: Path) -> None:
        loaded = Llama4ForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        )
        self.model: Any = loaded.eval()
        self.margins: list[torch.Tensor] = []
        for part in self.model.modules():
            if type(part).__name__ == "Llama4Router":
                part.register_forward_hook(self._note_margin)
        (factors,) = (t for t in read_gguf(gguf).tensors if t.name == "rope_freqs.weight")
        pairs = FAR.head_dim // 2
        self.factors = np.fromfile(gguf, np.float32, pairs, offset=factors.offset)

    def _note_margin(self, _router: object, _inputs: object, outputs: tuple[Any, Any]) -> None:
        first, second = outputs[1].topk(2, dim=-1).values.unbind(-1)
        self.margins.append(first - second)

    def logits(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        *,
        angles: Angles | None = None,
        cache: Cache | None = None,
        full: npt.NDArray[np.bool_] | None = None,
        chunk: int = ATTENTION_CHUNK,
    ) -> npt.NDArray[np.float32]:
        """Logits after each token, [tokens, vocabulary].

        Args:
            angles: of RoPE; None is transformers' own.
            cache: what was decoded before; None is nothing.
            full: what the full layers attend to, [tokens, tokens of the cache and these].
            chunk: tokens of a chunk.
        """
        cache = Cache() if cache is None else cache
        cache.first = positions[0]
        every = [*cache.positions, *positions]
        cache.positions = every
        rows, columns = torch.tensor(positions)[:, None], torch.tensor(every)[None, :]
        none = torch.zeros(1, dtype=torch.long)
        chunked = chunked_causal_mask_function(chunk, none)(none, none, rows, columns)
        causal = causal_mask_function(none, none, rows, columns)
        if full is not None:
            causal, chunked = causal & torch.from_numpy(full), chunked & torch.from_numpy(full)
        with torch.inference_mode(), self._angles(angles):
            output = self.model(
                input_ids=torch.tensor([tokens]),
                position_ids=torch.tensor([positions]),
                past_key_values=cache,
                use_cache=True,
                attention_mask={
                    "full_attention": _mask(causal),
                    "chunked_attention": _mask(chunked),
                },
            )
        logits: npt.NDArray[np.float32] = output.logits[0].numpy()
        return logits

    @contextmanager
    def _angles(self, angles: Angles | None) -> Iterator[None]:
        def forward(_hidden: object, positions: torch.Tensor) -> torch.Tensor:
            assert angles is not None
            turned = np.exp(1j * angles(positions[0].numpy())).astype(np.complex64)
            return torch.from_numpy(turned)[None]

        if angles is None:
            yield
            return
        with patch.object(self.model.model.rotary_emb, "forward", forward):
            yield

    def as_ggml(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Angles as ggml has them, [positions, pairs]."""
        pairs = len(self.factors)
        step = np.power(np.float32(FAR.rope_theta), np.float32(-1.0 / pairs), dtype=np.float32)
        angle, columns = positions.astype(np.float32), []
        for factor in self.factors:
            columns.append(angle / factor)
            angle = angle * step
        return np.stack(columns, axis=-1).astype(np.float64)

    def exact(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Angles that are not rounded."""
        frequencies = self.model.model.rotary_emb.inv_freq.numpy().astype(np.float64)
        return np.asarray(positions[:, None] * frequencies)


class Cache:
    """A cache as transformers uses one, of which the next token is at a position that is told."""

    def __init__(self) -> None:
        self.first = 0
        self.positions: list[int] = []
        self.held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.first

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        new = (key_states, value_states)
        if (old := self.held.get(layer_idx)) is not None:
            new = (torch.cat([old[0], new[0]], -2), torch.cat([old[1], new[1]], -2))
        self.held[layer_idx] = new
        return new


def _mask(allowed: torch.Tensor) -> torch.Tensor:
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(allowed.shape).masked_fill(~allowed, lowest)[None, None]


@pytest.fixture(scope="module")
def gguf(make_checkpoint: MakeCheckpoint, make_gguf: MakeGGUF) -> Path:
    return make_gguf(make_checkpoint(FAR))


@pytest.fixture
def reference(make_checkpoint: MakeCheckpoint, gguf: Path) -> Reference:
    return Reference(make_checkpoint(FAR), gguf)


def decoded(
    engine: Handles, tokens: Sequence[int], first: int, sequence: int = 0
) -> npt.NDArray[np.float32]:
    """What llama.cpp predicts after each of these tokens, the first of which is at ``first``."""
    engine.batch.clear()
    engine.batch.add(tokens, sequence, first, len(tokens))
    assert engine.llama.llama_decode(engine.context, engine.batch.native) == 0
    rows = engine.llama.llama_get_logits(engine.context)
    return np.array(np.ctypeslib.as_array(rows, shape=(len(tokens), engine.n_vocab)))


@contextmanager
def opened(gguf: Path, *, n_parallel: int = 1) -> Iterator[Handles]:
    """A context whose sequences share one cache."""

    def unified(settings: EngineSettings, *others: Any) -> Any:
        params = context_params(settings)
        params.kv_unified = True
        return params

    settings = EngineSettings(n_ctx=1024, n_outputs=COUNT, n_parallel=n_parallel)
    with patch.object(handles, "context_params", unified):
        engine = Handles(gguf, settings)
    try:
        yield engine
    finally:
        engine.close()


def predictions(gguf: Path, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
    with opened(gguf) as engine:
        return engine.thread.call(lambda: decoded(engine, tokens, first))


@pytest.mark.parametrize("first", FIRST)
def test_the_end_of_the_longest_context_is_decoded_as_transformers_does(
    first: int, gguf: Path, reference: Reference
) -> None:
    tokens = random_tokens(FAR, COUNT, 0, distinct=64)
    positions = range(first, first + COUNT)
    theirs = reference.logits(tokens, positions, angles=reference.as_ggml)
    assert torch.cat(reference.margins).min() > MIN_MARGIN
    ours = predictions(gguf, tokens, first)
    assert kl_divergence(theirs, ours).max() <= MAX_KL

    # What would be seen if a position were wrong somewhere.
    other = reference.logits(tokens, positions, angles=reference.as_ggml, chunk=ATTENTION_CHUNK + 1)
    assert kl_divergence(other, ours).max() > 1000 * MAX_KL
    with patch.object(Cache, "get_seq_length", lambda *_: 0):
        cold = reference.logits(tokens, positions, angles=reference.as_ggml)
    assert kl_divergence(cold, ours).max() > 100 * MAX_KL


@pytest.mark.parametrize("first", FIRST)
def test_angles_are_rounded_as_far_as_those_of_transformers(
    first: int, gguf: Path, reference: Reference
) -> None:
    tokens = random_tokens(FAR, COUNT, 0, distinct=64)
    positions = range(first, first + COUNT)
    ours = predictions(gguf, tokens, first)
    theirs = reference.logits(tokens, positions)
    exact = reference.logits(tokens, positions, angles=reference.exact)
    assert MAX_KL < kl_divergence(theirs, ours).max() < 1e-3
    assert kl_divergence(exact, ours).mean() < 2 * kl_divergence(exact, theirs).mean()
    off = np.abs(reference.as_ggml(np.array(positions)) - reference.exact(np.array(positions)))
    assert 0.1 < off.max() < 2.0


@pytest.mark.parametrize("first", [ATTENTION_CHUNK - COUNT // 2, 2**20 - COUNT // 2])
def test_up_to_a_million_tokens_the_angles_are_those_of_transformers(
    first: int, gguf: Path, reference: Reference
) -> None:
    tokens = random_tokens(FAR, COUNT, 0, distinct=64)
    theirs = reference.logits(tokens, range(first, first + COUNT))
    assert torch.cat(reference.margins).min() > MIN_MARGIN
    assert kl_divergence(theirs, predictions(gguf, tokens, first)).max() <= MAX_KL


def test_full_layers_reach_back_ten_million_positions(gguf: Path, reference: Reference) -> None:
    early, late = np.array_split(random_tokens(FAR, COUNT, 9, distinct=64), 2)
    begin, (first, *rest) = early.tolist(), late.tolist()
    place = END - COUNT // 4

    def ours(engine: Handles) -> npt.NDArray[np.float32]:
        decoded(engine, begin, 0, sequence=0)
        decoded(engine, [first], place, sequence=1)  # which sees none of the others
        engine.llama.llama_memory_seq_cp(engine.memory, 0, 1, -1, -1)
        return decoded(engine, rest, place + 1, sequence=1)

    with opened(gguf, n_parallel=2) as engine:
        result = engine.thread.call(lambda: ours(engine))
    cache = Cache()
    angles = reference.as_ggml
    reference.logits(begin, range(len(begin)), cache=cache, angles=angles)
    alone = np.arange(len(begin) + 1)[None] == len(begin)
    reference.logits([first], [place], cache=cache, angles=angles, full=alone)
    positions = range(place + 1, place + 1 + len(rest))
    theirs = reference.logits(rest, positions, cache=cache, angles=angles)
    assert torch.cat(reference.margins).min() > MIN_MARGIN
    assert kl_divergence(theirs, result).max() <= MAX_KL

    # Without the early tokens the predictions are others.
    blind = predictions(gguf, late.tolist(), place)[1:]
    assert kl_divergence(theirs, blind).max() > 100 * MAX_KL
