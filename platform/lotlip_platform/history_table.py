"""The history of a model's aliases for people: as a table, and on the page of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from lotlip_platform import tracking
from lotlip_platform.alias_history import AliasHistory, Change
from lotlip_platform.tables import markdown


def show_history(server: tracking.Server, history: AliasHistory) -> None:
    """Write the changes, the newest first, where MLflow's page of the run shows them.

    That is a view, which anyone may edit; the record are the run's parameters.
    """
    head, *rows = history_rows(history.all_changes())
    rows.reverse()
    while len(text := markdown([head, *rows])) > tracking.MAX_TAG:
        rows.pop()
    server.client.set_tag(history.run_id, MLFLOW_RUN_NOTE, text)


def history_rows(changes: Sequence[Change]) -> list[list[str]]:
    """A table of changes, its head first."""
    head = ["when", "who", "what", "alias", "from", "to", "gate", "because"]
    return [
        head,
        *(
            [
                change.when,
                change.who,
                change.action,
                change.alias,
                _version(change.before),
                _version(change.after),
                "FORCED" if change.is_forced else "passed" if change.gate_run else "",
                f"{change.because}{' (void: the version was gone)' if change.is_void else ''}",
            ]
            for change in changes
        ),
    ]


def strays(changes: Sequence[Change], aliases: Mapping[str, int]) -> list[str]:
    """What the history doesn't account for: changes that were interrupted, and others' moves."""
    lines = []
    for alias in sorted({change.alias for change in changes} | aliases.keys()):
        own = [change for change in changes if change.alias == alias]
        last, now = max(own, key=lambda change: change.number, default=None), aliases.get(alias, 0)
        while last and last.is_void:
            own.remove(last)
            last = max(own, key=lambda change: change.number, default=None)
        if last and not last.is_done:
            lines.append(
                f"{alias}: the {last.action} to version {last.after} was interrupted, it is still "
                f"{_version(now)}; the next promote or rollback finishes it"
            )
        elif now != (last.after if last else 0):
            lines.append(f"{alias}: moved to {_version(now)} by other means than lotlip")
    return lines


def _version(number: int) -> str:
    return f"v{number}" if number else "none"
