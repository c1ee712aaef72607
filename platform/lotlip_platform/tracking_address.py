"""Where runs are recorded: the address of a tracking server, without the secrets in it.

Apart from `tracking`, so that workers, who never talk to MLflow, need not import it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from lotlip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RunTracking:
    """Where runs are recorded."""

    uri: str = ""
    """MLflow server. Empty: MLFLOW_TRACKING_URI, else a SQLite file in the lotlip home."""
    experiment: str = "lotlip"
    """MLflow experiment of the runs; created if it is new."""

    def __post_init__(self) -> None:
        if not self.experiment.strip():
            raise ConfigError("tracking.experiment must not be empty")
        if without_user(self.uri) != self.uri:
            raise ConfigError(
                "tracking.uri holds a user name, and configs are recorded: put it into "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig(RunTracking):
    """Where a run is recorded, and its model registered."""

    registered_model: str = "lotlip"
    """Name under which the model is registered; empty registers nothing."""


def is_run_id(name: str) -> bool:
    """Whether it looks like the id of an MLflow run."""
    return bool(re.fullmatch("[0-9a-f]{32}", name))


def without_user(uri: str) -> str:
    """The address alone. The user and password in `http://USER:PASSWORD@HOST` move to where MLflow
    looks for them, so that no message, process list or run folder shows them."""
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not at:
        return uri
    name, _, password = user.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(name)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return parts._replace(netloc=host).geturl()


def innermost(error: BaseException) -> str:
    """What happened on the wire, below what each library made of it."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return one_line(error, 200)


def one_line(error: BaseException, length: int = 300) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())[:length] or type(error).__name__
