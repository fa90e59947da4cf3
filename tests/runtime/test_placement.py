"""Placements as values, and as llama.cpp follows them: workers on loopback stand for GPUs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llama4_edge import Model, Sampling, plan
from llama4_edge.errors import SettingError
from llama4_edge.runtime.bindings.devices import NativeDevice
from llama4_edge.runtime.bindings.parameters import context_params, model_params
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.placement import CPU, Placement, check_overrides, cpu_moe_overrides
from llama4_edge.runtime.settings import EngineSettings, KVTypes
from llama4_edge.runtime.workers.worker import local_workers
from tests.fixtures import MakeGGUF

Logits = npt.NDArray[np.float32]

NAMES = ("token_embd.weight", "output.weight", "blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight",
         "blk.1.ffn_up.weight", "blk.10.ffn_gate_exps.weight")  # fmt: skip


# --- values


@pytest.mark.parametrize("pattern", [
    r"blk\.(0|1)\.ffn_(up|down|gate)_exps", "ffn_.*_exps", r"^blk\.[0-9]+\.attn", r"blk\.\d{1,2}\.",
    "(?:a|b)+c?", "[^.]+$", "attn_q", "x=y", r"a.*?b", "[a-z_]*", "a||b", "()",
])  # fmt: skip
def test_a_pattern_that_python_and_llama_cpp_read_alike_is_taken(pattern: str) -> None:
    assert Placement(overrides=((pattern, CPU),)).overrides == ((pattern, CPU),)


@pytest.mark.parametrize("pattern", [
    "", "(?i)exps", "(?=a)", "(?!a)b", "(?P<n>a)", "(?>a)", "[[:alpha:]]", "[]a]", "[a", "a{2",
    "a}", "a]", "(a", "a)", "*a", "a**", "a*+", r"\Aa", r"a\b", r"(a)\1", "a\\", "[z-a]", "a{3,1}",
    "[a--b]", "ä", "a\n", r"\x41", "^*",
])  # fmt: skip
def test_a_pattern_that_would_mean_something_else_there_is_refused(pattern: str) -> None:
    with pytest.raises(SettingError, match=r"not in the syntax that llama\.cpp and Python share"):
        Placement(overrides=((pattern, CPU),))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"n_gpu_layers": -2}, "n_gpu_layers is outside its range, found -2"),
        ({"n_gpu_layers": True}, "n_gpu_layers is outside its range, found True"),
        ({"devices": ("A", "A")}, "a device is named twice, found A"),
        ({"devices": ("",)}, "a device has no name"),
        ({"devices": (CPU,)}, "layers cannot be shared with the CPU as a device"),
        ({"devices": tuple(f"D{n}" for n in range(16))}, "found 16: D0, D1"),
        ({"tensor_split": (0, 0.0)}, "tensor_split leaves every device without layers"),
        ({"tensor_split": (1, -1)}, "a share of tensor_split is outside its range, found -1"),
        ({"tensor_split": (float("nan"),)}, "found nan, expected a number from 0 up"),
        ({"tensor_split": (float("inf"), 1)}, "found inf, expected a number from 0 up"),
        ({"tensor_split": (1,), "devices": ("A", "B")}, "found 1 for A, B, expected 2"),
        ({"overrides": (("exps", ""),)}, "the override exps has no device"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingError, match=re.escape(complaint)):
        Placement(**given)


def test_fifteen_devices_are_taken() -> None:
    names = tuple(f"D{number}" for number in range(15))
    assert Placement(devices=names).devices == names


def test_lists_are_taken_and_held_as_tuples() -> None:
    lists: dict[str, Any] = {
        "devices": ["A", "B"],
        "tensor_split": [3, 1],
        "overrides": [["exps", CPU]],
    }
    given = Placement(**lists)
    assert given == Placement(devices=("A", "B"), tensor_split=(3, 1), overrides=(("exps", CPU),))
    assert hash(given)


def test_experts_of_the_first_layers_stay_on_the_cpu() -> None:
    def found(n_layers: int | None) -> list[str]:
        overrides = cpu_moe_overrides(n_layers)
        assert all(target == CPU for _, target in overrides)
        return [name for name in NAMES if any(re.search(one, name) for one, _ in overrides)]

    assert found(None) == ["blk.0.ffn_down_exps.weight", "blk.10.ffn_gate_exps.weight"]
    assert found(0) == []
    assert found(1) == ["blk.0.ffn_down_exps.weight"]
    assert found(10) == ["blk.0.ffn_down_exps.weight"]  # and not blk.10
    assert found(11) == ["blk.0.ffn_down_exps.weight", "blk.10.ffn_gate_exps.weight"]
    with pytest.raises(SettingError, match="found -1, expected a whole number from 0 to 1024"):
        cpu_moe_overrides(-1)


def test_an_override_has_to_find_a_tensor() -> None:
    check_overrides((("exps", CPU), ("attn_q", "GPU0")), NAMES)
    with pytest.raises(
        SettingError, match="the override ffn_dwon=CPU matches no tensor of the model"
    ):
        check_overrides((("exps", CPU), ("ffn_dwon", CPU)), NAMES)


def test_the_token_embedding_stays_on_the_cpu() -> None:
    with pytest.raises(SettingError, match="takes the token embedding from the CPU"):
        check_overrides(((r"\.weight", "GPU0"),), NAMES)
    check_overrides((("token_embd", CPU), (r"\.weight", "GPU0")), NAMES)


# --- llama.cpp's structs


def native_devices(*names: str) -> tuple[NativeDevice, ...]:
    return tuple(
        NativeDevice(name, 1000 + number, 2000 + number, name, f"host:{number + 1}")
        for number, name in enumerate(names)
    )


def settings(**placement: Any) -> EngineSettings:
    return EngineSettings(placement=Placement(**placement))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(None, ["A", "B"]), (("B",), ["B"]), (("B", "A"), ["B", "A"]), ((), [])],
)
def test_layers_are_shared_among_the_devices_that_were_named(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...] | None, chosen: list[object] | list[str]
) -> None:
    monkeypatch.setattr("llama4_edge.runtime.bindings.parameters.offload_devices", lambda: ())
    params = model_params(settings(devices=names), native_devices("A", "B"))
    assert [one.name for one in params.devices] == chosen


@pytest.mark.parametrize(
    ("placement", "complaint"),
    [
        ({"devices": ("C",)}, "there is no device C here, expected A, B"),
        ({"tensor_split": (1,)}, "found 1 for A, B, expected 2"),
        ({"tensor_split": (1, 1), "n_gpu_layers": 1, "overrides": (("exps", "C"),)},
         "the override exps=C names a device that this model does not use, expected A, B"),
        ({"devices": ("A",), "overrides": (("exps", "B"),)}, "does not use, expected A"),
    ],
)  # fmt: skip
def test_a_device_that_is_not_there_or_not_used_is_refused(
    monkeypatch: pytest.MonkeyPatch, placement: dict[str, object], complaint: str
) -> None:
    monkeypatch.setattr("llama4_edge.runtime.bindings.parameters.offload_devices", lambda: ())
    with pytest.raises(SettingError, match=re.escape(complaint)):
        model_params(settings(**placement), native_devices("A", "B"))


def test_the_context_is_asked_for_as_it_was_set() -> None:
    params = context_params(
        EngineSettings(
            n_ctx=1000,
            n_parallel=3,
            kv_type=("q8_0", "q4_0"),
            flash_attention="on",
            placement=Placement(offload_kqv=False),
        )
    )
    assert (params.n_ctx, params.n_seq_max) == (3000, 3)
    assert (params.type_k, params.type_v, params.flash_attn_type) == (8, 2, 1)  # llama.h, ggml.h
    assert not params.offload_kqv
    plain = context_params(EngineSettings())
    assert (plain.n_ctx, plain.n_seq_max) == (32_768, 1)
    assert (plain.type_k, plain.type_v, plain.flash_attn_type) == (1, 1, -1)
    assert plain.offload_kqv


# --- followed

SMALL = EngineSettings(n_ctx=512, n_batch=128, n_ubatch=64, n_outputs=64, n_threads=1)
# 100 tokens of the vocabulary of 1024, for which no two experts of the tiny models are so close
# that rounding could choose (see tests/reference).
TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 1000, 100)]
EXPERTS_ON_CPU = cpu_moe_overrides()
HALF_OF_THE_EXPERTS = cpu_moe_overrides(2)

# The placement, how many workers, and the devices that then hold weights, and KV cache.
PLACEMENTS = {
    "all on one worker": (Placement(), 1, "RPC0", "RPC0"),
    "experts on the CPU": (Placement(overrides=cpu_moe_overrides()), 1, "CPU RPC0", "RPC0"),
    "experts of two layers on the CPU": (
        Placement(overrides=cpu_moe_overrides(2)), 1, "CPU RPC0", "RPC0"
    ),
    "the last layers": (Placement(n_gpu_layers=3), 1, "CPU RPC0", "CPU RPC0"),
    "weights of the first layers": (
        Placement(n_gpu_layers=0, overrides=((r"blk\.[01]\.", "RPC0"),)), 1, "CPU RPC0", "CPU"
    ),
    "the KV cache on the CPU": (Placement(offload_kqv=False), 1, "RPC0", "CPU"),
    "two workers share the layers": (
        Placement(tensor_split=(3, 2)), 2, "RPC0 RPC1", "RPC0 RPC1"
    ),
    "the second worker alone": (Placement(devices=("RPC1",)), 2, "RPC1", "RPC1"),
    "experts on the other worker": (
        Placement(tensor_split=(1, 0), overrides=(("_exps", "RPC1"),)), 2, "RPC0 RPC1", "RPC0"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def workers() -> Iterator[tuple[str, ...]]:
    with local_workers(2) as endpoints:
        yield endpoints


@pytest.fixture(scope="module", params=["scout-bf16", "scout-int4", "maverick-int4"])
def gguf(
    request: pytest.FixtureRequest,
    make_gguf: MakeGGUF,
    scout_checkpoint: Path,
    maverick_checkpoint: Path,
) -> Path:
    name, recipe = request.param.split("-")
    return make_gguf(scout_checkpoint if name == "scout" else maverick_checkpoint, recipe)


@pytest.fixture(scope="module")
def on_the_cpu(gguf: Path) -> Callable[[EngineSettings], Logits]:
    """The logits of the same settings without any device, computed once for each KV type."""
    known: dict[KVTypes, Logits] = {}

    def logits(settings: EngineSettings) -> Logits:
        if settings.kv_type not in known:
            alone = replace(settings, placement=Placement(devices=()), workers=())
            with Engine(gguf, alone) as engine:
                known[settings.kv_type] = engine.logits(TOKENS)
        return known[settings.kv_type]

    return logits


def kl(one: Logits, other: Logits) -> npt.NDArray[np.float64]:
    """KL(one || other) at each position, in nats."""
    p, q = (x.astype(np.float64) for x in (one, other))
    p -= np.logaddexp.reduce(p, axis=1, keepdims=True)
    q -= np.logaddexp.reduce(q, axis=1, keepdims=True)
    divergence: npt.NDArray[np.float64] = np.sum(np.exp(p) * (p - q), axis=1)
    return divergence


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", ("q8_0", "q4_0")])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_placement_gives_the_logits_of_the_cpu_alone(
    gguf: Path,
    workers: tuple[str, ...],
    on_the_cpu: Callable[[EngineSettings], Logits],
    name: str,
    kv_type: KVTypes,
) -> None:
    placement, count, weights, kv = PLACEMENTS[name]
    # Without repacking: a worker computes with plain weights, and so has to the CPU beside it.
    asked = replace(
        SMALL,
        placement=placement,
        workers=workers[:count],
        kv_type=kv_type,
        flash_attention="on",
        use_extra_bufts=False,
    )
    with Engine(gguf, asked) as engine:
        placed = engine.logits(TOKENS)
        devices = engine.memory().devices
    # The token embedding is on the CPU in any case, and small.
    embedding = 1024 * 256 * 2
    assert {one.device for one in devices if one.weights > 2 * embedding} == set(weights.split())
    assert {one.device for one in devices if one.kv} == set(kv.split())
    assert kl(on_the_cpu(asked), placed).max() <= 1e-6


def test_a_model_answers_as_on_the_cpu_wherever_it_is(
    tiny_path: Path, workers: tuple[str, ...]
) -> None:
    answers = []
    for placement, used in (
        (Placement(devices=()), ()),
        (Placement(tensor_split=(1, 1), overrides=cpu_moe_overrides(1)), workers),
    ):
        with Model(tiny_path, n_ctx=256, n_threads=1, placement=placement, workers=used) as model:
            answer = model.generate("the the", max_tokens=20, sampling=Sampling(temperature=0.0))
            answers.append((answer.tokens, answer.text))
    assert answers[0] == answers[1]
    assert answers[0][0]


def test_a_model_without_the_tensor_of_an_override_is_not_loaded(tiny_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"the override blk\.9=CPU matches no tensor of the model"
    ):
        Model(tiny_path, placement=Placement(overrides=((r"blk.9", CPU),)))


@pytest.mark.parametrize(
    ("kv_type", "what"),
    [
        ("q8_0", "keys of its heads cannot be kept as q8_0"),
        (("q4_0", "f16"), "keys of its heads cannot be kept as q4_0"),
        (("bf16", "iq4_nl"), "values of its heads cannot be kept as iq4_nl"),
    ],
)
def test_a_kv_type_that_the_heads_do_not_fit_is_refused_before_llama_cpp_aborts(
    tiny_path: Path, kv_type: KVTypes, what: str
) -> None:
    found = "found heads of 16 numbers, expected a multiple of 32, the block of"
    for opening in (Model, plan):
        with pytest.raises(SettingError, match=rf"(?i)tiny.*: {what}, {found}"):
            opening(tiny_path, n_ctx=256, kv_type=kv_type)
