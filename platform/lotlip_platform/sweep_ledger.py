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
    results: list[dict[str, Any]] = field(default_factory=list)
    """`samples` seen, `metrics` with their intervals, `speed`: what was logged of training last,
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


def ends(records: Sequence[TrialRecord], metric: str) -> list[float]:
    """The metric at the end of each trial that came there."""
    finished = [record for record in records if record.status == "finished"]
    return [record.results[-1]["metrics"][metric]["value"] for record in finished]


def scores(records: Sequence[TrialRecord], metric: str, mode: str) -> list[Score]:
    """One for each point, the best first."""
    of_points: dict[str, list[TrialRecord]] = {}
    for record in records:
        of_points.setdefault(repr(sorted(record.point.items())), []).append(record)
    found = [_score(own[0].label, own, metric) for own in of_points.values()]
    sign = -1 if mode == "max" else 1
    return sorted(found, key=lambda s: math.inf if math.isnan(s.mean) else sign * s.mean)


def _score(label: str, records: Sequence[TrialRecord], metric: str) -> Score:
    reached = ends(records, metric)
    half_width = math.nan
    if len(reached) > 1:
        quantile = float(student_t.ppf(0.975, len(reached) - 1))
        half_width = quantile * statistics.stdev(reached) / math.sqrt(len(reached))
    mean = statistics.fmean(reached) if reached else math.nan
    return Score(label=label, records=records, mean=mean, half_width=half_width)


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
