"""What a version must show before it may have an alias such as `champion`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lotlip.errors import ConfigError
from lotlip.evaluate.benchmarks import BENCHMARKS


@dataclass(frozen=True, kw_only=True)
class GateBenchmark:
    """One benchmark, and what is asked of its metrics."""

    data: str
    """The held-out data set: a folder or s3://BUCKET/PREFIX."""
    num_samples: int = 0
    """The first samples of the data set; 0 takes all."""
    at_least: dict[str, float] = field(default_factory=dict)
    """Shares from 0 to 1 that the metrics must reach, whatever the champion does."""
    better: tuple[str, ...] = ()
    """Metrics in which the candidate must be better than the champion: the whole interval of the
    difference above 0, and ten queries or more that only one of them answers right."""
    not_worse: tuple[str, ...] = ()
    """Metrics in which it must not be worse: the whole interval above `-tolerance`, and at least
    3 / tolerance queries."""

    def __post_init__(self) -> None:
        if self.num_samples < 0:
            raise ConfigError(f"num_samples={self.num_samples} must be 0 or more")
        for metric, least in self.at_least.items():
            if not 0.0 <= least <= 1.0:
                raise ConfigError(f"at_least.{metric}={least} must be a share, from 0 to 1")
        if not self.metrics:
            raise ConfigError("a benchmark without at_least, better or not_worse asks nothing")

    @property
    def metrics(self) -> list[str]:
        """All that something is asked of."""
        return list(dict.fromkeys((*self.better, *self.not_worse, *self.at_least)))


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """The gate. All of it must hold, so no correction for the number of metrics is due."""

    benchmarks: dict[str, GateBenchmark]
    """By the benchmark's name."""
    tolerance: float = 0.02
    """How much worse, as a share, still counts as not worse."""
    confidence: float = 0.95
    """Of the intervals of the differences."""
    num_resamples: int = 4000
    """Of the paired bootstrap that gives them."""
    clean_code: bool = True
    """The version's run must be of committed code, or of an installed release."""
    data_present: bool = True
    """The data set that the version was trained on must still be there, unchanged."""
    max_size_mb: float = 2000.0
    """Of the weights, config and vocabulary, in 10^6 bytes."""
    max_latency_ms: float = 1000.0
    """To embed one image and one text, one after the other, on one thread of this machine's
    processor: the median of several."""

    def __post_init__(self) -> None:
        if not self.benchmarks:
            raise ConfigError("benchmarks is empty: a gate needs one or more")
        for name in self.benchmarks:
            if name not in BENCHMARKS:
                raise ConfigError(
                    f"benchmarks.{name} is no benchmark: choose from {', '.join(BENCHMARKS)}"
                )
        for key, low, high in (("tolerance", 0.001, 1.0), ("confidence", 0.5, 0.9999)):
            if not low <= getattr(self, key) <= high:
                raise ConfigError(f"{key}={getattr(self, key)} must be from {low} to {high}")
        if self.num_resamples < 100:
            raise ConfigError(f"num_resamples={self.num_resamples} must be 100 or more")
