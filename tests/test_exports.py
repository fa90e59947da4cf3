"""What `import llama4_edge` gives, and what it does not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from inspect import getmodule
from pathlib import Path

import pytest

import llama4_edge

ROOT = Path(llama4_edge.__file__)


def child(code: str) -> str:
    """What a fresh Python prints for `code`."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_every_exported_name_is_in_the_table_of_modules() -> None:
    beside_the_table = {"__version__", "convert"}
    assert set(llama4_edge.__all__) == set(llama4_edge._MODULES) | beside_the_table
    assert len(llama4_edge.__all__) == len(set(llama4_edge.__all__))


@pytest.mark.parametrize("name", llama4_edge.__all__)
def test_every_exported_name_can_be_imported(name: str) -> None:
    value = getattr(llama4_edge, name)
    if name in llama4_edge._MODULES:
        home = import_module(f"llama4_edge.{llama4_edge._MODULES[name]}")
        assert value is vars(home)[name]
        assert getmodule(value) in (home, None), "the table names another module than defines it"


def test_type_checkers_see_each_name_in_the_module_of_the_table() -> None:
    (block,) = (node for node in ast.parse(ROOT.read_text()).body if isinstance(node, ast.If))
    imports = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imports == llama4_edge._MODULES


@pytest.mark.parametrize(
    "name", ["bench", "convert", "diff", "doctor", "inspect", "merge", "plan", "pull", "split"]
)
def test_the_values_that_functions_return_are_exported(name: str) -> None:
    returned = getattr(llama4_edge, name).__annotations__["return"]
    values = set(re.findall(r"\w+", returned)) - {"Iterator"}
    assert values and values <= set(llama4_edge.__all__)


def test_completion_shows_every_exported_name() -> None:
    shown = child("import llama4_edge; print(*dir(llama4_edge))").split()
    assert set(llama4_edge.__all__) <= set(shown)
    assert {"TYPE_CHECKING", "annotations", "import_module"}.isdisjoint(shown)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'llama4_edge' has no attribute 'Modle'"):
        llama4_edge.Modle  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Modle'"):
        exec("from llama4_edge import Modle")


def test_convert_stays_the_function_when_its_package_is_imported() -> None:
    code = (
        "import llama4_edge, llama4_edge.convert.report; print(callable(llama4_edge.convert));"
        "from llama4_edge import convert; print(convert is llama4_edge.convert)"
    )
    assert child(code) == "True\nTrue"
    code = "import llama4_edge.convert.report, llama4_edge; print(callable(llama4_edge.convert))"
    assert child(code) == "True"


HEAVY = ("click", "gguf", "httpx", "huggingface_hub", "jinja2", "llama_cpp", "numpy", "rich",
         "prompt_toolkit", "tokenizers", "yaml")  # fmt: skip


def test_importing_the_package_loads_no_library() -> None:
    code = f"import sys, llama4_edge; print(*set({HEAVY!r}) & set(sys.modules))"
    assert child(code) == ""


def test_importing_the_package_loads_no_room() -> None:
    rooms = ("chat", "commands", "hub", "planner", "quant", "runtime", "system", "terminal")
    code = (
        "import sys, llama4_edge\n"
        f"print(*(room for room in {rooms!r} if 'llama4_edge.' + room in sys.modules))"
    )
    assert child(code) == ""


def test_help_loads_only_click() -> None:
    code = (
        "import sys\nfrom llama4_edge.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        f"print('loaded:', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert child(code).splitlines()[-1] == "loaded: click"


def test_an_answer_loads_neither_the_converter_nor_the_planner_nor_the_hub(
    scout_int4: Path,
) -> None:
    unneeded = ("gguf", "huggingface_hub", "llama4_edge.planner.planning", "prompt_toolkit",
                "rich", "llama4_edge.convert.converter", "yaml")  # fmt: skip
    code = (
        "import sys\nfrom llama4_edge.cli import main\n"
        f"main(['run', {str(scout_int4)!r}, 'Hi', '-n', '1', '-c', '64', '-dev', 'none'],"
        " standalone_mode=False)\n"
        f"print('\\nloaded:', *sorted(set({unneeded!r}) & set(sys.modules)))"
    )
    assert child(code).splitlines()[-1] == "loaded:"
