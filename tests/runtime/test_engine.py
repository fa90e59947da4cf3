from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge.architecture import ATTENTION_CHUNK as CHUNK
from llama4_edge.errors import AllocationError, ContextFullError, EngineError, SettingError
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.placement import Placement
from llama4_edge.runtime.sampling import Sampling
from llama4_edge.runtime.settings import EngineSettings
from tests.asking import resident_bytes, until
from tests.gguf_maker import N_VOCAB, tiny_model

# One thread: the machine that runs the tests may be busy, and ggml's threads wait by spinning.
SMALL = EngineSettings(n_ctx=512, n_batch=64, n_ubatch=32, n_outputs=16, n_threads=1)

# Passes that cut the same tokens differently differ by the f16 of the KV cache and the order of
# sums: 0.004 at most here, where logits have a standard deviation of 1. A wrong mask, position or
# row is off by tenths and more.
CLOSE = 0.01
GREEDY = Sampling(temperature=0.0)


def random_tokens(count: int, seed: int = 0) -> list[int]:
    # Only ids of plain bytes, so that no answer of the model is decided by a control token.
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, count)]


def distance(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> Iterator[Engine]:
    with Engine(tiny_path, SMALL) as loaded:
        yield loaded


def test_logits_of_all_positions_equal_those_of_token_after_token(engine: Engine) -> None:
    tokens = random_tokens(100)
    whole = engine.logits(tokens)
    assert whole.shape == (100, N_VOCAB)
    assert whole.dtype == np.float32
    engine.clear()
    engine.prefill(tokens[:1])
    rows = [engine.last_logits()]
    for token in tokens[1:]:
        engine.append(token)
        rows.append(engine.last_logits())
    assert distance(whole, rows) < CLOSE
    # and they are the logits of different positions
    assert distance(whole[:-1], whole[1:]) > 1.0


def test_the_last_row_of_logits_is_what_prefill_leaves(engine: Engine) -> None:
    tokens = random_tokens(100)
    last = engine.logits(tokens)[-1]
    engine.clear()
    engine.prefill(tokens)
    assert distance(engine.last_logits(), last) < CLOSE


def test_logits_belong_to_the_caller(engine: Engine) -> None:
    first = engine.logits(random_tokens(5))
    kept = first.copy()
    assert first.flags.owndata
    engine.logits(random_tokens(5, seed=1))
    np.testing.assert_array_equal(first, kept)


def test_no_tokens_have_no_logits(engine: Engine) -> None:
    assert engine.logits([]).shape == (0, N_VOCAB)


def test_numpy_token_ids_are_taken(engine: Engine) -> None:
    tokens = np.array([1, 2, 3], dtype=np.int32)
    assert engine.prefill(cast("Sequence[int]", tokens)) == 0
    assert engine.tokens == (1, 2, 3)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 65, 511, 512])
def test_a_prompt_of_any_length_that_fits_is_decoded(engine: Engine, size: int) -> None:
    tokens = random_tokens(size)
    assert engine.prefill(tokens) == 0
    assert engine.tokens == tuple(tokens)
    assert engine.tokens_left == 512 - size
    assert np.isfinite(engine.last_logits()).all()


def test_a_shared_prefix_is_kept_and_answers_as_a_fresh_pass(engine: Engine) -> None:
    shared, one, other = random_tokens(90), random_tokens(40, seed=1), random_tokens(40, seed=2)
    engine.prefill(shared + one)
    assert engine.prefill(shared + other) == 90
    reused = engine.last_logits()
    engine.clear()
    assert engine.prefill(shared + other) == 0
    assert distance(engine.last_logits(), reused) < CLOSE


def test_a_prompt_that_grows_decodes_only_what_is_new(engine: Engine) -> None:
    tokens = random_tokens(120)
    engine.prefill(tokens[:50])
    assert engine.prefill(tokens) == 50


def test_the_same_prompt_again_decodes_its_last_token_only(engine: Engine) -> None:
    tokens = random_tokens(50)
    engine.prefill(tokens)
    first = engine.last_logits()
    assert engine.prefill(tokens) == 49
    assert distance(engine.last_logits(), first) < CLOSE


def test_a_prompt_that_is_a_beginning_of_the_cache_is_rewound_to(engine: Engine) -> None:
    tokens = random_tokens(120)
    expected = engine.logits(tokens[:70])[-1]
    engine.prefill(tokens)
    assert engine.prefill(tokens[:70]) == 69
    assert distance(engine.last_logits(), expected) < CLOSE
    assert engine.tokens == tuple(tokens[:70])


def test_rewinding_twice_is_sound(engine: Engine) -> None:
    base, tails = random_tokens(100), [random_tokens(30, seed=seed) for seed in (1, 2, 3)]
    engine.prefill(base + tails[0])
    assert engine.prefill(base[:60] + tails[1]) == 60
    assert engine.prefill(base[:20] + tails[2]) == 20
    reused = engine.last_logits()
    engine.clear()
    engine.prefill(base[:20] + tails[2])
    assert distance(engine.last_logits(), reused) < CLOSE


def test_a_rewind_within_a_later_chunk_answers_as_a_fresh_pass(tiny_path: Path) -> None:
    # The chunked layers have 8192 + 512 cells: the last of these tokens overwrite the first.
    # (Every pass ends in a piece of 64 tokens or more, for which ggml on the CPU sums in f32.)
    settings = replace(SMALL, n_ctx=9472, n_batch=2048, n_ubatch=512, n_outputs=1)
    tokens, tail = random_tokens(CHUNK + 1100), random_tokens(100, seed=1)
    within, across = CHUNK + 100, CHUNK - 100
    with Engine(tiny_path, settings) as engine:
        engine.prefill(tokens)
        assert engine.prefill(tokens[:within] + tail) == within
        reused = engine.last_logits()
        assert engine.prefill(tokens[:across] + tail) == 0
        assert engine.prefill(tokens[:within] + tail) == across
        assert distance(engine.last_logits(), reused) < CLOSE


def test_a_full_context_is_refused_before_anything_changes(engine: Engine) -> None:
    tokens = random_tokens(512)
    engine.prefill(tokens)
    with pytest.raises(ContextFullError, match="found 513 tokens, expected at most 512"):
        engine.append(1)
    with pytest.raises(ContextFullError, match="found 600 tokens, expected at most 512"):
        engine.prefill(random_tokens(600))
    with pytest.raises(ContextFullError, match="found 513 tokens, expected at most 512"):
        engine.logits(random_tokens(513))
    assert engine.tokens == tuple(tokens)
    assert engine.tokens_left == 0


def test_the_context_holds_what_was_asked_for_and_no_more(tiny_path: Path) -> None:
    # llama.cpp itself rounds a context up to 256 tokens.
    with Engine(tiny_path, replace(SMALL, n_ctx=40)) as engine:
        engine.prefill(random_tokens(40))
        with pytest.raises(ContextFullError, match="found 41 tokens, expected at most 40"):
            engine.append(1)


@pytest.mark.parametrize("token", [-1, N_VOCAB, 2**40])
def test_a_token_that_does_not_exist_is_refused(engine: Engine, token: int) -> None:
    engine.prefill([1, 2])
    for refused in (engine.prefill, engine.logits, lambda tokens: engine.append(tokens[-1])):
        with pytest.raises(EngineError, match=rf"found {token}, expected 0 to {N_VOCAB - 1}"):
            refused([1, token])
    with pytest.raises(EngineError, match="not in the model's vocabulary"):
        engine.is_end(token)
    assert engine.tokens == (1, 2)


@pytest.mark.parametrize("token", [1.5, 2.0, True, "a", None, np.float32(1), np.bool_(True)])
def test_a_token_that_is_no_whole_number_is_refused(engine: Engine, token: Any) -> None:
    engine.prefill([1, 2])
    for refused in (engine.prefill, engine.logits, lambda tokens: engine.append(tokens[-1])):
        with pytest.raises(EngineError, match="a token id is not a whole number, found"):
            refused([1, token])
    with pytest.raises(EngineError, match="not a list of token ids, found 5"):
        engine.prefill(5)  # type: ignore[arg-type]
    assert engine.tokens == (1, 2)


def test_an_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match="no tokens to decode, expected at least one"):
        engine.prefill([])


def test_a_sampler_is_used_inside_its_block(engine: Engine) -> None:
    engine.prefill([1, 2])
    with engine.sampler(GREEDY) as sampler:
        sampler()
    with pytest.raises(EngineError, match="used after its block had ended"):
        sampler()


def test_nothing_can_be_sampled_before_something_was_decoded(engine: Engine) -> None:
    with engine.sampler(GREEDY) as sample, pytest.raises(EngineError, match="no logits"):
        sample()
    with pytest.raises(EngineError, match="no logits"):
        engine.last_logits()


def generate(engine: Engine, prompt: list[int], sampling: Sampling, count: int) -> list[int]:
    engine.prefill(prompt)
    answer: list[int] = []
    with engine.sampler(sampling) as sample:
        for _ in range(count):
            answer.append(sample())
            engine.append(answer[-1])
    return answer


def test_temperature_zero_takes_the_likeliest_token(engine: Engine) -> None:
    prompt = random_tokens(20)
    answer = generate(engine, prompt, GREEDY, 20)
    assert len(answer) == 20
    for index, token in enumerate(answer):
        assert engine.logits(prompt + answer[:index])[-1].argmax() == token


def test_top_k_of_one_is_greedy_whatever_the_temperature(engine: Engine) -> None:
    prompt = random_tokens(20)
    hot = Sampling(temperature=5.0, top_k=1, top_p=1.0, seed=1)
    assert generate(engine, prompt, hot, 20) == generate(engine, prompt, GREEDY, 20)


def test_a_tiny_top_p_and_a_high_min_p_are_greedy(engine: Engine) -> None:
    prompt = random_tokens(20)
    greedy = generate(engine, prompt, GREEDY, 10)
    for sampling in (
        Sampling(temperature=5.0, top_k=0, top_p=1e-6, seed=1),
        Sampling(temperature=5.0, top_k=0, top_p=1.0, min_p=0.999, seed=1),
    ):
        assert generate(engine, prompt, sampling, 10) == greedy


def test_the_same_seed_gives_the_same_tokens_and_another_one_others(engine: Engine) -> None:
    prompt, hot = random_tokens(20), Sampling(temperature=2.0, top_k=0, top_p=1.0, seed=3)
    first = generate(engine, prompt, hot, 30)
    assert generate(engine, prompt, hot, 30) == first
    engine.clear()
    assert generate(engine, prompt, hot, 30) == first
    assert generate(engine, prompt, replace(hot, seed=4), 30) != first


def test_threads_change_no_logits_beyond_rounding(engine: Engine, tiny_path: Path) -> None:
    tokens = random_tokens(60)
    with Engine(tiny_path, replace(SMALL, n_threads=2)) as other:
        assert distance(other.logits(tokens), engine.logits(tokens)) < CLOSE


def test_the_end_tokens_are_llama_cpps(engine: Engine) -> None:
    # <|begin_of_text|>, <|end_of_text|>, <|eom|>, <|eot|> are the last four
    ends = [token for token in range(N_VOCAB) if engine.is_end(token)]
    assert ends == [N_VOCAB - 3, N_VOCAB - 2, N_VOCAB - 1]


def test_an_interrupt_stops_a_long_prompt_and_leaves_the_engine_usable(tiny_path: Path) -> None:
    # One call of 16384 tokens, which takes many seconds: it is stopped inside, between two of the
    # operations before which ggml asks whether it is to go on.
    settings = replace(SMALL, n_ctx=16384, n_batch=16384, n_ubatch=512)
    tokens = random_tokens(16384)
    n_asked = 0
    with Engine(tiny_path, settings) as engine:
        handles, thread = engine._handles, engine._handles.thread
        expected = engine.logits(tokens[:40])[-1]
        engine.clear()

        def is_to_stop(_: object) -> bool:
            nonlocal n_asked
            n_asked += 1
            if n_asked == 2000:
                os.kill(os.getpid(), signal.SIGINT)
                until(lambda: thread.stopping)
            return thread._stop_text.value != b""

        callback = handles.llama.ggml_abort_callback(is_to_stop)
        handles.llama.llama_set_abort_callback(handles.context, callback, None)
        with pytest.raises(KeyboardInterrupt):
            engine.prefill(tokens)
        held = engine.tokens
        assert held == tuple(tokens[: len(held)])
        assert 0 < len(held) < len(tokens)
        assert n_asked == 2000
        # What is held is really there: the answer after it is that of a fresh pass.
        assert engine.prefill([*held, 7]) == len(held)
        resumed = engine.last_logits()
        engine.clear()
        engine.prefill([*held, 7])
        assert distance(engine.last_logits(), resumed) < CLOSE
        engine.prefill(tokens[:40])
        assert distance(engine.last_logits(), expected) < CLOSE


def test_an_interrupt_between_tokens_loses_no_account_of_the_cache(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = random_tokens(30)
    engine.prefill(prompt)
    llama = engine._handles.llama
    decode = llama.llama_decode

    def interrupted(*arguments: object) -> int:
        decode(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llama, "llama_decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.append(9)
    # llama.cpp had decoded it
    assert engine.tokens == (*prompt, 9)
    engine.append(10)
    resumed = engine.last_logits()
    assert distance(resumed, engine.logits([*prompt, 9, 10])[-1]) < CLOSE


def test_a_decode_that_llama_cpp_refuses_is_an_error_and_undone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = random_tokens(30)
    engine.prefill(prompt)
    with monkeypatch.context() as patch:
        patch.setattr(engine._handles.llama, "llama_decode", lambda *_: -3)
        with pytest.raises(EngineError, match=r"cannot decode \(status -3\)"):
            engine.append(9)
    assert engine.tokens == tuple(prompt)
    assert engine.prefill([*prompt, 9]) == 30


def test_a_closed_engine_refuses_everything(tiny_path: Path) -> None:
    engine = Engine(tiny_path, SMALL)
    engine.prefill([1])
    with engine.sampler(GREEDY) as sample:
        engine.close()
        engine.close()
        assert engine.closed
        for use in (
            sample,
            engine.clear,
            engine.last_logits,
            lambda: engine.tokens,
            lambda: engine.tokens_left,
            lambda: engine.prefill([1]),
            lambda: engine.append(1),
            lambda: engine.logits([1]),
            lambda: engine.is_end(1),
            lambda: engine.sampler(GREEDY).__enter__(),
        ):
            with pytest.raises(EngineError, match="the model was closed"):
                use()


def test_a_context_that_does_not_fit_into_memory_is_one_error(tiny_path: Path) -> None:
    # Four million tokens take 512 MiB in the layer with full attention; 256 MiB may be had.
    settings = replace(SMALL, n_ctx=2**22)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**28, before[1]))
    try:
        with pytest.raises(AllocationError) as caught:
            Engine(tiny_path, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "llama.cpp cannot make a context of 4194304 tokens" in str(caught.value)
    # What was asked of which device; or C++'s word for it, where its own lists came first.
    short = ("failed to allocate CPU buffer of size 536870912", "std::bad_alloc")
    assert str(caught.value.found).endswith(short)
    assert "lower n_ctx" in str(caught.value)


def test_a_file_that_llama_cpp_refuses_is_one_error_in_its_words(tmp_path: Path) -> None:
    model = tiny_model()
    del model.keys["llama4.embedding_length"]
    with pytest.raises(EngineError) as caught:
        Engine(model.write(tmp_path / "damaged.gguf"), SMALL)
    assert "damaged.gguf: llama.cpp cannot load the model" in str(caught.value)
    assert "key not found in model: llama4.embedding_length" in str(caught.value)


def test_weights_that_are_not_numbers_are_refused_when_sampling(tmp_path: Path) -> None:
    model = tiny_model()
    model.tensors["output_norm.weight"][:] = np.nan
    with Engine(model.write(tmp_path / "nan.gguf"), SMALL) as engine:
        engine.prefill([1, 2])
        with engine.sampler(GREEDY) as sample, pytest.raises(EngineError, match="NaN or infinite"):
            sample()


def test_loading_reports_its_progress_in_the_calling_thread(tiny_path: Path) -> None:
    seen: list[tuple[float, threading.Thread]] = []
    Engine(
        tiny_path, SMALL, on_progress=lambda part: seen.append((part, threading.current_thread()))
    ).close()
    fractions = [part for part, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {thread for _, thread in seen} == {threading.current_thread()}


def test_loading_is_cancelled_by_false(tiny_path: Path) -> None:
    with pytest.raises(EngineError, match="loading was cancelled"):
        Engine(tiny_path, SMALL, on_progress=lambda _: False)


def test_an_error_in_the_progress_function_reaches_the_caller(tiny_path: Path) -> None:
    def fail(_: float) -> None:
        raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        Engine(tiny_path, SMALL, on_progress=fail)


def test_engines_open_and_close_without_growing(tiny_path: Path) -> None:
    def cycle() -> None:
        with Engine(tiny_path, SMALL) as engine:
            generate(engine, [1, 2, 3], Sampling(seed=1), 3)

    for _ in range(3):
        cycle()
    before = resident_bytes()
    for _ in range(20):
        cycle()
    # A context that stayed would keep its 1 MiB of KV cache and several of compute buffers.
    assert resident_bytes() - before < 20 * 2**20


@pytest.mark.parametrize(
    ("layers", "devices", "expected"), [(4, None, 1), (-1, None, 0), (0, (), 0)]
)
def test_a_wish_for_a_gpu_is_answered_where_there_is_none(
    tiny_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    layers: int,
    devices: tuple[()] | None,
    expected: int,
) -> None:
    monkeypatch.setattr("llama4_edge.runtime.bindings.parameters.offload_devices", lambda: ())
    placement = Placement(n_gpu_layers=layers, devices=devices)
    Engine(tiny_path, replace(SMALL, placement=placement)).close()
    said = [one.getMessage() for one in caplog.records if one.name.endswith("handles")]
    assert len(said) == expected
    assert all("n_gpu_layers of 4 has no effect" in one for one in said)


def test_a_bias_forbids_a_token_and_one_that_the_model_lacks_is_refused(engine: Engine) -> None:
    engine.prefill([1, 2, 3])
    with engine.sampler(GREEDY) as choose:
        likeliest = choose()
    forbidden = replace(GREEDY, logit_bias=((likeliest, -float("inf")),))
    with engine.sampler(forbidden) as choose:
        assert choose() == int(np.argsort(engine.last_logits())[-2])
    with (
        pytest.raises(SettingError, match=f"found {N_VOCAB}, expected 0 to {N_VOCAB - 1}"),
        engine.sampler(replace(GREEDY, logit_bias=((N_VOCAB, 1.0),))),
    ):
        pass


def test_penalties_count_the_prompt(engine: Engine) -> None:
    engine.prefill([5, 6, 7])
    likeliest = int(engine.last_logits().argmax())
    engine.prefill([likeliest, 5, 6, 7])
    again = int(engine.last_logits().argmax())
    engine.prefill([again, 5, 6, 7])
    with engine.sampler(replace(GREEDY, presence_penalty=1000.0)) as choose:
        assert choose() not in {again, 5, 6, 7}


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (
            {"n_expert_used": 5},
            "n_expert_used is more than the model has, found 5, expected 1 to 4",
        ),
        ({"kv_type": "q8_0"}, "keys of its heads cannot be kept as q8_0"),
    ],
)
def test_settings_that_the_model_cannot_have_are_refused(
    tiny_path: Path, wrong: dict[str, Any], what: str
) -> None:
    with pytest.raises(SettingError, match=what):
        Engine(tiny_path, replace(SMALL, **wrong))
