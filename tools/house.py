"""Who imports whom, read from the sources, and the picture of it.

Promises every import of the package's modules, those inside functions too, and the table of rooms
in CONTRIBUTING.md; `tests/test_house.py` compares the two. Draws `docs/concepts/house.svg`:

    python -m tools.house            # draw
    python -m tools.house --check    # exit with 1 if the picture is not current

Does not import the package.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import pairwise
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "concepts" / "house.svg"
OUTSIDE = {"build", "demo", "tests", "benchmarks", "docs", "examples", "tools"}

# Rooms that nearly all others import; arrows to them would hide the rest.
FOUNDATION = ("errors", "units", "parts", "progress", "_version")


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
    return tuple(edges)


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


# ---- the picture

BOX = (172, 66)  # width and height of a room
GAP = (22, 58)  # between rooms, and between storeys
MARGIN = 24
STYLE = """
  text { font-family: system-ui, sans-serif; fill: #1f2430; text-anchor: middle; }
  .name { font-size: 14px; font-weight: 600; }
  .caption { font-size: 10.5px; fill: #545b6b; }
  .room { fill: #ffffff; stroke: #4051b5; stroke-width: 1.3; }
  .base { fill: #eef0f8; stroke: #9aa2c0; }
  path { fill: none; stroke: #6b75a8; stroke-width: 1.2; }
"""


def draw() -> str:
    """The house as SVG: a box a room, an arrow to what it imports unless others lead there."""
    graph = {
        room: {target for target in targets if target not in (*FOUNDATION, "__init__")}
        for room, targets in sorted(arrows().items())
        if room not in FOUNDATION
    }
    storeys = _storeys(graph)
    width = max(len(storey) for storey in storeys) * (BOX[0] + GAP[0]) - GAP[0] + 2 * MARGIN
    place = {}
    for level, storey in enumerate(storeys):
        left = (width - len(storey) * (BOX[0] + GAP[0]) + GAP[0]) / 2
        for n, room in enumerate(storey):
            place[room] = (left + n * (BOX[0] + GAP[0]), MARGIN + level * (BOX[1] + GAP[1]))
    base = MARGIN + len(storeys) * (BOX[1] + GAP[1]) - GAP[1] / 2
    height = base + 44 + MARGIN
    shapes = [_arrow(place[room], place[to]) for room, to in _reduced(graph)]
    shapes += [_box(room, *place[room]) for room in place]
    shapes += [
        f'<rect class="room base" x="{MARGIN}" y="{base:.0f}" width="{width - 2 * MARGIN}"'
        f' height="44" rx="6"/>',
        f'<text class="name" x="{width / 2:.0f}" y="{base + 19:.0f}">'
        f"{' · '.join(_title(room) for room in FOUNDATION)}</text>",
        f'<text class="caption" x="{width / 2:.0f}" y="{base + 35:.0f}">'
        "imported from every storey</text>",
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}">',
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
            ' markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#6b75a8"/>'
            "</marker></defs>",
            f'<rect width="{width}" height="{height:.0f}" fill="#ffffff"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _storeys(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The rooms from top to bottom: each stands above all that it imports."""

    @cache
    def height(room: str) -> int:
        return 1 + max((height(target) for target in graph[room]), default=-1)

    levels: dict[int, list[str]] = {}
    for room in graph:
        levels.setdefault(height(room), []).append(room)
    storeys = [levels[level] for level in sorted(levels, reverse=True)]
    # Each room moves below those that import it.
    for above, below in pairwise(storeys):
        below.sort(key=lambda room: (_centre(above, room, graph), room))
    return storeys


def _centre(above: list[str], room: str, graph: Mapping[str, set[str]]) -> float:
    places = [n / len(above) for n, importer in enumerate(above) if room in graph[importer]]
    return sum(places) / len(places) if places else 0.5


def _reduced(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows without those whose ends other arrows join."""

    @cache
    def reach(room: str) -> frozenset[str]:
        return frozenset(graph[room]).union(*(reach(target) for target in graph[room]))

    return [
        (room, target)
        for room, targets in graph.items()
        for target in sorted(targets)
        if not any(target in reach(other) for other in targets)
    ]


def _title(room: str) -> str:
    path = sources()[room]
    if room == "__init__":
        return "import llama4_edge"
    return f"{room}/" if path.name == "__init__.py" else f"{room}.py"


def _box(room: str, x: float, y: float) -> str:
    answers = re.sub(r"`", "", re.split(r"(?<=[.?])\s", table()[room].answers)[0].rstrip("."))
    lines = wrap(answers, 27)[:3]
    middle = x + BOX[0] / 2
    captions = [
        f'<text class="caption" x="{middle:.0f}" y="{y + 34 + 12 * n:.0f}">{escape(line)}</text>'
        for n, line in enumerate(lines)
    ]
    return "\n".join(
        [
            f'<rect class="room" x="{x:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}"'
            ' rx="6"/>',
            f'<text class="name" x="{middle:.0f}" y="{y + 19:.0f}">{_title(room)}</text>',
            *captions,
        ]
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0] + BOX[0] / 2, start[1] + BOX[1]
    x2, y2 = end[0] + BOX[0] / 2, end[1] - 2
    bend = (y2 - y1) / 2
    curve = (
        f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"
    )
    return f'<path d="{curve}" marker-end="url(#tip)"/>'


def main() -> int:
    """Draw the picture, or say whether it is current."""
    picture = draw()
    if sys.argv[1:] != ["--check"]:
        PICTURE.write_text(picture, encoding="utf-8")
        return 0
    if PICTURE.read_text(encoding="utf-8") == picture:
        return 0
    sys.stderr.write(f"{PICTURE.relative_to(ROOT)} is old: run python -m tools.house\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
