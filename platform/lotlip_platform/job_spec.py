"""From the arguments of `lotlip jobs submit` to what the job needs: files, stores, resources.

The resolved config is the job's only argument, so what it does no longer depends on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from lotlip.errors import ConfigError
from lotlip.evaluate.benchmarks import BENCHMARKS
from lotlip_platform.cluster import ClusterConfig
from lotlip_platform.config import dump_config, dump_values, load_config, load_values
from lotlip_platform.eval_config import SuiteConfig
from lotlip_platform.relabel_config import RelabelConfig
from lotlip_platform.sweep_config import SweepConfig, trials
from lotlip_platform.tracking_address import is_run_id
from lotlip_platform.train_config import TrainConfig

CONFIG = "lotlip-job.yaml"
_NAME = 40
"""Letters of a job's name that is made of several."""


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What is to be submitted."""

    verb: str
    name: str
    files: dict[str, str]
    """Contents by name; the config is the first."""
    output: str
    """The folder that it fills."""
    stores: tuple[str, ...]
    """That it writes to."""
    data_sets: tuple[str, ...]
    """That it reads."""
    tracking_uri: str
    """Of its config; empty: what the cluster has."""
    clusters: tuple[ClusterConfig, ...]
    """What it asks of the cluster, one of them at a time."""


def job_spec(verb: str, config: str, overrides: Sequence[str]) -> JobSpec:
    """Raises: ConfigError for what would stop the verb here as well."""
    if verb == "sweep":
        return _sweep(load_config(SweepConfig, config, overrides))
    if verb == "relabel":
        return _relabel(load_config(RelabelConfig, config, overrides))
    if verb == "eval":
        return _eval(load_config(SuiteConfig, config, overrides))
    return _train(verb, load_config(TrainConfig, config, overrides))


def _train(verb: str, config: TrainConfig) -> JobSpec:
    if verb == "precompute" and not config.data.features:
        raise ConfigError("data.features is empty: precompute fills it")
    _check_data([config])
    output = config.data.features if verb == "precompute" else _folder(config.store, config.name)
    stores = ("" if verb == "precompute" else config.store, config.data.features)
    data_sets, made = _data_sets([config])
    return JobSpec(
        verb=verb,
        name=config.name,
        files={CONFIG: dump_config(config)},
        output=output,
        stores=_some(*stores, *made),
        data_sets=data_sets,
        tracking_uri=config.tracking.uri,
        clusters=(config.cluster,),
    )


def _sweep(config: SweepConfig) -> JobSpec:
    found, _ = trials(config, _folder(config.store, config.name))
    configs = [trial.config for trial in found]
    _check_data(configs)
    data_sets, made = _data_sets(configs)
    return JobSpec(
        verb="sweep",
        name=config.name,
        files={CONFIG: dump_config(config), **_base(config.train)},
        output=_folder(config.store, config.name),
        stores=_some(config.store, *(one.data.features for one in configs), *made),
        data_sets=data_sets,
        tracking_uri=config.tracking.uri,
        clusters=tuple(dict.fromkeys(one.cluster for one in configs)),
    )


def _relabel(config: RelabelConfig) -> JobSpec:
    check_places({"target": config.target})
    return JobSpec(
        verb="relabel",
        name=config.name,
        files={CONFIG: dump_config(config)},
        output=_folder(config.store, config.name),
        stores=_some(config.store, config.target),
        data_sets=(config.source,),
        tracking_uri=config.tracking.uri,
        clusters=(config.cluster.as_cluster(),),
    )


def _eval(config: SuiteConfig) -> JobSpec:
    names = {"model": config.model, "against": config.against}
    for key, name in names.items():
        _check_model(key, name)
    files = {f"benches.{name}": uri for name, uri in config.benches.items()}
    check_places({"cache": config.cache, **files})
    return JobSpec(
        verb="eval",
        name="-".join(config.benches)[:_NAME],
        files={CONFIG: dump_config(config)},
        output=config.cache,
        stores=(config.cache,),
        data_sets=tuple(uri for name, uri in config.benches.items() if name in BENCHMARKS),
        tracking_uri=config.tracking.uri,
        clusters=(ClusterConfig(num_workers=config.num_workers),) if config.num_workers else (),
    )


def _check_model(key: str, model: str) -> None:
    """Raises: ConfigError for a model that is another one, or none, on another machine."""
    kind, _, rest = model.partition(":")
    if not model or kind == "models" or is_run_id(model):
        return
    if kind not in ("hf", "open_clip"):
        check_places({key: model})
        return
    checkpoint = rest.partition(":")[2]
    if kind == "open_clip" and not checkpoint:
        raise ConfigError(f"{key}={model} is not of the form open_clip:ARCHITECTURE:CHECKPOINT")
    is_tag = kind == "open_clip" and not {"/", "."} & {*checkpoint}
    if not is_tag and not (rest if kind == "hf" else checkpoint).startswith("/"):
        raise ConfigError(
            f"{key}={model} is read from a disk: give a path that begins with / and is there on "
            "each machine"
        )


def _data_sets(configs: Sequence[TrainConfig]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that must be there, and where scenes are made if there are none."""
    used = _some(*(uri for one in configs for uri in (one.data.train, one.eval.data)))
    made = {uri for one in configs for _, uri, _ in one.scenes.data_sets()}
    there = tuple(uri for uri in used if uri.rstrip("/") not in made)
    return there, _some(*(one.scenes.uri for one in configs))


def _base(train: str) -> dict[str, str]:
    """The config that a sweep varies, resolved, under the name that the sweep gives it."""
    path = PurePosixPath(train)
    if path.is_absolute() or ".." in path.parts or train.startswith("~") or train == CONFIG:
        raise ConfigError(
            f"train={train} does not lie below this folder: give a path that a job can take along"
        )
    return {path.as_posix(): dump_values(load_values(train))}


def _folder(store: str, name: str) -> str:
    check_places({"store": store})
    return f"{store.rstrip('/')}/{name}"


def _check_data(configs: Sequence[TrainConfig]) -> None:
    """Of what is written beside the run's own folder."""
    for config in configs:
        places = {"data.features": config.data.features, "scenes.uri": config.scenes.uri}
        check_places({key: place for key, place in places.items() if place})


def check_places(places: Mapping[str, str]) -> None:
    """Raises: ConfigError for what is another place on each machine."""
    for key, place in places.items():
        if not place.startswith(("s3://", "/")):
            raise ConfigError(
                f"{key}={place} is a folder of one machine: give {key}=s3://BUCKET/PREFIX"
            )


def _some(*uris: str) -> tuple[str, ...]:
    """Those that are given, each once."""
    return tuple(dict.fromkeys(uri for uri in uris if uri))
