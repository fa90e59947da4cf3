"""The state of a sequence: the same logits in another context, and nothing else is let in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge.errors import ContextFullError, EngineError
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.settings import EngineSettings, FlashAttention, KVTypes
from llama4_edge.runtime.state import SequenceState, for_streams

# One thread: the machine that runs the tests may be busy, and ggml's threads wait by spinning.
SMALL = EngineSettings(n_ctx=512, n_batch=64, n_ubatch=32, n_outputs=16, n_threads=1)


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, count)]


def logits_after(engine: Engine, tokens: list[int]) -> npt.NDArray[np.float32]:
    engine.prefill(tokens)
    return engine.last_logits()


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Iterator[Engine]:
    with Engine(tiny_path, SMALL) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def state(engine: Engine) -> SequenceState:
    engine.clear()
    engine.prefill(random_tokens(100))
    kept = engine.state_of(random_tokens(100))
    assert kept is not None
    return kept


@pytest.mark.parametrize("flash_attention", ["on", "off"])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 1), (2, 4)])
def test_a_sequence_goes_on_bit_for_bit_in_another_context(
    tiny_path: Path, flash_attention: FlashAttention, before: int, after: int
) -> None:
    settings = replace(SMALL, flash_attention=flash_attention)
    tokens, rest = random_tokens(150), random_tokens(70, seed=1)
    with Engine(tiny_path, replace(settings, n_parallel=before)) as first:
        first.prefill(tokens)
        state = first.state_of(tokens)
        assert state is not None
        assert state.tokens == tuple(tokens)
        live = logits_after(first, tokens + rest)
    with Engine(tiny_path, replace(settings, n_parallel=after)) as second:
        second.keep_state(state)
        assert second.tokens == tuple(tokens)
        assert second.prefill(tokens + rest) == 150
        np.testing.assert_array_equal(second.last_logits(), live)


def test_what_is_held_is_found_by_its_beginning(engine: Engine) -> None:
    engine.clear()
    tokens = random_tokens(100)
    assert engine.state_of(tokens) is None
    engine.prefill(tokens)
    state = engine.state_of([*tokens[:40], 300])
    assert state is not None
    assert state.tokens == tuple(tokens)
    assert engine.state_of([tokens[0] + 1, *tokens[1:]]) is None


def test_the_bytes_for_another_number_of_sequences_are_llama_cpps(tiny_path: Path) -> None:
    tokens = random_tokens(90)
    states = []
    for n_parallel in (1, 3):
        with Engine(tiny_path, replace(SMALL, n_parallel=n_parallel)) as engine:
            engine.prefill(tokens)
            state = engine.state_of(tokens)
            assert state is not None
            states.append(state.data)
    one, three = states
    np.testing.assert_array_equal(for_streams(one, 3, whole=True), three)
    np.testing.assert_array_equal(for_streams(three, 1, whole=True), one)
    assert for_streams(one, 1, whole=True) is one


def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(
    tiny_path: Path, state: SequenceState
) -> None:
    with Engine(tiny_path, replace(SMALL, n_ctx=64)) as small:
        small.prefill([1, 2, 3])
        with pytest.raises(ContextFullError, match=r"100 tokens, expected at most 64"):
            small.keep_state(state)
        assert small.tokens == (1, 2, 3)


@pytest.mark.parametrize("kv_type", ["bf16", ("f16", "bf16")])
def test_a_state_of_other_types_is_refused_in_llama_cpps_words(
    tiny_path: Path, state: SequenceState, kv_type: KVTypes
) -> None:
    with Engine(tiny_path, replace(SMALL, kv_type=kv_type)) as other:
        with pytest.raises(EngineError, match=r"not of this model.*mismatched \w+ type"):
            other.keep_state(state)
        assert other.tokens == ()
        assert other.prefill([1, 2, 3]) == 0
        assert np.isfinite(other.last_logits()).all()


def _set(at: int, *values: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at : at + 4 * len(values)] = np.array(values, "<i4").tobytes()

    return change


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_set(0, 0), "0x00000000 at its beginning"),
        (_set(8, 0), "0 streams"),
        (_set(8, 1 << 30), "1073741824 streams"),
        (_set(12, 99), None),
        (_set(12, -1), "bytes where its layers should be"),
        (_set(16, 7), "100 cells of the full layers"),
        (_set(16, -1), "100 cells of the full layers"),
        (_set(20, 2), "a cell that is not of one sequence"),
        (_set(16 + 1200, 2), "1 layers, expected"),
        (_set(20 + 1200, 0), "0 layers"),
        (_set(20 + 1200, 500), None),
        (_set(28 + 1200, -1, -1), "bytes where its layers should be"),
        (lambda data: data.__delitem__(slice(-1, None)), "bytes where its layers should be"),
        (lambda data: data.append(0), "1 bytes after its end"),
        (lambda data: data.clear(), "0 bytes"),
    ],
)
def test_bytes_that_are_no_state_are_refused(
    state: SequenceState, change: Callable[[bytearray], None], found: str | None
) -> None:
    data = bytearray(state.data.tobytes())
    change(data)
    with pytest.raises(EngineError, match=r"damaged, or is not llama\.cpp's") as caught:
        SequenceState(state.tokens, np.frombuffer(data, np.uint8))
    assert found is None or found in str(caught.value)


def test_a_byte_changed_anywhere_ends_no_process(tiny_path: Path, state: SequenceState) -> None:
    chance = np.random.default_rng(0)
    n_refused = 0
    with Engine(tiny_path, SMALL) as engine:
        for _ in range(300):
            data = state.data.copy()
            # The beginning, where counts are, and anywhere.
            at = chance.integers(0, 2000 if chance.random() < 0.5 else len(data))
            data[at] ^= 1 << chance.integers(0, 8)
            try:
                engine.keep_state(SequenceState(state.tokens, data))
            except EngineError:
                n_refused += 1
            else:
                engine.prefill([*state.tokens, 1])
    assert 50 < n_refused < 300


def test_tokens_that_are_not_as_many_as_the_cells_are_refused(state: SequenceState) -> None:
    with pytest.raises(EngineError, match="100 cells of the full layers, expected those of 99"):
        SequenceState(state.tokens[:-1], state.data)
    with pytest.raises(EngineError, match="100 cells"):
        SequenceState((), state.data)
