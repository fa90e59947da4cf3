"""One model, used from several threads, closed, left and forked while it answers.

Each program runs in a process of its own, because what it must not do is end the process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_model import never_ending

_PREAMBLE = """
import multiprocessing, os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads, which is what is tested
import llama4_edge as le
from llama4_edge.errors import EngineError
path = sys.argv[1]
def wild(seed=0):
    return le.Sampling(temperature=2.0, top_k=0, top_p=1.0, seed=seed)
def opened(n_threads=1):
    # (Flash attention on the CPU sums in f16 where only a prompt's last token is read again.)
    return le.Model(
        path, n_ctx=1024, n_batch=512, n_threads=n_threads, cache_ram=0, flash_attention="off"
    )
def answer(model, number=0):
    return model.generate([5 + number] * 40, max_tokens=20, sampling=wild(number)).tokens
def answer_for_ever(model):
    while True:
        model.generate([5] * 600, max_tokens=50, sampling=wild())
def in_background(work, daemon=True):
    thread = threading.Thread(target=work, daemon=daemon)
    thread.start()
    return thread
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return never_ending().write(tmp_path_factory.mktemp("endless") / "endless.gguf")


def run(program: str, path: Path) -> tuple[int, str, str]:
    """Exit status (negative for a signal), stdout and stderr."""
    result = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + program, str(path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    return result.returncode, result.stdout, result.stderr


def test_requests_of_many_threads_wait_their_turn_and_are_answered_as_alone(
    path: Path,
) -> None:
    program = """
model = opened()
alone = [answer(model, number) for number in range(8)]
wrong = []
def work(number):
    for _ in range(5):
        for asked in (number, number + 4):
            if answer(model, asked) != alone[asked]:
                wrong.append(asked)
threads = [in_background(lambda number=number: work(number)) for number in range(4)]
for thread in threads:
    thread.join()
print(wrong, len(set(alone)))
"""
    assert run(program, path) == (0, "[] 8\n", "")


def test_a_stream_of_another_thread_is_waited_for_until_it_is_closed(path: Path) -> None:
    program = """
model = opened()
alone = answer(model)
stream = model.generate([7] * 10, sampling=wild(), stream=True)
next(stream)
answers = []
thread = in_background(lambda: answers.append(answer(model)))
for _ in range(5):
    next(stream)
    time.sleep(0.05)
print(answers, thread.is_alive())
stream.close()
thread.join()
print(answers == [alone])
"""
    assert run(program, path) == (0, "[] True\nTrue\n", "")


@pytest.mark.parametrize("attempt", range(3))
def test_closing_ends_the_answer_of_another_thread_first(path: Path, attempt: int) -> None:
    program = f"""
model = opened()
errors = []
def work():
    try:
        answer_for_ever(model)
    except EngineError as error:
        errors.append("the model was closed" in str(error))
threads = [in_background(work) for _ in range(3)]
time.sleep(0.2 + {attempt} * 0.037)
model.close()
for thread in threads:
    thread.join()
print(errors)
"""
    assert run(program, path) == (0, "[True, True, True]\n", "")


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize(
    ("end", "status"), [("", 0), ("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGINT)", -2)]
)
def test_a_program_ends_while_a_daemon_thread_answers(
    path: Path, end: str, status: int, attempt: int
) -> None:
    program = f"""
signal.signal(signal.SIGINT, signal.SIG_DFL)
model = opened()
in_background(lambda: answer_for_ever(model))
time.sleep(0.2 + {attempt} * 0.037)
{end}
"""
    assert run(program, path) == (status, "", "")


def test_a_program_ends_while_a_daemon_thread_opens_a_model(path: Path) -> None:
    program = """
def work():
    while True:
        opened().close()
in_background(work)
time.sleep(0.3)
"""
    assert run(program, path) == (0, "", "")


def test_a_program_ends_after_the_answer_of_a_thread_that_is_no_daemon(path: Path) -> None:
    program = """
model = opened()
in_background(lambda: print(len(answer(model))), daemon=False)
sys.exit(7)
"""
    status, out, err = run(program, path)
    assert (status, err) == (7, "")
    assert int(out) > 0


_REFUSED = "a model cannot be used in a fork of the process that opened it"


def test_a_fork_is_refused_the_model_and_leaves_it_to_its_parent(path: Path) -> None:
    program = """
model = opened(n_threads=2)
alone = answer(model)
child = os.fork()
if child == 0:
    for use in (lambda: answer(model), lambda: model.logits([1]), lambda: model.engine.clear()):
        try:
            use()
        except EngineError as error:
            print(error.problem, flush=True)
    model.close()
    del model
    sys.exit(3)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), answer(model) == alone)
"""
    assert run(program, path) == (0, f"{_REFUSED}\n" * 3 + "3 True\n", "")


def test_a_child_that_is_forked_during_an_answer_opens_its_own_model(path: Path) -> None:
    program = """
model = opened(n_threads=2)
alone = answer(model)
in_background(lambda: answer_for_ever(model))
for _ in range(5):
    child = os.fork()
    if child == 0:
        with opened(n_threads=2) as own:
            same = answer(own) == alone
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
"""
    assert run(program, path) == (0, "0\n" * 5, "")


def test_a_pool_of_forks_gets_one_error_each(path: Path) -> None:
    program = """
model = opened(n_threads=2)
alone = answer(model)
def ask(_):
    try:
        return answer(model)
    except EngineError as error:
        return error.problem
with multiprocessing.get_context("fork").Pool(2) as pool:
    for problem in pool.map(ask, range(4)):
        print(problem)
print(answer(model) == alone)
"""
    assert run(program, path) == (0, f"{_REFUSED}\n" * 4 + "True\n", "")


def test_a_request_in_a_signal_handler_supersedes_the_one_it_interrupts(path: Path) -> None:
    program = """
model = opened()
alone = answer(model, 1)  # begins unlike what is interrupted: nothing of that is read already
answers = []
def handler(*_):
    answers.append(answer(model, 1))
    signal.setitimer(signal.ITIMER_REAL, 0.05)  # this time it may have come between two requests
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    answer_for_ever(model)
except EngineError as error:
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(error.problem)
print(set(answers) == {alone}, [answer(model, one) for one in (0, 1)][1] == alone)
"""
    expected = "this stream was ended by a later request to the same model\nTrue True\n"
    assert run(program, path) == (0, expected, "")


def test_an_engine_is_neither_copied_nor_pickled(path: Path) -> None:
    program = """
import copy, pickle
model = opened()
for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
    try:
        attempt(model.engine)
    except EngineError as error:
        print(error.problem)
"""
    assert run(program, path) == (0, "an engine can be neither copied nor pickled\n" * 3, "")


def test_a_stream_that_another_thread_reads_can_be_closed_in_a_fork(path: Path) -> None:
    program = """
model = opened()
stream = model.generate([5] * 40, sampling=wild(), stream=True)
next(stream)
stream._stepping.acquire()  # as the other thread would while it waits for a piece
stream._reading = True
done = []
def child():
    stream.close()
    print("closed", stream.completion.finish_reason, flush=True)
    os._exit(0)
def fork():
    child_id = os.fork()
    if child_id == 0:
        child()
    for _ in range(30000):
        if os.waitpid(child_id, os.WNOHANG)[0]:
            done.append(True)
            return
        time.sleep(0.01)
    os.kill(child_id, signal.SIGKILL)
in_background(fork).join()
print(done)
"""
    assert run(program, path) == (0, "closed None\n[True]\n", "")
