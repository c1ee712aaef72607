"""Figures that compare runs."""

from __future__ import annotations

import io
import math

import pytest
from PIL import Image

from lotlip.evaluate.comparisons import heat_map, pareto_front, scatter, with_costs
from lotlip.evaluate.retrieval import Interval

SURE, ONE_SEED = Interval(0.5, 0.4, 0.6), Interval(0.7, math.nan, math.nan)


def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_each_figure_is_drawn_with_and_without_intervals_and_of_nothing() -> None:
    axes = {"xlabel": "x", "ylabel": "y", "title": "$ is a dollar"}
    both = {"rows": ["0", "2"], "columns": ["1", "all"]}
    cells = {("0", "1"): SURE, ("0", "all"): ONE_SEED, ("2", "1"): SURE}
    assert min(size(heat_map(cells, **both, **axes))) > 100
    assert min(size(heat_map({}, rows=[], columns=[], **axes))) > 100
    series = {"m=0": [("1", SURE, (900.0, 1.0)), ("all", ONE_SEED, (math.nan, 2.0))]}
    series["m=2"] = [("1", SURE, (800.0, 1.5))]
    assert (
        min(size(with_costs(series, places=["1", "all"], costs=["samples/s", "hours"], **axes)))
        > 100
    )
    assert min(size(with_costs({}, places=[], costs=["samples/s", "hours"], **axes))) > 100
    points = {f"m={number}": (float(number), 1.0 / (1 + number)) for number in range(20)}
    assert min(size(scatter(points, front="max", **axes))) > 100
    points["unknown"] = (math.nan, 0.9)
    assert min(size(scatter(points, front="min", **axes))) > 100
    assert min(size(scatter({}, front="max", **axes))) > 100


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1.0, 5.0)], [(1.0, 5.0)]),
        ([(1.0, 5.0), (2.0, 4.0), (1.5, 3.0)], [(1.0, 5.0), (2.0, 4.0)]),
        ([(1.0, 5.0), (2.0, 5.0)], [(2.0, 5.0)]),
        ([(2.0, 4.0), (2.0, 6.0), (2.0, 6.0)], [(2.0, 6.0)]),
        ([], []),
    ],
)
def test_the_front_is_what_none_beats(
    points: list[tuple[float, float]], front: list[tuple[float, float]]
) -> None:
    assert pareto_front(points) == front
