"""Measured as llama-bench measures: the same tests, tokens, contexts and fields."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge.convert.blueprint import blueprint
from llama4_edge.convert.presets import PRESETS
from llama4_edge.errors import AllocationError, EngineError, SettingError
from llama4_edge.measure import speed as bench_module
from llama4_edge.measure.speed import BenchGrid, BenchResult, BenchTest, bench
from llama4_edge.measure.speed_engine import BenchEngine
from llama4_edge.measure.synthetic import synthetic_file
from llama4_edge.runtime.bindings.library import llama
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.placement import Placement
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.system.memory import HostMemory
from tests.small_config import N_VOCAB, SMALL

N_EXPERT = 16
# get_fields() of llama-bench.cpp, what its JSON adds, and n_expert_used.
FIELDS = [
    "build_commit", "build_number", "cpu_info", "gpu_info", "backends", "model_filename",
    "model_type", "model_size", "model_n_params", "n_batch", "n_ubatch", "n_threads", "cpu_mask",
    "cpu_strict", "poll", "type_k", "type_v", "n_gpu_layers", "n_cpu_moe", "split_mode",
    "main_gpu", "no_kv_offload", "flash_attn", "devices", "tensor_split", "tensor_buft_overrides",
    "load_mode", "lazy_mode", "embeddings", "no_op_offload", "no_host", "repack", "fit_target",
    "fit_min_ctx", "n_expert_used", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns",
    "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts",
]  # fmt: skip
ONE_THREAD = EngineSettings(n_ctx=64, n_threads=1, n_threads_batch=1, n_outputs=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small model of random weights, without a tokenizer."""
    directory = tmp_path_factory.mktemp("synthetic")
    config = directory / "config.json"
    config.write_text(json.dumps({**PRESETS["scout"].config, **SMALL}))
    with synthetic_file(blueprint(config, synthetic=True), directory) as path:
        yield path


def small(**changes: Any) -> BenchGrid:
    return replace(BenchGrid(n_prompt=(8,), n_gen=(4,), n_threads=(1,), repetitions=2), **changes)


def run(model: Path, **changes: Any) -> list[BenchResult]:
    return list(bench(model, small(**changes)))


def test_the_fields_are_llama_bench_s(model: Path) -> None:
    record = run(model, n_gen=())[0].as_dict()
    assert list(record) == FIELDS
    assert json.loads(json.dumps(record)) == record
    assert (record["n_prompt"], record["n_gen"], record["n_depth"]) == (8, 0, 0)
    assert record["model_size"] == blueprint_bytes(model)
    assert record["model_type"].startswith("llama4 17Bx16E")
    assert len(record["samples_ns"]) == len(record["samples_ts"]) == 2
    assert record["avg_ns"] == pytest.approx(np.mean(record["samples_ns"]), abs=1)
    assert record["avg_ts"] == pytest.approx(
        np.mean([8e9 / sample for sample in record["samples_ns"]])
    )
    assert record["stddev_ts"] == pytest.approx(np.std(record["samples_ts"], ddof=1))


def test_the_number_of_experts_is_the_one_that_was_measured(model: Path) -> None:
    assert run(model, n_gen=())[0].as_dict()["n_expert_used"] == 1
    asked = replace(ONE_THREAD, n_expert_used=3)
    assert run(model, n_gen=(), base=asked)[0].as_dict()["n_expert_used"] == 3


def blueprint_bytes(model: Path) -> int:
    drawn = blueprint(model.parent / "config.json", synthetic=True)
    return sum(tensor.nbytes for tensor in drawn.tensors)


def test_tests_come_in_llama_bench_s_order_and_under_its_names() -> None:
    grid = BenchGrid(n_prompt=(512, 64), n_gen=(128, 0), pairs=((32, 16),), n_depth=(0, 4096))
    assert [test.name for test in grid.tests] == [
        "pp512", "pp64", "tg128", "pp32+tg16",
        "pp512 @ d4096", "pp64 @ d4096", "tg128 @ d4096", "pp32+tg16 @ d4096",
    ]  # fmt: skip


def test_settings_vary_around_the_tests_and_the_context_is_as_large_as_a_test_needs() -> None:
    grid = BenchGrid(
        n_prompt=(512,), n_gen=(128,), n_depth=(0, 100), kv_type=("f16", "q8_0"), n_cpu_moe=(0, 2)
    )
    cases = list(grid.cases())
    assert [(c.n_cpu_moe, c.settings.kv_type, c.settings.n_ctx) for c in cases] == [
        (n_cpu_moe, kv_type, n_ctx)
        for n_cpu_moe in (0, 2)
        for kv_type in ("f16", "q8_0")
        for n_ctx in (512, 128, 612, 228)
    ]
    assert cases[0].settings.placement.overrides == ()
    assert cases[-1].settings.placement.overrides[0][1] == "CPU"
    assert {case.settings.n_threads == case.settings.n_threads_batch for case in cases} == {True}


def test_tokens_are_those_of_the_c_library_from_its_first_seed() -> None:
    library = ctypes.CDLL(None)
    library.srand(1)
    expected = [library.rand() % N_VOCAB for _ in range(12)]
    tokens = bench_module._RandomTokens(N_VOCAB)
    assert tokens.prompt(4) == expected[:4]
    # One more is drawn than is decoded.
    assert tokens.generated(3) == expected[4:7]
    tokens.first = 7
    assert tokens.prompt(3) == [7, *expected[8:10]]
    assert tokens.generated(0) == []
    assert tokens.prompt(2) == [7, expected[10]]


def test_a_test_reads_and_decodes_what_it_says(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    extend, decode_each = BenchEngine.extend, BenchEngine.decode_each

    def extending(engine: BenchEngine, tokens: list[int]) -> None:
        calls.append(("extend", len(tokens)))
        extend(engine, tokens)

    def decoding(engine: BenchEngine, tokens: list[int]) -> None:
        held = len(engine.tokens)
        decode_each(engine, tokens)
        calls.extend(("append", at) for at in range(held, len(engine.tokens)))

    monkeypatch.setattr(BenchEngine, "extend", extending)
    monkeypatch.setattr(BenchEngine, "decode_each", decoding)
    run(model, n_prompt=(8,), n_gen=(2,), n_depth=(5,))
    assert calls == [
        # The warm-up, then the depth once, then the prompt in each repetition.
        ("extend", 8), ("extend", 5), ("extend", 8), ("extend", 8),
        # The warm-up in an empty context; the depth is restored.
        ("append", 0), ("append", 5), ("append", 6), ("append", 5), ("append", 6),
    ]  # fmt: skip
    calls.clear()
    run(model, n_prompt=(8,), n_gen=(), warmup=False, repetitions=1)
    assert calls == [("extend", 8)]
    # Tests of the same length have the same context, and each begins with an empty one.
    calls.clear()
    run(model, n_prompt=(4,), n_gen=(4,), repetitions=1)
    assert calls == [("extend", 4), ("extend", 4), *(("append", at) for at in (0, 0, 1, 2, 3))]


def test_a_remade_context_computes_as_a_new_engine_does(model: Path) -> None:
    tokens = [5, 9, 700, 3, 1000, 12]
    with Engine(model, replace(ONE_THREAD, n_ctx=32)) as plain:
        plain.prefill(tokens)
        expected = plain.last_logits()
    with BenchEngine(model, ONE_THREAD) as engine:
        engine.extend([1, 2, 3])
        engine.remake(replace(ONE_THREAD, n_ctx=32))
        assert engine.tokens == () and engine.tokens_left == 32
        engine.extend(tokens[:4])
        engine.extend(tokens[4:5])
        engine.append(tokens[5])
        # The same numbers, but for the order in which the pieces' rows are summed.
        assert np.abs(engine.last_logits() - expected).max() < 1e-2
        engine.remake(replace(ONE_THREAD, n_ctx=32))
        engine.extend(tokens)
        assert np.array_equal(engine.last_logits(), expected)
        with pytest.raises(SettingError, match="placement cannot change"):
            engine.remake(replace(ONE_THREAD, placement=Placement(n_gpu_layers=0)))
    with pytest.raises(EngineError, match="closed"):
        engine.extend([1])


def test_a_restored_state_goes_on_as_if_it_had_been_read(model: Path) -> None:
    tokens = [5, 9, 700, 3]
    with BenchEngine(model, ONE_THREAD) as engine:
        engine.extend(tokens)
        state = engine.state_of(tokens)
        assert state is not None
        engine.append(8)
        expected = engine.last_logits()
        engine.clear()
        assert engine.restore(state)
        assert engine.tokens == tuple(tokens)
        engine.append(8)
        assert np.array_equal(engine.last_logits(), expected)
        # Another kind of cache cannot hold it, and is left empty.
        engine.remake(replace(ONE_THREAD, kv_type="q8_0"))
        assert not engine.restore(state)
        assert engine.tokens == ()


def test_every_depth_and_kv_type_is_measured(model: Path) -> None:
    results = run(model, n_depth=(0, 16), kv_type=("f16", "q8_0"), repetitions=1)
    described = [(one.case.test, one.case.settings.kv_type) for one in results]
    assert described == [
        (BenchTest(n_prompt, n_gen, n_depth), kv_type)
        for kv_type in ("f16", "q8_0")
        for n_depth in (0, 16)
        for n_prompt, n_gen in ((8, 0), (0, 4))
    ]
    assert all(one.avg_ts > 0 and one.stddev_ts == 0 for one in results)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"n_prompt": (0,), "n_gen": ()}, "nothing to measure"),
        ({"n_prompt": (-1,)}, "a number of tokens"),
        ({"n_depth": (True,)}, "a number of tokens"),
        ({"repetitions": 0}, "the number of repetitions"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingError, match=problem):
        small(**changes)


def test_an_override_that_fits_no_tensor_is_refused_before_loading(model: Path) -> None:
    placement = Placement(overrides=(("no_such", "CPU"),))
    with pytest.raises(SettingError, match="matches no tensor"):
        run(model, base=EngineSettings(placement=placement))


def test_synthetic_routers_spread_tokens_over_all_experts(model: Path) -> None:
    """Decode speed depends on how many experts tokens visit, and logits must be numbers."""
    visits, logits = route(model, np.random.default_rng(0).integers(0, N_VOCAB, 512))
    assert np.isfinite(logits).all() and 0.5 < logits.std() < 2
    assert sorted(visits) == [0, 1, 2, 3, 4]
    for layer, chosen in visits.items():
        counts = np.bincount(chosen, minlength=N_EXPERT)
        # 512 fair choices of 16: 32 each, give or take 5.5; no one in a thousand is beyond 4 of
        # these. Random routers are a little less fair than dice.
        assert counts.min() > 5 and counts.max() < 75, (layer, counts)


def route(
    model: Path, tokens: npt.NDArray[np.int64]
) -> tuple[dict[int, npt.NDArray[np.int32]], npt.NDArray[np.float32]]:
    """The expert of each token, by layer, and the last logits.

    (The last layer computes the last token only, and is left out.)
    """
    bindings = llama()
    ggml = bindings._lib
    name = function(ggml, "ggml_get_name", ctypes.c_char_p, ctypes.c_void_p)
    nbytes = function(ggml, "ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p)
    size = ctypes.c_size_t
    get = function(
        ggml, "ggml_backend_tensor_get", None, ctypes.c_void_p, ctypes.c_void_p, size, size
    )
    visits: dict[int, npt.NDArray[np.int32]] = {}

    def on_tensor(tensor: int, asked: bool, _: object) -> bool:
        text: str = name(tensor).decode()
        kind, _, layer = text.rpartition("-")
        if kind != "ffn_moe_topk" or asked:
            return kind == "ffn_moe_topk"
        data = np.empty(nbytes(tensor) // 4, np.int32)
        get(tensor, data.ctypes.data, 0, data.nbytes)
        # A view of all experts in their order, a row a token; the last row ends with its first.
        if data.size > 1:
            visits[int(layer)] = data[::N_EXPERT]
        return True

    callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(
        on_tensor
    )
    loaded = bindings.llama_model_load_from_file(
        str(model).encode(), bindings.llama_model_default_params()
    )
    params = bindings.llama_context_default_params()
    params.n_ctx = params.n_batch = len(tokens)
    params.n_threads = params.n_threads_batch = 1
    params.cb_eval = ctypes.cast(callback, type(params.cb_eval))
    context = bindings.llama_init_from_model(loaded, params)
    ids = (ctypes.c_int32 * len(tokens))(*tokens.tolist())
    assert bindings.llama_decode(context, bindings.llama_batch_get_one(ids, len(tokens))) == 0
    logits = np.ctypeslib.as_array(
        bindings.llama_get_logits_ith(context, -1), shape=(N_VOCAB,)
    ).copy()
    bindings.llama_free(context)
    bindings.llama_model_free(loaded)
    return visits, logits


def function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    found = library[name]
    found.restype, found.argtypes = result, list(arguments)
    return found


@pytest.mark.parametrize(
    ("grid", "complaint"),
    [
        ({"n_prompt": 3}, "n_prompt is of the wrong type, found 3, expected a list of values"),
        ({"n_batch": ()}, "there is nothing to measure"),
        ({"pairs": [(1,)]}, "pairs is of the wrong type"),
        ({"base": None}, "base is of the wrong type, found None, expected EngineSettings"),
        ({"n_prompt": range(1, 3001), "n_depth": range(3000)}, "too many tests, found 9,003,000"),
        ({"n_prompt": (2**31 - 1,)}, "a test is too long, found 2,147,483,647 tokens"),
        ({"n_depth": (2**24,)}, "a test is too long, found 16,777,728 tokens"),
    ],
)
def test_a_grid_that_nobody_can_measure_is_refused(grid: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint):
        BenchGrid(**grid)


def test_a_context_that_does_not_fit_into_main_memory_is_refused_before_it_is_made(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = HostMemory(total=2**30, free=2**20, source="a test")
    monkeypatch.setattr("llama4_edge.runtime.main_memory.host_memory", lambda: little)
    with pytest.raises(AllocationError, match="Lower n_prompt, n_gen or n_depth") as caught:
        next(bench(tiny_path, BenchGrid(n_prompt=(4096,), n_gen=())))
    assert "does not fit into main memory" in caught.value.problem
