"""The config of `lotlip sweep`, and the points that it asks for.

A point is a value for each key that is searched; a trial is a point with a seed. What a trial is
called is a function of both, so that a sweep which is started again knows its own.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lotlip.errors import ConfigError, UnknownKeyError
from lotlip_platform.config import build_config, flat, load_values, with_values
from lotlip_platform.tracking_address import RunTracking
from lotlip_platform.train_config import TrainConfig

_RANGES = ("uniform", "log_uniform", "integers")
_OWN = {"name": "", "store": "", "train.seed": ": give seeds"}
"""Keys of a training config that a sweep sets for each trial, with what to do instead."""
ARM = "arm"
"""The name of what differs between `arms`, beside the keys of `space`."""


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Which trials are ended early: successive halving, ASHA (Li et al. 2020)."""

    scheduler: Literal["none", "asha"] = "none"
    grace_samples: int = 0
    """Every trial sees so many. 0: those to its first evaluation."""
    reduction_factor: float = 3.0
    """At each rung, of which each is so many times as far as the one before, one in so many goes
    on."""

    def __post_init__(self) -> None:
        if self.reduction_factor <= 1:
            raise ConfigError(
                f"early_stopping.reduction_factor={self.reduction_factor} must be above 1"
            )
        if self.grace_samples < 0:
            raise ConfigError(
                f"early_stopping.grace_samples={self.grace_samples} must be 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What ends a sweep before all trials are through; 0 is no limit. It goes on with a larger
    one."""

    max_trials: int = 0
    max_samples: int = 0
    """Seen by all trials together; those that run then save, and go on with the next start."""
    max_hours: float = 0.0
    """Of this start of the sweep."""

    def __post_init__(self) -> None:
        for name in ("max_trials", "max_samples", "max_hours"):
            if getattr(self, name) < 0:
                raise ConfigError(f"budget.{name}={getattr(self, name)} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """All of a sweep."""

    name: str
    """Its folder in the store. Running the same name again resumes it, with points added if there
    are new ones."""
    store: str = ""
    """Where sweeps lie: a folder or s3://BUCKET/PREFIX. Empty: `sweeps` in the lotlip home."""
    train: str
    """The training config that is varied: a path, or the name of a shipped one."""
    set: dict[str, Any] = field(default_factory=dict)
    """What all trials have in common, on top of that config."""
    space: dict[str, Any] = field(default_factory=dict)
    """For keys of that config a list of values, of which each is tried with each of the others; or
    a range {uniform: [a, b]}, {log_uniform: [a, b]}, {integers: [a, b]} or {choice: [...]} from
    which is drawn."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named settings of several keys, of which each is tried with each point of the space."""
    num_draws: int = 1
    """Points drawn from the ranges of the space."""
    seeds: tuple[int, ...] = (0,)
    """Each point is trained with each; they are `train.seed`."""
    draw_seed: int = 0
    """What is drawn from ranges is a function of it."""
    metric: str = "long_text_to_image_r1"
    """Of the trials' evaluation: by it trials are stopped early, and ranked."""
    mode: Literal["max", "min"] = "max"
    """Whether more of the metric is better, or less."""
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    """Whether trials end that fall behind."""
    budget: Budget = field(default_factory=Budget)
    """Limits of all trials together."""
    max_concurrent: int = 0
    """Trials at a time; 0: as many as the cluster holds."""
    max_failures: int = 1
    """Times that a trial is started again from its last checkpoint after its workers died."""
    tracking: RunTracking = field(default_factory=RunTracking)
    """Where MLflow gets the sweep and its trials."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(
                f"name={self.name!r} must be made of letters, digits, '.', '_' and '-': it names "
                "a folder"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds={list(self.seeds)} must be one or more, all different")
        if not (self.space or self.arms):
            raise ConfigError("space and arms are both empty: give a list of values for some key")
        for name in ("num_draws", "max_concurrent", "max_failures"):
            if getattr(self, name) < (name == "num_draws"):
                raise ConfigError(f"{name}={getattr(self, name)} is too small")
        for key, values in self.space.items():
            _check_values(key, values)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a sweep."""

    name: str
    """Of its run and its folder, unique in the sweep."""
    point: dict[str, Any]
    """Values by key, `ARM` among them if there are arms."""
    seed: int
    config: TrainConfig

    @property
    def label(self) -> str:
        """The point for people."""
        return label(self.point)


def label(point: Mapping[str, Any]) -> str:
    """A point for people: the last words of its keys."""
    pairs = [(key.rpartition(".")[2], value) for key, value in point.items()]
    return ", ".join(value if key == ARM else f"{key}={_short(value)}" for key, value in pairs)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A point and seed that can't be trained."""

    name: str
    point: dict[str, Any]
    seed: int
    reason: str


def trials(config: SweepConfig, runs: str) -> tuple[list[Trial], list[Refused]]:
    """All trials, seed by seed, so that each point is seen early; `runs` is where they lie.

    And what is no trial, since its values don't go together. Raises: ConfigError for a key that
    doesn't exist, and where no point can be trained.
    """
    for group in (config.set, config.space, *config.arms.values()):
        _check_keys(group)
    base = with_values(load_values(config.train), config.set)
    found: dict[str, Trial] = {}
    refused: dict[str, Refused] = {}
    for seed, (point, values) in itertools.product(config.seeds, list(_points(config))):
        name = _name(point, seed)
        common = {
            "name": name,
            "store": runs,
            "train.seed": seed,
            "tracking": {
                "uri": config.tracking.uri,
                "experiment": config.tracking.experiment,
                "registered_model": "",
            },
        }
        try:
            built = build_config(TrainConfig, with_values(with_values(base, values), common))
            _check(built, config)
        except UnknownKeyError as error:
            raise ConfigError(f"{label(point)}: {error}") from error
        except ConfigError as error:
            refused[name] = Refused(name=name, point=point, seed=seed, reason=str(error))
        else:
            found[name] = Trial(name=name, point=point, seed=seed, config=built)
    if not found:
        first = next(iter(refused.values()))
        raise ConfigError(f"{label(first.point)}: {first.reason}")
    return list(found.values()), list(refused.values())


def _check_keys(values: Mapping[str, Any]) -> None:
    for key in flat(values):
        if key in _OWN or key.startswith("tracking."):
            raise ConfigError(f"{key} is set by the sweep itself{_OWN.get(key, '')}")


def _check(trial: TrainConfig, config: SweepConfig) -> None:
    if isinstance(trial.cluster.num_workers, tuple):
        raise ConfigError(
            f"cluster.num_workers={list(trial.cluster.num_workers)} must be one number in a sweep"
        )
    if not trial.eval.data:
        raise ConfigError("eval.data is empty: a sweep compares what is evaluated")
    if config.early_stopping.scheduler != "none" and not trial.train.eval_every_steps:
        raise ConfigError("train.eval_every_steps=0 leaves nothing to stop trials early by")


def _points(config: SweepConfig) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Points, as they are told, and the values they stand for."""
    lists = {key: values for key, values in config.space.items() if isinstance(values, list)}
    ranges = {key: values for key, values in config.space.items() if key not in lists}
    draws = list(_draws(ranges, config)) if ranges else [{}]
    arms: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {})]
    if config.arms:
        arms = [({ARM: name}, flat(values)) for name, values in config.arms.items()]
    for (arm, values), *chosen in itertools.product(arms, *lists.values()):
        for draw in draws:
            point = {**dict(zip(lists, chosen, strict=True)), **draw}
            yield {**arm, **point}, {**values, **point}


def _draws(ranges: Mapping[str, Any], config: SweepConfig) -> Iterator[dict[str, Any]]:
    for number in range(config.num_draws):
        draw = {}
        for key, values in ranges.items():
            # The same, whatever other keys there are.
            seed = hashlib.sha256(f"{config.draw_seed} {key} {number}".encode()).digest()
            draw[key] = _drawn(values, np.random.default_rng(list(seed)))
        yield draw


def _drawn(values: Mapping[str, Any], rng: np.random.Generator) -> Any:
    ((kind, range_),) = values.items()
    if kind == "choice":
        return range_[int(rng.integers(len(range_)))]
    low, high = range_
    if kind == "integers":
        return int(rng.integers(low, high + 1))
    if kind == "uniform":
        return float(f"{rng.uniform(low, high):.4g}")
    return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.4g}")


def _check_values(key: str, values: Any) -> None:
    if isinstance(values, list):
        if not values:
            raise ConfigError(f"space.{key} is an empty list")
        return
    kinds = f"a list of values, or one of {', '.join(f'{{{kind}: [a, b]}}' for kind in _RANGES)}"
    if not isinstance(values, Mapping) or len(values) != 1:
        raise ConfigError(f"space.{key} must be {kinds} or {{choice: [...]}}, got {values!r}")
    ((kind, range_),) = values.items()
    if kind == "choice" and isinstance(range_, list) and range_:
        return
    numbers = isinstance(range_, list) and all(isinstance(x, int | float) for x in range_)
    if kind not in _RANGES or not numbers or len(range_) != 2 or not range_[0] < range_[1]:
        raise ConfigError(f"space.{key} must be {kinds} with a < b, got {dict(values)!r}")
    if kind == "log_uniform" and range_[0] <= 0:
        raise ConfigError(f"space.{key}: log_uniform must begin above 0, got {range_}")
    if kind == "integers" and not all(isinstance(x, int) for x in range_):
        raise ConfigError(f"space.{key}: integers must be whole numbers, got {range_}")


def _name(point: Mapping[str, Any], seed: int) -> str:
    told = re.sub(r"[^A-Za-z0-9.]+", "-", label(dict(sorted(point.items())))).strip("-.")[:60]
    digest = hashlib.sha256(json.dumps([point, seed], sort_keys=True).encode()).hexdigest()
    return f"{told}-s{seed}-{digest[:6]}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
