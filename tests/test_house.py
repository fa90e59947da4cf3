"""The house of CONTRIBUTING.md is that of the code: who imports whom, what rooms are called.

The table of rooms is read from the document and the imports from the sources, so that neither can
change aledge. Imports inside functions count; those under TYPE_CHECKING count as types only.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import llama4_edge

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"build", "demo", "tests", "benchmarks", "docs", "examples", "tools"}

# Import names of distributions whose name is another edge.
IMPORT_NAMES = {"llama-cpp-python": "llama_cpp", "py-cpuinfo": "cpuinfo"}

# What loads or describes llama.cpp's native functions, apart from the module `llama_cpp` itself.
C_API = {
    ("runtime.bindings.library", "llama"),
    ("runtime.bindings.library", "native_function"),
    ("runtime.bindings.devices", "rpc_function"),
}


@dataclass(frozen=True)
class Import:
    """One import: ``module`` imports ``target``, perhaps for annotations aledge."""

    module: str
    line: int
    target: str
    names: tuple[str, ...]
    types_only: bool
    relative: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


@dataclass(frozen=True)
class Room:
    """A row of the table."""

    imports: frozenset[str]
    types: frozenset[str]


# ---- the document


def rows(heading: str) -> list[list[str]]:
    """The cells of the table in CONTRIBUTING.md whose first heading this is."""
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    body = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        body.append([cell.strip() for cell in line.strip("|").split("|")])
    return body


def names_in(cell: str) -> frozenset[str]:
    """The rooms that a cell names; "everything" stays a word."""
    if cell in ("", "nothing"):
        return frozenset()
    if cell == "everything":
        return frozenset({"everything"})
    return frozenset(re.findall(r"`(\w+)`", cell))


@cache
def table() -> dict[str, Room]:
    """The rooms by name; a name is that of the folder, or of the file without its ending."""
    return {
        re.sub(r"[`/]|\.py", "", cells[0]): Room(names_in(cells[2]), names_in(cells[3]))
        for cells in rows("room")
    }


# ---- the code


@cache
def sources() -> dict[str, Path]:
    """Every module of the package by its name below the package; a package is its folder's name."""
    modules = {}
    for top in sorted(ROOT.iterdir()):
        if top.name.startswith(".") or top.name in OUTSIDE:
            continue
        for path in sorted(top.rglob("*.py")) if top.is_dir() else [top]:
            if path.suffix == ".py":
                parts = path.relative_to(ROOT).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                modules[name or "__init__"] = path
    return modules


def room_of(module: str) -> str:
    return module.split(".")[0]


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(node: ast.AST, types_only: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, each with whether it stands under TYPE_CHECKING."""
    yield node, types_only
    guarded = node.body if isinstance(node, ast.If) and is_type_checking(node.test) else []
    for child in ast.iter_child_nodes(node):
        yield from statements(child, types_only or child in guarded)


def resolve(module: str, node: ast.ImportFrom) -> list[tuple[str, tuple[str, ...]]]:
    """The modules of the package that a relative import names, with the names taken of each."""
    path = sources()[module]
    package = list(path.relative_to(ROOT).parts[:-1])
    base = package[: len(package) - (node.level - 1)] + (node.module or "").split(".")
    source = ".".join(part for part in base if part)
    taken: dict[str, list[str]] = {}
    for alias in node.names:
        submodule = f"{source}.{alias.name}".strip(".")
        target = submodule if submodule in sources() else source or "__init__"
        taken.setdefault(target, []).append(alias.name)
    return [(target, tuple(names)) for target, names in taken.items()]


@cache
def imports() -> tuple[Import, ...]:
    """Every import of every module; those of the package by their names below it."""
    edges: list[Import] = []
    for module, path in sources().items():
        for node, types_only in statements(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                edges += [
                    Import(module, node.lineno, target, names, types_only, relative=True)
                    for target, names in resolve(module, node)
                ]
            elif isinstance(node, ast.ImportFrom):
                names = tuple(alias.name for alias in node.names)
                target = node.module or ""
                edges.append(Import(module, node.lineno, target, names, types_only, False))
            elif isinstance(node, ast.Import):
                edges += [
                    Import(module, node.lineno, alias.name, (), types_only, relative=False)
                    for alias in node.names
                ]
    return tuple(edges)


def is_allowed(edge: Import) -> bool:
    room, target = room_of(edge.module), room_of(edge.target)
    if room == target:
        return True
    row = table()[room]
    allowed = row.imports | row.types if edge.types_only else row.imports
    return target in allowed or "everything" in allowed


# Imports and rooms that are being mended: by the module, and the first part of what it imports.
NOT_YET = {
    ("cli", "__init__"),
    ("cli", "chat"),
    ("cli", "convert"),
    ("cli", "hub"),
    ("cli", "runtime"),
    ("planner.plan", "planner"),
    ("terminal.chat", "chat"),
    ("terminal.plan_view", "planner"),
}
NOT_YET_ROOMS = {"inspection", "units"}


def is_being_mended(edge: Import) -> bool:
    return (edge.module, room_of(edge.target)) in NOT_YET


# ---- the claims


def test_the_table_names_every_room_and_no_other() -> None:
    rooms = {room_of(name) for name in sources()}
    assert rooms | NOT_YET_ROOMS == table().keys()


def test_every_import_is_one_that_the_table_allows() -> None:
    refused = [
        edge
        for edge in imports()
        if edge.relative and not is_allowed(edge) and not is_being_mended(edge)
    ]
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
        if not edge.relative or edge.types_only or is_being_mended(edge):
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


def dependencies() -> set[str]:
    """The import names of what pyproject.toml asks for, extras included."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = text[text.index("\ndependencies = [") : text.index("[project.scripts]")]
    names = re.findall(r'^    "([\w.-]+)', lists, flags=re.MULTILINE)
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names} - {"llama4_edge"}


@pytest.mark.parametrize("room", sorted(table()))
def test_no_room_is_called_like_a_module_of_python_or_of_a_dependency(room: str) -> None:
    assert room == "__init__" or room not in sys.stdlib_module_names
    assert room not in dependencies()


def test_the_package_imports_nothing_that_it_does_not_ask_for() -> None:
    known = dependencies() - {"torch", "transformers", "llama_models", "tiktoken", "pytest"}
    strangers = [
        edge
        for edge in imports()
        if not edge.relative
        and room_of(edge.target) not in sys.stdlib_module_names
        and room_of(edge.target) not in known
    ]
    assert [str(edge) for edge in strangers] == []


def touches_c_api(edge: Import) -> bool:
    return room_of(edge.target) == "llama_cpp" or any((edge.target, n) in C_API for n in edge.names)


def test_the_c_api_is_touched_only_where_the_table_says() -> None:
    places = [
        cells[0].strip("`").removesuffix(".py").rstrip("/").replace("/", ".")
        for cells in rows("C API in")
    ]
    elsewhere = [
        edge
        for edge in imports()
        if touches_c_api(edge)
        and not any(edge.module == place or edge.module.startswith(f"{place}.") for place in places)
    ]
    assert [str(edge) for edge in elsewhere] == []


def exports(path: Path) -> list[str]:
    """The names in a module's ``__all__``; none if it has no such list."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


@pytest.mark.parametrize("module", [name for name, path in sources().items() if exports(path)])
def test_every_exported_name_is_there(module: str) -> None:
    loaded = (
        llama4_edge if module == "__init__" else importlib.import_module(f"llama4_edge.{module}")
    )
    names = exports(sources()[module])
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(loaded, name)] == []
