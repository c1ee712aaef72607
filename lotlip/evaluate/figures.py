"""The figures of data checks and evaluations, each as the bytes of a PNG.

They use matplotlib's objects without pyplot, so they share no state and need no display. Colours
are those of Okabe and Ito, which stay apart for colour-blind readers.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from lotlip.evaluate.retrieval import Interval

DPI = 130
FONT_PT = 8
LINE_IN = FONT_PT * 1.3 / 72
GAP_IN = 0.15
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#888888")
RIGHT_COLOUR, WRONG_COLOUR = "#009E73", "#999999"


@dataclass(frozen=True)
class Hit:
    """An image that a query found."""

    image: Image.Image
    score: float
    right: bool


def contact_sheet(
    images: Sequence[Image.Image], titles: Sequence[str], *, columns: int, heading: str = ""
) -> bytes:
    """The images in reading order, each with its title (of any length) below it."""
    if not images:
        return nothing(heading, "no images")
    cell_in = 2.4
    columns = min(columns, len(images))
    wrapped = [_wrap(title, cell_in) for title in titles]
    cells = list(zip(images, wrapped, strict=True))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [cell_in + _height(text for _, text in row) + 2 * GAP_IN for row in rows]
    sheet = _Sheet(columns * (cell_in + GAP_IN) + GAP_IN, sum(heights), heading)
    top = 0.0
    for row, height in zip(rows, heights, strict=True):
        for column, (image, text) in enumerate(row):
            left = GAP_IN + column * (cell_in + GAP_IN)
            sheet.image(image, left, top, cell_in)
            sheet.text(text, left, top + cell_in + GAP_IN / 3)
        top += height
    return png(sheet.figure)


def retrieval_sheet(rows: Sequence[tuple[str, Sequence[Hit]]], *, heading: str = "") -> bytes:
    """Each row a query text and the images it found, best first; right ones are framed in green."""
    if not rows:
        return nothing(heading, "no queries")
    query_in, cell_in = 4.2, 1.6
    queries = [_wrap(query, query_in) for query, _ in rows]
    heights = [max(cell_in + LINE_IN, _height([query])) + 2 * GAP_IN for query in queries]
    most = max(len(hits) for _, hits in rows)
    width = query_in + most * (cell_in + GAP_IN) + 2 * GAP_IN
    sheet = _Sheet(width, sum(heights), heading)
    top = 0.0
    for (_, hits), query, height in zip(rows, queries, heights, strict=True):
        sheet.text(query, GAP_IN, top)
        for column, hit in enumerate(hits):
            left = query_in + 2 * GAP_IN + column * (cell_in + GAP_IN)
            colour = RIGHT_COLOUR if hit.right else WRONG_COLOUR
            sheet.image(hit.image, left, top, cell_in, frame=colour, frame_pt=4 if hit.right else 1)
            label = f"{hit.score:.3f}" + (" ✓ right" if hit.right else "")
            sheet.text(label, left, top + cell_in + GAP_IN / 3, bold=hit.right)
        top += height
    return png(sheet.figure)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, xlabel: str, title: str
) -> bytes:
    """Panels side by side, named by their y axis, each with its series of (x, y) points.

    A series has one colour in all panels. Points that are not finite leave a gap.
    """
    if not any(panels.values()):
        return nothing(title, "no curves")
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    looks = itertools.cycle(itertools.product(("-", "--", ":", "-."), COLOURS))
    styles = dict(zip(names, looks, strict=False))
    figure = Figure(
        figsize=(max(5.0, 4.0 * len(panels)), 3.6 + 0.2 * len(names)), layout="constrained"
    )
    lines = {}
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (ylabel, series) in zip(grid, panels.items(), strict=True):
        for name, points in series.items():
            xs, ys = np.asarray(points, dtype=float).reshape(-1, 2).T
            dash, colour = styles[name]
            marker = "o" if len(points) <= 20 else ""
            (lines[name],) = panel.plot(xs, ys, dash, color=colour, marker=marker, markersize=3)
        panel.set_xlabel(xlabel, fontsize=FONT_PT)
        panel.set_ylabel(ylabel, fontsize=FONT_PT)
        panel.grid(color="#dddddd", linewidth=0.6)
        plain_axes(panel)
    labels = [textwrap.fill(name, 80) for name in lines]
    figure.legend(
        lines.values(), labels, loc="outside lower center", frameon=False, fontsize=FONT_PT
    )
    figure.suptitle(textwrap.fill(title, 80), fontsize=FONT_PT + 3)
    return png(figure)


def arms_chart(table: Mapping[str, Mapping[str, Interval]], *, title: str = "") -> bytes:
    """A panel for each metric with a bar for each arm, its value and its interval.

    Args:
        table: the arms, each with its metrics: shares from 0 to 1, shown in per cent. A metric may
            be missing from an arm.
    """
    arms = list(table)
    metrics = list(dict.fromkeys(metric for row in table.values() for metric in row))
    if not metrics:
        return nothing(title, "no results")
    rows = math.ceil(len(metrics) / 4)
    columns = math.ceil(len(metrics) / rows)
    size = (2.2 + 2.1 * columns, 0.6 + rows * (0.7 + 0.3 * len(arms)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for panel, metric in zip(grid, metrics, strict=False):
        panel.set_title(textwrap.fill(metric, 30), loc="left", fontsize=FONT_PT + 1)
        for place, arm in enumerate(arms):
            _bar(panel, place, table[arm].get(metric), COLOURS[place % len(COLOURS)])
        panel.set_xlim(0, 128)
        panel.set_xticks([0, 50, 100], labels=["0", "50", "100%"])
        panel.set_yticks(range(len(arms)), labels=[textwrap.fill(arm, 30) for arm in arms])
        plain_axes(panel)
    for panel in list(figure.axes)[len(metrics) :]:
        panel.remove()
    figure.axes[0].invert_yaxis()
    figure.suptitle(textwrap.fill(title, 80), fontsize=FONT_PT + 3)
    return png(figure)


def _bar(panel: Axes, place: int, interval: Interval | None, colour: str) -> None:
    if interval is None:
        panel.text(2, place, "not measured", va="center", fontsize=FONT_PT, color="#666666")
        return
    value = 100 * interval.value
    low, high = 100 * np.clip([interval.low, interval.high], 0.0, 1.0)
    panel.barh(place, value, height=0.7, color=colour)
    panel.plot([low, high], [place, place], color="black", linewidth=1.2, marker="|", markersize=5)
    end = value if math.isnan(high) else high
    panel.text(end + 3, place, f"{value:.1f}", va="center", fontsize=FONT_PT)


class _Sheet:
    """A page of images and texts, placed in inches from its top left corner."""

    def __init__(self, width_in: float, height_in: float, heading: str) -> None:
        title = _wrap(heading, width_in - 2 * GAP_IN, FONT_PT + 3)
        self.top_in = GAP_IN + (1.5 * _height([title]) + GAP_IN if heading else 0)
        self.width_in, self.height_in = width_in, height_in + self.top_in
        self.figure = Figure(figsize=(self.width_in, self.height_in))
        self.text(title, GAP_IN, GAP_IN - self.top_in, size=FONT_PT + 3)

    def text(
        self, text: str, left: float, top: float, *, size: float = FONT_PT, bold: bool = False
    ) -> None:
        x, y = left / self.width_in, 1 - (self.top_in + top) / self.height_in
        weight = "bold" if bold else "normal"
        self.figure.text(x, y, text, va="top", fontsize=size, fontweight=weight, linespacing=1.2)

    def image(
        self,
        image: Image.Image,
        left: float,
        top: float,
        side: float,
        frame: str = WRONG_COLOUR,
        frame_pt: float = 0.5,
    ) -> None:
        bottom = self.height_in - self.top_in - top - side
        box = (
            left / self.width_in,
            bottom / self.height_in,
            side / self.width_in,
            side / self.height_in,
        )
        panel = self.figure.add_axes(box, anchor="SW")
        small = image.convert("RGB")
        small.thumbnail((round(side * DPI), round(side * DPI)))
        panel.imshow(np.asarray(small))
        panel.set_xticks([])
        panel.set_yticks([])
        for spine in panel.spines.values():
            spine.set(color=frame, linewidth=frame_pt)


def _wrap(text: str, width_in: float, size: float = FONT_PT) -> str:
    """The text in lines that fit: a letter of DejaVu Sans takes about 0.6 of the font size."""
    num_letters = int(width_in * 72 / (0.6 * size))
    drawable = text.encode(errors="replace").decode()  # JSON may hold half a surrogate pair
    return "\n".join(textwrap.fill(line, num_letters) for line in drawable.splitlines())


def _height(texts: Iterable[str]) -> float:
    """Inches that the highest of the wrapped texts takes."""
    return max(text.count("\n") + 1 for text in texts) * LINE_IN


def plain_axes(panel: Axes) -> None:
    """The look that all panels have."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=FONT_PT)


def nothing(title: str, text: str) -> bytes:
    """A figure that says why there is none."""
    figure = Figure(figsize=(5, 1.5))
    figure.suptitle(textwrap.fill(title, 60), y=0.9, fontsize=FONT_PT + 3)
    figure.text(0.5, 0.2, text, ha="center", fontsize=FONT_PT + 1, color="#666666")
    return png(figure)


def png(figure: Figure) -> bytes:
    """What is drawn, as the bytes of a file."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a "$" in a caption is a dollar
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Captions may hold letters that the font lacks; they show as boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
