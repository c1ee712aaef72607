"""The machines and the data that `lotlip plan` reckons with."""

from __future__ import annotations

from dataclasses import dataclass

from lotlip.errors import ConfigError
from lotlip.train.flops import peak_of_card


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """A cluster, as far as time and money depend on it; 0 in what is told of the data asks it."""

    num_gpus: tuple[int, ...]
    """Sizes of the cluster, each a row of the plan."""
    gpus_per_host: int = 8
    """Those that a fast link connects."""
    host_gbit_s: float = 100.0
    """Between hosts, all cards of one together, each way."""
    link_gbit_s: float = 3600.0
    """Between the GPUs of a host, of each, each way."""
    gpu: str = ""
    """The card, whose peak `mfu` is a share of: H100, A100 ..."""
    mfu: float = 0.2
    """Share of the card's peak in bf16 that the towers reach. An assumption: measure it."""
    samples_per_s: float = 0.0
    """Of one GPU with its share of the batch, as measured; then `gpu` and `mfu` don't matter."""
    step_overhead_ms: float = 10.0
    """Of each step, whatever the batch. An assumption: measure it."""
    gpu_hours_per_failure: float = 50_000.0
    """How long one GPU, with what belongs to it, works until something stops the run."""
    restart_s: float = 120.0
    """From a failure until training goes on from the last checkpoint."""
    price_per_gpu_hour: float = 0.0
    """In any currency; 0: costs are not told."""
    num_samples: int = 0
    """Of the data set."""
    sample_bytes: float = 0.0
    """Of a sample in its shard, as training reads it."""
    num_shards: int = 0
    """Of the data set."""
    short_tokens: float = 0.0
    """Of a short caption, control tokens included."""
    long_tokens: float = 0.0
    """Of a sub-caption that is trained on, control and corner tokens included."""

    @property
    def flops_per_s(self) -> float:
        """Of a GPU, as assumed; 0 for a card whose peak isn't known."""
        return peak_of_card(self.gpu) * self.mfu

    def __post_init__(self) -> None:
        if not self.num_gpus or min(self.num_gpus) < 1:
            raise ConfigError(f"num_gpus={list(self.num_gpus)} must be numbers of 1 or more")
        if self.gpus_per_host < 1:
            raise ConfigError(f"gpus_per_host={self.gpus_per_host} must be 1 or more")
        for name in ("host_gbit_s", "link_gbit_s", "gpu_hours_per_failure"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("step_overhead_ms", "restart_s", "price_per_gpu_hour", "samples_per_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more")
        if not 0.0 < self.mfu <= 1.0:
            raise ConfigError(f"mfu={self.mfu} must be in (0, 1]")
        if not self.samples_per_s and not peak_of_card(self.gpu):
            raise ConfigError(
                f"gpu={self.gpu!r} is no card whose peak is known: give samples_per_s, as measured "
                "by lotlip profile"
            )
