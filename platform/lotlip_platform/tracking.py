"""How MLflow is reached.

With `sender` and what registers, promotes and serves models this is all that knows MLflow.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from requests.exceptions import RetryError

from lotlip.errors import TrackingError
from lotlip_platform.local_services import local_artifacts, local_tracking_uri
from lotlip_platform.storage import CALL_FAULTS
from lotlip_platform.tracking_address import innermost, one_line, without_user

FAILURES = (MlflowException, requests.RequestException, OSError, *CALL_FAULTS)
"""What an unreachable or unwilling server, or its artifact store, looks like from here."""
MAX_TAG = 5000
"""Letters of a tag or param; MLflow allows a little more."""
_ANSWER_S = 10.0  # how long a server may take to say that it is there
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""MLflow's own defaults wait for a dead server for minutes, and talk a lot."""


def tracking_uri(given: str = "") -> str:
    """The address of the tracking server: as given, from the environment, or the local file.

    User and password are not in it, see `without_user`.
    """
    uri = without_user(given or os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri())
    relative = uri.removeprefix("sqlite:///")
    # It must lead to the same file from other folders, too.
    return uri if relative == uri else f"sqlite:///{Path(relative).absolute()}"


class AwayError(TrackingError):
    """The server doesn't answer; later it may."""


@dataclass(frozen=True)
class Server:
    """A tracking server that answered."""

    uri: str
    client: MlflowClient


def connect(given: str = "") -> Server:
    """A server that answers. Raises: TrackingError within seconds, AwayError if that may change."""
    uri = tracking_uri(given)
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


def experiment_id(server: Server, name: str) -> str:
    """Of the experiment of that name, which is created if there is none."""
    found = server.client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    # A server has its own place for artifacts; without one they would go to the current folder.
    place = str(local_artifacts() / name) if server.uri == local_tracking_uri() else None
    try:
        return server.client.create_experiment(name, place)
    except MlflowException as error:
        found = server.client.get_experiment_by_name(name)  # another process was faster
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
            raise
        return found.experiment_id


@contextmanager
def failures_named(uri: str) -> Iterator[None]:
    """Turns MLflow's errors into one line. Raises: TrackingError."""
    try:
        yield
    except FAILURES as error:
        raise TrackingError(f"MLflow at {uri} failed: {one_line(error)}") from error


def _check_answers(uri: str) -> None:
    """Raises: TrackingError, AwayError."""
    kind = TrackingError
    try:
        # MLflow's own way to ask heeds its variables for credentials and certificates.
        creds = get_default_host_creds(uri)
        answer = http_request(creds, "/health", "GET", timeout=_ANSWER_S, max_retries=0)
        assert answer is not None, "an answer or an exception"
        if answer.ok:
            return
        reason = f"it answered {answer.status_code} to /health"
        if answer.status_code >= 500:
            kind = AwayError
    except FAILURES as error:
        reason = innermost(error)
        if urlsplit(uri).hostname and _is_away(error):
            kind = AwayError
    raise kind(
        f"no MLflow server at {uri} ({reason}): start one with lotlip up, correct tracking.uri or "
        "MLFLOW_TRACKING_URI, or unset it to use a local file"
    )


def _is_away(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, requests.exceptions.SSLError):
            return False
        if isinstance(error, (requests.ConnectionError, requests.Timeout, RetryError)):
            return True  # the last one after many answers of 503 and the like
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def resumed(server: Server, run_id: str) -> Iterator[None]:
    """Make the run MLflow's active one, for those of its functions that know no other way.

    Afterwards it is as it was, running or ended.
    """
    before = server.client.get_run(run_id).info
    running = RunStatus.to_string(RunStatus.RUNNING)
    mlflow.start_run(run_id=run_id, log_system_metrics=False)
    try:
        yield
    finally:
        mlflow.end_run(running)
        if before.status != running:
            server.client.set_terminated(run_id, before.status, before.end_time)
