"""`lotlip jobs`: the verbs of the laptop on somebody's Ray cluster.

Each job has a folder in the store (`job_folder`), with its code, its resolved config and its logs,
so that it can be told of, and gone on with, when the cluster is no more.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ray.job_submission import JobStatus

from lotlip.data.store import Store
from lotlip.errors import ConfigError, LotlipError
from lotlip_platform.job_cluster import JobCluster
from lotlip_platform.job_environment import JOB, LOGS
from lotlip_platform.job_folder import DRIVER, Attempt, Job, JobFolder, Seen, job_ids, jobs_store
from lotlip_platform.log_parts import LogReader, sources

STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_S = 300
"""In which a job that is told to stop must have saved; then Ray kills it."""
SILENT_S = 60.0
"""A running job that has not been heard of for so long is taken for lost."""
_LOOK_S = 2.0


State = Literal["pending", "running", "succeeded", "failed", "stopped", "lost"]
_STATES: dict[JobStatus, State] = {
    JobStatus.PENDING: "pending",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a job stands."""

    job: Job
    attempt: Attempt
    """The newest."""
    state: State
    """`lost` if neither the cluster nor the store knows how it ended."""
    seen: Seen | None
    """What its runner last said."""
    note: str = ""
    """Why it failed before it began, or why its cluster wasn't asked."""


def resume(id: str, *, address: str = "", store: str = "") -> int:
    """Submit a job again, with the code and config that it had; the number of the attempt.

    Its verb goes on from what it saved. Raises: ConfigError if it runs, or is done.
    """
    folder = JobFolder(jobs_store(store), id)
    job, last = folder.read_job(), status(id, store=store)  # asked where it was submitted
    if last.state == "succeeded":
        raise ConfigError(f"job {id} has succeeded: there is nothing to go on with")
    if last.state in ("running", "pending"):
        raise ConfigError(f"job {id} is {last.state}: stop it first, with lotlip jobs stop")
    cluster = JobCluster(address or last.attempt.address)
    number = last.attempt.number + 1
    attempt(folder, job, cluster, folder.read_package(job), number)
    return number


def status(id: str, *, address: str = "", store: str = "") -> Status:
    """How a job stands, by its cluster if that answers, else by what the store has.

    Raises: ConfigError if there is no such job.
    """
    folder = JobFolder(jobs_store(store), id)
    job, attempt = folder.read_job(), _newest(folder)
    note, state = "", "lost"
    try:
        known = JobCluster(address or attempt.address).find(attempt.submission_id)
    except LotlipError as error:
        known, note = None, str(error)
    seen = folder.read_seen(attempt.number)  # after the cluster was asked: it says the last word
    if seen is not None and (seen.state != "running" or (known is None and _is_fresh(seen))):
        state = seen.state
    elif known is not None:
        state = _STATES[known.status]
        note = " ".join((known.message or "").split()) if state == "failed" else ""
    return Status(job=job, attempt=attempt, state=state, seen=seen, note=note)


def listed(*, store: str = "", most: int = 20) -> list[Status]:
    """How the newest jobs stand, the newest first, by what the store has: no cluster is asked."""
    jobs = jobs_store(store)
    found = []
    for id in reversed(job_ids(jobs)[-most:]):
        with contextlib.suppress(LotlipError):  # taken back meanwhile, or damaged
            found.append(_as_kept(JobFolder(jobs, id)))
    return found


def _as_kept(folder: JobFolder) -> Status:
    job, attempt = folder.read_job(), _newest(folder)
    seen = folder.read_seen(attempt.number)
    state: State = "pending" if seen is None else seen.state
    if seen is not None and seen.state == "running" and not _is_fresh(seen):
        state = "lost"
    return Status(job=job, attempt=attempt, state=state, seen=seen)


def stop(id: str, *, address: str = "", store: str = "") -> Status:
    """Have a job save and end, and wait for it. Raises: ConfigError if it doesn't run."""
    now = status(id, address=address, store=store)
    if now.state not in ("running", "pending"):
        raise ConfigError(f"job {id} is {now.state}: there is nothing to stop")
    cluster = JobCluster(address or now.attempt.address)
    cluster.stop(now.attempt.submission_id)
    cluster.wait(now.attempt.submission_id, STOP_S + SILENT_S)
    return status(id, address=address, store=store)


def log_lines(
    id: str,
    *,
    source: str = DRIVER,
    attempt: int = 0,
    follow: bool = False,
    address: str = "",
    store: str = "",
) -> Iterator[str]:
    """The log of a job's driver, or of one of its workers, as `rank-0003`.

    `attempt`: which; 0 the newest. With `follow` until the job ends, else as far as it goes.
    Raises: ConfigError if there is no such job or source.
    """
    folder = JobFolder(jobs_store(store), id)
    folder.read_job()
    number = attempt or _newest(folder).number
    logs = folder.logs(number)
    reader = LogReader(logs, source)
    while True:
        # First: what is written before it ends is read afterwards.
        is_over = not follow or _is_over(folder, number, address, store)
        lines = list(reader.lines(is_over=is_over))
        yield from lines
        if is_over:
            break
        time.sleep(_LOOK_S)
    if reader.is_empty:
        yield from _without_log(folder, number, source, logs, address)


def _without_log(
    folder: JobFolder, number: int, source: str, logs: Store, address: str
) -> Iterator[str]:
    """What there is to say where the store has nothing of a source."""
    if others := sources(logs):
        raise ConfigError(f"job {folder.id} has no log of {source}; it has {', '.join(others)}")
    of = [attempt for attempt in folder.attempts() if attempt.number == number]
    if not of:
        raise ConfigError(f"job {folder.id} has no attempt {number}")
    # Its runner never began: Ray knows why.
    yield from JobCluster(address or of[0].address).log(of[0].submission_id).splitlines()


def _is_over(folder: JobFolder, number: int, address: str, store: str) -> bool:
    seen = folder.read_seen(number)
    if seen is not None and (seen.state != "running" or _is_fresh(seen)):
        return seen.state != "running"
    return status(folder.id, address=address, store=store).state not in ("pending", "running")


def _newest(folder: JobFolder) -> Attempt:
    attempts = folder.attempts()
    if not attempts:
        raise ConfigError(f"job {folder.id} was being submitted when that was killed: submit anew")
    return attempts[-1]


def _is_fresh(seen: Seen) -> bool:
    return time.time() - seen.seen_s < SILENT_S


def attempt(folder: JobFolder, job: Job, cluster: JobCluster, package: bytes, number: int) -> None:
    """Submit a job, once more if `number` is above 1.

    Raises: ClusterError, DataError; ConfigError if somebody else has just done so.
    """
    id = job.id if number == 1 else f"{job.id}.{number}"
    arguments = [folder.jobs_uri, job.id, str(number)]
    environment = {
        **job.environment,
        JOB: job.id,
        LOGS: folder.logs(number).uri,
        STOP_VARIABLE: str(STOP_S),
    }
    folder.write_attempt(
        Attempt(number=number, address=cluster.address, submission_id=id, time_s=time.time())
    )
    folder.write_job(job)
    try:
        cluster.submit(
            # exec, or a shell would stand between Ray's signals and the runner.
            f"exec python -m lotlip_platform.job_runner {shlex.join(arguments)}",
            package=package,
            environment=environment,
            id=id,
            metadata={"submitted_by": job.by, "output": job.output},
        )
    except BaseException as error:
        if "already exists" in str(error):
            raise ConfigError(f"job {job.id} was just resumed by somebody else") from error
        with contextlib.suppress(LotlipError):  # it may have arrived, though no answer came back
            cluster.stop(id)
        with contextlib.suppress(LotlipError):
            folder.delete_attempt(number)
        raise
