"""What a sweep found: a page to read without a network, its figures, and a table of all trials."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lotlip.evaluate.retrieval import Interval
from lotlip_platform.page import embedded, page
from lotlip_platform.sweep_figures import LONG, SHORT, Mode, figures
from lotlip_platform.sweep_ledger import (
    Score,
    TrialRecord,
    best_of,
    device,
    difference,
    ends,
    scores,
)


def make_report(
    name: str, records: Sequence[TrialRecord], metric: str, mode: Mode
) -> dict[str, bytes]:
    """The report's files by name; `report.html` holds all figures in itself."""
    records = sorted(records, key=lambda record: record.name)
    found = scores(records, metric, mode)
    shown = figures(found, metric, mode)
    files = {f"figures/{key}.png": content for key, (content, _) in shown.items()}
    page = _page(name, found, metric, mode, shown)
    return {"report.html": page.encode(), "trials.csv": _csv(records).encode(), **files}


def in_words(found: Sequence[Score], metric: str, mode: str) -> list[str]:
    """What can be said of the points, no more than their intervals support.

    The best is found among all, so the intervals of the differences hold for all pairs together.
    """
    best = best_of(found)
    if best is None:
        return ["No point has come to its end with all its seeds.", *_left_out(found)]
    reached = _percent(best.interval_of(metric))
    lines = [f"Best is {best.label}: {reached} {metric}, over {_seeds(best)}."]
    whole = [score for score in found if score.is_whole]
    if len(best.records) < 2 and len(whole) > 1:
        lines.append("With one seed nothing can be said of how sure that is: give it more.")
    elif len(whole) > 1:
        lines += _compared(best, whole, metric, mode)
    return [*lines, *_left_out(found)]


def _compared(best: Score, whole: Sequence[Score], metric: str, mode: str) -> list[str]:
    num_pairs = len(whole) * (len(whole) - 1) // 2
    behind, undecided = [], []
    for other in whole:
        if other is best:
            continue
        values = ends(best.records, metric), ends(other.records, metric)
        told = difference(*values, confidence=1 - 0.05 / num_pairs)
        if told is None:
            undecided.append(f"{other.label} (one seed)")
            continue
        low, high = told.low, told.high
        if mode == "min":
            low, high = -high, -low
        ahead_by = told.value if mode == "max" else -told.value
        text = f"{other.label} by {100 * ahead_by:.1f} points"
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
        (behind if low > 0 else undecided).append(text)
    lines = []
    if behind:
        lines.append(f"It is ahead of {'; '.join(behind)}.")
    if undecided:
        lines.append(f"Not told apart from it: {'; '.join(undecided)}.")
    together = f", which hold together for all {num_pairs} pairs of points (Bonferroni)"
    lines.append(f"In brackets: 95% intervals{together if num_pairs > 1 else ''}.")
    return lines


def _left_out(found: Sequence[Score]) -> list[str]:
    partial = [
        f"{s.label} ({sum(r.status == 'finished' for r in s.records)} of {len(s.records)})"
        for s in found
        if not s.is_whole
    ]
    if not partial:
        return []
    return [f"Not compared, since not all their trials came to the end: {'; '.join(partial)}."]


def _seeds(score: Score) -> str:
    number = sum(record.status == "finished" for record in score.records)
    return f"{number} seed{'s' * (number > 1)}"


def _percent(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "-"
    half = 50 * (interval.high - interval.low)
    return f"{100 * interval.value:.1f}{'' if math.isnan(half) else f' ± {half:.1f}'} %"


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
        row |= {"seconds": round(last["seconds"], 2), "hours": record.hours, **last["speed"]}
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
    shown: Mapping[str, tuple[bytes, str]],
) -> str:
    records = [record for score in found for record in score.records]
    words = " ".join(in_words(found, metric, mode))
    hours = sum(record.hours for record in records)
    columns = "".join(f"<th>{html.escape(name)}</th>" for name in _columns(metric))
    rows = "".join(_table_row(score, metric) for score in found)
    pictures = "".join(
        f'<figure><img alt="{html.escape(key)}" src="{embedded(content)}">'
        f"<figcaption>{html.escape(about)}</figcaption></figure>"
        for key, (content, about) in shown.items()
    )
    body = f"""<h1>{html.escape(name)}</h1>
<p class="of">{len(records)} trials, {hours:.2f} {device(found)} hours;
compared by {html.escape(metric)} ({mode}).</p>
<p>{html.escape(words)}</p>
<p>{html.escape(_savings(records))}</p>
<div class="wide"><table><tr><th>point</th>{columns}<th>trials</th><th>samples/s</th>
<th>{device(found)} hours a trial</th></tr>{rows}</table></div>
<p class="of">Means with 95% intervals (Student's t) over the trials that came to their end.</p>
{pictures}"""
    return page(name, body)


def _table_row(score: Score, metric: str) -> str:
    statuses = [record.status for record in score.records]
    cells = [
        html.escape(score.label),
        *(_percent(score.interval_of(name)) for name in _columns(metric)),
        ", ".join(f"{statuses.count(one)} {one}" for one in dict.fromkeys(statuses)),
        "-" if math.isnan(score.samples_per_s) else f"{score.samples_per_s:,.0f}",
        "-" if math.isnan(score.hours) else f"{score.hours:.3g}",
    ]
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    errors = "".join(
        f'<tr class="failed"><td colspan="{len(cells)}">{html.escape(score.label)}, seed '
        f"{record.seed}: {html.escape(record.error)}</td></tr>"
        for record in score.records
        if record.error
    )
    return f"<tr>{row}</tr>{errors}"


def _columns(metric: str) -> list[str]:
    """The metrics of the table: that by which is compared, and short and long texts."""
    return list(dict.fromkeys([metric, LONG, SHORT]))
