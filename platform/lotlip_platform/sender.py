"""Brings a journal to MLflow: each entry once, however often that has to be tried.

The kinds of entries:

    open      a training process begins: the server's address, experiment, name, params, tags
    metrics   values of a step
    tags      of the run
    file      an artifact
    dataset   what the run reads
    register  an export folder, to be a version of a registered model
    end       that process has ended, with the run's status
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID

from lotlip.errors import TrackingError
from lotlip_platform.journal import Entry, Journal
from lotlip_platform.tracking import MAX_TAG, Server, connect, experiment_id
from lotlip_platform.tracking_address import one_line

END_TAGS = frozenset(("stopped", "continue_with", "ended_by"))
"""Of a run that was told to stop, or found dead: by whom, and what goes on from there."""
ID_TAG = "lotlip_run"
"""Holds the name of the run's journal; by it a run is found of which only the server knows."""
LIFE_TAG = "lotlip_life"
"""Number of the training process that last told of itself; a run may move between machines."""
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
"""Answers that the same request would always get."""
_MAY_WAIT = ("file", "dataset", "register")
"""What the server, or its store of artifacts, doesn't take holds up none of the rest."""
_MAX_METRICS = 1000  # of a request, as MLflow allows
_MAX_TAGS = 100  # and params
_MAX_TOLD = 20


class Sender:
    """Sends one journal. Whoever uses it must have the right to, see `Journal.sending`."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self._sent = journal, journal.sent()
        if self._sent.offset > journal.num_bytes:  # of a journal that is gone
            self._sent.offset, self._sent.deferred = 0, []
        self._server: Server | None = None
        self._known_steps: dict[str, set[int]] = {}
        """Of the metrics that the server has, by their names."""
        self._is_new = False
        """Whether the server's run holds nothing but what is sent here."""

    def send(self) -> bool:
        """Send what there is; whether all came through. If not, `Sent.trouble` says why."""
        try:
            trouble = self._retried()
            for portion, offset in _portions(self._journal.read(self._sent.offset)):
                trouble = self._send(portion, at=self._sent.offset) or trouble
                self._sent.offset = offset
                self._note(trouble)
            if trouble or self._sent.trouble:
                self._note(trouble)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end what sends the rest
            self._server = None
            with contextlib.suppress(OSError):  # the disk is full: it stays as it was noted last
                self._note(one_line(error))
            return False
        return not trouble

    def _note(self, trouble: str) -> None:
        self._sent.trouble = trouble
        self._journal.write_sent(self._sent)

    def _retried(self) -> str:
        """Send again what the server didn't take; why it still doesn't."""
        trouble = ""
        for _ in range(len(self._sent.deferred)):
            place = self._sent.deferred[0]
            entry, _ = next(self._journal.read(place))
            trouble = self._send([entry], at=place) or trouble  # it may be put off anew, at the end
            self._sent.deferred.pop(0)
        return trouble

    def _send(self, portion: list[Entry], *, at: int) -> str:
        """Why the portion, which begins there, is put off; empty if it is through, or refused.

        Raises: whatever keeps everything from getting through.
        """
        kind = portion[0]["kind"]
        try:
            self._deliver(portion)
        except Exception as error:
            if isinstance(error, FileNotFoundError) and kind == "file":
                self._refused(error)  # it was to be kept here
            elif isinstance(error, MlflowException) and self._is_refusal(error, kind):
                if len(portion) == 1:
                    self._refused(error)
                else:
                    return next(filter(None, [self._send([e], at=at) for e in portion]), "")
            elif kind in _MAY_WAIT and self._is_there():
                self._sent.deferred.append(at)
                return one_line(error)
            else:
                raise
        return ""

    def _is_refusal(self, error: MlflowException, kind: str) -> bool:
        if error.error_code not in _REFUSALS or kind == "open":
            return False
        run = self._client.get_run(self._sent.run_id)  # a deleted one may be restored
        return run.info.lifecycle_stage == LifecycleStage.ACTIVE

    def _is_there(self) -> bool:
        """Whether the server still answers."""
        connect(self._sent.uri).client.get_run(self._sent.run_id)
        return True

    def _refused(self, error: Exception) -> None:
        self._sent.num_refused += 1
        self._sent.refused = [*self._sent.refused, one_line(error)][:_MAX_TOLD]

    def _deliver(self, portion: list[Entry]) -> None:
        entry = portion[0]
        kind = entry["kind"]
        if kind == "open":
            self._open(entry)
        elif kind == "metrics":
            self._send_metrics(portion)
        elif kind == "dataset":
            self._send_dataset(entry)
        elif not self._is_current():
            return  # a later life knows better
        elif kind == "tags":
            self._set_tags(entry["values"])
        elif kind == "file":
            self._send_file(entry)
        elif kind == "register":
            self._register(entry)
        elif kind == "end" and entry["life"] == self._sent.life:
            # Not that of an earlier life, whose death was noticed late.
            self._client.set_terminated(self._sent.run_id, entry["status"], entry["time_ms"])

    @property
    def _client(self) -> MlflowClient:
        if self._server is None:
            self._server = connect(self._sent.uri)
        return self._server.client

    def _is_current(self) -> bool:
        """Whether no later life of the run, on another machine, has told of itself."""
        tags = self._client.get_run(self._sent.run_id).data.tags
        if int(tags.get(LIFE_TAG, 0)) <= self._sent.life:
            return True
        self._is_new, self._known_steps = False, {}  # the other one sends metrics, too
        return False

    def _open(self, entry: Entry) -> None:
        self._sent.uri, self._server = entry["uri"], connect(entry["uri"])
        self._is_new, self._known_steps = False, {}
        self._sent.run_id, self._sent.life = self._found(entry), entry["life"]
        if not self._sent.run_id:
            self._sent.run_id, self._is_new = self._created(entry), True
        self._journal.write_sent(self._sent)
        self._set_params(entry["params"])
        if self._is_current():
            self._reopen()
            above = self._above(entry.get("parent", ""))
            self._set_tags({**entry["tags"], **above, LIFE_TAG: entry["life"]})

    def _above(self, parent: str) -> dict[str, str]:
        """The tag that puts the run below that of another journal."""
        if not parent:
            return {}
        run_id = Journal(self._journal.folder.with_name(parent)).sent().run_id
        if not run_id:
            raise TrackingError("the run of the sweep is not there yet")
        return {MLFLOW_PARENT_RUN_ID: run_id}

    def _set_params(self, values: Mapping[str, str]) -> None:
        """Those that the run doesn't have: MLflow takes no other value for one that it has."""
        run_id = self._sent.run_id
        has = self._client.get_run(run_id).data.params
        new = [Param(k, v[:MAX_TAG]) for k, v in values.items() if k not in has]
        for start in range(0, len(new), _MAX_TAGS):
            self._client.log_batch(run_id, params=new[start : start + _MAX_TAGS])

    def _found(self, entry: Entry) -> str:
        """The run, if there is one that is not deleted."""
        for run_id in filter(None, (entry["run_id"], self._sent.run_id)):
            try:
                if self._client.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE:
                    return run_id
            except MlflowException as error:
                if error.error_code not in _REFUSALS:
                    raise
        # One that a sender made and was killed before it could note that, or on another machine.
        experiment = self._client.get_experiment_by_name(entry["experiment"])
        if experiment is None:
            return ""
        of_this = f"tags.{ID_TAG} = '{self._journal.folder.name}'"
        runs = self._client.search_runs([experiment.experiment_id], of_this)
        return runs[0].info.run_id if runs else ""

    def _reopen(self) -> None:
        """It is running again, and what was told of its end is no longer true."""
        run_id = self._sent.run_id
        self._client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        for tag in END_TAGS & self._client.get_run(run_id).data.tags.keys():
            self._client.delete_tag(run_id, tag)

    def _created(self, entry: Entry) -> str:
        assert self._server is not None, "it was connected to"
        experiment = experiment_id(self._server, entry["experiment"])
        # All tags at once: whatever happens next, `reconcile` can tell what the run is.
        tags = {**entry["tags"], ID_TAG: self._journal.folder.name, LIFE_TAG: entry["life"]}
        tags = {key: str(value)[:MAX_TAG] for key, value in tags.items()}
        run = self._client.create_run(experiment, entry["time_ms"], tags, entry["name"])
        return run.info.run_id

    def _send_metrics(self, portion: list[Entry]) -> None:
        """Those of (metric, step) that the server doesn't have: the first value stays.

        After a failure steps are trained, and told, again.
        """
        self._is_current()
        new: dict[tuple[str, int], Metric] = {}
        for entry in portion:
            step = entry["step"]
            for name, value in entry["values"].items():
                if (name, step) not in new and step not in self._steps_of(name):
                    new[name, step] = Metric(name, float(value), entry["time_ms"], step)
        if new:
            self._client.log_batch(self._sent.run_id, metrics=list(new.values()))
        for name, step in new:
            self._known_steps[name].add(step)

    def _steps_of(self, metric: str) -> set[int]:
        if metric not in self._known_steps:
            run_id = self._sent.run_id
            history = () if self._is_new else self._client.get_metric_history(run_id, metric)
            self._known_steps[metric] = {point.step for point in history}
        return self._known_steps[metric]

    def _set_tags(self, values: Mapping[str, str]) -> None:
        tags = [RunTag(key, str(value)[:MAX_TAG]) for key, value in values.items()]
        self._client.log_batch(self._sent.run_id, tags=tags)

    def _send_file(self, entry: Entry) -> None:
        directory, _, base = entry["name"].rpartition("/")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / base
            shutil.copyfile(self._journal.kept(entry["content"]), path)
            self._client.log_artifact(self._sent.run_id, str(path), directory or None)

    def _send_dataset(self, entry: Entry) -> None:
        with warnings.catch_warnings():
            # MLflow knows local folders twice, and warns that it takes the one for the other.
            warnings.simplefilter("ignore", UserWarning)
            source = resolve_dataset_source(entry["uri"])
            short = "/".join(entry["uri"].rstrip("/").split("/")[-2:])
            dataset = MetaDataset(source, name=short, digest=entry["digest"])
            tags = [InputTag(key=MLFLOW_DATASET_CONTEXT, value=entry["context"])]
            entity = DatasetInput(dataset=dataset._to_mlflow_entity(), tags=tags)
            self._client.log_inputs(self._sent.run_id, [entity])

    def _register(self, entry: Entry) -> None:
        from lotlip_platform import registry  # with torch, which only this needs

        run_id, client = self._sent.run_id, self._client
        assert self._server is not None, "there is a client"
        number = registry.version_of(client, run_id, entry["name"])
        if not number:
            number = registry.register(
                self._server, run_id, entry["model"], name=entry["name"], card=entry.get("card", "")
            )
        registry.make_candidate(self._server, entry["name"], number, run_id)
        self._sent.model_uri = f"models:/{entry['name']}/{number}"


def _portions(entries: Iterable[tuple[Entry, int]]) -> Iterator[tuple[list[Entry], int]]:
    """Metrics that go in one request together, everything else alone; with the place behind."""
    gathered: list[Entry] = []
    size, behind = 0, 0
    for entry, offset in entries:
        values = len(entry["values"]) if entry["kind"] == "metrics" else 0
        if gathered and (not values or size + values > _MAX_METRICS):
            yield gathered, behind
            gathered, size = [], 0
        behind = offset
        if values:
            gathered.append(entry)
            size += values
        else:
            yield [entry], offset
    if gathered:
        yield gathered, behind
