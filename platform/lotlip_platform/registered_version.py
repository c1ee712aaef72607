"""A version of a registered model, and where it comes from."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lotlip.errors import CheckpointError, ConfigError, TrackingError
from lotlip.export import load
from lotlip.model import LoTLIP
from lotlip_platform import tracking
from lotlip_platform.tracking_address import one_line

CONFIG_FILE = "config.yaml"
"""The resolved config among a run's artifacts."""
_ADDRESS = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")
_ENVIRONMENT = ("python_version", "torch_version", "ray_version", "lotlip_version")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The run that made a version, as far as MLflow knows it."""

    run_id: str = ""
    name: str = ""
    status: str = ""
    """MLflow's: FINISHED, FAILED, KILLED, RUNNING."""
    code_version: str = ""
    """A commit, `+changes` behind it if there were any; or a release."""
    run_folder: str = ""
    data: str = ""
    data_manifest: str = ""
    """The digest of the manifest that was trained on."""
    has_trace: bool = False
    """Whether it wrote down what each step was trained on."""
    seed: str = ""
    sweep: str = ""
    sweep_run: str = ""
    """The MLflow run of that sweep."""
    point: Mapping[str, str] = field(default_factory=dict)
    """Its point in the sweep's search space."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions of Python, torch, Ray and lotlip."""


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A version whose files are here, for as long as it is open."""

    name: str
    number: int
    folder: Path
    origin: Origin

    @property
    def num_bytes(self) -> int:
        """Of weights, config and vocabulary."""
        exported = self.folder / "artifacts" / "model"
        return sum(path.stat().st_size for path in exported.iterdir())

    @cached_property
    def probe_files(self) -> dict[str, bytes]:
        """Of its `probe`; empty if it was registered without one."""
        folder = self.folder / "artifacts" / "probe"
        return {path.name: path.read_bytes() for path in folder.glob("*")}

    def load(self) -> LoTLIP:
        """The model, on the CPU. Raises: CheckpointError that names the version."""
        return load_from(self.folder, f"models:/{self.name}/{self.number}")


def parsed(address: str) -> re.Match[str]:
    """Its `name` and `alias` or `number`. Raises: ConfigError."""
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise ConfigError(f"{address!r} is not of the form NAME@ALIAS or NAME/VERSION")
    return match


def resolved(server: tracking.Server, address: str) -> tuple[str, int]:
    """Name and number of a version. Raises: ConfigError, TrackingError."""
    match = parsed(address)
    if match["number"]:
        return match["name"], int(match["number"])
    with tracking.failures_named(server.uri):
        found = server.client.search_registered_models(f"name = '{match['name']}'")
    if not found:
        raise TrackingError(
            f"{server.uri} has no registered model {match['name']}: lotlip models list shows all"
        )
    aliases = found[0].aliases
    if match["alias"] not in aliases:
        there = ", ".join(f"{alias}: v{number}" for alias, number in sorted(aliases.items()))
        raise TrackingError(f"{match['name']} has no alias {match['alias']}; it has: {there}")
    return match["name"], int(aliases[match["alias"]])


def card_of(address: str, tracking_uri: str = "") -> str:
    """The card of a registered version; empty for a model of any other name."""
    if not (address.startswith("models:/") and _ADDRESS.fullmatch(address)):
        return ""
    server = tracking.connect(tracking_uri)
    name, number = resolved(server, address)
    find_version(server, name, number)
    with tracking.failures_named(server.uri):
        return server.client.get_model_version(name, str(number)).description or ""


@contextmanager
def downloaded(server: tracking.Server, address: str) -> Iterator[Path]:
    """The files of a logged or registered model. Raises: TrackingError."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = Path(download_artifacts(address, dst_path=temporary))
            if not (folder / "MLmodel").is_file():
                raise FileNotFoundError("it has no files")
        except tracking.FAILURES as error:
            raise TrackingError(
                f"{server.uri} has no model {address}: {one_line(error, 200)}"
            ) from error
        yield folder


def load_from(folder: Path, address: str) -> LoTLIP:
    """The model among downloaded files. Raises: CheckpointError that names the address."""
    exported = folder / "artifacts" / "model"
    if not exported.is_dir():
        raise CheckpointError(f"{address} is not a model of lotlip: it has no export folder")
    return load_copy(exported, address)


def load_copy(folder: Path, address: str) -> LoTLIP:
    """Errors name the address that the user gave, not our copy of what lies there."""
    try:
        return load(folder)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), address)) from error


@contextmanager
def opened_version(server: tracking.Server, name: str, number: int) -> Iterator[RegisteredVersion]:
    """A version with its files. Raises: TrackingError if it isn't there, or its files are not."""
    run_id = find_version(server, name, number)
    with tracking.failures_named(server.uri):
        origin = origin_of(server, run_id)
    with downloaded(server, f"models:/{name}/{number}") as folder:
        yield RegisteredVersion(name=name, number=number, folder=folder, origin=origin)


def versions_of(server: tracking.Server, name: str) -> list[int]:
    """The numbers of the versions that there are. Raises: MLflow's own errors."""
    return sorted(int(v.version) for v in server.client.search_model_versions(f"name = '{name}'"))


def find_version(server: tracking.Server, name: str, number: int) -> str:
    """The id of the run that made a version; empty if none did.

    Raises: TrackingError that lists the versions there are.
    """
    client = server.client
    with tracking.failures_named(server.uri):
        try:
            version = client.get_model_version(name, str(number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            there = ", ".join(map(str, versions_of(server, name))) or "none"
            raise TrackingError(
                f"{server.uri} has no version {number} of {name}; it has: {there}"
            ) from error
    if version.status != "READY":
        raise TrackingError(
            f"version {number} of {name} is {version.status}: its registration did not come to "
            "its end; run lotlip track sync where it was trained"
        )
    return version.run_id or ""


def origin_of(server: tracking.Server, run_id: str) -> Origin:
    """What MLflow tells of a run; nothing if it was deleted for good, or is not ours to read."""
    if not run_id:
        return Origin()
    try:
        run = server.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED"):
            raise
        return Origin()
    tags, params = run.data.tags, run.data.params
    data = tags.get("data", params.get("data.train", ""))
    is_there = run.info.lifecycle_stage == LifecycleStage.ACTIVE
    return Origin(
        run_id=run_id,
        name=run.info.run_name or "",
        status=run.info.status if is_there else "deleted",
        code_version=tags.get("code_version", ""),
        run_folder=tags.get("run_folder", ""),
        data=data,
        data_manifest=tags.get("data_manifest", ""),
        has_trace=params.get("train.trace") == "True",
        seed=params.get("train.seed", ""),
        sweep=tags.get("sweep", ""),
        sweep_run=tags.get(MLFLOW_PARENT_RUN_ID, ""),
        point={k.removeprefix("point."): v for k, v in tags.items() if k.startswith("point.")},
        environment={key: tags[key] for key in _ENVIRONMENT if key in tags},
    )


def config_text(server: tracking.Server, run_id: str) -> str:
    """The resolved config of a run, as it was written then. Raises: TrackingError."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = download_artifacts(run_id=run_id, artifact_path=CONFIG_FILE, dst_path=temporary)
            return Path(path).read_text()
        except tracking.FAILURES as error:
            raise TrackingError(
                f"run {run_id} at {server.uri} has no {CONFIG_FILE}: {one_line(error, 200)}"
            ) from error
