"""The picture of a comparison: every name can be read."""

from __future__ import annotations

from itertools import combinations

import pytest

from llama4_edge.measure import divergence_plot


def test_names_cover_neither_each_other_nor_points() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(7.4, 4.8))
    # Sizes and divergences of nine recipes, each with and without a matrix, of which many agree.
    pairs = ((30.3, 0.7), (17.5, 1.3), (17.4, 8.7), (16.3, 7.8), (15.4, 9.3), (13.0, 3.7))
    points = [
        (f"recipe{number}{matrix}", size, distance * (0.97 if matrix else 1))
        for number, (size, distance) in enumerate(pairs)
        for matrix in ("", ", imatrix")
    ]
    for _, size, distance in points:
        axes.plot(size, distance, "o", markersize=5)
    axes.set_yscale("log")
    axes.margins(0.18)
    try:
        divergence_plot._label(axes, points)
        figure.canvas.draw()
        named = [text for text in axes.texts if text.get_text()]
        boxes = [text.get_window_extent() for text in named]
        places = axes.transData.transform([point[1:] for point in points])
        inside = axes.get_window_extent()
    finally:
        pyplot.close(figure)
    assert {text.get_text() for text in named} == {label for label, *_ in points}
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert not any(box.contains(*place) for box in boxes for place in places)
    assert all(inside.contains(*corner) for box in boxes for corner in (box.min, box.max))
