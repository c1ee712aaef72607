"""MLflow runs: what is logged, and how a run always ends.

Metrics go to the server in a thread of their own, so training neither waits for it nor dies with
it. With `registry.py` and `serving_model.py` this is all that knows MLflow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.rest_utils import http_request
from requests.exceptions import RequestException

from lotlip.errors import TrackingError
from lotlip_platform.local_services import local_artifacts, local_tracking_uri
from lotlip_platform.run_guard import RunGuard
from lotlip_platform.storage import CALL_FAULTS
from lotlip_platform.tracking_address import innermost, without_user

FAILURES = (MlflowException, RequestException, OSError, *CALL_FAULTS)
"""What an unreachable or unwilling server, or its artifact store, looks like from here."""
_FLUSH_S = 30.0  # how long the end of a run waits for metrics that are still under way
_ANSWER_S = 10.0  # how long a server may take to say that it is there
STOP_TAGS = frozenset(("stopped", "continue_with"))
"""Of a run that was told to stop: by whom and where, and what goes on from there."""
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""MLflow's own defaults wait for a dead server for minutes, and talk a lot."""


def tracking_uri(given: str = "") -> str:
    """The address of the tracking server: as given, from the environment, or the local file."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri()


@dataclass(frozen=True)
class Server:
    """A tracking server that answered."""

    uri: str
    client: MlflowClient


def connect(given: str = "") -> Server:
    """A server that answers. Raises: TrackingError within seconds if it doesn't."""
    uri = without_user(tracking_uri(given))
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    if uri.startswith(("http://", "https://")):
        _check_answers(uri)
    elif uri == local_tracking_uri():
        with failures_named(uri):
            local_artifacts().mkdir(parents=True, exist_ok=True)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    with failures_named(uri):
        return Server(uri, MlflowClient(uri))


@contextmanager
def failures_named(uri: str) -> Iterator[None]:
    """Turns MLflow's errors into one line. Raises: TrackingError."""
    try:
        yield
    except FAILURES as error:
        reason = " ".join(str(error).split())[:300]
        raise TrackingError(f"MLflow at {uri} failed: {reason}") from error


class TrackedRun:
    """One MLflow run, from `open_run` to its end."""

    def __init__(self, server: Server, run_id: str) -> None:
        self.client, self.uri, self.run_id = server.client, server.uri, run_id
        self.lost: list[str] = []
        """Why things that were to be sent later are not on the server, one line each."""
        self._queue: queue.Queue[Callable[[], object]] = queue.Queue()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Send metrics at the server's leisure. Names are as in `train/loss`."""
        now = int(time.time() * 1000)
        batch = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self._queue.put(lambda: self.client.log_batch(self.run_id, metrics=batch))

    def log_file(self, name: str, content: bytes) -> None:
        """Add an artifact such as `figures/curves.png`. Raises: TrackingError."""
        directory, _, base = name.rpartition("/")
        with tempfile.TemporaryDirectory() as folder, failures_named(self.uri):
            path = Path(folder) / base
            path.write_bytes(content)
            self.client.log_artifact(self.run_id, str(path), directory or None)

    def log_file_later(self, name: str, content: bytes) -> None:
        """Like `log_file`, at the server's leisure as metrics are."""
        self._queue.put(lambda: self.log_file(name, content))

    def history(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) of a metric over all the run's lives; empty if the server is away."""
        try:
            points = self.client.get_metric_history(self.run_id, metric)
        except FAILURES:
            return []
        return sorted({point.step: point.value for point in points}.items())

    def log_dataset(self, uri: str, *, digest: str, context: str) -> None:
        """Record which data a run read, as MLflow's lineage. Raises: TrackingError."""
        with failures_named(self.uri), warnings.catch_warnings():
            # MLflow knows local folders twice, and warns that it takes the one for the other.
            warnings.simplefilter("ignore", UserWarning)
            source = resolve_dataset_source(uri)
            dataset = MetaDataset(source, name=_short_name(uri), digest=digest)
            tags = [InputTag(key=MLFLOW_DATASET_CONTEXT, value=context)]
            entity = DatasetInput(dataset=dataset._to_mlflow_entity(), tags=tags)
            self.client.log_inputs(self.run_id, [entity])

    def tag_later(self, tags: Mapping[str, str]) -> None:
        """Set tags, at the server's leisure."""
        batch = [RunTag(key, value) for key, value in tags.items()]
        self._queue.put(lambda: self.client.log_batch(self.run_id, tags=batch))

    def later(self, call: Callable[[], object]) -> None:
        """Do something that may take the server's time, after what is to be sent already."""
        self._queue.put(call)

    def flush(self) -> bool:
        """Wait until all that was to be sent later is sent, but not for ever; whether it is."""
        sent = threading.Event()
        self._queue.put(sent.set)
        return sent.wait(_FLUSH_S)

    def _send(self) -> None:
        while True:
            call = self._queue.get()
            try:
                call()
            except Exception as error:  # noqa: BLE001 - nothing may end what sends the rest
                self.lost.append(" ".join(str(error).split())[:200])


def _short_name(uri: str) -> str:
    """The last two parts of an address: scenes/train."""
    return "/".join(uri.rstrip("/").split("/")[-2:])


@contextmanager
def open_run(
    server: Server,
    *,
    experiment: str,
    name: str,
    run_id: str | None,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
) -> Iterator[TrackedRun]:
    """An MLflow run for the length of the block; `run_id` continues an earlier one.

    It ends FINISHED, FAILED if the block raises, or KILLED if it was interrupted, and KILLED also
    if this process is killed outright. Raises: TrackingError.
    """
    client, uri = server.client, server.uri
    with failures_named(uri):
        continued = _reopened(client, run_id)
        run_id = continued or _created(server, experiment, name)
    guard = RunGuard(uri, run_id)
    tracked = TrackedRun(server, run_id)
    monitor = _system_metrics(run_id, uri)
    status = RunStatus.FAILED
    try:
        with failures_named(uri):
            described = {} if continued else params
            client.log_batch(
                run_id,
                params=[Param(key, str(value)[:6000]) for key, value in described.items()],
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
        yield tracked
        status = RunStatus.FINISHED
    except (KeyboardInterrupt, SystemExit):
        status = RunStatus.KILLED
        raise
    finally:
        _end(tracked, monitor, guard, RunStatus.to_string(status))


def _end(tracked: TrackedRun, monitor: SystemMetricsMonitor, guard: RunGuard, status: str) -> None:
    """End a run, or leave that to its guard if the server doesn't answer."""
    # Not here and now: the monitor waits for its last call, which a server that hangs draws out.
    tracked.later(monitor.finish)
    with contextlib.suppress(*FAILURES):
        if tracked.flush():
            tracked.client.set_terminated(tracked.run_id, status)
            guard.release()
            return
    guard.abandon(status)


def end_orphan(uri: str, run_id: str, status: str) -> None:
    """End a run whose process is gone, trying for ten minutes."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        try:
            MlflowClient(uri).set_terminated(run_id, status)
            return
        except FAILURES:
            time.sleep(10)


def _check_answers(uri: str) -> None:
    try:
        # MLflow's own way to ask heeds its variables for credentials and certificates.
        creds = get_default_host_creds(uri)
        answer = http_request(creds, "/health", "GET", timeout=_ANSWER_S, max_retries=0)
        assert answer is not None, "an answer or an exception"
        if answer.ok:
            return
        reason = f"it answered {answer.status_code} to /health"
    except FAILURES as error:
        reason = innermost(error)
    raise TrackingError(
        f"no MLflow server at {uri} ({reason}): start one with lotlip up, correct tracking.uri or "
        "MLFLOW_TRACKING_URI, or unset it to use a local file"
    )


def _reopened(client: MlflowClient, run_id: str | None) -> str | None:
    """The run, running again; None if it was deleted or belongs to another server."""
    if run_id is None:
        return None
    try:
        client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        for tag in STOP_TAGS & client.get_run(run_id).data.tags.keys():
            client.delete_tag(run_id, tag)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return run_id


def _created(server: Server, experiment: str, name: str) -> str:
    client = server.client
    found = client.get_experiment_by_name(experiment)
    # A server has its own place for artifacts; without one they would go to the current folder.
    place = str(local_artifacts() / experiment) if server.uri == local_tracking_uri() else None
    experiment_id = found.experiment_id if found else client.create_experiment(experiment, place)
    return client.create_run(experiment_id, run_name=name).info.run_id


def _system_metrics(run_id: str, uri: str) -> SystemMetricsMonitor:
    monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri)
    monitor.start()
    return monitor


@contextmanager
def resumed(tracked: TrackedRun) -> Iterator[None]:
    """Make the run MLflow's active one, for those of its functions that know no other way.

    Leaving the block doesn't end the run.
    """
    mlflow.start_run(run_id=tracked.run_id, log_system_metrics=False)
    try:
        yield
    finally:
        mlflow.end_run(RunStatus.to_string(RunStatus.RUNNING))
