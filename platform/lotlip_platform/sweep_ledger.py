"""What is known of a sweep's trials, in its folder in the store: an object for each trial.

SWEEP/ledger/TRIAL.json             its point and seed, what became of it, and all its results
SWEEP/trials/TRIAL/...              its run folder, see `run_folder`

An object is written anew with each result, wholly or not at all, so that a sweep whose driver was
killed is known up to the last result that it took.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from scipy.stats import t as student_t

from lotlip.data.store import Store
from lotlip.errors import DataError
from lotlip.evaluate.retrieval import Interval
from lotlip_platform.sweep_config import label

Status = Literal["running", "finished", "stopped", "failed"]
"""`stopped` by the scheduler; `running` also if the driver was killed meanwhile."""


@dataclass(kw_only=True)
class TrialRecord:
    """One trial."""

    name: str
    point: dict[str, Any]
    seed: int
    status: Status = "running"
    error: str = ""
    """Why it failed, in one line."""
    num_samples: int
    """That it would see to its end."""
    num_cpus: float = 1.0
    """That its workers hold."""
    num_gpus: float = 0.0
    """That its workers hold."""
    results: list[dict[str, Any]] = field(default_factory=list)
    """`samples` seen, `metrics` with their intervals, `speed`: samples and tokens a second so far,
    and `seconds` that the trial had taken, over all its starts."""

    @property
    def label(self) -> str:
        return label(self.point)

    @property
    def is_over(self) -> bool:
        """Whether it need not be trained again."""
        return self.status in ("finished", "stopped")

    @property
    def samples_seen(self) -> int:
        return self.results[-1]["samples"] if self.results else 0

    @property
    def hours(self) -> float:
        """Its price: of GPUs, or of CPUs if it has none."""
        seconds = self.results[-1]["seconds"] if self.results else 0.0
        return seconds / 3600 * (self.num_gpus or self.num_cpus)


class Ledger:
    """Reads and writes the records."""

    def __init__(self, store: Store) -> None:
        self._store = store.at("ledger")

    def write(self, record: TrialRecord) -> None:
        content = json.dumps(asdict(record), indent=1).encode()
        self._store.write(f"{record.name}.json", content)

    def read(self) -> dict[str, TrialRecord]:
        """By name, in the order of names. Raises: DataError."""
        return {record.name: record for record in map(self._read, sorted(self._store.list("")))}

    def _read(self, name: str) -> TrialRecord:
        try:
            return TrialRecord(**json.loads(self._store.read(name)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{self._store.uri}/{name} is damaged: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a point reached, over its seeds."""

    label: str
    records: Sequence[TrialRecord]
    mean: float
    """Of the trials that came to their end; NaN if none did."""
    half_width: float
    """Of the mean's 95% interval, by Student's t over the seeds; NaN of fewer than two."""

    @property
    def is_whole(self) -> bool:
        """Whether all its trials came to their end: those that did might be the lucky ones."""
        return all(record.status == "finished" for record in self.records)

    @property
    def measured(self) -> list[str]:
        """Metrics that are known of all trials that came to their end."""
        known = [result["metrics"] for result in self._last]
        return [name for name in known[0] if all(name in metrics for metrics in known)]

    def interval_of(self, metric: str) -> Interval:
        """Its mean over those trials, NaN if it isn't known."""
        is_known = bool(self._last) and metric in self.measured
        return mean_interval(ends(self.records, metric) if is_known else [])

    @property
    def samples_per_s(self) -> float:
        """In training, between evaluations; NaN if it isn't known."""
        return self._mean_speed("train/samples_per_s")

    @property
    def tokens_a_sample(self) -> float:
        """Of its texts, without padding."""
        return self._mean_speed("train/tokens_per_s") / self.samples_per_s

    @property
    def hours(self) -> float:
        """Of a trial."""
        return _mean([r.hours for r in self.records if r.status == "finished"])

    @property
    def _last(self) -> list[dict[str, Any]]:
        """Results of the trials that came to their end."""
        return [r.results[-1] for r in self.records if r.status == "finished"]

    def _mean_speed(self, name: str) -> float:
        return _mean([r["speed"][name] for r in self._last if name in r["speed"]])


def device(found: Sequence[Score]) -> str:
    """Whose hours are counted."""
    return "GPU" if any(r.num_gpus for score in found for r in score.records) else "CPU"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def ends(records: Sequence[TrialRecord], metric: str) -> list[float]:
    """The metric at the end of each trial that came there, if it was measured."""
    last = [r.results[-1]["metrics"] for r in records if r.status == "finished"]
    return [metrics[metric]["value"] for metrics in last if metric in metrics]


def scores(records: Sequence[TrialRecord], metric: str, mode: str) -> list[Score]:
    """One for each point, the best first."""
    of_points: dict[str, list[TrialRecord]] = {}
    for record in records:
        of_points.setdefault(repr(sorted(record.point.items())), []).append(record)
    found = [_score(own[0].label, own, metric) for own in of_points.values()]
    sign = -1 if mode == "max" else 1
    return sorted(found, key=lambda s: math.inf if math.isnan(s.mean) else sign * s.mean)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean with its 95% interval by Student's t, which is NaN of fewer than two values."""
    mean = _mean(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    half_width = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half_width, mean + half_width)


def difference(
    ours: Sequence[float], theirs: Sequence[float], *, confidence: float = 0.95
) -> Interval | None:
    """Of the means, with its interval by Welch; None of fewer than two values."""
    if min(len(ours), len(theirs)) < 2:
        return None
    value = statistics.fmean(ours) - statistics.fmean(theirs)
    parts = [(statistics.variance(own) / len(own), len(own) - 1) for own in (ours, theirs)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Interval(value, value, value)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half_width = float(student_t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance)
    return Interval(value, value - half_width, value + half_width)


def best_of(found: Sequence[Score]) -> Score | None:
    """The first of which all trials came to their end."""
    return next((score for score in found if score.is_whole and not math.isnan(score.mean)), None)


def _score(label: str, records: Sequence[TrialRecord], metric: str) -> Score:
    found = mean_interval(ends(records, metric))
    half_width = found.high - found.value
    return Score(label=label, records=records, mean=found.value, half_width=half_width)


def table(records: Sequence[TrialRecord], metric: str, mode: str) -> list[str]:
    """Points with their means and intervals in percent, the best first; for people."""
    found = scores(records, metric, mode)
    width = max(len(score.label) for score in found)
    lines = [f"{'':<{width}}  {metric}, %, with 95% interval over seeds"]
    for score in found:
        mean = "-" if math.isnan(score.mean) else f"{100 * score.mean:.1f}"
        spread = "" if math.isnan(score.half_width) else f" ± {100 * score.half_width:.1f}"
        counts = Counter(record.status for record in score.records)
        told = ", ".join(f"{number} {status}" for status, number in counts.items())
        lines.append(f"{score.label:<{width}}  {mean}{spread}  ({told})")
        lines += [f"    seed {r.seed}: {r.error}" for r in score.records if r.error]
    return lines
