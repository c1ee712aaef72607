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

import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from lotlip_platform import registry
from lotlip_platform.journal import Entry, Journal
from lotlip_platform.local_services import local_artifacts, local_tracking_uri
from lotlip_platform.tracking import Server, connect

STOP_TAGS = frozenset(("stopped", "continue_with"))
"""Of a run that was told to stop: by whom and where, and what goes on from there."""
ID_TAG = "lotlip_run"
"""Holds the name of the run's journal; by it a run is found of which only the server knows."""
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")
"""Answers that the same request would always get."""
_MAX_METRICS = 1000  # of a request, as MLflow allows
_MAX_TAGS = 100  # and params
_MAX_CHARACTERS = 5000  # of a tag or param; MLflow allows a little more
_MAX_TOLD = 20


class Sender:
    """Sends one journal. Whoever uses it must have the right to, see `Journal.sending`."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self._sent = journal, journal.sent()
        self._server: Server | None = None
        self._known_steps: dict[str, set[int]] = {}
        """Of the metrics that the server has, by their names."""
        self._is_new = False
        """Whether the server's run holds nothing but what is sent here."""

    def send(self) -> bool:
        """Send what there is; whether all came through. If not, `Sent.trouble` says why."""
        try:
            for portion, offset in _portions(self._journal.read(self._sent.offset)):
                self._send(portion)
                self._sent.offset, self._sent.trouble = offset, ""
                self._journal.write_sent(self._sent)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end what sends the rest
            self._server = None
            self._sent.trouble = _line(error)
            self._journal.write_sent(self._sent)
            return False
        return True

    def _send(self, portion: list[Entry]) -> None:
        """Raises: whatever kept it from getting through."""
        try:
            self._deliver(portion)
        except MlflowException as error:
            if error.error_code not in _REFUSALS or portion[0]["kind"] == "open":
                raise
            if len(portion) == 1:
                self._sent.num_refused += 1
                self._sent.refused = [*self._sent.refused, _line(error)][:_MAX_TOLD]
            else:
                for entry in portion:
                    self._send([entry])

    def _deliver(self, portion: list[Entry]) -> None:
        entry = portion[0]
        kind = entry["kind"]
        if kind == "open":
            self._open(entry)
        elif kind == "metrics":
            self._send_metrics(portion)
        elif kind == "tags":
            self._set_tags(entry["values"])
        elif kind == "file":
            self._send_file(entry)
        elif kind == "dataset":
            self._send_dataset(entry)
        elif kind == "register":
            self._register(entry)
        elif kind == "end" and entry["life"] == self._sent.life:
            # Not that of an earlier life, whose death was noticed late.
            self._client.set_terminated(self._run_id, entry["status"], entry["time_ms"])

    @property
    def _client(self) -> MlflowClient:
        if self._server is None:
            sent = self._journal.read(0)
            opened = [
                e for e, offset in sent if e["kind"] == "open" and offset <= self._sent.offset
            ]
            self._server = connect(opened[-1]["uri"])
        return self._server.client

    @property
    def _run_id(self) -> str:
        return self._sent.run_id

    def _open(self, entry: Entry) -> None:
        self._server = connect(entry["uri"])
        run_id = self._reopened(self._sent.run_id or entry["run_id"] or self._found(entry))
        self._is_new = not run_id
        self._known_steps = {}
        self._sent.run_id, self._sent.life = run_id or self._created(entry), entry["life"]
        self._journal.write_sent(self._sent)
        self._set_params(entry["params"])
        self._set_tags(entry["tags"])

    def _set_params(self, values: Mapping[str, str]) -> None:
        """Those that the run doesn't have: MLflow takes no other value for one that it has."""
        has = self._client.get_run(self._run_id).data.params
        new = [Param(k, v[:_MAX_CHARACTERS]) for k, v in values.items() if k not in has]
        for start in range(0, len(new), _MAX_TAGS):
            self._client.log_batch(self._run_id, params=new[start : start + _MAX_TAGS])

    def _found(self, entry: Entry) -> str:
        """A run of this journal that a sender made and was killed before it could note that."""
        experiment = self._client.get_experiment_by_name(entry["experiment"])
        if experiment is None:
            return ""
        of_this = f"tags.{ID_TAG} = '{self._journal.folder.name}'"
        runs = self._client.search_runs([experiment.experiment_id], of_this)
        return runs[0].info.run_id if runs else ""

    def _reopened(self, run_id: str) -> str:
        """The run, running again; empty if there is none, or it was deleted."""
        if not run_id:
            return ""
        try:
            self._client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
            for tag in STOP_TAGS & self._client.get_run(run_id).data.tags.keys():
                self._client.delete_tag(run_id, tag)
        except MlflowException as error:
            if error.error_code in _REFUSALS:
                return ""
            raise
        return run_id

    def _created(self, entry: Entry) -> str:
        name = entry["experiment"]
        found = self._client.get_experiment_by_name(name)
        # A server has its own place for artifacts; without one they would go to the current folder.
        place = str(local_artifacts() / name) if entry["uri"] == local_tracking_uri() else None
        experiment = found.experiment_id if found else self._client.create_experiment(name, place)
        tags = {ID_TAG: self._journal.folder.name}
        run = self._client.create_run(experiment, entry["time_ms"], tags, entry["name"])
        return run.info.run_id

    def _send_metrics(self, portion: list[Entry]) -> None:
        """Those of (metric, step) that the server doesn't have: the first value stays.

        After a failure steps are trained, and told, again.
        """
        new: dict[tuple[str, int], Metric] = {}
        for entry in portion:
            step = entry["step"]
            for name, value in entry["values"].items():
                if (name, step) not in new and step not in self._steps_of(name):
                    new[name, step] = Metric(name, float(value), entry["time_ms"], step)
        if new:
            self._client.log_batch(self._run_id, metrics=list(new.values()))
        for name, step in new:
            self._known_steps[name].add(step)

    def _steps_of(self, metric: str) -> set[int]:
        if metric not in self._known_steps:
            history = () if self._is_new else self._client.get_metric_history(self._run_id, metric)
            self._known_steps[metric] = {point.step for point in history}
        return self._known_steps[metric]

    def _set_tags(self, values: Mapping[str, str]) -> None:
        tags = [RunTag(key, str(value)[:_MAX_CHARACTERS]) for key, value in values.items()]
        self._client.log_batch(self._run_id, tags=tags)

    def _send_file(self, entry: Entry) -> None:
        directory, _, base = entry["name"].rpartition("/")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / base
            shutil.copyfile(self._journal.kept(entry["content"]), path)
            self._client.log_artifact(self._run_id, str(path), directory or None)

    def _send_dataset(self, entry: Entry) -> None:
        with warnings.catch_warnings():
            # MLflow knows local folders twice, and warns that it takes the one for the other.
            warnings.simplefilter("ignore", UserWarning)
            source = resolve_dataset_source(entry["uri"])
            short = "/".join(entry["uri"].rstrip("/").split("/")[-2:])
            dataset = MetaDataset(source, name=short, digest=entry["digest"])
            tags = [InputTag(key=MLFLOW_DATASET_CONTEXT, value=entry["context"])]
            entity = DatasetInput(dataset=dataset._to_mlflow_entity(), tags=tags)
            self._client.log_inputs(self._run_id, [entity])

    def _register(self, entry: Entry) -> None:
        client, name = self._client, entry["name"]
        assert self._server is not None, "there is a client"
        uri = registry.version_of(client, self._run_id, name)
        if not uri:
            uri = registry.register(self._server, self._run_id, entry["model"], name=name)
        self._sent.model_uri = uri


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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
