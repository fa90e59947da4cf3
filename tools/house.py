"""Draws the house, docs/concepts/house.svg: a box a room, an arrow to what it imports.

    python -m tools.house            # draw
    python -m tools.house --check    # exit with 1 if the picture is not current

Promises that every arrow is an import, that one which is left out joins rooms that others join,
and that no arrow passes behind a box.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import pairwise
from textwrap import wrap

from .imports import ROOT, arrows, sources, table

PICTURE = ROOT / "docs" / "concepts" / "house.svg"
# Rooms that nearly all others import; arrows to them would hide the rest.
FOUNDATION = ("errors", "units", "parts", "progress", "ranges", "untrusted", "_version")

BOX = (172, 66)  # width and height of a room
LANE = 16  # width of an arrow that passes a storey
GAP = (22, 54)  # between rooms, and between storeys
MARGIN = 24
SWEEPS = 12
STYLE = """
  text { font-family: system-ui, sans-serif; fill: #1f2430; text-anchor: middle; }
  .name { font-size: 14px; font-weight: 600; }
  .caption { font-size: 10.5px; fill: #545b6b; }
  .room { fill: #ffffff; stroke: #4051b5; stroke-width: 1.3; }
  .base { fill: #eef0f8; stroke: #9aa2c0; }
  path { fill: none; stroke: #6b75a8; stroke-width: 1.2; }
"""
Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Spot:
    """What takes a place in a storey: a room, or an arrow between rooms that passes it."""

    room: str
    towards: str = ""

    @property
    def width(self) -> int:
        """Pixels."""
        return LANE if self.towards else BOX[0]


def draw() -> str:
    """The house as SVG."""
    graph = {
        room: {target for target in targets if target not in (*FOUNDATION, "__init__")}
        for room, targets in sorted(arrows().items())
        if room not in FOUNDATION
    }
    edges = _reduced(graph)
    depth = _depths(graph)
    storeys = _ordered(_storeys(depth, edges), edges, depth)
    widths = [sum(spot.width + GAP[0] for spot in storey) - GAP[0] for storey in storeys]
    width = max(widths) + 2 * MARGIN
    place: dict[Spot, tuple[float, float]] = {}  # the middle of its upper side
    for level, storey in enumerate(storeys):
        left = (width - widths[level]) / 2
        for spot in storey:
            place[spot] = (left + spot.width / 2, MARGIN + level * (BOX[1] + GAP[1]))
            left += spot.width + GAP[0]
    base = MARGIN + len(storeys) * (BOX[1] + GAP[1]) - GAP[1] / 2
    shapes = [
        _arrow([place[spot] for spot in _way(edge, depth)], passing=len(_way(edge, depth)) > 2)
        for edge in edges
    ]
    shapes += [_box(spot.room, *place[spot]) for spot in place if not spot.towards]
    return _svg(width, base, shapes)


def _svg(width: int, base: float, shapes: list[str]) -> str:
    height = base + 44 + MARGIN
    names = " · ".join(_title(room) for room in FOUNDATION)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}">',
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
            ' markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#6b75a8"/>'
            "</marker></defs>",
            f'<rect width="{width}" height="{height:.0f}" fill="#ffffff"/>',
            *shapes,
            f'<rect class="room base" x="{MARGIN}" y="{base:.0f}" width="{width - 2 * MARGIN}"'
            ' height="44" rx="6"/>',
            f'<text class="name" x="{width / 2:.0f}" y="{base + 19:.0f}">{names}</text>',
            f'<text class="caption" x="{width / 2:.0f}" y="{base + 35:.0f}">'
            "imported from every storey</text>",
            "</svg>\n",
        ]
    )


# ---- which arrows, and where


def _reduced(graph: Graph) -> list[tuple[str, str]]:
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


def _depths(graph: Graph) -> dict[str, int]:
    """The storey of each room, 0 being the highest: below all that import it, and no lower."""
    importers = {room: [other for other in graph if room in graph[other]] for room in graph}

    @cache
    def depth(room: str) -> int:
        return 1 + max((depth(other) for other in importers[room]), default=-1)

    depths = {room: depth(room) for room in graph}
    for room in graph:
        if not importers[room] and graph[room]:
            depths[room] = min(depths[target] for target in graph[room]) - 1
    return depths


def _way(edge: tuple[str, str], depth: Mapping[str, int]) -> list[Spot]:
    """The spots that an arrow passes, from its room to its target, one in each storey."""
    room, target = edge
    between = depth[target] - depth[room] - 1
    return [Spot(room), *(Spot(f"{room}{n}", target) for n in range(between)), Spot(target)]


def _storeys(depth: Mapping[str, int], edges: list[tuple[str, str]]) -> list[list[Spot]]:
    storeys: list[list[Spot]] = [[] for _ in range(max(depth.values()) + 1)]
    for room, level in depth.items():
        storeys[level].append(Spot(room))
    for edge in edges:
        for n, spot in enumerate(_way(edge, depth)[1:-1], start=1):
            storeys[depth[edge[0]] + n].append(spot)
    return storeys


def _ordered(
    storeys: list[list[Spot]], edges: list[tuple[str, str]], depth: Mapping[str, int]
) -> list[list[Spot]]:
    """The storeys with their spots where arrows cross least: each at the mean of its neighbours."""
    joined = [pair for edge in edges for pair in pairwise(_way(edge, depth))]
    above: dict[Spot, list[Spot]] = {}
    below: dict[Spot, list[Spot]] = {}
    for upper, lower in joined:
        above.setdefault(lower, []).append(upper)
        below.setdefault(upper, []).append(lower)

    def crossings(order: list[list[Spot]]) -> int:
        at = {spot: n for storey in order for n, spot in enumerate(storey)}
        return sum(
            (at[a] - at[c]) * (at[b] - at[d]) < 0 and a in storey and c in storey
            for storey in order
            for a, b in joined
            for c, d in joined
        )

    best = order = storeys
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        order = list(order)
        indices = range(1, len(order)) if downwards else range(len(order) - 2, -1, -1)
        for index in indices:
            near = order[index - 1 if downwards else index + 1]
            order[index] = _sorted_by_mean(order[index], near, above if downwards else below)
        if crossings(order) < crossings(best):
            best = order
    return best


def _sorted_by_mean(
    storey: list[Spot], near: list[Spot], neighbours: Mapping[Spot, list[Spot]]
) -> list[Spot]:
    """A storey by the mean place of each spot's neighbours in the storey near it."""
    at = {spot: (n + 0.5) / len(near) for n, spot in enumerate(near)}
    own = {spot: (n + 0.5) / len(storey) for n, spot in enumerate(storey)}

    def mean(spot: Spot) -> float:
        places = [at[other] for other in neighbours.get(spot, []) if other in at]
        return sum(places) / len(places) if places else own[spot]

    return sorted(storey, key=mean)


# ---- shapes


def _title(room: str) -> str:
    if room == "__init__":
        return "import llama4_edge"
    return f"{room}/" if sources()[room].name == "__init__.py" else f"{room}.py"


def _box(room: str, middle: float, y: float) -> str:
    answers = re.sub(r"`", "", re.split(r"(?<=[.?])\s", table()[room].answers)[0].rstrip("."))
    captions = [
        f'<text class="caption" x="{middle:.0f}" y="{y + 34 + 12 * n:.0f}">{escape(line)}</text>'
        for n, line in enumerate(wrap(answers, 27)[:3])
    ]
    return "\n".join(
        [
            f'<rect class="room" x="{middle - BOX[0] / 2:.0f}" y="{y:.0f}" width="{BOX[0]}"'
            f' height="{BOX[1]}" rx="6"/>',
            f'<text class="name" x="{middle:.0f}" y="{y + 19:.0f}">{_title(room)}</text>',
            *captions,
        ]
    )


def _arrow(places: list[tuple[float, float]], *, passing: bool) -> str:
    """A curve from the lower side of the first place to the upper side of the last."""
    x, y = places[0][0], places[0][1] + BOX[1]
    steps = [f"M{x:.0f} {y:.0f}"]
    for n, (to, top) in enumerate(places[1:], start=1):
        end = top - 2 if n == len(places) - 1 else top
        middle = (y + end) / 2
        steps.append(f"C{x:.0f} {middle:.0f} {to:.0f} {middle:.0f} {to:.0f} {end:.0f}")
        x, y = to, top
        if passing and n < len(places) - 1:
            y = top + BOX[1]
            steps.append(f"V{y:.0f}")
    return f'<path d="{"".join(steps)}" marker-end="url(#tip)"/>'


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
