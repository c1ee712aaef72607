"""A model on data sets, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lotlip.data.manifest import read_manifest
from lotlip.errors import ConfigError
from lotlip.evaluate.benchmarks import BENCHMARKS, Benchmark, Report, read_benchmark
from lotlip.evaluate.retrieval import Interval
from lotlip.model import LoTLIP
from lotlip_platform.storage import open_store
from lotlip_platform.tables import aligned


def check_benchmarks(names: Iterable[str], also: Iterable[str] = ()) -> None:
    """Raises: ConfigError for one that there isn't."""
    known = (*BENCHMARKS, *also)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"there is no benchmark {unknown[0]}: choose from {', '.join(known)}")


def evaluate_on(model: LoTLIP, benchmark: str, uri: str) -> Report:
    """Put a loaded model to one benchmark on a data set."""
    store = open_store(uri)
    samples = read_benchmark(store, read_manifest(store), 0)
    return Benchmark(benchmark, samples).meet(model)[0]


def table(columns: Mapping[str, Mapping[str, Interval]], metrics: Sequence[str] = ()) -> str:
    """Metrics down, models across: per cent with the 95% interval.

    `metrics` are the rows; empty takes all.
    """
    rows = list(metrics) or list(dict.fromkeys(m for column in columns.values() for m in column))
    cells = [["", *columns]]
    for metric in rows:
        cells.append([metric, *(_cell(column.get(metric)) for column in columns.values())])
    return aligned(cells)


def in_percent(interval: Interval) -> str:
    """A share with its interval: `85.0 [83.4, 86.6]`."""
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return "not run"
    return f"{100 * interval.value:5.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
