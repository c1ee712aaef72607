"""Moving an alias such as `champion`: behind the gate, on the record, and back again.

Every attempt is an MLflow run in the experiment `promotions of NAME`, with the gate's report; every
move of the alias is in the model's `alias_history`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from lotlip.errors import CheckpointError, ConfigError, RefusedError, TrackingError
from lotlip_platform import tracking
from lotlip_platform.alias_history import (
    AliasHistory,
    Change,
    check_reason,
    previous,
    promotions_experiment,
)
from lotlip_platform.gate import Champion, judge
from lotlip_platform.gate_config import GateConfig
from lotlip_platform.gate_report import GateReport
from lotlip_platform.history_table import show_history
from lotlip_platform.registered_version import find_version, opened_version, versions_of

Note = Callable[[str], None]
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)  # by MLflow


def promote(
    name: str,
    version: int,
    *,
    alias: str = "champion",
    because: str,
    config: GateConfig,
    is_forced: bool = False,
    tracking_uri: str = "",
    note: Note = lambda text: None,
    on_report: Callable[[GateReport], None] = lambda report: None,
) -> Change:
    """Give a version the alias, if it passes the gate, or `is_forced` overrules that.

    Raises: RefusedError if the gate refuses; OvertakenError if somebody else moved the alias
    meanwhile; ConfigError, DataError, TrackingError. Nothing is moved then.
    """
    because = check_reason(because)
    if not _ALIAS.fullmatch(alias) or _RESERVED.fullmatch(alias):
        raise ConfigError(f"--to {alias} can't be an alias: take a word such as champion")
    server = tracking.connect(tracking_uri)
    with tracking.failures_named(server.uri):
        history = AliasHistory(server, name)
        find_version(server, name, version)
        _finish_interrupted(history, alias, note)
        known, before = history.changes(alias), history.version(alias)
        if before == version:
            raise ConfigError(f"version {version} of {name} is {alias} already")
        with _gate_run(server, history, f"v{version} to {alias}", because) as run_id:
            report = _judged(server, name, version, before, config, note)
            on_report(report)
            _log_report(server, run_id, report, because, is_forced=is_forced)
        if not report.is_passed and not is_forced:
            raise RefusedError(
                f"version {version} of {name} is not {alias}: the gate refused "
                f"{', '.join(report.refusals)}; its report is run {run_id} at {server.uri}"
            )
        change = history.move(
            alias,
            version,
            action="promote",
            because=because,
            known=known,
            before=before,
            gate_run=run_id,
            is_forced=not report.is_passed,
        )
        show_history(server, history)
        verdict = "forced" if change.is_forced else "passed"
        server.client.set_model_version_tag(name, str(version), f"{alias}_gate", verdict)
        return change


def rollback(
    name: str,
    *,
    alias: str = "champion",
    because: str,
    tracking_uri: str = "",
    note: Note = lambda text: None,
) -> Change:
    """Give the alias back to the version that had it before. There is no gate: it met one then.

    Raises: ConfigError if there is none, OvertakenError, TrackingError. Nothing is moved then.
    """
    because = check_reason(because)
    server = tracking.connect(tracking_uri)
    with tracking.failures_named(server.uri):
        history = AliasHistory(server, name)
        _finish_interrupted(history, alias, note)
        known, before = history.changes(alias), history.version(alias)
        version = previous(known, before, versions_of(server, name))
        if not version:
            raise ConfigError(
                f"no other version of {name} was {alias} before, of those still there: nothing to "
                "go to"
            )
        change = history.move(
            alias, version, action="rollback", because=because, known=known, before=before
        )
        show_history(server, history)
        return change


def _finish_interrupted(history: AliasHistory, alias: str, note: Note) -> None:
    if change := history.finish_interrupted(alias):
        done = f"{history.name}@{alias} is version {change.after} now"
        if change.is_void:
            done = "that version is gone, so nothing is changed"
        note(
            f"the {change.action} of version {change.after} by {change.who} at {change.when} was "
            f"interrupted: {done}"
        )


def _judged(
    server: tracking.Server,
    name: str,
    version: int,
    before: int,
    config: GateConfig,
    note: Note,
) -> GateReport:
    with opened_version(server, name, version) as candidate, ExitStack() as opened:
        champion: Champion = None
        if before:
            try:
                beside = opened.enter_context(opened_version(server, name, before))
                champion = before, beside.load()
            except (TrackingError, CheckpointError) as error:
                champion = before, str(error)
        return judge(config, candidate, champion, note)


@contextmanager
def _gate_run(
    server: tracking.Server, history: AliasHistory, title: str, because: str
) -> Iterator[str]:
    """The MLflow run of an attempt, below that of the history; it ends whatever happens."""
    client, status = server.client, "FAILED"
    tags = {
        MLFLOW_RUN_NAME: title,
        MLFLOW_PARENT_RUN_ID: history.created(),
        MLFLOW_RUN_NOTE: because,
    }
    experiment = promotions_experiment(server, history.name)
    run_id = client.create_run(experiment, tags=tags).info.run_id
    try:
        yield run_id
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, status)


def _log_report(
    server: tracking.Server, run_id: str, report: GateReport, because: str, *, is_forced: bool
) -> None:
    client = server.client
    verdict = "passed" if report.is_passed else "forced" if is_forced else "refused"
    client.set_tag(run_id, "gate", verdict)
    client.set_tag(run_id, "candidate", str(report.candidate))
    client.set_tag(run_id, "champion", str(report.champion or "none"))
    text = f"**{verdict}**: {because}\n\n{report.markdown()}"
    client.set_tag(run_id, MLFLOW_RUN_NOTE, text[: tracking.MAX_TAG])
    for check in report.checks:
        for of, share in check.shares.items():
            client.log_metric(run_id, f"{of}/{check.name}", share)
    client.log_text(run_id, report.to_json(), "gate.json")
    client.log_text(run_id, text, "gate.md")


def history_of(name: str, tracking_uri: str = "") -> tuple[list[Change], dict[str, int]]:
    """All changes of a model's aliases in the order of time, and where the aliases are now.

    Raises: TrackingError.
    """
    server = tracking.connect(tracking_uri)
    with tracking.failures_named(server.uri):
        history = AliasHistory(server, name)
        changes = history.all_changes()
        aliases = server.client.get_registered_model(name).aliases
        return changes, {alias: int(version) for alias, version in aliases.items()}
