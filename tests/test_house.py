"""The house of CONTRIBUTING.md is that of the code: who imports whom, what rooms are called.

The table of rooms is read from the document and the imports from the sources, so that neither can
change alone. Imports inside functions count; those under TYPE_CHECKING count as types only.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys

import pytest

import llama4_edge
from tools import house
from tools.imports import OUTSIDE, ROOT, Import, imports, room_of, rows, sources, table

# Import names of distributions whose name is another one.
IMPORT_NAMES = {
    "llama-cpp-python": "llama_cpp",
    "py-cpuinfo": "cpuinfo",
    "pillow": "PIL",
    "pyyaml": "yaml",
}

# What loads or describes llama.cpp's native functions, apart from the module `llama_cpp` itself.
C_API = {
    ("runtime.bindings.library", "llama"),
    ("runtime.bindings.library", "native_function"),
    ("runtime.bindings.devices", "rpc_function"),
}


def is_allowed(edge: Import) -> bool:
    room, target = room_of(edge.module), room_of(edge.target)
    if room == target:
        return True
    row = table()[room]
    allowed = row.imports | row.types if edge.types_only else row.imports
    return target in allowed or "everything" in allowed


# ---- the claims


def test_the_table_names_every_room_and_no_other() -> None:
    rooms = {room_of(name) for name in sources()}
    assert rooms == table().keys()


def test_every_import_is_one_that_the_table_allows() -> None:
    refused = [edge for edge in imports() if edge.relative and not is_allowed(edge)]
    assert [str(edge) for edge in refused] == []


def test_rooms_import_each_other_relatively() -> None:
    absolute = [
        edge for edge in imports() if not edge.relative and edge.target.startswith("llama4_")
    ]
    assert [str(edge) for edge in absolute] == []


def test_convert_and_runtime_share_only_a_file() -> None:
    table_rows = table()
    assert "runtime" not in table_rows["convert"].imports
    assert "convert" not in table_rows["runtime"].imports


def circle() -> list[str]:
    """Modules of which each imports the next and the last the first, if there are any."""
    graph: dict[str, list[str]] = {name: [] for name in sources()}
    for edge in imports():
        # The root loads its names when they are asked for, so that it closes no circle.
        if not edge.relative or edge.types_only:
            continue
        if edge.target != "__init__":
            graph[edge.module].append(edge.target)
    done: set[str] = set()

    def walk(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name in done:
            return []
        for target in graph[name]:
            if target != name and (modules := walk(target, [*above, name])):
                return modules
        done.add(name)
        return []

    for name in graph:
        if modules := walk(name, []):
            return modules
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle() == []


def dependencies(*, extras: bool) -> set[str]:
    """The import names of what pyproject.toml asks for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    start = text.index("\ndependencies = [")
    text = text[start : text.index("\n[project.scripts]" if extras else "\n]", start)]
    names = re.findall(r'(?:^ {4}|\[)"([\w.-]+)', text, flags=re.MULTILINE)
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names} - {"llama4_edge"}


@pytest.mark.parametrize("room", sorted(table()))
def test_no_room_is_called_like_a_module_of_python_or_of_a_dependency(room: str) -> None:
    assert room == "__init__" or room not in sys.stdlib_module_names
    assert room not in dependencies(extras=True)


def test_the_package_imports_its_dependencies_and_extras_alone() -> None:
    known = dependencies(extras=False) | {"matplotlib", "av"}
    server = {"h11", "prometheus_client", "pydantic", "starlette", "uvicorn"}
    strangers = [
        edge
        for edge in imports()
        if not edge.relative
        and not edge.types_only
        and room_of(edge.target) not in sys.stdlib_module_names
        and room_of(edge.target) not in known
        and not (room_of(edge.module) == "server" and room_of(edge.target) in server)
    ]
    assert [str(edge) for edge in strangers] == []


@pytest.mark.parametrize("folder", sorted(OUTSIDE - {"build"}))
def test_the_package_is_imported_by_its_name(folder: str) -> None:
    # The root is on the path when tests run: `import errors` would load a second copy.
    rooms = {room_of(module) for module in sources()} - {"__init__"}
    strays = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "out" not in path.relative_to(ROOT).parts  # what programs wrote: llama.cpp's sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in _absolute(node)
        if room_of(name) in rooms
    ]
    assert strays == []


def _absolute(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that a statement imports by an absolute name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if node.module and not node.level else []


def touches_c_api(edge: Import) -> bool:
    return room_of(edge.target) == "llama_cpp" or any((edge.target, n) in C_API for n in edge.names)


def test_the_c_api_is_touched_where_the_table_says_and_nowhere_else() -> None:
    places = {
        cells[0].strip("`").removesuffix(".py").rstrip("/").replace("/", ".")
        for cells in rows("C API in")
    }
    touching = {edge.module for edge in imports() if touches_c_api(edge)}
    # `quant.encode` finds libggml without importing the package around it.
    touching |= {"quant.encode"}

    def place_of(module: str) -> str:
        return next((p for p in places if module == p or module.startswith(f"{p}.")), module)

    assert {place_of(module) for module in touching} == places


def exports(module: str) -> list[str]:
    """The names in a module's ``__all__``; none if it has no such list."""
    for node in ast.parse(sources()[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


@pytest.mark.parametrize("module", [name for name in sources() if exports(name)])
def test_every_exported_name_is_there(module: str) -> None:
    loaded = (
        llama4_edge if module == "__init__" else importlib.import_module(f"llama4_edge.{module}")
    )
    names = exports(module)
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(loaded, name)] == []


def test_the_picture_of_the_house_is_current() -> None:
    assert house.PICTURE.read_text(encoding="utf-8") == house.draw()
