"""Captioners side by side, as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from lotlip.evaluate.figures import COLOURS, FONT_PT, nothing, plain_axes, png
from lotlip.relabel.profile import CaptionProfile

_OPENINGS = 6
_MOST_BINS = 50
_SHOWN_PERCENT = 99.8
"""Of the captions; the longest ones would leave no room for the others."""


def captioners_chart(profiles: Mapping[str, CaptionProfile], *, unit: str, title: str) -> bytes:
    """Lengths, growth of the vocabulary and most frequent openings of each kind of caption."""
    if not any(profile.num for profile in profiles.values()):
        return nothing(title, "no captions")
    height = 3.2 + 0.16 * _OPENINGS * len(profiles)
    sheet = Figure(figsize=(9.5, height), layout="constrained")
    sheet.suptitle(title, fontsize=FONT_PT + 3)
    grid = sheet.add_gridspec(2, 2, height_ratios=(3.2, height - 3.2))
    left, right = sheet.add_subplot(grid[0, 0]), sheet.add_subplot(grid[0, 1])
    colours = dict(zip(profiles, _repeated(len(profiles)), strict=True))
    _lengths(left, profiles, colours, unit)
    _growth(right, profiles, colours)
    _openings(sheet.add_subplot(grid[1, :]), profiles, colours)
    return png(sheet)


def _lengths(
    axes: Axes, profiles: Mapping[str, CaptionProfile], colours: Mapping[str, str], unit: str
) -> None:
    lengths = np.concatenate([np.asarray(profile.lengths) for profile in profiles.values()])
    edges = _bin_edges(lengths[lengths <= np.percentile(lengths, _SHOWN_PERCENT)])
    for name, profile in profiles.items():
        heights, _ = np.histogram(np.asarray(profile.lengths), edges)
        shares = heights / max(profile.num, 1)
        axes.stairs(shares, edges, color=colours[name], label=name, linewidth=1.4)
    plain_axes(axes)
    axes.set_xlabel(f"{unit} in a caption", fontsize=FONT_PT)
    axes.set_ylabel("share of the captions", fontsize=FONT_PT)
    axes.legend(fontsize=FONT_PT, frameon=False)


def _growth(axes: Axes, profiles: Mapping[str, CaptionProfile], colours: Mapping[str, str]) -> None:
    for name, profile in profiles.items():
        numbers, words = zip(*profile.growth, strict=True) if profile.growth else ((), ())
        axes.plot(numbers, words, color=colours[name], label=name, linewidth=1.4)
    plain_axes(axes)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("captions read", fontsize=FONT_PT)
    axes.set_ylabel("different words in them", fontsize=FONT_PT)


def _openings(
    axes: Axes, profiles: Mapping[str, CaptionProfile], colours: Mapping[str, str]
) -> None:
    labels, shares, bars = [], [], []
    for name, profile in profiles.items():
        for text, share in profile.openings(_OPENINGS):
            labels.append(f"{text or '(no word)'} …")
            shares.append(100 * share)
            bars.append(colours[name])
    places = np.arange(len(labels))
    axes.barh(places, shares, color=bars, height=0.7)
    axes.set_yticks(places, labels, fontsize=FONT_PT)
    axes.invert_yaxis()
    plain_axes(axes)
    axes.set_xlabel("captions that open so, %", fontsize=FONT_PT)


def _repeated(number: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(number)]


def _bin_edges(values: np.ndarray) -> np.ndarray:
    """At most 50 bins; if all values are whole, every bin holds equally many whole numbers."""
    if len(values) == 0:
        return np.array([0.0, 1.0])
    low, high = values.min(), values.max()
    if (values == np.round(values)).all():
        width = math.ceil((high - low + 1) / _MOST_BINS)
        return np.arange(low, high + width + 1, width) - 0.5
    return np.linspace(low, high if high > low else low + 1, _MOST_BINS + 1)
