"""How fast a model reads a prompt and answers, measured as llama-bench measures it.

The same procedure as llama.cpp's own tool, so that the numbers can stand beside each other: a
context just large enough for each test, a warm-up that does not count, random tokens from the C
library's ``rand()`` (so that the same experts are visited), a prompt read or tokens decoded one
after the other with nothing sampled, repeated; the fields of a result have its names. Through the
engine that answers people too. Prints nothing.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from math import prod
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from ..errors import AllocationError, SettingError
from ..ranges import as_path, as_tuple, check_callback, check_whole, wrong_type
from ..runtime.bindings.amx import use_extra_bufts
from ..runtime.bindings.devices import list_devices
from ..runtime.bindings.library import library_info
from ..runtime.files.model_file import ModelInfo, check_model_file
from ..runtime.main_memory import has_gpus, host_need, settings_that_fit
from ..runtime.placement import Placement, check_overrides, cpu_moe_overrides
from ..runtime.settings import (
    EngineSettings,
    FlashAttention,
    KVTypes,
    check_settings_of_model,
    kv_bits,
)
from ..system.cores import decoding_threads
from .speed_engine import BenchEngine

if TYPE_CHECKING:
    from ..planner.plan import Plan
    from ..runtime.state import SequenceState

_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_LENGTHS = ("n_prompt", "n_gen", "pairs", "n_depth")
_OPTIONAL_LISTS = ("n_gpu_layers", "n_cpu_moe")
_LISTS = (
    *_LENGTHS,
    *("n_batch", "n_ubatch", "kv_type", "flash_attention", "n_threads", *_OPTIONAL_LISTS),
)
_MOST = 10_000  # tests, which would take days
_LONGEST = 2**24  # tokens of a test, more than any Llama 4 was trained for


@dataclass(frozen=True)
class BenchTest:
    """`n_prompt` tokens read at once, then `n_gen` one by one, after `n_depth` uncounted ones."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name for it: ``pp512``, ``tg128 @ d4096``."""
        parts = [f"pp{self.n_prompt}"] * (self.n_prompt > 0) + [f"tg{self.n_gen}"] * (
            self.n_gen > 0
        )
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_ctx(self) -> int:
        """Tokens that the context must hold."""
        return self.n_prompt + self.n_gen + self.n_depth


@dataclass(frozen=True)
class BenchGrid:
    """What is measured: every test under every combination of settings, in llama-bench's order.

    Args:
        n_prompt, n_gen: tests that read so many tokens, or decode so many; 0 is no test.
        pairs: tests that read and then decode.
        n_depth: tokens in the context before a test begins.
        n_gpu_layers, n_cpu_moe: see ``Placement`` and ``cpu_moe_overrides``. Where both are None,
            and ``base.placement`` at most names devices, the model is placed as `plan` says.
        n_batch, n_ubatch, kv_type, flash_attention: see ``EngineSettings``.
        n_threads: threads that read and decode; None is one for each core.
        repetitions: how often each test is measured.
        warmup: whether it runs once before that.
        base: everything else.

    Raises:
        SettingError: a number outside its range, or no test at all.
    """

    n_prompt: tuple[int, ...] = (512,)
    n_gen: tuple[int, ...] = (128,)
    pairs: tuple[tuple[int, int], ...] = ()
    n_depth: tuple[int, ...] = (0,)
    n_gpu_layers: tuple[int, ...] | None = None
    n_cpu_moe: tuple[int, ...] | None = None
    n_batch: tuple[int, ...] = (EngineSettings.n_batch,)
    n_ubatch: tuple[int, ...] = (EngineSettings.n_ubatch,)
    kv_type: tuple[KVTypes, ...] = (EngineSettings.kv_type,)
    flash_attention: tuple[FlashAttention, ...] = (EngineSettings.flash_attention,)
    n_threads: tuple[int | None, ...] = (None,)
    repetitions: int = 5
    warmup: bool = True
    base: EngineSettings = EngineSettings()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        if not isinstance(self.base, EngineSettings):
            raise wrong_type("base", self.base, "EngineSettings")
        for name in _LISTS:
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL_LISTS:
                object.__setattr__(self, name, as_tuple(name, value, "values"))
        pairs = tuple(as_tuple("pairs", pair, "(n_prompt, n_gen) pairs") for pair in self.pairs)
        if any(len(pair) != 2 for pair in pairs):
            raise wrong_type("pairs", self.pairs, "a list of (n_prompt, n_gen) pairs")
        object.__setattr__(self, "pairs", pairs)
        lengths = (*self.n_prompt, *self.n_gen, *self.n_depth, *itertools.chain(*pairs))
        for value in lengths:
            check_whole("a number of tokens", value, 0)
        check_whole("the number of repetitions", self.repetitions, 1)
        self._check_size()
        # Settings that do not go together are refused now, and not after an hour of the others.
        for _ in self.cases():
            pass

    def _check_size(self) -> None:
        """Raise SettingError if there is nothing to measure, or more than anybody waits for."""
        lengths = len(self.n_prompt) + len(self.n_gen) + len(self.pairs)
        settings = (getattr(self, name) for name in _LISTS if name not in _LENGTHS)
        # A list of settings that is None has one value, which is the base's.
        choices = prod(1 if values is None else len(values) for values in settings)
        count = len(self.n_depth) * lengths * choices
        if count > _MOST:
            raise SettingError(
                "there are too many tests", found=f"{count:,}", expected=f"at most {_MOST:,}"
            )
        if not count or not self.tests:
            raise SettingError(
                "there is nothing to measure",
                hint="Give a length other than 0 to -p, -n or -pg.",
            )
        longest = max(test.n_ctx for test in self.tests)
        if longest > _LONGEST:
            raise SettingError(
                "a test is too long",
                found=f"{longest:,} tokens",
                expected=f"at most {_LONGEST:,}, n_prompt, n_gen and n_depth together",
            )

    @property
    def tests(self) -> tuple[BenchTest, ...]:
        """The tests, for each combination of settings."""
        lengths = [(n_prompt, 0) for n_prompt in self.n_prompt]
        lengths += [(0, n_gen) for n_gen in self.n_gen]
        lengths += self.pairs
        return tuple(
            BenchTest(n_prompt, n_gen, n_depth)
            for n_depth in self.n_depth
            for n_prompt, n_gen in lengths
            if n_prompt or n_gen
        )

    @property
    def placed_by_hand(self) -> bool:
        """Whether anything but the choice of devices says where the model goes."""
        placement = self.base.placement
        only_devices = placement == Placement(devices=placement.devices)
        return not only_devices or self.n_gpu_layers is not None or self.n_cpu_moe is not None

    def cases(self) -> Iterator[BenchCase]:
        """Each test with its settings, those that load the model anew changing least often."""
        threads = decoding_threads()
        for (
            n_gpu_layers,
            n_cpu_moe,
            n_batch,
            n_ubatch,
            kv_type,
            flash_attention,
            n_threads,
        ) in itertools.product(
            self.n_gpu_layers or (self.base.placement.n_gpu_layers,),
            self.n_cpu_moe or (0,),
            self.n_batch,
            self.n_ubatch,
            self.kv_type,
            self.flash_attention,
            self.n_threads,
        ):
            placement = self.base.placement
            settings = replace(
                self.base,
                n_batch=n_batch,
                n_ubatch=n_ubatch,
                n_threads=n_threads or threads,
                n_threads_batch=n_threads or threads,
                n_outputs=1,
                kv_type=kv_type,
                flash_attention=flash_attention,
                placement=replace(
                    placement,
                    n_gpu_layers=n_gpu_layers,
                    overrides=(*placement.overrides, *cpu_moe_overrides(n_cpu_moe)),
                ),
            )
            for test in self.tests:
                yield BenchCase(test, replace(settings, n_ctx=test.n_ctx), n_cpu_moe)


@dataclass(frozen=True)
class BenchCase:
    """One test under one combination of settings."""

    test: BenchTest
    settings: EngineSettings
    n_cpu_moe: int


@dataclass(frozen=True)
class BenchResult:
    """What a test took, in nanoseconds a repetition, on which model and machine."""

    case: BenchCase
    samples_ns: tuple[int, ...]
    test_time: str
    model: dict[str, Any]
    machine: dict[str, Any]

    @property
    def samples_ts(self) -> tuple[float, ...]:
        """Tokens a second in each repetition."""
        tokens = self.case.test.n_prompt + self.case.test.n_gen
        return tuple(1e9 * tokens / sample for sample in self.samples_ns)

    @property
    def avg_ts(self) -> float:
        """Tokens a second, the mean of the repetitions."""
        return mean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        """Its standard deviation; 0 for a single repetition."""
        return stdev(self.samples_ts) if len(self.samples_ts) > 1 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """llama-bench's fields, by its names and in its order, and ``n_expert_used`` among them.

        What cannot be set here has the value that it has there.
        """
        settings, test = self.case.settings, self.case.test
        placement = settings.placement
        single = len(self.samples_ns) < 2
        model = dict(self.model)
        n_expert_used = model.pop("n_expert_used")
        return {
            "build_commit": self.machine["build_commit"],
            "build_number": self.machine["build_number"],
            "cpu_info": self.machine["cpu_info"],
            "gpu_info": self.machine["gpu_info"],
            "backends": self.machine["backends"],
            **model,
            "n_batch": settings.n_batch,
            "n_ubatch": settings.n_ubatch,
            "n_threads": settings.n_threads,
            "cpu_mask": "0x0",
            "cpu_strict": False,
            "poll": 50,
            "type_k": settings.type_k,
            "type_v": settings.type_v,
            "n_gpu_layers": placement.n_gpu_layers,
            "n_cpu_moe": self.case.n_cpu_moe,
            "split_mode": "layer",
            "main_gpu": 0,
            "no_kv_offload": not placement.offload_kqv,
            "flash_attn": _FLASH_ATTENTION[settings.flash_attention],
            "devices": _devices_text(placement),
            "tensor_split": "/".join(f"{share:.2f}" for share in placement.tensor_split or (0,)),
            "tensor_buft_overrides": self._overrides_text(),
            "load_mode": settings.load_mode,
            "lazy_mode": "auto",
            "embeddings": False,
            "no_op_offload": 0,
            "no_host": False,
            "repack": settings.use_extra_bufts,
            "fit_target": 0,
            "fit_min_ctx": 0,
            "n_expert_used": settings.n_expert_used or n_expert_used,
            "n_prompt": test.n_prompt,
            "n_gen": test.n_gen,
            "n_depth": test.n_depth,
            "test_time": self.test_time,
            "avg_ns": round(mean(self.samples_ns)),
            "stddev_ns": 0 if single else round(stdev(self.samples_ns)),
            "avg_ts": self.avg_ts,
            "stddev_ts": self.stddev_ts,
            "samples_ns": list(self.samples_ns),
            "samples_ts": list(self.samples_ts),
        }

    def _overrides_text(self) -> str:
        """Those of ``-ot``: what ``-ncmoe`` adds has a field of its own."""
        added = len(cpu_moe_overrides(self.case.n_cpu_moe))
        overrides = self.case.settings.placement.overrides
        own = overrides[: len(overrides) - added]
        return ";".join(f"{pattern}={device}" for pattern, device in own) or "none"


def bench(
    path: str | os.PathLike[str],
    grid: BenchGrid | None = None,
    *,
    on_plan: Callable[[Plan], object] | None = None,
    on_load_progress: Callable[[float], object] | None = None,
    on_test: Callable[[BenchTest], object] | None = None,
) -> Iterator[BenchResult]:
    """Measure each case of `grid` on the model file `path`, in order.

    Unless `grid` places the model by hand it goes where `plan` says for the longest of the tests,
    so that all are measured in one place. The model is loaded once for each placement. Which
    experts are visited decides the speed, so the sequence of tokens begins anew with each call.

    Args:
        grid: what is measured; None is llama-bench's own pp512 and tg128.
        on_plan: called with the plan, where there is one.
        on_load_progress: called with the fraction loaded; returning False cancels.
        on_test: called as each test begins.

    Raises:
        ModelFileError: the file is not a whole Llama 4 GGUF; it need not have a tokenizer.
        SettingError: a device or tensor is named that is not there.
        EngineError: llama.cpp cannot load the model, make a context or decode.
    """
    path = as_path("path", path)
    if grid is not None and not isinstance(grid, BenchGrid):
        raise wrong_type("grid", grid, "None or a BenchGrid")
    for name, value in (
        ("on_plan", on_plan),
        ("on_load_progress", on_load_progress),
        ("on_test", on_test),
    ):
        check_callback(name, value)
    info = check_model_file(path, needs_tokenizer=False)
    for case in (grid := grid or BenchGrid()).cases():
        check_settings_of_model(case.settings, info.hparams, path)
    grid = _as_planned(path, grid, on_plan)
    base = replace(grid.base, use_extra_bufts=use_extra_bufts())
    base = replace(base, use_extra_bufts=_repacks(path, replace(grid, base=base)))
    cases = list(replace(grid, base=base).cases())
    for case in cases:
        check_overrides(case.settings.placement.overrides, [tensor.name for tensor in info.tensors])
    machine = _machine(grid.base)
    tokens = _RandomTokens(info.hparams.n_vocab)
    depth = _Depth()
    for _, group in itertools.groupby(cases, key=lambda case: case.settings.placement):
        first = next(group)
        engine = BenchEngine(path, first.settings, on_progress=on_load_progress)
        with engine:
            tokens.first = engine.first_token
            model = _model(info, engine)
            for case in itertools.chain([first], group):
                if case.settings != engine.settings:
                    engine.remake(case.settings)
                engine.clear()
                if on_test is not None:
                    on_test(case.test)
                now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
                samples = tuple(_measure(engine, case.test, grid, tokens, depth))
                yield BenchResult(case, samples, now, model, machine)


def _as_planned(
    path: str | os.PathLike[str], grid: BenchGrid, on_plan: Callable[[Plan], object] | None
) -> BenchGrid:
    """The grid with the model placed as planned, where there is a choice that was not made."""
    from ..planner.planning import plan

    placement, workers = grid.base.placement, grid.base.workers
    if grid.placed_by_hand or not has_gpus(placement.devices, workers):
        return grid
    planned = plan(
        path,
        n_ctx=max(test.n_ctx for test in grid.tests),
        kv_type=sorted(grid.kv_type, key=kv_bits)[-1],
        n_ubatch=max(grid.n_ubatch),
        load_mode=grid.base.load_mode,
        n_expert_used=grid.base.n_expert_used,
        workers=workers,
        devices=placement.devices,
        adapters=grid.base.adapters,
        control_vectors=grid.base.control_vectors,
        control_vector_layers=grid.base.control_vector_layers,
    )
    if on_plan is not None:
        on_plan(planned)
    return replace(grid, base=replace(grid.base, placement=planned.settings.placement))


def _repacks(path: str, grid: BenchGrid) -> bool:
    """Whether weights are repacked for the CPU: not where main memory is short of room for them.

    Raises:
        AllocationError: the longest of the contexts does not fit into main memory.
    """
    longest = max((case.settings for case in grid.cases()), key=lambda settings: settings.n_ctx)
    try:
        return settings_that_fit(path, longest, host_need(path, longest)).use_extra_bufts
    except AllocationError as error:
        raise AllocationError(
            error.problem,
            found=error.found,
            expected=error.expected,
            hint="Lower n_prompt, n_gen or n_depth.",
        ) from None


def _measure(
    engine: BenchEngine, test: BenchTest, grid: BenchGrid, tokens: _RandomTokens, depth: _Depth
) -> Iterator[int]:
    """The nanoseconds of each repetition."""
    if grid.warmup:
        if test.n_prompt:
            engine.extend(tokens.prompt(test.n_prompt))
        if test.n_gen:
            engine.decode_each(tokens.generated(1))
    for _ in range(grid.repetitions):
        engine.clear()
        depth.fill(engine, test.n_depth, tokens)
        prompt = tokens.prompt(test.n_prompt)
        generated = tokens.generated(test.n_gen)
        engine.synchronize()
        started = time.perf_counter_ns()
        if prompt:
            engine.extend(prompt)
            engine.synchronize()
        engine.decode_each(generated)
        yield time.perf_counter_ns() - started


class _RandomTokens:
    """llama-bench's own tokens: ``rand()`` from the seed that C begins with.

    `first` begins a prompt or an answer if the model has such a token.
    """

    def __init__(self, n_vocab: int) -> None:
        library = ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)
        self._rand: Callable[[], int] = library.rand
        self._n_vocab = n_vocab
        self.first: int | None = None
        library.srand(1)

    def prompt(self, count: int) -> list[int]:
        """Tokens of a prompt."""
        return [self._next(index) for index in range(count)]

    def generated(self, count: int) -> list[int]:
        """Tokens in place of those that would be sampled; llama-bench draws one more."""
        tokens = [self._next(index) for index in range(count + 1)] if count else []
        return tokens[:count]

    def _next(self, index: int) -> int:
        if index == 0 and self.first is not None:
            return self.first
        return self._rand() % self._n_vocab


class _Depth:
    """The context before a test: computed once, then restored for as long as it fits."""

    def __init__(self) -> None:
        self._state: SequenceState | None = None

    def fill(self, engine: BenchEngine, count: int, tokens: _RandomTokens) -> None:
        """Let the empty `engine` hold `count` tokens."""
        if not count:
            return
        state = self._state
        if state is not None and len(state.tokens) == count and engine.restore(state):
            return
        prompt = tokens.prompt(count)
        engine.extend(prompt)
        self._state = engine.state_of(prompt)


def _model(info: ModelInfo, engine: BenchEngine) -> dict[str, Any]:
    return {
        "model_filename": str(info.path),
        "model_type": engine.description,
        "model_size": sum(tensor.nbytes for tensor in info.tensors),
        "model_n_params": sum(prod(tensor.shape) for tensor in info.tensors),
        "n_expert_used": info.hparams.n_expert_used,
    }


def _machine(base: EngineSettings) -> dict[str, Any]:
    library = library_info()
    devices = list_devices()
    used = [name for name in library.backends if name not in ("CPU", "RPC")]
    used += ["RPC"] * bool(base.workers)
    kinds = {"cpu_info": ("cpu", "accel"), "gpu_info": ("gpu", "igpu")}
    return {
        "build_commit": library.ggml_commit,
        "build_number": 0,
        "backends": ",".join(used) or "CPU",
        **{
            field: ", ".join(device.description for device in devices if device.type in types)
            for field, types in kinds.items()
        },
    }


def _devices_text(placement: Placement) -> str:
    if placement.devices is None:
        return "auto"
    return "/".join(placement.devices) or "none"
