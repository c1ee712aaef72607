"""What `lotlip eval` evaluates, and where."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lotlip.errors import ConfigError
from lotlip.evaluate.benchmarks import BENCHMARKS
from lotlip.evaluate.published.suite import PROTOCOLS, PUBLISHED, Protocol, ProtocolName
from lotlip_platform.evaluate import check_benchmarks
from lotlip_platform.tracking_address import RunTracking


@dataclass(frozen=True, kw_only=True)
class SuiteTracking(RunTracking):
    """Where an evaluation is recorded."""

    experiment: str = "evaluations"
    """As `tracking.experiment` of a training run."""


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """All of an evaluation."""

    model: str
    """`models:/NAME@ALIAS` and the other names of a model, `hf:FOLDER`, or
    `open_clip:ARCHITECTURE:CHECKPOINT`."""
    benches: dict[str, str]
    """Where the files of each published benchmark lie, or the data set."""
    protocols: tuple[ProtocolName, ...] = ()
    """By which each is put to the model. Empty: published ones by both, data sets by `clean`."""
    context_length: int = 0
    """Tokens that are read; 0: as the protocol has it."""
    num_samples: int = 0
    """The first so many of a data set; 0 takes all."""
    partial: bool = False
    """Take a published benchmark that isn't all there; the table says so."""
    against: str = ""
    """Another model, which is asked the same; empty: none."""
    cache: str = ""
    """Where features are kept: a folder or s3://BUCKET/PREFIX. Empty: `eval` in the lotlip home."""
    num_workers: int = 0
    """Ray workers that embed; 0: the process itself does."""
    tracking: SuiteTracking = field(default_factory=SuiteTracking)
    """Where it is recorded."""

    def __post_init__(self) -> None:
        check_benchmarks(self.benches, also=PUBLISHED)
        if not self.benches:
            raise ConfigError("an evaluation needs a benchmark: benches.NAME=URI, or --bench")
        for name, uri in self.benches.items():
            if not uri.strip():
                raise ConfigError(f"benches.{name} is empty: give the folder of its files")
        if not self.model.strip():
            raise ConfigError("model is empty: give one of its names")
        for name in ("context_length", "num_samples", "num_workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more")
        if self.num_samples and not set(BENCHMARKS) & set(self.benches):
            raise ConfigError("num_samples is for data sets; published benchmarks are taken whole")
        if self.partial and not set(PUBLISHED) & set(self.benches):
            raise ConfigError("partial is for published benchmarks, not for data sets")

    def protocols_of(self, benchmark: str) -> list[Protocol]:
        """By which a benchmark is put."""
        names = self.protocols or (tuple(PROTOCOLS) if benchmark in PUBLISHED else ("clean",))
        protocols = [PROTOCOLS[name] for name in dict.fromkeys(names)]
        if not self.context_length:
            return protocols
        return [replace(one, context_length=self.context_length) for one in protocols]
