"""What a sweep found: a page to read without a network, its figures, and a table of all trials."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student_t

from lotlip.evaluate.comparisons import heat_map, scatter, with_cost
from lotlip.evaluate.retrieval import Interval
from lotlip_platform.sweep_config import ARM, label
from lotlip_platform.sweep_ledger import Score, TrialRecord, ends, scores

_SPEED = "train/samples_per_s"
_SHORT, _LONG = "short_text_to_image_r1", "long_text_to_image_r1"
_SENTENCES = "captions.sentences_per_sub_caption"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
h1 { margin-bottom: 0; } .of { color: #666; margin-top: 0; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; text-align: right; }
th { border-bottom: 2px solid #888; } td { border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } tr.failed td { color: #b00020; }
figure { margin: 2rem 0; } img { max-width: 100%; } figcaption { color: #666; }
"""


def make_report(
    name: str, records: Sequence[TrialRecord], metric: str, mode: str
) -> dict[str, bytes]:
    """The report's files by name; `report.html` holds all figures in itself."""
    records = sorted(records, key=lambda record: record.name)
    found = scores(records, metric, mode)
    figures = _figures(found, metric)
    files = {f"figures/{key}.png": content for key, (content, _) in figures.items()}
    page = _page(name, found, metric, mode, figures)
    return {"report.html": page.encode(), "trials.csv": _csv(records).encode(), **files}


def in_words(found: Sequence[Score], metric: str, mode: str) -> list[str]:
    """What can be said of the points, no more than their intervals support."""
    ended = [score for score in found if not math.isnan(score.mean)]
    if not ended:
        return ["No trial came to its end."]
    best = ended[0]
    lines = [f"Best is {best.label}: {_percent(best)} {metric}, over {_seeds(best)}."]
    if len(ends(best.records, metric)) < 2:
        return [*lines, "With one seed nothing can be said of how sure that is: give it more."]
    behind, undecided = [], []
    for other in ended[1:]:
        told = _difference(best, other, metric)
        if told is None:
            undecided.append(f"{other.label} (one seed)")
            continue
        low, high = sorted((told.low, told.high))
        ahead = low > 0 if mode == "max" else high < 0
        text = f"{other.label} by {100 * abs(told.value):.1f} points"
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
        (behind if ahead else undecided).append(text)
    if behind:
        lines.append(f"It is ahead of {'; '.join(behind)} (95% intervals of the differences).")
    if undecided:
        lines.append(f"Not told apart from it: {'; '.join(undecided)}.")
    return lines


def _difference(one: Score, other: Score, metric: str) -> Interval | None:
    """Of the means, with its 95% interval by Welch; None of fewer than two seeds."""
    ours, theirs = ends(one.records, metric), ends(other.records, metric)
    if min(len(ours), len(theirs)) < 2:
        return None
    value = statistics.fmean(ours) - statistics.fmean(theirs)
    parts = [(statistics.variance(own) / len(own), len(own) - 1) for own in (ours, theirs)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Interval(value, value, value)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half_width = float(student_t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Interval(value, value - half_width, value + half_width)


def _seeds(score: Score) -> str:
    number = sum(record.status == "finished" for record in score.records)
    return f"{number} seed{'s' * (number > 1)}"


def _percent(score: Score) -> str:
    if math.isnan(score.mean):
        return "-"
    spread = "" if math.isnan(score.half_width) else f" ± {100 * score.half_width:.1f}"
    return f"{100 * score.mean:.1f}{spread} %"


def _figures(found: Sequence[Score], metric: str) -> dict[str, tuple[bytes, str]]:
    """Each figure with what it shows."""
    ended = [score for score in found if not math.isnan(score.mean)]
    keys = _searched(found)
    figures: dict[str, tuple[bytes, str]] = {}
    if len(keys) > 1:
        figures["heat_map"] = (
            _heat_map(ended, keys[0], keys[1], metric),
            "Means, and half the width of their 95% intervals over seeds"
            + (f"; other keys as in {ended[0].label}." if len(keys) > 2 and ended else "."),
        )
    if keys:
        figures["with_cost"] = (
            _with_cost(ended, _caption_length(keys), metric),
            "What is reached, with 95% intervals over seeds, and how fast it trains.",
        )
    speeds = {s.label: (_mean_speed(s), 100 * s.mean) for s in ended}
    figures["front"] = (
        scatter(
            speeds,
            xlabel="samples/s",
            ylabel=f"{metric}, %",
            title="Reached for the time",
            front=True,
        ),
        "None is both faster and better than those on the line.",
    )
    if ended and {_SHORT, _LONG} <= ended[0].records[0].results[-1]["metrics"].keys():
        both = {s.label: (100 * _mean(s, _SHORT), 100 * _mean(s, _LONG)) for s in ended}
        figures["short_and_long"] = (
            scatter(
                both, xlabel=f"{_SHORT}, %", ylabel=f"{_LONG}, %", title="Short texts and long ones"
            ),
            "Whether long texts are paid for with short ones.",
        )
    return figures


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
    shown = sorted(shown, key=lambda s: [_order(key, points[id(s)]) for key in (down, across)])
    cells = {
        (_told(down, points[id(s)]), _told(across, points[id(s)])): _interval(s) for s in shown
    }
    return heat_map(cells, xlabel=across, ylabel=down, title=f"{metric}, %")


def _with_cost(ended: Sequence[Score], along: str, metric: str) -> bytes:
    series: dict[str, list[tuple[str, Interval, float]]] = {}
    for score in sorted(ended, key=lambda s: _order(along, s.records[0].point)):
        point = score.records[0].point
        name = label({key: value for key, value in point.items() if key != along}) or metric
        at = (_told(along, point), _interval(score), _mean_speed(score))
        series.setdefault(name, []).append(at)
    return with_cost(
        dict(sorted(series.items())),
        xlabel=along,
        ylabel=metric,
        cost="samples/s",
        title=f"{metric} against {along.rpartition('.')[2]}",
    )


def _interval(score: Score) -> Interval:
    if math.isnan(score.half_width):
        return Interval(score.mean, math.nan, math.nan)
    low, high = score.mean - score.half_width, score.mean + score.half_width
    return Interval(score.mean, max(0.0, low), min(1.0, high))


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


def _mean(score: Score, metric: str) -> float:
    return statistics.fmean(ends(score.records, metric))


def _mean_speed(score: Score) -> float:
    told = [r.results[-1]["speed"].get(_SPEED) for r in score.records if r.status == "finished"]
    known = [speed for speed in told if speed is not None]
    return statistics.fmean(known) if known else math.nan


def _csv(records: Sequence[TrialRecord]) -> str:
    """A row for each trial: its point, how it ended, and all that was measured last."""
    rows = [_row(record) for record in records]
    names = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(record: TrialRecord) -> dict[str, Any]:
    row: dict[str, Any] = {"trial": record.name, **record.point, "seed": record.seed}
    row |= {"status": record.status, "error": record.error, "samples": record.samples_seen}
    if record.results:
        last = record.results[-1]
        row |= {"seconds": round(last["seconds"], 2), **last["speed"]}
        row |= {name: interval["value"] for name, interval in last["metrics"].items()}
    return row


def _savings(records: Sequence[TrialRecord]) -> str:
    stopped = [record for record in records if record.status == "stopped"]
    if not stopped:
        return "No trial was stopped early."
    saved = sum(record.num_samples - record.samples_seen for record in stopped)
    whole = sum(record.num_samples for record in records)
    return (
        f"{len(stopped)} of {len(records)} trials were stopped early, which saved {saved:,} of "
        f"{whole:,} samples ({saved / whole:.0%})."
    )


def _page(
    name: str,
    found: Sequence[Score],
    metric: str,
    mode: str,
    figures: Mapping[str, tuple[bytes, str]],
) -> str:
    records = [record for score in found for record in score.records]
    words = " ".join(in_words(found, metric, mode))
    seconds = sum(record.results[-1]["seconds"] for record in records if record.results)
    rows = "".join(_table_row(score, metric) for score in found)
    shown = "".join(
        f'<figure><img alt="{html.escape(key)}" src="data:image/png;base64,'
        f'{base64.b64encode(content).decode()}"><figcaption>{html.escape(about)}</figcaption>'
        "</figure>"
        for key, (content, about) in figures.items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>
<style>{_STYLE}</style></head><body>
<h1>{html.escape(name)}</h1>
<p class="of">{len(records)} trials, {seconds / 3600:.2f} hours of training;
compared by {html.escape(metric)} ({mode}).</p>
<p>{html.escape(words)}</p>
<p>{html.escape(_savings(records))}</p>
<table><tr><th>point</th><th>{html.escape(metric)}, 95% interval over seeds</th><th>trials</th>
<th>samples/s</th></tr>{rows}</table>
{shown}
</body></html>
"""


def _table_row(score: Score, metric: str) -> str:
    speed = _mean_speed(score)
    told = "-" if math.isnan(speed) else f"{speed:,.0f}"
    statuses = [record.status for record in score.records]
    counts = ", ".join(f"{statuses.count(one)} {one}" for one in dict.fromkeys(statuses))
    errors = "".join(
        f'<tr class="failed"><td colspan="4">{html.escape(score.label)}, seed {record.seed}: '
        f"{html.escape(record.error)}</td></tr>"
        for record in score.records
        if record.error
    )
    return (
        f"<tr><td>{html.escape(score.label)}</td><td>{_percent(score)}</td>"
        f"<td>{counts}</td><td>{told}</td></tr>{errors}"
    )
