"""The process of a template that is not known: where it runs, and how it ends."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llama4_edge.chat import template_process as module
from llama4_edge.chat.rendering import ANSWER, REQUEST, TEXT, RenderingError, Template
from llama4_edge.chat.template_process import TemplateProcess
from llama4_edge.errors import TemplateError
from tests.asking import until

# Ends, unless it is told otherwise.
SOURCE = (
    "{% if x == 'endless' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    "{% endfor %}{% elif x == 'large' %}{{ 'x' * 10**10 }}{% endif %}{{ x }}"
)


@pytest.fixture
def process() -> Iterator[TemplateProcess]:
    made = TemplateProcess(SOURCE)
    yield made
    made.close()


def pid(process: TemplateProcess) -> int:
    """Of the child, which renders first."""
    assert process.render({"x": "ready"}) == "ready"
    assert process._child is not None
    return process._child._process.pid


def lives(number: int) -> bool:
    try:
        return bool(psutil.Process(number).status() != "zombie")
    except psutil.NoSuchProcess:
        return False


def ended(number: int) -> bool:
    """Whether a process has ended; it is waited for."""
    until(lambda: not lives(number))
    return True


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600
    )


def test_one_process_renders_again_and_again(process: TemplateProcess) -> None:
    first = pid(process)
    assert [process.render({"x": number}) for number in range(3)] == ["0", "1", "2"]
    assert pid(process) == first


def test_every_string_comes_back_as_it_was(process: TemplateProcess) -> None:
    text = "naïve 日本語 👍 \ud800 \udfff \0 \x9b \u2028"
    assert process.render({"x": text}) == text


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ("endless", "takes too long to render these messages, expected at most 0.1 s of computing"),
        ("large", "takes too much memory to render these messages, expected at most 512.0 MiB"),
    ],
)
def test_a_limit_costs_one_rendering(
    process: TemplateProcess, x: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pid(process)
    if x == "endless":
        monkeypatch.setattr(module, "SECONDS", 0.1)
    with pytest.raises(TemplateError, match=message):
        process.render({"x": x})
    assert ended(first)
    monkeypatch.undo()
    assert pid(process) != first


def test_a_process_that_gets_no_time_is_ended_by_the_clock(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(pid(process), signal.SIGSTOP)
    monkeypatch.setattr(module, "SECONDS", 0.02)
    with pytest.raises(TemplateError, match="takes too long"):
        process.render({"x": "x"})


def test_the_limits_grow_with_the_messages(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Far more than the limits of a short conversation: 12 MiB of memory, 100 KiB of text.
    monkeypatch.setattr(module, "MEMORY_BYTES", 48 << 20)
    monkeypatch.setattr(module, "TEXT_BYTES", 1 << 10)
    long = "word " * 2_000_000
    assert process.render({"x": long}) == long


def test_a_fault_costs_no_process(process: TemplateProcess) -> None:
    failing = TemplateProcess("{{ 1 / x }}")
    with pytest.raises(RenderingError, match="ZeroDivisionError"):
        failing.render({"x": 0})
    assert failing.render({"x": 4}) == "0.25"
    failing.close()


def test_a_process_that_somebody_ended_is_replaced(process: TemplateProcess) -> None:
    first = pid(process)
    os.kill(first, signal.SIGKILL)
    assert ended(first)
    assert pid(process) != first


def test_threads_take_turns(process: TemplateProcess) -> None:
    wrong: list[int] = []

    def ask(number: int) -> None:
        wrong.extend(i for i in range(50) if process.render({"x": number + i}) != str(number + i))

    threads = [threading.Thread(target=ask, args=(1000 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_ctrl_c_ends_the_rendering_and_not_the_next(process: TemplateProcess) -> None:
    assert os.getsid(pid(process)) != os.getsid(0)  # a terminal's Ctrl-C does not reach it
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            process.render({"x": "endless"})
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert process.render({"x": "next"}) == "next"


def test_a_signal_handler_renders_while_its_thread_does(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.5)
    answers = []

    def answer(*_: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "SECONDS", 60.0)
            answers.append(process.render({"x": "handler"}))

    previous = signal.signal(signal.SIGALRM, answer)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TemplateError, match="takes too long"):
            process.render({"x": "endless"})
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert answers == ["handler"]


def test_the_process_ends_with_the_template() -> None:
    made = TemplateProcess(SOURCE)
    first = pid(made)
    made.close()
    assert ended(first)
    second = pid(made)
    del made
    gc.collect()
    assert ended(second)


MAKE = """
import os, signal, sys, threading
from llama4_edge.chat.template_process import TemplateProcess
process = TemplateProcess(sys.argv[1])
process.render({"x": "x"})
print(process._child._process.pid, flush=True)
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_the_process_ends_with_python(end: str) -> None:
    assert ended(int(python(MAKE + end, SOURCE).stdout))


def test_a_computing_process_ends_with_python() -> None:
    kill = (
        "import threading\n"
        "from llama4_edge.chat import template_process\n"
        "template_process.SECONDS = 0.5\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), 9)).start()\n"
        "process.render({'x': 'endless'})\n"
    )
    assert ended(int(python(MAKE + kill, SOURCE).stdout))


def test_a_fork_starts_its_own() -> None:
    fork = """
for thread in threading.enumerate()[1:]:  # beside which Python 3.12 warns of forks
    thread.join()
own = os.fork()
if own == 0:
    assert process.render({"x": "forked"}) == "forked"
    print(process._child._process.pid, flush=True)
    sys.exit()
assert os.waitpid(own, 0)[1] == 0
assert process.render({"x": "here"}) == "here"
print(process._child._process.pid, flush=True)
"""
    result = python(MAKE + fork, SOURCE)
    first, forked, last = map(int, result.stdout.split())
    assert (first, result.stderr) == (last, "")
    assert forked != first
    assert ended(forked)


def test_a_fork_that_lives_longer_keeps_no_process() -> None:
    fork = """
forked = os.fork()
if not forked:
    os.close(1), os.close(2)
    signal.pause()
print(forked, flush=True)
os.kill(os.getpid(), 9)
"""
    child, forked = map(int, python(MAKE + fork, SOURCE).stdout.split())
    try:
        assert ended(child)
        until(lambda: psutil.Process(forked).status() == "sleeping")
    finally:
        os.kill(forked, signal.SIGKILL)


def test_the_environment_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONSTARTUP", "startup.py")
    made = TemplateProcess(SOURCE)
    environment = psutil.Process(pid(made)).environ()
    assert set(environment) <= set(module._VARIABLES) | {"LC_CTYPE"}
    made.close()


def test_the_process_can_open_nothing_any_more(process: TemplateProcess) -> None:
    child = psutil.Process(pid(process))
    assert child.num_fds() == 3
    if hasattr(child, "rlimit"):
        assert child.rlimit(psutil.RLIMIT_NOFILE) == (3, 3)


# The arguments that filters and tests need.
ARGUMENTS = {
    "attr": "'x'", "batch": "2", "default": "1", "divisibleby": "2", "format": "1", "slice": "2",
    "groupby": "'real'", "in": "[1]", "replace": "'a', 'b'", "round": "1", "sameas": "1",
    **dict.fromkeys(["eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<="], "1"),
    **dict.fromkeys(["gt", "greaterthan", ">", "ge", ">="], "1"),
}  # fmt: skip
VALUES = ("'a <b>c</b> &amp; http://x.y/z'", "-7", "[3, 1, 2]", "{'b': 1, 'a': '2'}", "none")


def test_every_filter_and_test_of_jinja_works_there_as_here() -> None:
    import jinja2

    environment = jinja2.Environment()
    uses = [
        f"({value}) | {name}({ARGUMENTS.get(name, '')})"
        for name in sorted(set(environment.filters) - {"random"})
        for value in VALUES
    ] + [
        f"({value}) is {name}({ARGUMENTS.get(name, '')})"
        for name in sorted(environment.tests)
        if name.isalpha()
        for value in VALUES
    ]
    uses += ["lipsum(n=1, min=3, max=4) | length > 9", "strftime_now('%c %Z')[:9]", "dict(a=1)"]
    uses += ["cycler(1, 2).next()", "joiner()() ~ 'x'", "namespace(a=1).a", "range(3) | list"]
    uses += ["'%5.2f' % 1.5", "'{:>5}'.format(1)", "'a&lt;' | safe | striptags", "'é'.encode()"]
    branches = [f"{{% elif x == {i} %}}{{{{ {use} }}}}" for i, use in enumerate(uses)]
    source = "{% set é = 1 %}{{ é }}{% if x < 0 %}" + "".join(branches) + "{% endif %}"
    here, there = Template(source), TemplateProcess(source)
    for number, use in enumerate(uses):
        assert outcome(there, number) == outcome(here, number), use
    there.close()


def outcome(template: Template | TemplateProcess, number: int) -> str:
    try:
        return re.sub("0x[0-9a-f]+", "an address", template.render({"x": number}))
    except RenderingError as error:
        return f"error: {error}"


def test_jinja_is_imported_there_and_not_here() -> None:
    code = (
        "import sys\nfrom llama4_edge.chat.template import ChatTemplate\n"
        "ChatTemplate('{{ messages[0].content }}').render([{'role': 'user', 'content': 'x'}])\n"
        "print('jinja2' in sys.modules)"
    )
    assert python(code).stdout == "False\n"


def test_jinja_is_found_where_this_process_finds_it(tmp_path: Path) -> None:
    # As with PYTHONPATH, and with a script that changes the module path.
    site = [entry for entry in sys.path if "site-packages" in entry]
    code = (
        "import sys\nsys.path[:0] = sys.argv[1:]\n"
        "from llama4_edge.chat.template_process import TemplateProcess\n"
        "print(TemplateProcess('{{ x }}').render({'x': 'found'}))"
    )
    root = tmp_path / "llama4_edge"
    root.symlink_to(Path(module.__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path), *site],
        capture_output=True,
        text=True,
    )
    assert (result.stdout, result.stderr) == ("found\n", "")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ANSWER.pack(7, 0), "answers with what is no answer"),
        (ANSWER.pack(TEXT, 2) + b"\xff\xff", "answers with what is no answer"),
        (ANSWER.pack(TEXT, 2**63), r"writes too much, found \d+\.0 TiB, expected at most 4.0 MiB"),
        (ANSWER.pack(TEXT, 9) + b"x", "which had to compile, has ended, found exit status 3"),
        (b"x", "which had to compile, has ended, found exit status 3"),
        (b"", "which had to compile, has ended, found exit status 3"),
    ],
)
def test_what_comes_back_is_checked(
    answer: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of the request, which is written in two pieces.
    size = REQUEST.size + len(SOURCE)
    read = f"left = {size}\nwhile left:\n    left -= len(os.read(0, left))\n"
    program = f"import os, sys\n{read}os.write(1, {answer!r})\nsys.exit(3)"
    monkeypatch.setattr(module, "_PROGRAM", program)
    with pytest.raises(TemplateError, match=message):
        TemplateProcess(SOURCE)


def test_a_process_that_cannot_be_started_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/absent/python")
    with pytest.raises(TemplateError, match=r"cannot be started, found .*No such file"):
        TemplateProcess(SOURCE)
