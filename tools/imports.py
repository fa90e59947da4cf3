"""Who imports whom: every import of the package, and the table of rooms in CONTRIBUTING.md.

Imports inside functions count, those under TYPE_CHECKING as types only. `tests/test_house.py`
compares the two. Does not import the package.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"build", "demo", "tests", "benchmarks", "docs", "examples", "tools"}


@dataclass(frozen=True)
class Import:
    """One import: ``module`` imports ``names`` of ``target``, perhaps for annotations alone."""

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
    """A row of the table: what the room answers, and what it may import."""

    answers: str
    imports: frozenset[str]
    types: frozenset[str]


# ---- the document


def rows(heading: str) -> list[list[str]]:
    """The cells of the table in CONTRIBUTING.md whose first heading this is."""
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
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
    """The rooms by name: the folder's, or the file's without its ending."""
    return {
        re.sub(r"[`/]|\.py", "", name): Room(answers, names_in(imports), names_in(types))
        for name, answers, imports, types in rows("room")
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
    """The room of a module: the first part of its name."""
    return module.split(".")[0]


@cache
def imports() -> tuple[Import, ...]:
    """Every import of every module; those of the package by their names below it."""
    edges: list[Import] = []
    for module, path in sources().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, types_only in _nodes(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                edges += [
                    Import(module, node.lineno, target, names, types_only, relative=True)
                    for target, names in _resolve(path, node)
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
            elif isinstance(node, ast.Call) and (target := _late(node)):
                edges.append(Import(module, node.lineno, target, (), types_only, relative=True))
    return tuple(edges)


def _late(call: ast.Call) -> str:
    """The package below which ``import_module(f".package.{name}", …)`` imports, "" for others."""
    if ast.unparse(call.func) != "import_module":
        return ""
    match = re.match(r"f?['\"]\.(\w+)\.", ast.unparse(call.args[0]))
    return match[1] if match else ""


def _nodes(node: ast.AST, types_only: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, each with whether it stands under TYPE_CHECKING."""
    yield node, types_only
    is_guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    guarded = node.body if isinstance(node, ast.If) and is_guard else []
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child, types_only or child in guarded)


def _resolve(path: Path, node: ast.ImportFrom) -> list[tuple[str, tuple[str, ...]]]:
    """The modules that a relative import in this file names, with the names taken of each."""
    package = list(path.relative_to(ROOT).parts[:-1])
    base = package[: len(package) - (node.level - 1)] + (node.module or "").split(".")
    source = ".".join(part for part in base if part)
    taken: dict[str, list[str]] = {}
    for alias in node.names:
        submodule = f"{source}.{alias.name}".strip(".")
        target = submodule if submodule in sources() else source or "__init__"
        taken.setdefault(target, []).append(alias.name)
    return [(target, tuple(names)) for target, names in taken.items()]


def arrows() -> dict[str, set[str]]:
    """The rooms that each room imports. The root loads its names late: its types count."""
    graph: dict[str, set[str]] = {room_of(module): set() for module in sources()}
    for edge in imports():
        room, target = room_of(edge.module), room_of(edge.target)
        if edge.relative and room != target and (room == "__init__" or not edge.types_only):
            graph[room].add(target)
    return graph
