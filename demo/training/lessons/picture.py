"""Pictures of the lessons: some shapes of one kind and colour on a light background.

Promises: the same pixels for the same picture on every machine, 336 x 336 like a tile of Llama 4;
shapes that touch neither each other nor the edge. Does not know the model.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIZE = 336
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (210, 30, 40),
    "orange": (245, 135, 20),
    "yellow": (240, 215, 30),
    "green": (30, 150, 60),
    "blue": (35, 80, 205),
    "purple": (130, 45, 160),
    "brown": (120, 75, 40),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
COUNTS = ("one", "two", "three", "four", "five")


@dataclass(frozen=True)
class Picture:
    """``count`` shapes of one kind and colour; ``seed`` fixes sizes, places and background."""

    colour: str
    shape: str
    count: int
    seed: int

    @property
    def words(self) -> str:
        """The caption: "two red circles"."""
        return f"{COUNTS[self.count - 1]} {self.colour} {self.shapes}"

    @property
    def shapes(self) -> str:
        """The shape's name in singular or plural."""
        if self.count == 1:
            return self.shape
        return self.shape + ("es" if self.shape == "cross" else "s")

    def places(self) -> list[tuple[int, int, int]]:
        """Centre, as x and y, and radius of each shape, in pixels."""
        return _places(random.Random(f"places {self.words} {self.seed}"), self.count)

    def place_labels(self, places: int) -> list[tuple[int, int]]:
        """Labels of each place in a grid of ``places`` x ``places``, row by row.

        Returns:
            The class of the shape that covers the middle of the place, from 1, or 0; and 1 if the
            place contains the centre of a shape, else 0.
        """
        step = SIZE / places
        shapes = self.places()
        number = 1 + SHAPES.index(self.shape)

        def at(row: int, column: int) -> tuple[int, int]:
            middle = (column + 0.5) * step, (row + 0.5) * step
            covered = any(math.dist(middle, (x, y)) <= radius for x, y, radius in shapes)
            centre = any((x // step, y // step) == (column, row) for x, y, _ in shapes)
            return number * covered, int(centre)

        return [at(row, column) for row in range(places) for column in range(places)]

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Red, green and blue, [336, 336, 3]."""
        rng = random.Random(f"{self.words} {self.seed}")
        background = [rng.randint(228, 255) for _ in range(3)]
        pixels = np.empty((SIZE, SIZE, 3), np.uint8)
        pixels[:] = background
        ink = [min(255, max(0, value + rng.randint(-18, 18))) for value in COLOURS[self.colour]]
        for x, y, radius in self.places():
            angle = rng.uniform(-0.2, 0.2)
            rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
            across = (columns * np.cos(angle) + rows * np.sin(angle)) / radius
            down = (rows * np.cos(angle) - columns * np.sin(angle)) / radius
            inside = _INSIDE[self.shape](across, down)
            pixels[y - radius : y + radius + 1, x - radius : x + radius + 1][inside] = ink
        return pixels


def draw_picture(rng: random.Random, seed: int) -> Picture:
    """A random picture with this ``seed``."""
    colour, shape = rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
    return Picture(colour, shape, rng.randint(1, len(COUNTS)), seed)


def _places(rng: random.Random, count: int) -> list[tuple[int, int, int]]:
    """Centres and radii, in pixels, of ``count`` discs that do not touch."""
    discs: list[tuple[int, int, int]] = []
    while len(discs) < count:
        radius = rng.randint(34, 46)
        x, y = (rng.randint(radius + 4, SIZE - radius - 5) for _ in range(2))
        if all((x - a) ** 2 + (y - b) ** 2 > (radius + r + 8) ** 2 for a, b, r in discs):
            discs.append((x, y, radius))
    return discs


_Plane = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]


def _circle(x: _Plane, y: _Plane) -> _Mask:
    return x**2 + y**2 <= 0.85**2


def _square(x: _Plane, y: _Plane) -> _Mask:
    return np.maximum(abs(x), abs(y)) <= 0.7


def _triangle(x: _Plane, y: _Plane) -> _Mask:
    return (y <= 0.6) & (1.9 * abs(x) <= y + 0.95)


def _star(x: _Plane, y: _Plane) -> _Mask:
    # Five tips at radius 1, notches between them at radius 0.4, straight edges from tip to notch.
    half, notch = np.pi / 5, 0.4
    from_tip = abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    edge = notch * np.sin(half) / (np.sin(from_tip) + notch * np.sin(half - from_tip))
    inside: _Mask = np.hypot(x, y) <= edge
    return inside


def _cross(x: _Plane, y: _Plane) -> _Mask:
    near, far = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
    return (near <= 0.26) & (far <= 0.9)


_INSIDE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}
