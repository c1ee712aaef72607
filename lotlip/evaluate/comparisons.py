"""Figures that compare training runs with each other, each as the bytes of a PNG."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lotlip.evaluate.figures import COLOURS, FONT_PT, nothing, plain_axes, png
from lotlip.evaluate.retrieval import Interval

_LEGEND_WIDTH = 70  # letters
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def heat_map(
    cells: Mapping[tuple[str, str], Interval],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str,
    ylabel: str,
    title: str,
) -> bytes:
    """A share for each (row, column), in per cent, with half the width of its interval."""
    if not cells:
        return nothing(title, "no trial came to its end")
    values = np.full((len(rows), len(columns)), np.nan)
    names = [textwrap.fill(row, 24) for row in rows]
    beside_in = 0.07 * max(len(line) for name in names for line in name.split("\n"))
    height_in = sum(max(0.6, 0.16 * (2 + name.count("\n"))) for name in names)
    size = 2.5 + beside_in + 1.1 * len(columns), 1.7 + height_in
    figure = Figure(figsize=size, layout="constrained")
    panel = figure.subplots()
    for (row, column), interval in cells.items():
        values[rows.index(row), columns.index(column)] = 100 * interval.value
    image = panel.imshow(values, cmap="cividis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), interval in cells.items():
        y, x = rows.index(row), columns.index(column)
        text = f"{100 * interval.value:.1f}{_spread(interval)}"
        colour = "white" if values[y, x] <= middle else "black"
        panel.text(x, y, text, ha="center", va="center", fontsize=FONT_PT, color=colour)
    panel.set_xticks(range(len(columns)), labels=[textwrap.fill(name, 14) for name in columns])
    panel.set_yticks(range(len(rows)), labels=names)
    panel.set_xlabel(xlabel, fontsize=FONT_PT)
    panel.set_ylabel(ylabel, fontsize=FONT_PT)
    panel.tick_params(labelsize=FONT_PT)
    bar = figure.colorbar(image)
    bar.ax.tick_params(labelsize=FONT_PT)
    figure.suptitle(textwrap.fill(title, 50), fontsize=FONT_PT + 3)
    return png(figure)


def with_costs(
    series: Mapping[str, Sequence[tuple[str, Interval, Sequence[float]]]],
    *,
    places: Sequence[str],
    xlabel: str,
    ylabel: str,
    costs: Sequence[str],
    title: str,
) -> bytes:
    """What is reached at each x, with intervals; for each cost again, with it on a second axis.

    Args:
        series: by name, (x, share, costs) from left to right.
        places: all x, from left to right.
    """
    if not places:
        return nothing(title, "no trial came to its end")
    size = 3.8 * len(costs) + 1, 3.8 + _legend_in(series)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    for number, (panel, cost) in enumerate(zip(panels, costs, strict=True)):
        second = panel.twinx()
        for (name, points), (colour, marker) in zip(series.items(), _looks(), strict=False):
            at = [places.index(x) for x, _, _ in points]
            _with_bars(panel, at, [share for _, share, _ in points], name, colour, marker)
            paid = [paid_for[number] for _, _, paid_for in points]
            second.plot(at, paid, "--", color=colour, linewidth=1, alpha=0.7)
        panel.set_xticks(range(len(places)), labels=[textwrap.fill(place, 14) for place in places])
        panel.set_xlabel(xlabel, fontsize=FONT_PT)
        second.set_ylabel(f"{cost} (dashed)", fontsize=FONT_PT)
        second.set_ylim(bottom=0)
        second.spines["top"].set_visible(False)
        second.tick_params(labelsize=FONT_PT)
        _tidy(panel)
    panels[0].set_ylabel(f"{ylabel}, %", fontsize=FONT_PT)
    _finish(figure, panels[0], title)
    return png(figure)


def scatter(
    points: Mapping[str, tuple[float, float]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    front: Literal["", "max", "min"] = "",
) -> bytes:
    """A mark for each name at (x, y), where both are known; with the `front` of those that none
    beats in both, by more of x and more ("max") or less ("min") of y."""
    points = {name: at for name, at in points.items() if all(map(math.isfinite, at))}
    if not points:
        return nothing(title, "no trial came to its end")
    figure = Figure(figsize=(5.6, 3.8 + _legend_in(points)), layout="constrained")
    panel = figure.subplots()
    for (name, (x, y)), (colour, marker) in zip(points.items(), _looks(), strict=False):
        panel.plot([x], [y], marker, color=colour, label=name, markersize=6)
    if front:
        sign = 1 if front == "max" else -1
        best = [(x, sign * y) for x, y in pareto_front([(x, sign * y) for x, y in points.values()])]
        panel.plot(*zip(*best, strict=True), "-", color="#888888", linewidth=1, zorder=0)
    panel.set_xlabel(xlabel, fontsize=FONT_PT)
    panel.set_ylabel(ylabel, fontsize=FONT_PT)
    _finish(figure, panel, title)
    return png(figure)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of which no other one has more of the one and at least as much of the other.

    From the smallest x to the largest.
    """
    found: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not found or y > found[-1][1]:
            found.append((x, y))
    return found[::-1]


def _looks() -> Iterator[tuple[str, str]]:
    """Colours and marks; a pair comes again only when all of them are through."""
    for number in itertools.count():
        turn, place = divmod(number, len(COLOURS))
        yield COLOURS[place], _MARKERS[(place + turn) % len(_MARKERS)]


def _with_bars(
    panel: Axes, at: list[int], shares: list[Interval], name: str, colour: str, marker: str
) -> None:
    values = np.array([100 * share.value for share in shares])
    below = values - [100 * share.low for share in shares]
    above = [100 * share.high for share in shares] - values
    panel.errorbar(
        at,
        values,
        yerr=[np.nan_to_num(below), np.nan_to_num(above)],
        color=colour,
        marker=marker,
        markersize=4,
        capsize=3,
        label=name,
    )


def _legend_in(names: Iterable[str]) -> float:
    """Inches that a legend below needs."""
    lines = [line for name in names for line in textwrap.wrap(name, _LEGEND_WIDTH) or [""]]
    return 0.2 * len(lines)


def _tidy(panel: Axes) -> None:
    panel.grid(color="#dddddd", linewidth=0.6)
    plain_axes(panel)


def _finish(figure: Figure, panel: Axes, title: str) -> None:
    _tidy(panel)
    handles, names = panel.get_legend_handles_labels()
    names = [textwrap.fill(name, _LEGEND_WIDTH) for name in names]
    figure.legend(handles, names, loc="outside lower center", frameon=False, fontsize=FONT_PT)
    figure.suptitle(textwrap.fill(title, 70), fontsize=FONT_PT + 3)


def _spread(interval: Interval) -> str:
    half = 50 * (interval.high - interval.low)
    return "" if np.isnan(half) else f"\n± {half:.1f}"
