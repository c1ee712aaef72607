"""What the store keeps of a job, so that it can be told of when its cluster is gone.

JOBS/packages/DIGEST.zip            the code of jobs; the same code once
JOBS/jobs/ID.json                   what was submitted
JOBS/ID/changes.patch               how its code differs from the commit, if it does
JOBS/ID/attempts/000N.json          where and when it was submitted; `resume` makes another attempt
JOBS/ID/states/000N.json            what its runner last said of that attempt
JOBS/ID/logs/000N/SOURCE/...        what that attempt wrote, see `log_parts`
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from lotlip.data.store import Store
from lotlip.errors import CheckpointError, ConfigError
from lotlip_platform.storage import open_store

DEFAULT_STORE = "s3://lotlip/jobs"
VARIABLE = "LOTLIP_JOBS"
"""Names another place where jobs are kept."""
DRIVER = "driver"
"""Whose log is that of the verb itself; its workers' are rank-0000 and so on."""
_STAMP = len("20260101-000000-abcd")  # that an id ends with

T = TypeVar("T", "Job", "Attempt", "Seen")
RunnerState = Literal["running", "succeeded", "failed", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was submitted."""

    id: str
    verb: str
    files: Mapping[str, str]
    """Contents by name of what the verb reads beside the store; the first is its config."""
    output: str
    """The folder that the job fills."""
    code_version: str
    package: str
    """Its digest."""
    environment: Mapping[str, str]
    """Variables set on the cluster, none of them secret."""
    by: str
    """Who submitted it, and where."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One time that a job was submitted."""

    number: int
    address: str
    """Of the cluster's dashboard."""
    submission_id: str
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the runner of an attempt last said."""

    state: RunnerState
    host: str
    began_s: float
    seen_s: float
    """When it said so; times are seconds since 1970 by its machine's clock."""
    exit_code: int | None = None
    last_line: str = ""
    """Of the log so far."""


def jobs_store(uri: str = "") -> Store:
    """Where jobs are kept: `uri`, else $LOTLIP_JOBS, else s3://lotlip/jobs. Raises: ConfigError."""
    return open_store(given_store(uri))


def given_store(uri: str) -> str:
    """The address of where jobs are kept, as it was given."""
    return uri or os.environ.get(VARIABLE) or DEFAULT_STORE


def job_ids(store: Store) -> list[str]:
    """Of all jobs, the newest last."""
    ids = [name.removeprefix("jobs/").removesuffix(".json") for name in store.list("jobs/")]
    return sorted(ids, key=lambda id: id[-_STAMP:])


class JobFolder:
    """Reads and writes what is kept of one job."""

    def __init__(self, jobs: Store, id: str) -> None:
        self.id = id
        self.store = jobs.at(id)
        self._jobs, self._name = jobs, f"jobs/{id}.json"

    @property
    def jobs_uri(self) -> str:
        return self._jobs.uri

    def exists(self) -> bool:
        return self._jobs.exists(self._name)

    def write_code(self, job: Job, package: bytes, changes: bytes) -> None:
        name = f"packages/{job.package}.zip"
        if not self._jobs.exists(name):
            self._jobs.write(name, package)
        if changes:
            self.store.write("changes.patch", changes)

    def write_job(self, job: Job) -> None:
        """Behind its first attempt: a job that is listed has one."""
        self._jobs.write(self._name, json.dumps(asdict(job), indent=1).encode())

    def read_job(self) -> Job:
        """Raises: ConfigError if there is none."""
        if not self.exists():
            raise ConfigError(
                f"there is no job {self.id} in {self._jobs.uri}: see lotlip jobs list, and give "
                f"--store or {VARIABLE} if it is kept elsewhere"
            )
        return _read(Job, self._jobs, self._name)

    def read_package(self, job: Job) -> bytes:
        return self._jobs.read(f"packages/{job.package}.zip")

    def write_attempt(self, attempt: Attempt) -> None:
        self._write(f"attempts/{attempt.number:04d}.json", asdict(attempt))

    def attempts(self) -> list[Attempt]:
        """The newest last; at least one of a job that was submitted."""
        return [_read(Attempt, self.store, name) for name in self.store.list("attempts/")]

    def write_seen(self, number: int, seen: Seen) -> None:
        self._write(f"states/{number:04d}.json", asdict(seen))

    def read_seen(self, number: int) -> Seen | None:
        """None if the runner has not begun."""
        name = f"states/{number:04d}.json"
        return _read(Seen, self.store, name) if self.store.exists(name) else None

    def silence_s(self, number: int) -> float:
        """Since the runner, which has begun, last said something."""
        return self.store.age_s(f"states/{number:04d}.json")

    def age_s(self, number: int) -> float:
        """Of an attempt."""
        return self.store.age_s(f"attempts/{number:04d}.json")

    def delete(self) -> None:
        """A job that could not be submitted; its package stays."""
        self._jobs.delete(self._name)
        self.store.delete("changes.patch")
        self.store.delete("attempts/0001.json")

    def logs(self, number: int) -> Store:
        return self.store.at(f"logs/{number:04d}")

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        self.store.write(name, json.dumps(content, indent=1).encode())


def _read(cls: type[T], store: Store, name: str) -> T:
    """What an object holds, without fields that a later version has added."""
    try:
        values = json.loads(store.read(name))
        return cls(**{key: values[key] for key in values if key in cls.__dataclass_fields__})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{store.uri}/{name} is damaged: {error}") from error
