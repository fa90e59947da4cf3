"""No worker ends the process of its client, or makes it take memory, whatever it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from llama4_edge.errors import WorkerError
from llama4_edge.runtime.settings import split_endpoint
from llama4_edge.runtime.workers.handshake import introduce
from tests.fuzzing import efforts, fuzz

from .fake_worker import (
    ALLOC_BUFFER,
    BUFFER_GET_BASE,
    COPY_TENSOR,
    DEVICE_COUNT,
    GET_ALIGNMENT,
    GET_ALLOC_SIZE,
    GET_DEVICE_MEMORY,
    GET_MAX_SIZE,
    GET_TENSOR,
    HELLO,
    SET_TENSOR_HASH,
    Lie,
    fake_worker,
)

_GREETING = {HELLO: 28, DEVICE_COUNT: 4, GET_ALIGNMENT: 8, GET_MAX_SIZE: 8}
_LATER = {
    ALLOC_BUFFER: 16,
    BUFFER_GET_BASE: 8,
    GET_DEVICE_MEMORY: 16,
    GET_ALLOC_SIZE: 8,
    SET_TENSOR_HASH: 1,
    COPY_TENSOR: 1,
    GET_TENSOR: 1024,
}
_POWERS = [2**power for power in (6, 8, 20, 24, 31, 32, 40, 62, 63)]
_NUMBERS = st.sampled_from(
    [0, 1, 3, *_POWERS, *(power - 1 for power in _POWERS), 2**64 - 64, 2**64 - 1]
) | st.integers(0, 2**64 - 1)


@st.composite
def _bodies(draw: st.DrawFn, size: int) -> bytes:
    """An answer of the right length."""
    numbers = draw(st.lists(_NUMBERS, min_size=size // 8 + 1, max_size=size // 8 + 1))
    return b"".join(number.to_bytes(8, "little") for number in numbers)[:size]


def _lies(sizes: dict[int, int]) -> SearchStrategy[list[Lie]]:
    def about(command: int) -> SearchStrategy[Lie]:
        turns = st.none() | st.integers(0, 5)
        whole = st.builds(Lie, st.just(command), _bodies(sizes[command]), turn=turns)
        damaged = st.builds(
            Lie,
            st.just(command),
            st.none() | st.binary(max_size=40),
            length=st.none() | _NUMBERS,
            sent=st.none() | st.integers(0, 40),
            turn=turns,
        )
        return whole | whole | damaged

    one = st.sampled_from(sorted(sizes)).flatmap(about)
    return st.lists(one, min_size=1, max_size=2)


@efforts
def test_no_greeting_is_anything_but_a_greeting_or_an_error(effort: settings) -> None:
    def check(lies: list[Lie]) -> None:
        with fake_worker(lies) as endpoint:
            host, port = split_endpoint(endpoint)
            try:
                greeting = introduce(host, port, endpoint, patience=0.2)
            except WorkerError as error:
                assert endpoint in str(error)
            else:
                greeting.connection.close()
                assert 1 <= len(greeting.devices) <= 256
                for device in greeting.devices:
                    assert device.alignment in {2**power for power in range(21)}
                    assert device.max_size >= 2**24

    fuzz(check, _lies(_GREETING), settings(effort, max_examples=effort.max_examples // 5))


_CLIENT = """
import resource, sys
from llama4_edge import plan
from llama4_edge.errors import Llama4EdgeError
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.placement import Placement
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.runtime.bindings.library import llama
llama()
resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
for line in sys.stdin:
    what, endpoint = line.split()
    try:
        if what == "plan":
            plan(sys.argv[1], workers=[endpoint])
        # Its routers at the worker, its experts here.
        overrides = (("ffn_.*_exps", "CPU"),) if what == "experts" else ()
        settings = EngineSettings(n_ctx=512, n_batch=64, n_ubatch=64, n_threads=1,
                                  workers=(endpoint,), placement=Placement(overrides=overrides))
        with Engine(sys.argv[1], settings) as engine:
            engine.logits([1, 2, 3])
        print("ok", flush=True)
    except Llama4EdgeError as error:
        print("error", error, flush=True)
"""


class _Client:
    """A process that uses one worker after the other, until one of them ends it.

    A lost worker keeps a thread and its memory, so a new one begins after some.
    """

    def __init__(self, model: Path) -> None:
        self._model, self._used = model, 0
        self._start(model)

    def _start(self, model: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CLIENT, str(model)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def use(self, what: str, endpoint: str) -> str:
        """What became of it, in one line."""
        self._used += 1
        if self._used % 100 == 0:
            self.close()
            self._start(self._model)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{what} {endpoint}\n")
        self._process.stdin.flush()
        if line := self._process.stdout.readline():
            return line.strip()
        _, errors = self._process.communicate()
        status = self._process.returncode
        self._start(self._model)
        raise AssertionError(f"the client ended, status {status}: {errors[-2000:]}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def client(tiny_path: Path) -> Iterator[_Client]:
    one = _Client(tiny_path)
    yield one
    one.close()


def test_a_fake_worker_that_says_the_truth_is_used(client: _Client) -> None:
    for what in ("plan", "engine", "experts"):
        with fake_worker() as endpoint:
            assert client.use(what, endpoint) == "ok"


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        (Lie(BUFFER_GET_BASE, bytes(8)), "address of a buffer, found 0, expected a multiple of 64"),
        (Lie(BUFFER_GET_BASE, b"\1" + bytes(7)), "address of a buffer, found 1"),
        (Lie(BUFFER_GET_BASE, b"\xc0" + b"\xff" * 7), "address of a buffer, found 184467440737095"),
        (Lie(ALLOC_BUFFER, b"\1" + bytes(15)), "size of a buffer, found 0, expected "),
        (Lie(ALLOC_BUFFER, b"\1" + bytes(7) + b"\xff" * 8), "size of a buffer, found 184467440"),
        (Lie(GET_ALLOC_SIZE, bytes(7) + b"\x80"), "size of a tensor, found 9223372036854775808"),
        (Lie(GET_ALIGNMENT, bytes(8)), "alignment of buffers, found 0"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_the_worker(
    client: _Client, lie: Lie, complaint: str
) -> None:
    with fake_worker([lie]) as endpoint:
        said = client.use("engine", endpoint)
    assert said.startswith(f"error the worker {endpoint} has an impossible {complaint}")


def test_numbers_of_experts_that_there_are_not_are_an_error_that_names_the_worker(
    client: _Client,
) -> None:
    with fake_worker(fill=127) as endpoint:
        assert client.use("experts", endpoint) == (
            f"error the worker {endpoint} has an impossible number of an expert, "
            "found 2139062143, expected 0 to 3"
        )


@efforts
def test_no_answer_ends_the_process_that_uses_a_worker(tiny_path: Path, effort: settings) -> None:
    client = _Client(tiny_path)

    def check(case: tuple[str, list[Lie], int]) -> None:
        what, lies, fill = case
        with fake_worker(lies, fill) as endpoint:
            said = client.use(what, endpoint)
        assert said == "ok" or said.startswith("error ")

    cases = st.tuples(
        st.sampled_from(["plan", "engine", "experts"]),
        _lies(_GREETING | _LATER),
        st.sampled_from([0, 1, 127, 128, 255]),
    )
    try:
        fuzz(check, cases, settings(effort, max_examples=effort.max_examples // 5))
    finally:
        client.close()
