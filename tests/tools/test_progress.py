"""What is said of a long command, on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tools.build_llama import Compilation, build_environment
from tools.install import Installation
from tools.progress import ProgressLine, duration, follow, log_end


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_durations_are_read_as_a_clock_is() -> None:
    assert [duration(seconds) for seconds in (0, 59.4, 59.6, 129)] == [
        "0 s", "59 s", "1:00 min", "2:09 min",
    ]  # fmt: skip


def test_elsewhere_than_on_a_terminal_there_is_a_line_for_every_tenth(clock: Clock) -> None:
    stream = io.StringIO()
    compilation = Compilation(ProgressLine("llama.cpp", stream, clock))
    compilation.read("  [1/2] Building CXX object CMakeFiles/a_trial_of_cmake")
    compilation.read("  *** Building project with Ninja...")
    for done in range(1, 141):
        clock.seconds = done * 2
        compilation.read(f"  [{done}/140] /usr/bin/g++ -c file.cpp")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 9
    assert lines[0] == "llama.cpp: 14/140 files compiled, 28 s, about 4:12 min left"
    assert lines[-1] == "llama.cpp: 126/140 files compiled, 4:12 min, about 28 s left"


def test_a_terminal_has_one_line_that_is_redrawn_and_never_wraps(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    compilation = Compilation(ProgressLine("llama.cpp", stream, clock))
    clock.seconds = 60
    compilation.read("*** Building project with Ninja...")
    compilation.read("[70/140] g++ a.cpp")
    compilation.read("[71/140] g++ b.cpp")
    assert stream.getvalue() == (
        "\r\x1b[Kllama.cpp: 70/140 files compiled, 1:00 "
        "\r\x1b[Kllama.cpp: 71/140 files compiled, 1:00 "
    )


def test_a_stage_that_takes_long_is_named_after_half_a_minute(clock: Clock) -> None:
    stream = io.StringIO()
    compilation = Compilation(ProgressLine("llama.cpp", stream, clock))
    compilation.read("  Downloading llama_cpp_python-0.3.36.tar.gz (76.6 MB)")
    clock.seconds = 31
    compilation.draw()
    compilation.draw()
    assert stream.getvalue() == "llama.cpp: fetching the source, 31 s\n"


def test_packages_are_counted_as_they_arrive(clock: Clock, tmp_path: Path) -> None:
    stream = Terminal()
    installation = Installation(ProgressLine("tests", stream, clock), tmp_path)
    installation.read("Collecting numpy==2.4.6 (from -c lock.txt (line 3))")
    installation.read("  Downloading https://index/numpy-2.4.6-cp311-linux.whl (16.9 MB)")
    installation.read("Installing collected packages: numpy, huggingface-hub, py_cpuinfo")
    (tmp_path / "huggingface_hub-2.4.0.dist-info").mkdir()
    (tmp_path / "other-1.0.dist-info").mkdir()
    installation.draw()
    assert stream.getvalue().split("\r\x1b[K")[1:] == [
        "tests: 1 packages found, 0 s",
        "tests: 1 packages found, numpy is 16.9 MB, 0 s",
        "tests: 0/3 packages installed, 0 s",
        "tests: 1/3 packages installed, 0 s",
    ]


def test_a_failed_command_leaves_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "\n".join(
        (
            "import sys",
            "print('first', flush=True)",
            "print('FAILED: a.o', 'why', sep='\\n', file=sys.stderr)",
            "sys.exit(3)",
        )
    )
    lines: list[str] = []
    status = follow([sys.executable, "-c", script], lines.append, lambda: None, log=log)
    assert (status, lines) == (3, ["first", "FAILED: a.o", "why"])
    assert log_end(log, begin="FAILED: ", count=1) == "FAILED: a.o"
    assert log_end(log, begin="no such line", count=1) == "why"


def test_what_is_never_loaded_is_left_out_beside_the_flags_of_the_person() -> None:
    arguments = build_environment({"CMAKE_ARGS": "-DGGML_CUDA=ON"})["CMAKE_ARGS"]
    flag, include = arguments.split(" ", 1)
    assert flag == "-DGGML_CUDA=ON"
    path = Path(include.split("=", 1)[1].rstrip("'"))
    assert "set(LLAMA_BUILD_COMMON OFF)" in path.read_text()
