"""Who moved an alias of a registered model, from where to where, and why: append-only, in MLflow.

The history of a model is one MLflow run, which the registered model's tag `lotlip_history` names.
Each change is a parameter of it: `champion.0001`, `champion.0002` and so on. MLflow changes no
parameter that is there, and of two people who write the same one at once it takes the first: so
nothing is ever overwritten, and exactly one of them wins.

A change is recorded before the alias is moved. Its parameter `champion.0001.done` says that it was
(`yes`), or can't be any more (`void`: the version was deleted meanwhile). Whoever finds a change
without it finishes what an interrupted command began.
"""

from __future__ import annotations

import json
import os
import re
import socket
import uuid
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from lotlip.errors import ConfigError, TrackingError
from lotlip_platform.person import user_name
from lotlip_platform.tracking import Server, experiment_id

HISTORY_TAG = "lotlip_history"
_MAX_REASON = 2000  # letters; MLflow allows 6000 in a parameter, and JSON may need two for one
_CHANGE = re.compile(r"(.+)\.(\d{4,})")

Action = Literal["register", "promote", "rollback"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One move of an alias."""

    alias: str
    number: int
    """1 for the first change of this alias."""
    action: Action
    before: int
    """The version that had the alias; 0 if none had."""
    after: int
    who: str
    when: str
    """UTC, as in 2026-01-31T12:00:00Z."""
    because: str
    gate_run: str = ""
    """The MLflow run with the gate's report."""
    is_forced: bool = False
    """The gate refused, and was overruled."""
    is_done: bool = False
    """The alias has been moved, or never will be."""
    is_void: bool = False
    """It could not be moved: the version is gone."""


_KEPT = ("action", "before", "after", "who", "when", "because", "gate_run", "is_forced")
"""Of a change, in its parameter."""


class OvertakenError(TrackingError):
    """Somebody else moved the alias first."""


class AliasHistory:
    """The changes of the aliases of one registered model."""

    def __init__(self, server: Server, name: str) -> None:
        """Raises: TrackingError if there is no such registered model."""
        self.name, self._server = name, server
        try:
            model = server.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise TrackingError(
                f"{server.uri} has no registered model {name}: lotlip models list shows all"
            ) from error
        self.run_id = model.tags.get(HISTORY_TAG, "")

    def changes(self, alias: str) -> list[Change]:
        """From the first to the last."""
        found = [change for change in self.all_changes() if change.alias == alias]
        return sorted(found, key=lambda change: change.number)  # clocks may differ

    def all_changes(self) -> list[Change]:
        """Of all aliases, in the order of time."""
        if not self.run_id:
            return []
        params = self._server.client.get_run(self.run_id).data.params
        found = []
        for key, text in params.items():
            if match := _CHANGE.fullmatch(key):
                done = params.get(f"{key}.done", "")
                found.append(
                    Change(
                        alias=match[1],
                        number=int(match[2]),
                        is_done=bool(done),
                        is_void=done == "void",
                        **self._values(key, text),
                    )
                )
        return sorted(found, key=lambda change: (change.when, change.alias, change.number))

    def _values(self, key: str, text: str) -> dict[str, Any]:
        try:
            values = json.loads(text)
            return {name: values[name] for name in _KEPT}
        except (ValueError, KeyError, TypeError) as error:
            raise TrackingError(
                f"parameter {key} of run {self.run_id}, the history of {self.name}, was not "
                "written by lotlip: whoever did that must say what it means"
            ) from error

    def version(self, alias: str) -> int:
        """The version that has the alias now; 0 if none has."""
        aliases = self._server.client.get_registered_model(self.name).aliases
        return int(aliases.get(alias, 0))

    def finish_interrupted(self, alias: str) -> Change | None:
        """Move the alias where the last change wanted it, if that was interrupted; that change."""
        changes = self.changes(alias)
        if not changes or changes[-1].is_done:
            return None
        self._apply(changes[-1])
        return self.changes(alias)[-1]

    def move(
        self,
        alias: str,
        version: int,
        *,
        action: Action,
        because: str,
        known: Sequence[Change],
        before: int,
        gate_run: str = "",
        is_forced: bool = False,
    ) -> Change:
        """Record a change and move the alias.

        Args:
            known: the alias's changes that the decision was made by.
            before: the version that had the alias then.

        Raises: OvertakenError if there has been another one since, and nothing is changed then.
        """
        self.created()
        change = Change(
            alias=alias,
            number=known[-1].number + 1 if known else 1,
            action=action,
            before=before,
            after=version,
            who=_who(),
            when=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            because=because,
            gate_run=gate_run,
            is_forced=is_forced,
        )
        self._record(change)
        self._check_tag()
        self._apply(change)
        return change

    def _record(self, change: Change) -> None:
        values = {name: getattr(change, name) for name in _KEPT}
        # With an id, or two people who write the same words would both think they were first.
        text = json.dumps({"id": uuid.uuid4().hex, **values}, ensure_ascii=False)
        key = f"{change.alias}.{change.number:04d}"
        client, refusal = self._server.client, None
        try:
            client.log_param(self.run_id, key, text)
        except MlflowException as error:
            refusal = error
        run = client.get_run(self.run_id)
        found = run.data.params.get(key)
        if found == text:
            return
        if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise TrackingError(
                f"the history of {self.name}, run {self.run_id}, was deleted: restore it in MLflow"
            )
        if found is None:
            assert refusal is not None, "what was taken is there"
            raise refusal
        first = self._values(key, found)
        raise OvertakenError(
            f"{self.name}@{change.alias} was moved from version {first['before']} to "
            f"{first['after']} by {first['who']} at {first['when']}, before you: "
            f"{first['because']!r}. Nothing was changed; look at it, and run this again"
        )

    def _apply(self, change: Change) -> None:
        """Move the alias to where the last change wants it: there may be a later one by now."""
        client, applied = self._server.client, 0
        while (change := self.changes(change.alias)[-1]).number != applied:
            done = "yes"
            try:
                client.set_registered_model_alias(self.name, change.alias, str(change.after))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                done = "void"
            client.log_param(self.run_id, f"{change.alias}.{change.number:04d}.done", done)
            applied = change.number

    def created(self) -> str:
        """The history's run; new for a model that was registered by other tools than ours."""
        client = self._server.client
        if not self.run_id:
            new = new_history(self._server, self.name)
            self.run_id = self._tag() or new
            if self.run_id == new:
                client.set_registered_model_tag(self.name, HISTORY_TAG, new)
            else:
                client.delete_run(new)  # somebody else was faster
        return self.run_id

    def _tag(self) -> str:
        return self._server.client.get_registered_model(self.name).tags.get(HISTORY_TAG, "")

    def _check_tag(self) -> None:
        """Raises: OvertakenError if another history was begun at the same time as this one."""
        if self._tag() != self.run_id:
            raise OvertakenError(
                f"somebody else began the history of {self.name} at the same time. Nothing was "
                "changed; run this again"
            )


def new_history(server: Server, name: str) -> str:
    """The run of an empty history, which is not the model's yet."""
    run = server.client.create_run(
        promotions_experiment(server, name), tags={MLFLOW_RUN_NAME: f"history of {name}"}
    )
    server.client.set_terminated(run.info.run_id)
    return run.info.run_id


def promotions_experiment(server: Server, name: str) -> str:
    """The id of the experiment with a model's history and the reports of its gates."""
    return experiment_id(server, f"promotions of {name}")


def previous(changes: Sequence[Change], now: int, there: Container[int]) -> int:
    """The version to go back to from version `now`: what was promoted last, less what was undone.

    0 if there is none. Versions that are not `there` any more are passed over. If the alias was
    moved by other means than ours, that is undone first.
    """
    stack: list[int] = []
    for change in changes:
        if change.is_void:
            continue
        if change.before and (not stack or stack[-1] != change.before):
            stack.append(change.before)
        if change.action == "rollback":
            while stack and stack[-1] != change.after:
                stack.pop()
        if not stack or stack[-1] != change.after:
            stack.append(change.after)
    if stack and stack[-1] == now:
        stack.pop()
    while stack and (stack[-1] not in there or stack[-1] == now):
        stack.pop()
    return stack[-1] if stack else 0


def check_reason(because: str) -> str:
    """The reason as it is kept. Raises: ConfigError for none, or one that is too long."""
    text = " ".join(because.split())
    if not text:
        raise ConfigError("--because is empty: say why, for those who ask a year later")
    if len(text) > _MAX_REASON:
        raise ConfigError(f"--because has {len(text)} letters, {_MAX_REASON} are kept: shorten it")
    return text


def _who() -> str:
    name = os.environ.get("MLFLOW_TRACKING_USERNAME") or user_name()
    return f"{name}@{socket.gethostname()}"
