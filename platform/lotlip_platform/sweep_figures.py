"""The figures of a sweep's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lotlip.evaluate.comparisons import heat_map, scatter, with_costs
from lotlip.evaluate.figures import arms_chart
from lotlip.evaluate.retrieval import Interval
from lotlip_platform.sweep_config import ARM, label
from lotlip_platform.sweep_ledger import Score, device

SHORT, LONG = "short_text_to_image_r1", "long_text_to_image_r1"
Mode = Literal["max", "min"]
_SENTENCES = "captions.sentences_per_sub_caption"


def figures(found: Sequence[Score], metric: str, mode: Mode) -> dict[str, tuple[bytes, str]]:
    """By name, each as a PNG with what it shows."""
    ended = [score for score in found if not math.isnan(score.mean)]
    keys = _searched(found)
    shown: dict[str, tuple[bytes, str]] = {}
    if len(keys) > 1:
        shown["heat_map"] = (
            _heat_map(ended, keys[0], keys[1], metric),
            "Means, and half the width of their 95% intervals over seeds"
            + (f"; other keys as in {ended[0].label}." if len(keys) > 2 and ended else "."),
        )
    shown["bars"] = (
        arms_chart({s.label: _main_metrics(s, metric) for s in ended}, title=""),
        "Means, and their 95% intervals over seeds.",
    )
    if keys and keys != [ARM]:
        shown["with_costs"] = (
            _with_costs(ended, _caption_length(keys), metric),
            "What is reached, with 95% intervals over seeds, and what it costs.",
        )
    speeds = {s.label: (s.samples_per_s, 100 * s.mean) for s in ended}
    shown["front"] = (
        scatter(
            speeds,
            xlabel="samples/s",
            ylabel=f"{metric}, %",
            title="What is reached against throughput",
            front=mode,
        ),
        "None is both faster and better than those on the line.",
    )
    if ended and {SHORT, LONG} <= set(ended[0].measured):
        both = {
            s.label: (100 * s.interval_of(SHORT).value, 100 * s.interval_of(LONG).value)
            for s in ended
        }
        shown["short_and_long"] = (
            scatter(
                both, xlabel=f"{SHORT}, %", ylabel=f"{LONG}, %", title="Short texts and long ones"
            ),
            "Whether long texts are paid for with short ones.",
        )
    return shown


def _main_metrics(score: Score, metric: str) -> dict[str, Interval]:
    """The metric, and of all others the first of each kind."""
    firsts = [name for name in score.measured if name.endswith(("text_to_image_r1", "_top1"))]
    names = dict.fromkeys([metric, *firsts])
    return {name: score.interval_of(name) for name in names}


def _searched(found: Sequence[Score]) -> list[str]:
    """Keys that have several values, in the order of the points."""
    points = [score.records[0].point for score in found]
    keys = dict.fromkeys(key for point in points for key in point)
    return [key for key in keys if len({repr(point.get(key)) for point in points}) > 1]


def _caption_length(keys: Sequence[str]) -> str:
    """The key that stands for it, or the last one."""
    return next((key for key in keys if key.startswith("captions.")), keys[-1])


def _heat_map(ended: Sequence[Score], down: str, across: str, metric: str) -> bytes:
    points = {id(score): score.records[0].point for score in ended}
    like = points[id(ended[0])] if ended else {}
    rest = {key: value for key, value in like.items() if key not in (down, across)}
    shown = [s for s in ended if all(points[id(s)].get(key) == v for key, v in rest.items())]
    cells = {
        (_told(down, points[id(s)]), _told(across, points[id(s)])): s.interval_of(metric)
        for s in shown
    }
    rows, columns = (_places(key, shown) for key in (down, across))
    title = f"{metric}, %"
    return heat_map(cells, rows=rows, columns=columns, xlabel=across, ylabel=down, title=title)


def _with_costs(ended: Sequence[Score], along: str, metric: str) -> bytes:
    series: dict[str, list[tuple[str, Interval, list[float]]]] = {}
    for score in sorted(ended, key=lambda s: _order(along, s.records[0].point)):
        point = score.records[0].point
        name = label({key: value for key, value in point.items() if key != along}) or metric
        costs = [score.samples_per_s, score.tokens_a_sample, score.hours]
        series.setdefault(name, []).append((_told(along, point), score.interval_of(metric), costs))
    return with_costs(
        dict(sorted(series.items())),
        places=_places(along, ended),
        xlabel=along,
        ylabel=metric,
        costs=["samples/s", "text tokens a sample", f"{device(ended)} hours a trial"],
        title=f"{metric} against {along.rpartition('.')[2]}",
    )


def _places(key: str, of: Sequence[Score]) -> list[str]:
    """Its values, in their order."""
    points = sorted((score.records[0].point for score in of), key=lambda p: _order(key, p))
    return list(dict.fromkeys(_told(key, point) for point in points))


def _told(key: str, point: Mapping[str, Any]) -> str:
    value = point.get(key)
    return "all" if key == _SENTENCES and value == 0 else str(value)


def _order(key: str, point: Mapping[str, Any]) -> tuple[int, float, str]:
    """Numbers by their size, "all" behind them, and words."""
    value = point.get(key)
    if key == _SENTENCES and value == 0:
        return 0, math.inf, ""
    is_number = isinstance(value, int | float) and key != ARM
    return (0, float(value), "") if is_number else (1, 0.0, str(value))  # type: ignore[arg-type]
