"""`lotlip serve`: a model behind HTTP, as an application of Ray Serve."""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client

from lotlip.configuration import from_dict
from lotlip.errors import ClusterError, ConfigError
from lotlip_platform import tracking
from lotlip_platform.cluster import connected, store_environment
from lotlip_platform.features import feature_set
from lotlip_platform.local_services import home
from lotlip_platform.registry import fetch
from lotlip_platform.search_service import SearchService
from lotlip_platform.serve_config import ServeConfig
from lotlip_platform.served_model import Indexed, current_version
from lotlip_platform.storage import open_store

APP = "lotlip-search"
_TIMEOUT_S = 60.0
_REQUESTS_AT_ONCE = 64
_LOOK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A service that answers."""

    url: str
    version: str
    num_images: int
    """Of the data set; those that can't be read are left out of the index."""

    def wait(self) -> None:
        """As long as it runs. Raises: ClusterError when somebody has ended it."""
        with suppress(RayError):  # there is no cluster any more
            while APP in serve.status().applications:
                time.sleep(_LOOK_S)
        raise ClusterError("the service was ended by somebody else: serve again to go on")


@contextmanager
def serving(
    address: str,
    index: str,
    config: ServeConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Serving]:
    """Serve a model with the images of a data set to search, for as long as the block runs.

    `address` is any name that `registry.fetch` takes; of an alias the service follows the moves. A
    service that was left behind when its `serving` was killed is replaced.

    Raises: LotlipError; what is wrong with the model or the data set is found before anything is
    started.
    """
    address = _absolute(address)
    data, version = Indexed.at(index), current_version(address)
    model, kept_in = fetch(version), open_store(config.features or str(home() / "features")).uri
    with connected():
        _check_room(config)
        _check_http(config)
        with _only_one():
            gpus = config.gpus_per_replica
            feature_set(
                model.image_tower,
                data.manifest,
                data=data.uri,
                kept_in=kept_in,
                gpus=gpus,
                on_progress=on_progress,
            )
            del model  # the replicas have their own
            note(f"starting replicas ({config.num_replicas}), as soon as the cluster has room")
            try:
                _start(_application(address, version, data, kept_in, config), config)
                yield Serving(
                    url=f"http://{config.host}:{config.port}",
                    version=version,
                    num_images=data.manifest.num_samples,
                )
            finally:
                serve.delete(APP)
                if not serve.status().applications:
                    # Ray tells of the controller's end as of a fault, whenever Serve is shut down.
                    with redirect_stdout(io.StringIO()):
                        serve.shutdown()


def application(args: dict[str, Any]) -> serve.Application:
    """The service for config files of Ray Serve, as in infra/kubernetes/serve: their `import_path`
    names this function.

    `args`: `model` and `index` as `serving` takes them, and keys of `ServeConfig`. Where it listens
    is Serve's own to say. Raises: LotlipError.
    """
    values = dict(args)
    model, index = values.pop("model", ""), values.pop("index", "")
    config = from_dict(ServeConfig, values)
    for name, value in (("model", model), ("index", index), ("features", config.features)):
        if not value:
            raise ConfigError(f"{name} is missing in the args of lotlip_platform.serving")
    if not config.allowed_hosts:
        raise ConfigError("allowed_hosts is empty: name those by which the service is asked")
    kept_in = open_store(config.features).uri
    return _application(model, current_version(model), Indexed.at(index), kept_in, config)


def _absolute(address: str) -> str:
    """A folder's path leads elsewhere from a worker's folder."""
    path = Path(address).expanduser()
    return str(path.absolute()) if path.exists() else address


class _Serving:
    """An actor that lives as long as a command that serves."""


@contextmanager
def _only_one() -> Iterator[None]:
    """Raises: ClusterError if another command serves on this cluster."""
    actor: Any = ray.remote(num_cpus=0)(_Serving).options(name=APP, namespace="lotlip")
    try:
        held = actor.remote()
    except ValueError as error:  # the name is taken
        raise ClusterError(
            "another lotlip serve runs on this cluster: end it, or serve on a cluster of your own"
        ) from error
    try:
        yield
    finally:
        ray.kill(held)


def _application(
    address: str, version: str, data: Indexed, kept_in: str, config: ServeConfig
) -> serve.Application:
    deployment = serve.deployment(
        name="search",
        num_replicas=config.num_replicas,
        max_ongoing_requests=_REQUESTS_AT_ONCE,
        max_queued_requests=config.max_queued_requests,
        logging_config={"enable_access_log": False},  # requests are counted, see Metrics
        ray_actor_options={
            "num_cpus": config.cpus_per_replica,
            "num_gpus": config.gpus_per_replica,
        },
    )(serve.ingress()(SearchService))
    ours = {name: text for name, text in os.environ.items() if name.startswith("MLFLOW_")}
    environment = {
        **store_environment(),
        **ours,
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(),
        "LOTLIP_HOME": str(home()),
    }
    return deployment.bind(address, version, data, kept_in, config, environment)


def _start(application: serve.Application, config: ServeConfig) -> None:
    """Start Serve, unless it runs, and the service. Raises: ClusterError."""
    # As chatty as Serve is, the person at the terminal would miss what we tell.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    http = {"host": config.host, "port": config.port, "request_timeout_s": _TIMEOUT_S}
    try:
        serve.start(proxy_location="EveryNode", http_options=http)
        serve.run(application, name=APP, route_prefix="/")
    except (RayError, RuntimeError) as error:
        text = str(error)
        if "Failed to bind" in text:
            raise ClusterError(
                f"port {config.port} is taken where Ray Serve is to listen: choose another, "
                "--config serve/default port=N"
            ) from error
        raise ClusterError(
            f"Ray Serve could not start the service: {text.strip().splitlines()[-1][:300]}"
        ) from error


def _check_http(config: ServeConfig) -> None:
    """Raises: ClusterError if the cluster's Serve listens elsewhere already: it has one place."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    there = client.http_config
    if (there.host, there.port) != (config.host, config.port):
        raise ClusterError(
            f"Ray Serve of this cluster listens on {there.host}:{there.port} already: serve there, "
            f"--config serve/default host={there.host} port={there.port}, or end it: serve shutdown"
        )


def _check_room(config: ServeConfig) -> None:
    """Raises: ClusterError if the cluster, even when idle, can't hold the replicas."""
    has = ray.cluster_resources()
    asked = {"CPU": config.cpus_per_replica, "GPU": config.gpus_per_replica}
    for kind, each in asked.items():
        if config.num_replicas * each > has.get(kind, 0.0):
            raise ClusterError(
                f"num_replicas={config.num_replicas} needs {config.num_replicas * each:g} {kind}s, "
                f"the cluster has {has.get(kind, 0.0):g}: lower it or {kind.lower()}s_per_replica"
            )
