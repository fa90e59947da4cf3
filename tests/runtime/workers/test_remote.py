"""What becomes of a model when a worker is lost: an error, and everything else goes on."""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import addressof, create_string_buffer
from dataclasses import replace
from pathlib import Path

import pytest

from llama4_edge.errors import SettingError, WorkerError
from llama4_edge.runtime.bindings import thread
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.sampling import Sampling
from llama4_edge.runtime.settings import EngineSettings
from llama4_edge.runtime.workers import connection as connection_module
from llama4_edge.runtime.workers.handshake import greet
from llama4_edge.runtime.workers.remote import connect
from llama4_edge.runtime.workers.worker import Worker, local_workers, running_worker
from tests.asking import until
from tests.tiny_model import never_ending

from .test_worker import LLAMA4

SMALL = EngineSettings(n_ctx=2048, n_batch=512, n_ubatch=512, n_outputs=16, n_threads=1)
PROMPT = [token % 256 for token in range(2000)]

LOST = r"the worker {} was lost, and with it its part of the model\. See that it runs"


@pytest.fixture
def worker() -> Iterator[Worker]:
    with running_worker(port=0, n_threads=1) as one:
        yield one


@pytest.fixture(scope="module")
def unharmed() -> Iterator[Worker]:
    """For tests that leave it as it was."""
    with running_worker(port=0, n_threads=1) as one:
        yield one


def on(worker: Worker) -> EngineSettings:
    return replace(SMALL, workers=(worker.endpoint,))


def answer_for_ever(engine: Engine) -> None:
    with engine.sampler(Sampling(temperature=0.0)) as sample:
        while True:
            engine.prefill(PROMPT[:10])
            for _ in range(1000):
                engine.append(sample())


def read_for_ever(engine: Engine) -> None:
    while True:
        engine.clear()
        engine.prefill(PROMPT)


def state_of(process: int | str) -> str:
    """What the kernel says that a process does, or a thread of this one: "T" where it is stopped,
    "S" where it waits."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def stop_in_the_middle(
    engine: Engine, worker: Worker, patch: pytest.MonkeyPatch, then: Callable[[], object], at: int
) -> None:
    """Stop the worker before the `at`-th decoding, and do something once that waits for it."""
    llama = engine._handles.llama
    decode, counts = llama.llama_decode, itertools.count(1)
    thread = f"self/task/{engine._handles.thread._thread.native_id}"

    def wait() -> None:
        n_seen = 0  # A thread that waits for Python's lock is not seen so often.
        while n_seen < 20:
            n_seen = n_seen + 1 if state_of(thread) == "S" else 0
            time.sleep(0.005)
        then()

    def stopping(*arguments: object) -> object:
        if next(counts) == at:
            worker.process.send_signal(signal.SIGSTOP)
            until(lambda: state_of(worker.process.pid) == "T")
            threading.Thread(target=wait, daemon=True).start()
        return decode(*arguments)

    patch.setattr(llama, "llama_decode", stopping)


Use = Callable[[Engine], None]
USES: list[Use] = [answer_for_ever, read_for_ever]


def after(seconds: float, action: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def usable(path: Path, settings: EngineSettings) -> bool:
    with Engine(path, settings) as engine:
        return len(engine.logits(PROMPT[:5])) == 5


# --- lost


@pytest.mark.parametrize("use", USES)
def test_a_worker_that_dies_in_the_middle_is_an_error_that_names_it(
    tiny_path: Path, worker: Worker, use: Use
) -> None:
    engine = Engine(tiny_path, on(worker))
    after(0.5, worker.process.kill)
    with pytest.raises(WorkerError, match=LOST.format(worker.endpoint)):
        use(engine)
    # It stays lost, and closing what is left does nothing.
    with pytest.raises(WorkerError, match=LOST.format(worker.endpoint)):
        engine.logits(PROMPT[:5])
    engine.close()
    engine.close()


def lasting_port() -> int:
    """A free port below those that programs get which ask for any, as other tests do meanwhile."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


def test_the_process_goes_on_without_the_worker_and_with_it_once_it_is_back(
    tiny_path: Path,
) -> None:
    with running_worker(port=lasting_port(), n_threads=1) as worker:
        engine = Engine(tiny_path, on(worker))
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(WorkerError, match=LOST.format(worker.endpoint)):
            engine.logits(PROMPT[:5])
    assert usable(tiny_path, SMALL)
    with local_workers(1) as others:
        assert usable(tiny_path, replace(SMALL, workers=others))
    with running_worker(port=worker.port, n_threads=1) as again:
        assert again.endpoint == worker.endpoint
        # though what was lost was never closed
        assert usable(tiny_path, on(again))


def test_one_of_two_that_dies_is_the_one_that_is_named(tiny_path: Path, worker: Worker) -> None:
    with local_workers(1) as (other,):
        engine = Engine(tiny_path, replace(SMALL, workers=(other, worker.endpoint)))
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(WorkerError, match=LOST.format(worker.endpoint)):
            engine.logits(PROMPT[:5])
        engine.close()
        assert usable(tiny_path, replace(SMALL, workers=(other,)))


def test_a_worker_that_dies_while_the_model_is_loaded_is_an_error(
    tiny_path: Path, worker: Worker
) -> None:
    def kill(fraction: float) -> bool:
        if fraction > 0.3:
            worker.process.kill()
            worker.process.wait()
        return True

    with pytest.raises(WorkerError, match=LOST.format(worker.endpoint)):
        Engine(tiny_path, on(worker), on_progress=kill)
    assert usable(tiny_path, SMALL)


def test_closing_a_model_whose_worker_has_died_is_no_error(tiny_path: Path, worker: Worker) -> None:
    engine = Engine(tiny_path, on(worker))
    worker.process.kill()
    worker.process.wait()
    engine.close()
    assert engine.closed


def drop_everything(connection: socket.socket) -> None:
    """Have the kernel ignore what arrives, as if the other machine had lost its network."""
    program = create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF_RET | BPF_K, 0 bytes
    filter_ = struct.pack("HxxxxxxP", 1, addressof(program))
    connection.setsockopt(socket.SOL_SOCKET, 26, filter_)  # SO_ATTACH_FILTER


# Instead of half a minute.
QUICK_KEEPALIVE = (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 1))


def test_a_worker_that_is_silent_for_long_is_not_given_up(
    tiny_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped one looks like one that computes: its machine answers for it."""
    monkeypatch.setattr(connection_module, "_KEEPALIVE", QUICK_KEEPALIVE)
    # (Longer than between two questions whether it is there, and shorter than it is stopped.)
    monkeypatch.setattr(connection_module, "_UNACKNOWLEDGED_FOR", 2.0)
    with Engine(tiny_path, on(worker)) as engine:
        expected = engine.logits(PROMPT[:20])
        worker.process.send_signal(signal.SIGSTOP)
        after(4.0, lambda: worker.process.send_signal(signal.SIGCONT))
        assert (engine.logits(PROMPT[:20]) == expected).all()


@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_machine_that_vanished_is_an_error(
    tiny_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch, acknowledged: bool
) -> None:
    monkeypatch.setattr(connection_module, "_KEEPALIVE", QUICK_KEEPALIVE)
    monkeypatch.setattr(
        connection_module, "_UNACKNOWLEDGED_FOR", 1.0 if not acknowledged else 100.0
    )
    engine = Engine(tiny_path, on(worker))
    (connection,) = engine._handles.workers._connections
    link = connection.socket
    assert link is not None
    if acknowledged:
        # It has heard all and computes; its answer does not arrive, and it is asked in vain.
        stop_in_the_middle(engine, worker, monkeypatch, lambda: drop_everything(link), at=1)
    else:
        drop_everything(link)
    with pytest.raises(WorkerError, match=LOST.format(worker.endpoint)):
        engine.logits(PROMPT[:5])


# --- interrupted


@pytest.mark.parametrize("use", USES)
def test_ctrl_c_gives_up_a_worker_that_does_not_answer(
    tiny_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch, use: Use
) -> None:
    monkeypatch.setattr(thread, "PATIENCE", 0.2)
    engine = Engine(tiny_path, on(worker))
    stop_in_the_middle(engine, worker, monkeypatch, interrupt, at=4)
    with pytest.raises(KeyboardInterrupt):
        use(engine)
    with pytest.raises(WorkerError, match=LOST.format(worker.endpoint)):
        engine.prefill(PROMPT[:5])
    engine.close()


@pytest.mark.parametrize("use", USES)
def test_a_second_ctrl_c_does_not_wait(
    tiny_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch, use: Use
) -> None:
    monkeypatch.setattr(thread, "PATIENCE", 1000.0)
    engine = Engine(tiny_path, on(worker))

    def twice() -> None:
        interrupt()
        until(lambda: engine._handles.thread.stopping)
        interrupt()

    stop_in_the_middle(engine, worker, monkeypatch, twice, at=4)
    with pytest.raises(KeyboardInterrupt):
        use(engine)
    assert engine._handles.workers.lost


@pytest.mark.parametrize("use", USES)
def test_ctrl_c_leaves_a_living_worker_as_it_is(
    tiny_path: Path, unharmed: Worker, monkeypatch: pytest.MonkeyPatch, use: Use
) -> None:
    monkeypatch.setattr(thread, "PATIENCE", 600.0)
    with Engine(tiny_path, on(unharmed)) as engine:
        expected = engine.logits(PROMPT[:20])
        with pytest.raises(KeyboardInterrupt):
            after(0.3, interrupt)
            use(engine)
        assert (engine.logits(PROMPT[:20]) == expected).all()


def test_closing_does_not_wait_for_a_worker_that_does_not_answer(
    tiny_path: Path, worker: Worker
) -> None:
    engine = Engine(tiny_path, on(worker))
    worker.process.send_signal(signal.SIGSTOP)
    engine.close()
    assert engine.closed


# --- shared


def test_models_of_a_process_share_a_worker_and_leave_it_when_the_last_closes(
    tiny_path: Path, unharmed: Worker
) -> None:
    host, port, name = unharmed.address, unharmed.port, unharmed.endpoint
    with Engine(tiny_path, on(unharmed)) as one:
        expected = one.logits(PROMPT[:20])
        with Engine(tiny_path, on(unharmed)) as other:
            assert (other.logits(PROMPT[:20]) == expected).all()
            assert (one.logits(PROMPT[:20]) == expected).all()
        assert (one.logits(PROMPT[:20]) == expected).all()
        with pytest.raises(WorkerError, match="It serves one program at a time"):
            greet(host, port, name, patience=0.2)
    greet(host, port, name, patience=60.0)


def test_engines_on_a_worker_open_and_close_without_growing(
    tiny_path: Path, unharmed: Worker
) -> None:
    def counts() -> tuple[int, int]:
        return len(list(Path("/dev/fd").iterdir())), threading.active_count()

    assert usable(tiny_path, on(unharmed))
    before = counts()
    for _ in range(5):
        assert usable(tiny_path, on(unharmed))
    # A thread that a test before this one left may end meanwhile, or one that is on its way.
    until(lambda: all(now <= one for now, one in zip(counts(), before, strict=True)))


def test_devices_of_workers_are_counted_in_their_order(unharmed: Worker) -> None:
    with local_workers(1) as (other,), connect((unharmed.endpoint, other)) as workers:
        names = [(one.name, one.type, one.memory_source) for one in workers.devices()]
        assert names == [
            ("RPC0", "gpu", f"worker {unharmed.endpoint}"),
            ("RPC1", "gpu", f"worker {other}"),
        ]
        assert [one.endpoint for one in workers.native_devices] == [unharmed.endpoint, other]
        assert all((one.free_bytes or 0) > 0 for one in workers.devices())


def test_the_same_worker_under_two_names_is_refused(unharmed: Worker) -> None:
    with pytest.raises(SettingError, match="a worker is named twice, found localhost"):
        connect((unharmed.endpoint, f"localhost:{unharmed.port}"))
    greet(unharmed.address, unharmed.port, unharmed.endpoint, patience=60.0)


# --- processes

_PREAMBLE = """
import ctypes, os, signal, sys
from llama4_edge.errors import WorkerError
from llama4_edge.runtime.engine import Engine
from llama4_edge.runtime.bindings.library import native_function
from llama4_edge.runtime.workers.remote import connect
from llama4_edge.runtime.settings import EngineSettings
path, endpoint, server = sys.argv[1], sys.argv[2], int(sys.argv[3])
settings = EngineSettings(n_ctx=512, n_batch=64, n_ubatch=64, n_threads=1, workers=(endpoint,))
"""


def run(code: str, path: Path, worker: Worker) -> subprocess.CompletedProcess[str]:
    arguments = [str(path), worker.endpoint, str(worker.process.pid)]
    return subprocess.run(
        [sys.executable, "-c", _PREAMBLE + code, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )


FATES = {
    "alive": "",
    "closed": "engine.close()",
    "dead": "os.kill(server, signal.SIGKILL)",
    "stopped": "os.kill(server, signal.SIGSTOP)",
    "lost": """
os.kill(server, signal.SIGKILL)
try:
    engine.logits([1, 2, 3])
except WorkerError:
    pass
""",
}


@pytest.mark.parametrize("fate", FATES)
def test_a_process_ends_as_it_wants_to_whatever_became_of_its_worker(
    tiny_path: Path, worker: Worker, fate: str
) -> None:
    code = f"engine = Engine(path, settings)\nengine.logits([1, 2, 3])\n{FATES[fate]}\nsys.exit(7)"
    result = run(code, tiny_path, worker)
    assert (result.returncode, result.stdout, result.stderr) == (7, "", "")


def test_run_ends_with_one_line_of_error_when_its_worker_dies(
    tmp_path: Path, worker: Worker
) -> None:
    model = never_ending().write(tmp_path / "endless.gguf")
    command = subprocess.Popen(
        [*LLAMA4, "run", model, "hi", "--raw", "-t", "1", "--workers", worker.endpoint],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stdout is not None
    assert command.stdout.read(1)
    worker.process.kill()
    _, errors = command.communicate()
    assert command.returncode == 1
    assert errors.decode().startswith(f"error: the worker {worker.endpoint} was lost, and with it")
    assert errors.count(b"\n") == 1


def test_all_other_aborts_end_the_process_with_one_line_and_start_no_debugger(
    tiny_path: Path, unharmed: Worker
) -> None:
    code = """
connect((endpoint,))
abort = native_function("ggml_abort", None, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p)
abort(b"somewhere.c", 5, b"nothing to be done")
"""
    result = run(code, tiny_path, unharmed)
    assert result.returncode == -signal.SIGABRT
    assert result.stderr == "somewhere.c:5: nothing to be done\n"


def test_a_worker_that_hangs_up_after_its_greeting_is_lost_and_others_are_not(
    tiny_path: Path, unharmed: Worker
) -> None:
    code = """
import socket, struct, threading
impostor = socket.create_server(("127.0.0.1", 0))
def serve():
    connection, _ = impostor.accept()
    for answer in bytes([7]) + bytes(27), bytes([1, 0, 0, 0]), (64).to_bytes(8, "little"), b"x" * 8:
        connection.recv(1024)
        connection.sendall(struct.pack("<Q", len(answer)) + answer)
    connection.close()
threading.Thread(target=serve, daemon=True).start()
for other in (f"127.0.0.1:{impostor.getsockname()[1]}", endpoint):
    try:
        with connect((other,)) as workers:
            print(len(workers.devices()))
    except WorkerError as error:
        print(error.problem)
Engine(path, settings).close()
"""
    result = run(code, tiny_path, unharmed)
    first, second = result.stdout.splitlines()
    assert first.endswith("was lost, and with it its part of the model")
    assert (second, result.returncode, result.stderr) == ("1", 0, "")
