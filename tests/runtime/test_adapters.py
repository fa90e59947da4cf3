"""Adapters at run time: what they add, whose batch they are in, and what may be reused."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge.errors import AllocationError, EngineError, ModelFileError, SettingError
from llama4_edge.runtime.adapters import Adapter, LoadedAdapters, as_adapters, as_scales
from llama4_edge.runtime.bindings import adapters as native
from llama4_edge.runtime.bindings.candidates import native_library
from llama4_edge.runtime.bindings.library import captured_log
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.request import Request
from llama4_edge.runtime.sampling import Sampling
from llama4_edge.runtime.settings import EngineSettings
from tests.adapters import RANK, peer_logits, tiny_adapter, tiny_control_vector
from tests.gguf_maker import LAYERS, TinyModel, tiny_model
from tests.tiny_model import never_ending

# Without repacking: repacked weights are multiplied by activations of 8 bits.
SMALL = EngineSettings(
    n_ctx=512, n_batch=64, n_ubatch=32, n_outputs=16, n_threads=1, use_extra_bufts=False
)
TOKENS = list(range(1, 100))
GREEDY = Sampling(temperature=0.0)
# Every kind of matrix that llama.cpp adds an adapter to.
TARGETS = [
    name
    for name, tensor in tiny_model().tensors.items()
    if tensor.ndim > 1 and name != "rope_freqs.weight"
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return never_ending().write(tmp_path_factory.mktemp("adapters") / "model.gguf")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_adapter(TARGETS).write(tmp_path_factory.mktemp("first") / "first.gguf")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    targets = [name for name in TARGETS if "attn" in name]
    made = tiny_adapter(targets, rank=4, seed=5)
    return made.write(tmp_path_factory.mktemp("second") / "second.gguf")


@pytest.fixture(scope="module")
def bare(model: Path) -> npt.NDArray[np.float32]:
    with Engine(model, SMALL) as engine:
        return engine.logits(TOKENS)


@pytest.fixture(scope="module")
def engine(model: Path, first: Path, second: Path) -> Iterator[Engine]:
    settings = replace(SMALL, n_parallel=4, adapters=((first, 0.1), (second, 0.2)))  # type: ignore[arg-type]
    with Engine(model, settings) as loaded:
        yield loaded


def merged(*adapters: tuple[TinyModel, float]) -> TinyModel:
    """The model with adapters of rank 2 added to its weights by hand, alpha being 4."""
    model = never_ending()
    for adapter, scale in adapters:
        for target in {name.rpartition(".")[0] for name in adapter.tensors}:
            a, b = adapter.tensors[f"{target}.lora_a"], adapter.tensors[f"{target}.lora_b"]
            product = a @ b.T if target == "token_embd.weight" else np.matmul(b, a)
            weight = model.tensors[target].astype(np.float64)
            rank = b.shape[-1]
            model.tensors[target] = (weight + scale * 4.0 / rank * product).astype(np.float32)
    return model


def divergence(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """The mean KL divergence of the distributions that two sets of logits give."""

    def logs(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

    return float((np.exp(logs(one)) * (logs(one) - logs(other))).sum(axis=-1).mean())


def answer(engine: Engine, adapters: object, *, count: int = 24, prompt: int = 30) -> list[int]:
    """The likeliest answer, made alone."""
    request = asked(engine, adapters, count=count, prompt=prompt)
    engine.scheduler.wait(request, lambda: request.ended)
    if request.error is not None:
        raise request.error
    return request.text[request.n_prompt :]


def asked(
    engine: Engine, adapters: object, *, count: int = 24, prompt: int = 30, paced: bool = False
) -> Request:
    tokens = TOKENS[:prompt]
    request = engine.request(tokens, GREEDY, count, lambda *_: True, paced=paced, adapters=adapters)
    engine.scheduler.submit(request)
    return request


# --- what is added


def test_an_adapter_gives_what_its_merged_weights_give(
    engine: Engine, bare: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    path = merged((tiny_adapter(TARGETS), 0.1)).write(tmp_path / "merged.gguf")
    with Engine(path, SMALL) as peer:
        expected = peer.logits(TOKENS)
    logits = engine.logits(TOKENS, adapters=[(0, 0.1)])
    assert divergence(expected, logits) < 1e-5
    assert divergence(bare, logits) > 0.01  # and it changes something


def test_two_adapters_add(engine: Engine, second: Path, tmp_path: Path) -> None:
    targets = [name for name in TARGETS if "attn" in name]
    both = (tiny_adapter(TARGETS), 0.1), (tiny_adapter(targets, rank=4, seed=5), 0.2)
    path = merged(*both).write(tmp_path / "merged.gguf")
    with Engine(path, SMALL) as peer:
        expected = peer.logits(TOKENS)
    # They are the engine's own scales.
    assert divergence(expected, engine.logits(TOKENS)) < 1e-5
    assert divergence(expected, engine.logits(TOKENS, adapters=[str(second)])) > 0.01


def test_it_is_what_llama_cpp_gives(model: Path, first: Path, engine: Engine) -> None:
    expected = peer_logits(model, TOKENS, [(first, 0.1)])
    assert divergence(expected, engine.logits(TOKENS, adapters=[("first", 0.1)])) < 1e-5


@pytest.mark.parametrize("none", [[], [(0, 0.0)], [("first", 0), ("second", 0.0)], {0: 0.0}])
def test_scale_0_is_the_bare_model_exactly(
    engine: Engine, bare: npt.NDArray[np.float32], none: object
) -> None:
    engine.logits(TOKENS)  # with adapters, before
    assert np.array_equal(engine.logits(TOKENS, adapters=none), bare)


def test_a_control_vector_is_added_after_its_layers(
    model: Path, bare: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    vector = tiny_control_vector()
    path = vector.write(tmp_path / "vector.gguf")

    def logits(scale: float, layers: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        steered = replace(
            SMALL,
            control_vectors=((path, scale),),  # type: ignore[arg-type]
            control_vector_layers=layers,
        )
        with Engine(model, steered) as engine:
            return engine.logits(TOKENS)

    assert np.array_equal(logits(0.0), bare)
    last = logits(0.5, (LAYERS - 1, LAYERS - 1))
    assert divergence(bare, last) > 0.01
    assert divergence(last, logits(0.5)) > 0.01


# --- whose batch it is


def test_requests_of_one_batch_get_what_each_gets_alone(engine: Engine) -> None:
    wanted: list[object] = [None, [], [(0, 0.3)], [("second", -1.0)]]
    alone = []
    for adapters in wanted:
        alone.append(answer(engine, adapters))
        engine.clear()
    assert len({tuple(tokens) for tokens in alone}) == 4
    requests = [asked(engine, adapters) for adapters in wanted]
    for request, tokens in zip(requests, alone, strict=True):
        engine.scheduler.wait(request, lambda request=request: request.ended)  # type: ignore[misc]
        assert request.text[request.n_prompt :] == tokens


def test_drafts_and_scores_have_the_adapters_of_their_request(engine: Engine) -> None:
    for adapters in ([], [(0, 0.3)]):
        logits = engine.logits(TOKENS, adapters=adapters).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        scores = engine.score(TOKENS, adapters=adapters)
        expected = [logs[place, token] for place, token in enumerate(TOKENS[1:])]
        assert np.allclose([one.logprob for one in scores], expected, atol=0.01)


def test_what_was_read_with_others_is_not_reused(engine: Engine) -> None:
    first = asked(engine, [(0, 0.3)])
    engine.scheduler.wait(first, lambda: first.ended)
    for adapters, reused in (([(0, 0.3)], 29), ([(0, 0.31)], 0), ([], 0), ([(1, 0.3)], 0)):
        request = asked(engine, adapters, count=1)
        engine.scheduler.wait(request, lambda request=request: request.ended)  # type: ignore[misc]
        assert request.reused_tokens == reused, adapters


def test_states_in_main_memory_know_their_adapters(model: Path, first: Path) -> None:
    settings = replace(SMALL, adapters=(first,), cache_ram=1 << 28)  # type: ignore[arg-type]
    with Engine(model, settings) as engine:
        # (After so many no two tokens are so likely that rounding could choose.)
        alone = answer(engine, [(0, 0.2)], prompt=89)
        engine.clear()
        for adapters in ([(0, 0.2)], [], [(0, 0.2)], []):
            request = asked(engine, adapters, prompt=89)
            engine.scheduler.wait(request, lambda request=request: request.ended)  # type: ignore[misc]
            if adapters:
                assert request.text[89:] == alone
        state = engine.state_of(TOKENS[:89], (0.2,))
        assert state is None or state.adapters == (0.2,)


def test_threads_change_adapters_without_waiting_for_the_end_of_an_answer(engine: Engine) -> None:
    slow = asked(engine, [(0, 0.3)], count=400, paced=True)
    quick = asked(engine, [], count=4)
    engine.scheduler.wait(quick, lambda: quick.ended)
    was_answering = not slow.ended
    engine.scheduler.cancel(slow)
    engine.scheduler.wait(slow, lambda: slow.ended)
    assert was_answering


def test_the_scales_of_later_requests_can_be_changed(engine: Engine) -> None:
    kept = engine.adapters.scales
    try:
        expected = engine.logits(TOKENS, adapters=[(1, 0.4)])
        engine.adapters.scales = engine.adapters.of([("second", 0.4)])
        assert np.array_equal(engine.logits(TOKENS), expected)
    finally:
        engine.adapters.scales = kept


# --- memory, and what fails


def test_bytes_are_those_that_llama_cpp_reports(model: Path, first: Path, second: Path) -> None:
    settings = replace(SMALL, adapters=(first, second))  # type: ignore[arg-type]
    with captured_log() as log, Engine(model, settings) as engine:
        report = engine.memory()
    said = [
        float(line.text.split("=")[1].split()[0])
        for line in log.lines
        if "LoRA buffer size" in line.text
    ]
    assert len(said) == 2
    (device,) = report.devices
    assert device.adapters / 2**20 == pytest.approx(sum(said), abs=0.011)
    in_files = sum(
        tensor.nbytes
        for made in (
            tiny_adapter(TARGETS),
            tiny_adapter([n for n in TARGETS if "attn" in n], rank=4),
        )
        for tensor in made.tensors.values()
    )
    assert in_files <= device.adapters < 1.05 * in_files


def test_memory_that_is_short_is_an_error_and_ends_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = native._reserve
    failing = threading.Event()

    def short(context: object) -> str | None:
        if failing.is_set():
            failing.clear()
            return "failed to allocate compute pp buffers"
        return reserve(context)

    monkeypatch.setattr(native, "_reserve", short)
    bare = answer(engine, [])
    failing.set()
    with pytest.raises(AllocationError, match="cannot make buffers for the adapters"):
        answer(engine, [(0, 0.7)])
    assert answer(engine, []) == bare
    assert len(answer(engine, [(0, 0.7)])) == 24


def test_what_cpp_throws_is_caught() -> None:
    library = native_library()
    assert library is not None
    throws = ctypes.cast(ctypes.CDLL("libstdc++.so.6")._ZSt17__throw_bad_allocv, ctypes.c_void_p)
    text = ctypes.create_string_buffer(64)
    assert library.llama4_edge_guarded(throws, None, text, ctypes.c_size_t(64)) == 1
    assert text.value == b"std::bad_alloc"


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, first: Path) -> None:
    other = tiny_model(layers=8, moe_step=2).write(tmp_path / "other.gguf")
    with pytest.raises(ModelFileError, match="adapter of another model"):
        Engine(other, replace(SMALL, adapters=(first,)))  # type: ignore[arg-type]


def test_an_engine_without_adapters_has_none(tiny_path: Path) -> None:
    with Engine(tiny_path, SMALL) as engine:
        assert engine.adapters.of(None) == engine.adapters.of([]) == ()
        with pytest.raises(SettingError, match="adapters names one that is not loaded"):
            engine.logits(TOKENS, adapters=["first"])


def test_an_engine_that_was_closed_has_freed_them(model: Path, first: Path) -> None:
    engine = Engine(model, replace(SMALL, adapters=(first,)))  # type: ignore[arg-type]
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.logits(TOKENS, adapters=[])


# --- values


@pytest.mark.parametrize(
    ("wanted", "scales"),
    [
        (None, (0.5, 2.0)),
        ([], (0.0, 0.0)),
        (["b"], (0.0, 1.0)),
        ([("dir/a.gguf", 0.25)], (0.25, 0.0)),
        ([1, (0, -1.0)], (-1.0, 1.0)),
        ([Adapter("dir/b.gguf", 3.0)], (0.0, 3.0)),
        ({"a": 0.1, "b": 0.2}, (0.1, 0.2)),
    ],
)
def test_a_request_names_adapters_by_file_name_or_place(
    wanted: object, scales: tuple[float, ...]
) -> None:
    loaded = LoadedAdapters(as_adapters([("dir/a.gguf", 0.5), ("dir/b.gguf", 2.0)]))
    assert loaded.of(wanted) == scales


@pytest.mark.parametrize(
    "wanted", [["c"], [2], [-1], ["a", 0], "a", 3, [True], [("a", "x")], [("a", float("nan"))]]
)
def test_what_names_no_adapter_is_refused(wanted: object) -> None:
    loaded = LoadedAdapters(as_adapters(["dir/a.gguf", "dir/b.gguf"]))
    with pytest.raises(SettingError):
        loaded.of(wanted)


@pytest.mark.parametrize(
    "adapters", ["a.gguf", 1, [1], [("a", 1, 2)], ["a", "a"], [("a", 1e9)], [None], ["a"] * 65]
)
def test_what_is_no_list_of_adapters_is_refused(adapters: object) -> None:
    with pytest.raises(SettingError):
        as_adapters(adapters)


def test_a_file_is_one_adapter_whatever_leads_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.gguf").touch()
    (tmp_path / "link.gguf").symlink_to("p.gguf")
    monkeypatch.chdir(tmp_path)
    for other in ("p.gguf", "./p.gguf", tmp_path / "p.gguf", "link.gguf"):
        with pytest.raises(SettingError, match=r"an adapter is given twice, found .*p\.gguf"):
            as_adapters(["p.gguf", (other, 0.5)])
    loaded = LoadedAdapters(as_adapters(["p.gguf", "other/p.gguf"]))
    assert loaded.of(["./p.gguf"]) == loaded.of([tmp_path / "link.gguf"]) == (1.0, 0.0)
    with pytest.raises(SettingError, match="adapters names one twice"):
        loaded.of(["p.gguf", "link.gguf"])


def test_scales_that_are_none_are_what_the_model_has() -> None:
    assert as_scales(None) is None
    assert as_scales([("a", 1)]) == (("a", 1.0),)
    assert RANK == 2
