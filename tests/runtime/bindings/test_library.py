from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from llama4_edge.errors import EngineError
from llama4_edge.runtime.bindings import library
from llama4_edge.runtime.bindings.build import LLAMA_CPP_PYTHON, build_command
from llama4_edge.runtime.bindings.library import CapturedLog, LogLine

_INFO, _WARN, _ERROR, _CONT = 2, 3, 4, 5


def _in_child(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_fragments_become_whole_lines_at_their_own_level() -> None:
    with library.captured_log() as log:
        library._on_log(_WARN, b"loading ", None)
        library._on_log(_CONT, b"tensors", None)
        library._on_log(_CONT, b" ...\nnext ", None)
        library._on_log(_ERROR, b"broken\n\n", None)
    assert log.lines == [
        LogLine(logging.WARNING, "loading tensors ..."),
        LogLine(logging.WARNING, "next "),
        LogLine(logging.ERROR, "broken"),
    ]
    assert log.last_error == "broken"


def test_a_line_without_its_end_is_not_lost() -> None:
    with library.captured_log() as log:
        library._on_log(_INFO, b"half a line", None)
    assert log.text == "half a line"


def test_captures_nest_and_each_sees_its_own_span() -> None:
    with library.captured_log() as outer:
        library._on_log(_INFO, b"one\n", None)
        with library.captured_log() as inner:
            library._on_log(_INFO, b"two\n", None)
        library._on_log(_INFO, b"three\n", None)
    assert (outer.text, inner.text) == ("one\ntwo\nthree", "two")


def test_llama_cpp_speaks_through_logging(caplog: pytest.LogCaptureFixture) -> None:
    bindings = library.llama()
    parameters = bindings.llama_model_default_params()
    caplog.set_level(logging.DEBUG, "llama4_edge.llama_cpp")
    with library.captured_log() as log:
        assert not bindings.llama_model_load_from_file(b"/no/such/model.gguf", parameters)
    assert log.errors[-1].endswith(": failed to load model")
    assert log.last_error is not None
    assert log.last_error.endswith("failed to load model from /no/such/model.gguf")
    records = [record for record in caplog.records if record.name == "llama4_edge.llama_cpp"]
    assert [record.getMessage() for record in records] == [line.text for line in log.lines]


def test_nothing_reaches_the_terminal_by_default() -> None:
    done = _in_child(
        "from llama4_edge.runtime.bindings.library import llama, library_info\n"
        "library_info()\n"
        "llama().llama_model_load_from_file(b'/no/model', llama().llama_model_default_params())\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failing_log_handler_does_not_escape_from_the_callback() -> None:
    seen: list[str] = []

    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())
            if record.levelno >= logging.ERROR:
                raise RuntimeError("no room")

    handler = Failing()
    library.logger.addHandler(handler)
    try:
        library._on_log(_ERROR, b"first\n", None)
        library._on_log(_ERROR, b"second\n", None)
    finally:
        library.logger.removeHandler(handler)
    assert seen == ["first", "second"]


def test_ctrl_c_inside_the_callback_arrives_afterwards() -> None:
    done = _in_child(
        "import logging, signal, threading, time\n"
        "from llama4_edge.runtime.bindings import library\n"
        "back, interrupt = threading.Event(), library._interrupt_main\n"
        "library._interrupt_main = lambda: (back.wait(), interrupt())\n"
        "class Interrupted(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        library.logger.removeHandler(self)\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "library.llama()\n"
        "library.logger.addHandler(Interrupted())\n"
        "try:\n"
        "    library.llama().llama_model_load_from_file(\n"
        "        b'/no/model', library.llama().llama_model_default_params())\n"
        "    print('back')\n"
        "    start = time.monotonic()\n"
        "    back.set()\n"
        "    time.sleep(300)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', 'while asleep' if time.monotonic() - start < 200 else 'late')\n"
    )
    assert (done.stdout, done.stderr) == ("back\ninterrupted while asleep\n", "")


def test_system_info_is_taken_apart_by_backend() -> None:
    text = "CUDA : ARCHS = 800,900 | USE_GRAPHS = 1 | CPU : AVX2 = 1 | AMX_INT8 = 1 | "
    assert library.parse_system_info(text) == {
        "CUDA": {"ARCHS": "800,900", "USE_GRAPHS": "1"},
        "CPU": {"AVX2": "1", "AMX_INT8": "1"},
    }
    assert library.parse_system_info("") == {}


def test_the_loaded_library_says_what_it_is() -> None:
    info = library.library_info()
    assert info.llama_cpp_python == LLAMA_CPP_PYTHON
    assert "CPU" in info.backends and info.rpc is ("RPC" in info.backends)
    assert {"libllama", "libggml-base"} <= {Path(path).name.split(".")[0] for path in info.paths}
    assert all(Path(path).exists() for path in info.paths)
    assert len(info.ggml_commit) >= 7
    assert "CPU" in library.system_info()


def test_a_function_that_is_not_there_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match=r"no function llama_does_not_exist.*--no-binary"):
        library.native_function("llama_does_not_exist", None)


def test_a_library_that_does_not_load_is_an_engine_error_with_the_cure(tmp_path: Path) -> None:
    script = (
        "from llama4_edge.errors import EngineError\n"
        "from llama4_edge.runtime.bindings.library import llama\n"
        "try:\n"
        "    llama()\n"
        "except EngineError as error:\n"
        "    print(error.problem, '|', error.found, '|', error.hint)\n"
    )
    missing = _in_child(script, LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert missing.stdout.startswith("the llama.cpp library cannot be loaded | FileNotFoundError")
    assert build_command() in missing.stdout
    (tmp_path / "libllama.so").write_bytes(b"not a library")
    broken = _in_child(script, LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert "Failed to load shared library" in broken.stdout


def test_of_what_is_said_of_short_memory_the_line_with_device_and_size_is_told() -> None:
    log = CapturedLog(
        [
            LogLine(logging.ERROR, "alloc_tensor_range: failed to allocate CUDA0 buffer of size 9"),
            LogLine(logging.ERROR, "llama_init: failed to allocate buffer for kv cache"),
            LogLine(logging.ERROR, "llama_model_load: failed to load model"),
        ]
    )
    assert log.shortage == "alloc_tensor_range: failed to allocate CUDA0 buffer of size 9"
    assert CapturedLog(log.lines[1:]).shortage == log.lines[1].text
    assert CapturedLog(log.lines[2:]).shortage is None


_SHOW_SPIN = """
import os
before = dict(os.environ)
from llama4_edge.runtime.bindings.library import llama
llama()
changed = {key: value for key, value in os.environ.items() if before.get(key) != value}
print(changed)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GCC's OpenMP is Linux's")
@pytest.mark.parametrize(
    ("chosen", "spin"),
    [({}, "30000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_waiting_threads_spin_as_the_person_chose_or_briefly(
    chosen: dict[str, str], spin: str
) -> None:
    done = _in_child(_SHOW_SPIN, OMP_DISPLAY_ENV="verbose", **chosen)
    assert f"GOMP_SPINCOUNT = '{spin}'" in done.stderr
    # Programs that this one starts wait as they would.
    assert done.stdout == "{'GGML_NO_BACKTRACE': '1'}\n"
