"""From a registered version to all that made it, and to the commands that make it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from lotlip.data.manifest import Manifest, read_manifest
from lotlip.errors import ConfigError, DataError, LotlipError, TrackingError
from lotlip_platform import tracking
from lotlip_platform.alias_history import AliasHistory, Change
from lotlip_platform.config import build_config
from lotlip_platform.model_card import model_card
from lotlip_platform.registered_version import (
    Origin,
    config_text,
    find_version,
    origin_of,
    parsed,
    resolved,
)
from lotlip_platform.registry import make_candidate, register
from lotlip_platform.run_folder import RunFolder
from lotlip_platform.storage import open_store
from lotlip_platform.train_config import TrainConfig

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a version is, and where it comes from."""

    name: str
    version: int
    weights: str
    """The digest that lotlip train prints."""
    aliases: Mapping[str, Change | None]
    """Those that it has, with the change that gave it, if lotlip made that."""
    origin: Origin
    config: str
    """The resolved config of its run, as YAML; empty if it is gone."""
    data_is: str
    """What has become of the training data: `there`, `changed` or `gone`."""
    captioners: tuple[str, ...]
    """Of the long captions in the data; those that were drawn from are in the config."""
    data_made_by: Mapping[str, Any]
    """How the data came about, captioners with their versions among it, as their manifest says;
    empty unless they are there."""

    def rows(self) -> list[tuple[str, str]]:
        """What each thing is, those left out that are unknown."""
        origin = self.origin
        made_by = ", ".join(f"{key} {value}" for key, value in self.data_made_by.items())
        rows = [
            ("version", f"models:/{self.name}/{self.version}"),
            *((f"alias {alias}", _given(change)) for alias, change in self.aliases.items()),
            ("weights", self.weights),
            ("run", f"{origin.run_id} {origin.name} {origin.status}".strip() or "gone"),
            ("run folder", origin.run_folder),
            ("sweep", f"{origin.sweep} (run {origin.sweep_run})" if origin.sweep else ""),
            ("point", ", ".join(f"{key}={value}" for key, value in origin.point.items())),
            ("code", origin.code_version),
            ("data", f"{origin.data} ({self.data_is})" if origin.data else ""),
            ("manifest", origin.data_manifest),
            ("made by", made_by),
            ("captioners", ", ".join(self.captioners)),
            ("seed", origin.seed),
            ("environment", ", ".join(f"{k} {v}" for k, v in origin.environment.items())),
        ]
        return [(key, value) for key, value in rows if value]

    def text(self) -> str:
        """For a terminal."""
        width = max(len(key) for key, _ in self.rows())
        return "\n".join(f"{key.ljust(width)}  {value}" for key, value in self.rows())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def lineage(address: str, tracking_uri: str = "") -> Lineage:
    """Of `NAME@ALIAS` or `NAME/VERSION`, `models:/` before it or not.

    Raises: ConfigError, TrackingError.
    """
    parsed(address)
    server = tracking.connect(tracking_uri)
    name, number = resolved(server, address)
    run_id = find_version(server, name, number)
    with tracking.failures_named(server.uri):
        version = server.client.get_model_version(name, str(number))
        origin = origin_of(server, run_id)
        history = AliasHistory(server, name)
        aliases = {alias: _last(history, alias, number) for alias in version.aliases}
    config = ""
    with suppress(TrackingError):
        config = config_text(server, run_id) if origin.run_id else ""
    data_is, manifest = _data_of(origin)
    captions = manifest.captions if manifest else {}
    return Lineage(
        name=name,
        version=number,
        weights=version.tags.get("weights", ""),
        aliases=aliases,
        origin=origin,
        config=config,
        data_is=data_is,
        captioners=tuple(c.removeprefix("long.") for c in captions if c.startswith("long.")),
        data_made_by=manifest.made_by if manifest else {},
    )


def reproduction(found: Lineage) -> str:
    """The commands that make the same model again, as a shell script with its reasons.

    Raises: TrackingError if too little is known.
    """
    origin = found.origin
    if not (found.config and origin.run_folder):
        raise TrackingError(
            f"version {found.version} of {found.name} can't be made again: its run, or the config "
            "of its run, is gone"
        )
    again = f"{origin.name}-again"
    file, data = shlex.quote(f"{again}.yaml"), shlex.quote(origin.data)
    lines = [
        f"# {found.name} version {found.version}, weights {found.weights}",
        f"# trained with {', '.join(f'{k} {v}' for k, v in origin.environment.items())}",
        f"lotlip models show {shlex.quote(f'{found.name}/{found.version}')} --config > {file}",
        *_code(origin),
        f"# the data must have manifest {origin.data_manifest}; now they are {found.data_is}",
        f"lotlip data check {data}",
        f"lotlip train {file} name={shlex.quote(again)} data.train={data} "
        "tracking.registered_model=",
        "# on processors, with as many workers, the weights that it prints are those above",
    ]
    if origin.has_trace:
        folders = origin.run_folder, f"{origin.run_folder.rpartition('/')[0]}/{again}"
        lines.append("# the same samples, captions and losses, step by step:")
        lines.append(f"lotlip trace diff {' '.join(map(shlex.quote, folders))}")
    return "\n".join(lines)


def _code(origin: Origin) -> list[str]:
    commit = origin.code_version.removesuffix("+changes")
    if _COMMIT.fullmatch(commit):
        lines = [f"git checkout {commit}", "make .venv/installed"]
    elif commit:
        lines = [f"pip install lotlip-platform=={commit}"]
    else:
        lines = ["# WARNING: which code it was is not known"]
    if commit != origin.code_version:
        lines.insert(0, "# WARNING: the code had changes that were not committed: they are lost")
    return lines


def register_run(run_id: str, name: str, tracking_uri: str = "") -> int:
    """Register the model of a finished run, of a sweep's trial too; the number of the version.

    Raises: TrackingError, DataError, CheckpointError.
    """
    server = tracking.connect(tracking_uri)
    with tracking.failures_named(server.uri):
        origin = origin_of(server, run_id)
        if origin.status != "FINISHED" or not origin.run_folder:
            is_what = f"is {origin.status}" if origin.run_folder else "is no run of lotlip"
            raise TrackingError(
                f"{run_id} at {server.uri} {is_what}: finished runs of lotlip train and of sweeps "
                "can be registered"
            )
        try:
            config = build_config(TrainConfig, yaml.safe_load(config_text(server, run_id)))
        except ConfigError as error:
            raise TrackingError(f"the config of run {run_id} is of another version: {error}") from (
                error
            )
        data_is, manifest = _data_of(origin)
        if manifest is None:
            raise DataError(
                f"{origin.data}, which run {run_id} was trained on, is {data_is}: its card can't "
                "be written"
            )
        folder = RunFolder(open_store(origin.run_folder))
        card = model_card(config, manifest, folder.metrics())
        number = register(server, run_id, f"{folder.uri}/model", name=name, card=card)
        make_candidate(server, name, number, run_id)
        return number


def _data_of(origin: Origin) -> tuple[str, Manifest | None]:
    """What has become of the data, and their manifest if it is that of the run."""
    try:
        manifest = read_manifest(open_store(origin.data))
    except LotlipError:
        return "gone", None
    same = manifest.digest == origin.data_manifest
    return ("there", manifest) if same else ("changed", None)


def _last(history: AliasHistory, alias: str, number: int) -> Change | None:
    """The change that gave the alias to a version, if it was the last one."""
    changes = [change for change in history.changes(alias) if not change.is_void]
    return changes[-1] if changes and changes[-1].after == number else None


def _given(change: Change | None) -> str:
    if change is None:
        return "moved by other means than lotlip"
    gate = ", FORCED" if change.is_forced else ", gate passed" if change.gate_run else ""
    return f"{change.action} at {change.when} by {change.who}{gate}: {change.because}"
